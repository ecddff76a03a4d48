"""Selection by hand; and every input comes out, in the tar or as a row with its reason."""

import io
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.capfilt.describe import Candidate, ImageSpec, describe, prepare, select
from pipeline.capfilt.filters import FilterConfig, check_sample, script_share
from pipeline.capfilt.output import assemble
from pipeline.sample import Rejected, Sample
from pipeline.shards.parquet import read_parquet
from pipeline.shards.tar import read_span

SPECS = (ImageSpec(16), ImageSpec(8, crop=True))


def encoded(width: int = 20, height: int = 10, value: int = 9) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def sample(key: str, image: bytes | None = None, caption: str = "web", **more: object) -> Sample:
    values = {"captions": (caption,), "meta": {}, "ext": "png", **more}
    image = encoded() if image is None else image
    return Sample(f"uid-{key}", key, "s", "shard", image, caption, **values)


def captions(images: torch.Tensor, uids: Sequence[str]) -> list[list[str]]:
    assert len(images) == len(uids) == 4 and images.shape[1:] == (3, 16, 16)
    return [[f"{uid} {n}" for n in range(3)] for uid in uids]


def scores(images: torch.Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
    assert len(images) == len(texts) == 4 and images.shape[1:] == (3, 8, 8)
    return [[len(text) / 100 + index / 1000 for index, text in enumerate(row)] for row in texts]


def run(records: list, filters: FilterConfig | None = None, score=scores):
    kept, model_input = prepare(records, filters or FilterConfig(), *SPECS)
    out = assemble(kept, describe(model_input, captions, score, batch_size=4), keep=2)
    return out, read_parquet(out.parquet)


def candidates(*values: tuple[str, float, str]) -> list[Candidate]:
    return [Candidate(*value) for value in values]


def test_the_best_two_are_kept_in_rank_order():
    ranked, kept = select(
        candidates(("a", 0.1, "synthetic"), ("b", 0.3, "synthetic"), ("w", 0.2, "web")), keep=2
    )
    assert [c.text for c in ranked] == ["b", "w", "a"] and kept == [0, 1]


def test_ties_are_stable_and_a_text_is_kept_once():
    ranked, kept = select(
        candidates(
            ("x", 0.2, "synthetic"), ("x", 0.2, "synthetic"), ("x", 0.2, "web"),
            ("", 0.9, "synthetic"), ("y", 0.1, "synthetic"),
        ),
        keep=2,
    )  # fmt: skip
    assert [c.origin for c in ranked[1:4]] == ["synthetic", "synthetic", "web"]
    assert [ranked[i].text for i in kept] == ["x", "y"] and kept == [1, 4]
    assert select([], 2) == ([], [])


def test_human_captions_all_stay():
    _, kept = select(candidates(*[(t, 0.1, "human") for t in "abcde"]), keep=2)
    assert kept == [0, 1, 2, 3, 4]


def test_counts_in_equal_counts_out_and_records_are_complete():
    records = [
        sample("d"), sample("b", meta={"punsafe": 0.9}),
        sample("a", caption="a longer web caption"),
        Rejected("uid-r", "r", "s", "shard", "missing_file", "lost"),
        sample("html", b"<html>"), sample("empty", b""), sample("long", caption="x" * 10_000),
        sample("c"), sample("e"), sample("f", caption="  "),
    ]  # fmt: skip
    out, rows = run(records)
    assert [row.key for row in rows] == sorted(r.key for r in records)
    assert {row.key: row.reason for row in rows if row.status != "ok"} == {
        "b": "unsafe", "r": "missing_file", "html": "not_an_image", "empty": "empty_image",
        "long": "caption_too_long", "f": "caption_too_short",
    }  # fmt: skip
    assert (out.stats["n"], out.stats["ok"]) == (10, 4)
    assert (out.stats["filtered"], out.stats["failed"]) == (3, 3)
    assert out.stats["web_won"] == 1
    row = next(row for row in rows if row.key == "a")
    members = read_span(out.tar[row.offset : row.offset + row.length])
    assert list(members) == ["png", "json", "txt"] and members["png"] == encoded()
    assert members["txt"] == b"a longer web caption"
    record = json.loads(members["json"])
    assert record["kept"] == [0, 1] and record["captions"][0] == {
        "text": "a longer web caption", "score": 0.203, "origin": "web",
    }  # fmt: skip
    assert record["caption"] == "a longer web caption"
    assert (record["width"], record["height"], record["uid"]) == (20, 10, "uid-a")
    assert row.captions == tuple(c["text"] for c in record["captions"])
    assert next(r for r in rows if r.key == "long").web_caption == "x" * 10_000


def test_bytes_do_not_depend_on_the_order_of_arrival():
    records = [sample(key, encoded(value=ord(key))) for key in "abcdefg"]
    first, _ = run(records)
    second, _ = run(records[::-1])
    assert (first.tar, first.parquet) == (second.tar, second.parquet)


def test_human_sources_pass_without_synthetic_captions():
    out, (row,) = run([sample("a", human=True, captions=("one", "three", "one"))])
    assert row.origins == ("human",) * 3 and set(row.captions) == {"one", "three"}
    assert [row.captions[k] for k in row.kept] == ["three", "one"]
    assert out.stats["web_won"] == 0


def test_a_score_that_is_not_finite_fails_its_sample_only():
    def broken(images: torch.Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[float("nan")] * len(t) if "uid-b 0" in t else s
                for t, s in zip(texts, scores(images, texts), strict=True)]  # fmt: skip

    _, rows = run([sample(key) for key in "abc"], score=broken)
    assert [(row.status, row.reason) for row in rows] == [
        ("ok", ""), ("failed", "score_not_finite"), ("ok", ""),
    ]  # fmt: skip


def test_a_shard_without_a_single_image_is_still_a_shard():
    out, rows = run([sample("a", b"")])
    assert out.stats["ok"] == 0 and len(rows) == 1 and out.tar == b"\0" * 1024


def test_batches_are_padded_and_pixels_are_exact():
    seen = []

    def look(images: torch.Tensor, uids: Sequence[str]) -> list[list[str]]:
        seen.append((images[:, 0, 0, 0].tolist(), list(uids)))
        return captions(images, uids)

    _, model_input = prepare(
        [sample(k, encoded(value=ord(k))) for k in "fedcba"], FilterConfig(), *SPECS
    )
    describe(model_input, look, scores, batch_size=4)
    assert seen[0] == ([97, 98, 99, 100], [f"uid-{k}" for k in "abcd"])
    assert seen[1] == ([101, 102, 0, 0], ["uid-e", "uid-f", "", ""])
    assert model_input.for_scorer.dtype == np.uint8


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FilterConfig(min_side=11), "image_too_small"),
        (FilterConfig(max_aspect=1.9), "image_too_elongated"),
        (FilterConfig(max_pixels=199), "too_many_pixels"),
        (FilterConfig(min_caption=4), "caption_too_short"),
        (FilterConfig(max_caption=2), "caption_too_long"),
        (FilterConfig(min_side=10, max_aspect=2, max_pixels=200, max_caption=3), ""),
    ],
)
def test_filters_at_their_edges(config: FilterConfig, reason: str):
    _, (row,) = run([sample("a")], config)
    assert row.reason == reason


