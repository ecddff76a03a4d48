"""Tars and parquets: the same bytes always, readable by everybody, damage named."""

import io
import os
import tarfile
from pathlib import Path

import pytest
import webdataset

from pipeline.shards.parquet import SampleRow, read_parquet, write_parquet
from pipeline.shards.tar import TarError, index_tar, read_span, split_name, walk_tar, write_tar

SAMPLES = [
    ("a", {"jpg": b"x" * 700, "json": b"{}\n", "txt": b"one"}),
    ("folder/" + "b" * 150, {"png": b"", "txt": "zwölf".encode()}),
    ("ü", {"jpg": b"z" * 512}),
]


def test_spans_and_index_agree_and_bring_everything_back(tmp_path: Path):
    data, spans = write_tar(SAMPLES)
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    assert index_tar(path) == [(key, *span) for (key, _), span in zip(SAMPLES, spans, strict=True)]
    for (_, members), (offset, length) in zip(SAMPLES, spans, strict=True):
        assert read_span(data[offset : offset + length]) == members


def test_bytes_are_fixed_and_tarfile_reads_them():
    data, _ = write_tar(SAMPLES)
    assert data == write_tar(SAMPLES)[0]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
    assert infos[0].name == "a.jpg" and infos[3].name == "folder/" + "b" * 150 + ".png"
    assert {(i.mtime, i.uid, i.gid, i.mode, i.uname) for i in infos} == {(0, 0, 0, 0o644, "")}


def test_the_webdataset_library_reads_them(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(write_tar(SAMPLES)[0])
    read = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [key for key, _ in SAMPLES]
    assert read[0]["jpg"] == b"x" * 700 and read[1]["txt"].decode() == "zwölf"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars_are_indexed(tmp_path: Path, form: int):
    name = "d/" * 30 + "long" * 20 if form == tarfile.USTAR_FORMAT else "ä" * 200
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        tar.addfile(tarfile.TarInfo("folder"), None)
        for member in (f"{name}.jpg", f"{name}.txt", "b.jpg"):
            info = tarfile.TarInfo(member)
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member.encode()[: info.size].ljust(info.size)))
    index = index_tar(path)
    assert [key for key, _, _ in index][-2:] == [name, "b"]
    span = path.read_bytes()[index[-1][1] :][: index[-1][2]]
    assert read_span(span) == {"jpg": b"b.jpg"}


def test_damage_is_named_after_all_whole_members():
    data, _ = write_tar(SAMPLES)

    def read(damaged: bytes) -> tuple[list[str], str]:
        names = []
        with pytest.raises(TarError) as broken:
            for member in walk_tar(io.BytesIO(damaged), len(damaged)):
                names.append(member.name)
        return names, broken.value.reason

    assert read(b"") == ([], "empty_tar")
    assert read(data[:600]) == ([], "truncated_tar")
    assert read(data[:1600]) == (["a.jpg"], "truncated_tar")
    assert read(data[:1536] + b"?" * 2000) == (["a.jpg"], "corrupt_tar")
    assert read(b"<html>" * 200) == ([], "corrupt_tar")
    assert read(os.urandom(4096))[0] == []


def test_index_names_the_broken_file(tmp_path: Path):
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(ValueError, match=r"bad\.tar.*corrupt_tar"):
        index_tar(tmp_path / "bad.tar")


def test_keys_that_would_be_split_or_lost_are_refused():
    with pytest.raises(ValueError, match="unique"):
        write_tar([("a", {"txt": b""}), ("a", {"txt": b""})])
    with pytest.raises(ValueError, match="dot"):
        write_tar([("a.b", {"txt": b""})])
    assert split_name("x.y/a.JPG") == ("x.y/a", "jpg")
    assert split_name("a.seg.png") == ("a", "seg.png")


def test_parquet_round_trip_and_bytes():
    rows = [
        SampleRow("0" * 32, "a", "s", "ok", "", 3, 4, "ab", "web", ("x", "web"), (0.5, 0.25),
            ("synthetic", "web"), (0, 1), 0, 1536),
        SampleRow("1" * 32, "b", "s", "failed", "not_an_image"),
    ]  # fmt: skip
    assert read_parquet(write_parquet(rows)) == rows
    assert write_parquet(rows) == write_parquet(rows)
    assert read_parquet(write_parquet([])) == []
