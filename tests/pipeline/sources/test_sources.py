"""Every kind of source, and for every bad input its reason and untouched neighbours."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.sample import Rejected, Sample, make_uid
from pipeline.sources.open import KNOWN, open_source


def png(color: tuple[int, int, int] = (1, 2, 3)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]]) -> bytes:
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def trio(key: str, **fields: object) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.png", png()),
        (f"{key}.json", json.dumps({"key": key, **fields}).encode()),
        (f"{key}.txt", f"caption of {key}".encode()),
    ]


def read(url: Path, **options: object) -> list[Sample | Rejected]:
    source = open_source(str(url), **options)
    return [record for shard in source.shards() for record in source.reader().read(shard)]


def reasons(records: list[Sample | Rejected]) -> dict[str, str]:
    return {r.key: r.reason if isinstance(r, Rejected) else "" for r in records}


def test_img2dataset_tars(tmp_path: Path):
    tar(tmp_path / "00000.tar", trio("000000000", punsafe=0.01) + trio("000000001"))
    tar(tmp_path / "00001.tar", trio("000010000"))
    columns = {"key": ["000000000", "000000001"], "similarity": [0.3, None]}
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    first, second, third = read(tmp_path, name="web")
    assert isinstance(first, Sample) and isinstance(third, Sample)
    assert (first.key, first.caption, first.captions) == (
        "000000000", "caption of 000000000", ("caption of 000000000",),
    )  # fmt: skip
    assert first.image == png() and first.ext == "png" and not first.human
    assert first.meta["punsafe"] == 0.01 and first.meta["similarity"] == 0.3
    assert first.uid == make_uid("web", "00000.tar", "000000000")
    assert len({first.uid, second.uid, third.uid}) == 3


def test_plain_tars_and_captions_from_json(tmp_path: Path):
    data = json.dumps({"caption": "from json"}).encode()
    tar(tmp_path / "a.tar", [("x/1.jpg", png()), ("x/1.json", data), ("x/2.jpg", png())])
    records = read(tmp_path / "a.tar")
    assert reasons(records) == {"x/1": "", "x/2": "no_caption"}
    assert isinstance(records[0], Sample) and records[0].caption == "from json"


def test_bad_members_have_reasons_and_neighbours_stay(tmp_path: Path):
    members = [
        *trio("good1"),
        ("noimage.txt", b"x"),
        ("latin.png", png()), ("latin.txt", "Gr\u00fcn".encode("latin-1")),
        ("list.png", png()), ("list.json", b'{"caption": ["a", 1]}'),
        ("badjson.png", png()), ("badjson.json", b"{nope"), ("badjson.txt", b"t"),
        ("../../etc/evil.png", png()), ("../../etc/evil.txt", b"t"),
        ("/abs.png", png()), ("/abs.txt", b"t"),
        ("good1.png", png()), ("good1.txt", b"again"),
        *trio("good2"),
    ]  # fmt: skip
    path = tmp_path / "a.tar"
    tar(path, members)
    with tarfile.open(path, "a") as out:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    records = read(path)
    assert Counter(r.reason for r in records if isinstance(r, Rejected)) == {
        "no_image": 1,
        "caption_not_utf8": 1,
        "caption_not_text": 1,
        "bad_json": 1,
        "unsafe_name": 2,
        "duplicate_key": 1,
        "not_a_regular_file": 1,
    }
    assert [r.key for r in records if isinstance(r, Sample)] == ["good1", "good2"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "truncated_tar"),
        (lambda data: data[:5000] + b"\x01" * 5000, "corrupt_tar"),
        (lambda data: b"", "empty_tar"),
        (lambda data: b"\0" * 10_240, "empty_tar"),
        (lambda data: b"<html>404</html>" * 99, "corrupt_tar"),
    ],
)
def test_a_damaged_tar_keeps_its_whole_samples(tmp_path: Path, damage, reason: str):
    data = tar(tmp_path / "a.tar", [m for i in range(6) for m in trio(f"{i}")])
    tar(tmp_path / "b.tar", trio("neighbour"))
    (tmp_path / "a.tar").write_bytes(damage(data))
    records = read(tmp_path)
    good = [r for r in records if isinstance(r, Sample)]
    assert good[-1].key == "neighbour"
    assert all(r.meta["key"] == r.key and r.caption.endswith(r.key) for r in good)
    assert reasons(records)["a.tar"] == reason
    if len(damage(data)) > 5000 and damage(data)[:1] == b"0":
        assert len(good) > 1


def test_an_unreadable_parquet_rejects_only_what_depended_on_it(tmp_path: Path):
    tar(tmp_path / "a.tar", [*trio("1"), ("2.png", png()), ("2.txt", b"t")])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    assert reasons(read(tmp_path)) == {"1": "", "2": "unreadable_parquet"}


def test_folder_with_jsonl(tmp_path: Path):
    for name in ("a.png", "b.c.png", "sub/d.png", "unlisted.png", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    lines = [
        b'{"file": "a.png", "caption": "A", "extra": 1}', b"",
        b'{"image": "b.c.png", "text": "B"}', b'{"path": "sub/d.png", "caption": "D"}',
        b'{"file": "gone.png", "caption": "G"}', b'{"file": "../x.png", "caption": "x"}',
        b'{"file": "a.png", "caption": "again"}', b'{"caption": "lost"}', b"not json",
        b'\xff\xfe{"file": "z.png"}', b'{"file": "n.png", "caption": 7}', b"[1]",
        b'{"file": "o.png"}', b'{"file": "s.png", "caption": "\\ud800"}',
    ]  # fmt: skip
    (tmp_path / "captions.jsonl").write_bytes(b"\n".join(lines))
    records = read(tmp_path, shard_size=100)
    found = Counter(r.reason if isinstance(r, Rejected) else "ok" for r in records)
    assert found == {
        "ok": 3, "missing_file": 1, "unsafe_name": 1, "no_image_field": 1,
        "bad_json": 2, "line_not_utf8": 1, "caption_not_text": 1, "no_caption": 1,
        "caption_not_utf8": 1, "no_line": 1,
    }  # fmt: skip
    good = [r for r in records if isinstance(r, Sample)]
    assert [r.key for r in good] == ["a", "b_c", "sub/d"]
    assert good[0].meta["extra"] == 1 and good[0].ext == "png"
    assert good[0].captions == ("A", "again")
    source = open_source(str(tmp_path), shard_size=4)
    assert [shard.size for shard in source.shards()] == [4, 4, 4, 1]
    assert len({shard.etag for shard in source.shards()}) == 4


def test_coco_json(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(png())
    data = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [
            {"image_id": 1, "caption": "one"},
            {"image_id": 1, "caption": "uno"},
            {"image_id": 9, "caption": "nobody"},
        ],
    }
    (tmp_path / "captions_x.json").write_text(json.dumps(data))
    records = read(tmp_path / "captions_x.json", images=str(tmp_path / "images"))
    assert reasons(records) == {"1": "", "2": "no_caption", "(image 9)": "no_image"}
    first = records[0]
    assert isinstance(first, Sample) and first.human and first.captions == ("one", "uno")
    assert first.source == "captions_x"


def test_visual_genome(tmp_path: Path):
    for place in ("VG_100K/1.jpg", "VG_100K_2/2.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(png())
    box = {"x": 1, "y": 2, "width": 3, "height": 4, "region_id": 5}
    data = [
        {"id": 2, "regions": [{**box, "image_id": 2, "phrase": "a cat on a table."},
                              {**box, "image_id": 2, "phrase": " "},
                              {**box, "image_id": 2, "phrase": "black tail"}]},
        {"image_id": 1, "regions": [{**box, "phrase": "grass", "synsets": [{"entity_name": "x"}]}]},
        {"id": 3, "regions": [{**box, "phrase": "gone"}]},
        {"id": 4, "regions": []},
        {"id": "../../x", "regions": [{**box, "phrase": "evil"}]},
        {"id": 1, "regions": [{**box, "phrase": "again"}]},
        {"what": 1},
    ]  # fmt: skip
    (tmp_path / "region_descriptions.json").write_text(json.dumps(data))
    records = read(tmp_path, name="vg")
    assert reasons(records) == {
        "VG_100K_2/2": "", "VG_100K/1": "duplicate_key", "3": "missing_file", "4": "no_caption",
        "(image ../../x)": "unsafe_name", '(record {"what": 1})': "no_image_field",
    }  # fmt: skip
    good = [r for r in records if isinstance(r, Sample)]
    assert [r.captions for r in good] == [("a cat on a table.", "black tail"), ("grass",)]
    assert all(r.human and r.source == "vg" for r in good)
    named = read(tmp_path / "region_descriptions.json", images=str(tmp_path))
    assert [r.key for r in named] == [r.key for r in records]


def test_lists_of_pairs_as_lavis_has_them(tmp_path: Path):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "a.jpg").write_bytes(png())
    data = [
        {"image": "val2014/a.jpg", "caption": "one", "image_id": "coco_1"},
        {"image": "val2014/b.jpg", "caption": ["two", "zwei"]},
        {"image": "val2014/a.jpg", "caption": "uno", "image_id": "coco_1"},
        {"image": "val2014/c.jpg", "caption": "\ud800"}, {"image": "val2014/d.jpg"},
        {"caption": "nothing"},
    ]  # fmt: skip
    (tmp_path / "coco_karpathy_train.json").write_text(json.dumps(data))
    records = read(tmp_path / "coco_karpathy_train.json", name="coco")
    assert reasons(records) == {
        "val2014/a": "", "val2014/b": "missing_file", "val2014/c": "caption_not_utf8",
        "val2014/d": "no_caption", "(pair 5)": "no_image_field",
    }  # fmt: skip
    (first,) = [r for r in records if isinstance(r, Sample)]
    assert first.human and first.captions == ("one", "uno")


def test_folders_of_folders_of_tars(tmp_path: Path):
    for part in ("part-1", "part-0"):
        (tmp_path / part).mkdir()
        tar(tmp_path / part / "00000.tar", trio("1"))
        columns = {"key": ["1"], "punsafe": [0.02]}
        pq.write_table(pa.table(columns), tmp_path / part / "00000.parquet")
    one, two = read(tmp_path, name="laion")
    assert isinstance(one, Sample) and isinstance(two, Sample)
    assert (one.shard, two.shard) == ("part-0/00000.tar", "part-1/00000.tar")
    assert one.uid != two.uid and one.meta["punsafe"] == 0.02


def test_names_of_the_papers_sources_say_who_wrote_the_captions(tmp_path: Path):
    tar(tmp_path / "00000.tar", trio("000000000", NSFW="UNLIKELY", similarity=0.31))
    (tmp_path / "a.json").write_text('[{"image": "a.jpg", "caption": "x"}]')
    for name, human in (("laion", False), ("cc12m", False), ("coco", True), (None, False)):
        (record,) = read(tmp_path, name=name)
        assert isinstance(record, Sample) and record.human == human
        assert record.meta["similarity"] == 0.31
    with pytest.raises(ValueError, match=r"--source sbu: .* is a JSON list .* it comes as tars"):
        open_source(str(tmp_path / "a.json"), name="sbu")
    assert set(KNOWN) == {"coco", "vg", "cc3m", "cc12m", "sbu", "laion"}


def test_what_cannot_be_read_at_all_is_one_clear_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no \.tar and no \.jsonl"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match="pipe"):
        open_source("pipe:cat /etc/passwd")
    (tmp_path / "a.jsonl").write_text('{"url": "x"}\n')
    with pytest.raises(ValueError, match="image field"):
        open_source(str(tmp_path))
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(ValueError, match="name the file"):
        open_source(str(tmp_path))
    for content in ('{"images": 3}', '{"images": 3, "annotations": 4}', "[]", '[{"x": 1}]', "[1]"):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(ValueError, match="COCO"):
            open_source(str(tmp_path / "c.json"))
    (tmp_path / "c.json").write_text("{nope")
    with pytest.raises(ValueError, match="is no JSON"):
        open_source(str(tmp_path / "c.json"))
    with pytest.raises(FileNotFoundError, match="--images"):
        open_source(str(tmp_path / "c.json"), images=str(tmp_path / "no"))