def test_the_nsfw_column_may_be_text_or_missing():
    config = FilterConfig()
    assert check_sample(config, sample("a", meta={"punsafe": "0.11"})) == "unsafe"
    for value in (0.1, None, "unknown"):
        assert check_sample(config, sample("a", meta={"punsafe": value})) is None


def test_of_several_captions_found_with_an_image_all_that_pass_compete():
    several = sample("a", caption="x" * 99, captions=("x" * 99, "cat", "a dog"))
    _, (row,) = run([several], FilterConfig(max_caption=9))
    assert row.web_caption == "cat" and row.origins.count("web") == 2
    assert {"cat", "a dog"} < set(row.captions) and "x" * 99 not in row.captions
    _, (none,) = run([several], FilterConfig(max_caption=2))
    assert none.reason == "caption_too_long" and none.web_caption == "x" * 99


def test_samples_that_a_filter_could_not_look_at_are_counted():
    """A number that is none, or one of 400 digits, is no way past a filter either."""
    config = FilterConfig(languages=("en",))
    records = [
        sample("a", meta={"punsafe": 0.01, "NSFW": "UNLIKELY", "lang": "en"}),
        sample("b", meta={"punsafe": float("nan"), "nsfw": "UNLIKELY"}),
        sample("c", meta={"punsafe": "?", "similarity": 0.3}),
        sample("d", human=True),
        sample("e", meta={"punsafe": 10**400}),
        Rejected("uid-f", "f", "s", "shard", "no_image"),
    ]
    out, rows = run(records, config)
    assert [row.reason for row in rows] == ["", "", "", "", "unsafe", "no_image"]
    assert out.stats["unlooked"] == {"LANGUAGE": 3, "NSFW": 2, "punsafe": 2}
    assert "unlooked" not in run([records[0], records[3]], config)[0].stats


