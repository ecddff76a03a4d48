"""Every bad input of the specification: its reason in the parquet, its neighbours as ever."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.capfilt.describe import describe, prepare
from pipeline.capfilt.filters import FilterConfig
from pipeline.capfilt.output import assemble
from pipeline.shards.parquet import SampleRow, read_parquet
from pipeline.shards.tar import index_tar
from pipeline.sources.open import open_source
from tests.pipeline.capfilt.test_describe import SPECS, captions, scores
from tests.pipeline.sources.test_sources import tar
from tests.pipeline.test_damaged_images import avif_without_planes, tiff_with_a_broken_tag
from tests.pipeline.test_images import encode, png_claiming

GOOD = encode(Image.new("RGB", (20, 10), (9, 9, 9)))
GREY16 = Image.fromarray(np.full((10, 20), 25_700, dtype=np.uint16))
PALETTE = Image.new("P", (20, 10), 1)
RED = Image.new("RGB", (20, 10), "red")
ANIMATED = encode(Image.new("RGB", (20, 10)), "GIF", save_all=True, append_images=[RED])

# what comes, (members), the reason in the parquet ("" is kept)
INPUTS: list[tuple[str, list[tuple[str, bytes]], str]] = [
    ("html", [("jpg", b"<!DOCTYPE html><html></html>"), ("txt", b"t")], "not_an_image"),
    ("zero", [("jpg", b""), ("txt", b"t")], "empty_image"),
    ("half", [("png", encode(Image.effect_noise((90, 90), 50))[:2000]), ("txt", b"t")],
     "truncated_image"),
    ("cmyk", [("jpg", encode(Image.new("CMYK", (20, 10)), "JPEG")), ("txt", b"t")], ""),
    ("grey16", [("png", encode(GREY16)), ("txt", b"t")], ""),
    ("palette", [("png", encode(PALETTE)), ("txt", b"t")], ""),
    ("rgba", [("png", encode(Image.new("RGBA", (20, 10)))), ("txt", b"t")], ""),
    ("avif", [("avif", avif_without_planes()), ("txt", b"t")], "undecodable_image"),
    ("tiff", [("tif", tiff_with_a_broken_tag()), ("txt", b"t")], "undecodable_image"),
    ("line", [("png", encode(Image.new("RGB", (1, 60_000)))), ("txt", b"t")], ""),
    ("animated", [("gif", ANIMATED), ("txt", b"t")], ""),
    ("bomb", [("png", png_claiming(60_000, 60_000)), ("txt", b"t")], "too_many_pixels"),
    ("speechless", [("png", GOOD)], "no_caption"),
    ("blank", [("png", GOOD), ("txt", b" \n")], "caption_too_short"),
    ("novel", [("png", GOOD), ("txt", b"x" * 10_000)], "caption_too_long"),
    ("latin1", [("png", GOOD), ("txt", "Gr\u00fcn".encode("latin-1"))], "caption_not_utf8"),
    ("imageless", [("txt", b"t")], "no_image"),
    ("badjson", [("png", GOOD), ("json", b"{nope"), ("txt", b"t")], "bad_json"),
    ("../../../etc/cron.d/evil", [("png", GOOD), ("txt", b"t")], "unsafe_name"),
    ("/root/evil", [("png", GOOD), ("txt", b"t")], "unsafe_name"),
    ("pickled", [("png", GOOD), ("pyd", b"cos\nsystem\n(S'touch x'\ntR."), ("txt", b"t")], ""),
]  # fmt: skip


def process(url: Path) -> list[list[SampleRow]]:
    """Every shard through all of CapFilt but the models; checks what holds always."""
    source = open_source(str(url), name="bad")
    found = []
    for shard in source.shards():
        records = list(source.reader().read(shard))
        kept, model_input = prepare(records, FilterConfig(), *SPECS)
        out = assemble(kept, describe(model_input, captions, scores, batch_size=4), keep=2)
        rows = read_parquet(out.parquet)
        assert len(rows) == len(records) == out.stats["n"]
        counted = out.stats["ok"] + out.stats["filtered"] + out.stats["failed"]
        assert counted == out.stats["n"]
        assert out.stats["reasons"] == Counter(row.reason for row in rows if row.reason)
        found.append(rows)
    return found


@pytest.fixture(scope="module")
def members() -> list[tuple[str, bytes]]:
    """A good sample before, between and behind the bad ones, and one of them twice."""
    made = []
    for number, (key, parts, _) in enumerate(INPUTS):
        made += [(f"{key}.{ext}", data) for ext, data in parts]
        made += [(f"good{number:02d}.png", GOOD), (f"good{number:02d}.txt", b"a good neighbour")]
    return [*made, ("good00.png", GOOD), ("good00.txt", b"a second one of its name")]


def test_every_bad_input_has_its_reason_and_its_neighbours_stay(tmp_path: Path, members: list):
    tar(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar", "a") as out:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    (rows,) = process(tmp_path)
    said = [(row.key, row.reason) for row in rows]
    expected = [(key, reason) for key, _, reason in INPUTS]
    expected += [(f"good{number:02d}", "") for number in range(len(INPUTS))]
    expected += [("good00", "duplicate_key"), ("link.png", "not_a_regular_file")]
    assert sorted(said) == sorted(expected)
    kept = [row for row in rows if row.status == "ok"]
    assert all(row.length > 0 and len(row.captions) == 4 and row.sha256 for row in kept)
    neighbours = {row.captions for row in kept if row.key.startswith("good")}
    assert all("a good neighbour" in texts for texts in neighbours)
    assert len(neighbours) == len(INPUTS)  # each with captions of its own
    novel = next(row for row in rows if row.key == "novel")
    assert novel.status == "filtered" and novel.web_caption == "x" * 10_000


def test_neighbours_are_what_they_are_without_the_bad_ones(tmp_path: Path, members: list):
    """To the byte: the same rows come out of a tar that never had any bad sample."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    tar(tmp_path / "with" / "a.tar", members)
    tar(tmp_path / "without" / "a.tar", [m for m in members[:-2] if m[0].startswith("good")])
    (found,), (expected,) = process(tmp_path / "with"), process(tmp_path / "without")
    plain = [(r.uid, r.key, r.sha256, r.captions, r.scores, r.kept) for r in expected]
    mine = [r for r in found if r.key.startswith("good") and r.status == "ok"]
    assert [(r.uid, r.key, r.sha256, r.captions, r.scores, r.kept) for r in mine] == plain


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "empty_tar"),
        (lambda data: b"\0" * 1024, "empty_tar"),
        (lambda data: data[:3000], "truncated_tar"),
        (lambda data: data[:3072] + b"\x07" * 512 + data[3584:], "corrupt_tar"),
        (lambda data: b"<html>502 Bad Gateway</html>" * 40, "corrupt_tar"),
    ],
)
def test_a_damaged_tar_is_a_row_and_the_next_tar_is_untouched(
    tmp_path: Path, members: list, damage, reason: str
):
    good = [m for m in members[:-2] if m[0].startswith("good")]
    data = tar(tmp_path / "a.tar", good)
    tar(tmp_path / "b.tar", good)
    (tmp_path / "a.tar").write_bytes(damage(data))
    broken, whole = process(tmp_path)
    assert next(row.reason for row in broken if row.key == "a.tar") == reason
    assert all(row.status == "ok" for row in whole) and len(whole) == len(INPUTS)