@pytest.mark.parametrize(
    ("config", "fields", "reason"),
    [
        (FilterConfig(), {"meta": {"NSFW": "NSFW"}}, "unsafe"),
        (FilterConfig(), {"meta": {"NSFW": "UNSURE"}}, None),
        (FilterConfig(drop_nsfw=("NSFW", "UNSURE")), {"meta": {"NSFW": "UNSURE"}}, "unsafe"),
        (FilterConfig(min_similarity=0.3), {"meta": {"similarity": 0.29}}, "low_similarity"),
        (FilterConfig(min_similarity=0.3), {"meta": {"similarity": "0.31"}}, None),
        (FilterConfig(min_similarity=0.3), {}, None),
        (FilterConfig(languages=("en",)), {"meta": {"LANGUAGE": "de"}}, "language"),
        (FilterConfig(languages=("en", "ZH")), {"meta": {"LANGUAGE": "zh-Latn"}}, None),
        (FilterConfig(languages=("en",)), {"meta": {"LANGUAGE": None, "lang": "en"}}, None),
        (FilterConfig(languages=("en",)), {"meta": {"LANGUAGE": float("nan")}}, None),
        (FilterConfig(scripts=("LATIN",)), {"caption": "кошка на окне, cat"}, "script"),
        (FilterConfig(scripts=("LATIN",)), {"caption": "Éclair № 7, 12 €"}, None),
        (FilterConfig(scripts=("LATIN",)), {"caption": "2020 (12)"}, None),
        (FilterConfig(scripts=("LATIN", "CYRILLIC")), {"caption": "кошка, cat"}, None),
        (FilterConfig(scripts=("LATIN",)), {"caption": "кошка", "human": True}, None),
        (FilterConfig(languages=("en",)), {"meta": {"lang": "de"}, "human": True}, "language"),
    ],
)
def test_filters_by_column_and_by_script(config: FilterConfig, fields: dict, reason: str | None):
    assert check_sample(config, sample("a", **fields)) == reason


def test_scripts_have_names_and_shares_are_of_letters():
    assert script_share("ab вг 12", ("LATIN",)) == 0.5
    assert script_share("東京タワー", ("CJK", "KATAKANA")) == 1
    with pytest.raises(ValueError, match="LATEIN: choose from"):
        FilterConfig(scripts=("LATEIN",))
    with pytest.raises(ValueError, match="min_script"):
        FilterConfig(min_script=1.5)


def test_lavis_layout_is_a_plain_list_and_the_parquet_has_the_rest():
    kept, model_input = prepare(
        [sample("a", caption="a longer web caption")], FilterConfig(), *SPECS
    )
    described = describe(model_input, captions, scores, batch_size=4)
    out, full = (assemble(kept, described, 2, layout) for layout in ("lavis", "full"))
    (row,) = read_parquet(out.parquet)
    members = read_span(out.tar[: row.length])
    assert list(members) == ["jpg", "json", "txt"] and members["jpg"] == encoded()
    listed = json.loads(members["json"])
    assert listed == ["a longer web caption", "uid-a 2", "uid-a 1", "uid-a 0"]
    assert members["txt"].decode() == listed[0]
    (other,) = read_parquet(full.parquet)
    assert (row.captions, row.scores, row.kept) == (other.captions, other.scores, other.kept)


def test_odd_fields_of_the_source_survive_as_json():
    meta = {"similarity": float("nan"), "when": np.datetime64("2020-01-01"), "list": (1, 2.5)}
    out, (row,) = run([sample("a", meta=meta)])
    record = json.loads(read_span(out.tar[: row.length])["json"])
    assert record["meta"] == {"similarity": None, "when": "2020-01-01", "list": [1, 2.5]}