def test_an_unreadable_parquet_is_a_reason_where_its_columns_were_needed(tmp_path: Path):
    told = json.dumps({"punsafe": 0.01}).encode()
    tar(tmp_path / "a.tar", [("1.png", GOOD), ("1.txt", b"t"), ("1.json", told),
                             ("2.png", GOOD), ("2.txt", b"t")])  # fmt: skip
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none PAR1")
    (rows,) = process(tmp_path)
    assert [(row.key, row.reason) for row in rows] == [("1", ""), ("2", "unreadable_parquet")]


def test_names_in_the_output_stay_inside(tmp_path: Path, members: list):
    """Whatever names come in, nothing that comes out can leave the folder it is unpacked in."""
    tar(tmp_path / "a.tar", members)
    source = open_source(str(tmp_path), name="bad")
    kept, model_input = prepare(source.read(source.shards()[0]), FilterConfig(), *SPECS)
    out = assemble(kept, describe(model_input, captions, scores, batch_size=4), keep=2)
    (tmp_path / "out.tar").write_bytes(out.tar)
    keys = [key for key, _, _ in index_tar(tmp_path / "out.tar")]
    with tarfile.open(fileobj=io.BytesIO(out.tar)) as made:
        names = made.getnames()
    assert keys and not [name for name in [*keys, *names] if name.startswith("/") or ".." in name]
