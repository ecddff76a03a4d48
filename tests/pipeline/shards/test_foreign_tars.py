"""Tars as others leave them: out of order, joined, compressed, from macOS, beside a parquet."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage.cache import NodeCache
from pipeline.sample import Rejected, Sample
from pipeline.shards.reading import open_shards
from pipeline.shards.tar import TarError, index_tar, walk_tar
from pipeline.sources.open import open_source
from tests.pipeline.loading.test_loader import batches, jpeg
from tests.pipeline.sources.test_sources import png, read, reasons, tar, trio

MAC = b"\0\5\x16\7" + b"\0" * 60


def pair(key: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png()), (f"{key}.txt", f"caption of {key}".encode())]


def keys(records: list[Sample | Rejected]) -> list[str]:
    """The keys of samples that are whole: each with its own caption."""
    assert all(isinstance(record, Sample) for record in records), reasons(records)
    assert all(record.caption == f"caption of {record.key}" for record in records)
    return [record.key for record in records]


# ------------------------------------------------------------------------------- order


def test_members_in_any_order_are_put_together(tmp_path: Path):
    members = [member for key in "abc" for member in trio(key)]
    by_suffix = sorted(members, key=lambda member: member[0].rpartition(".")[2])
    tar(tmp_path / "0.tar", by_suffix)
    tar(tmp_path / "1.tar", members[::-1])
    tar(tmp_path / "2.tar", [members[0], *members[3:], *members[1:3]])
    assert keys(read(tmp_path)) == [*"abc", *"cba", *"abc"]


def test_a_cut_tar_out_of_order_keeps_only_whole_samples(tmp_path: Path):
    members = sorted((m for key in "abc" for m in trio(key)), key=lambda m: m[0][-3:])
    data = tar(tmp_path / "0.tar", members)
    end = data.index(b"c.txt")  # json and png of all three, txt of a and b
    (tmp_path / "0.tar").write_bytes(data[: end + 100])
    said = reasons(read(tmp_path))
    assert said == {"a": "", "b": "", "c": "truncated_tar", "0.tar": "truncated_tar"}


def test_a_key_that_comes_twice_is_a_row_wherever_it_comes(tmp_path: Path):
    members = [*pair("a"), *pair("b"), ("a.png", png((9, 9, 9))), ("a.txt", b"another")]
    tar(tmp_path / "0.tar", members)
    first, last, again = read(tmp_path)
    assert keys([first, last]) == ["a", "b"]
    assert isinstance(again, Rejected) and (again.key, again.reason) == ("a", "duplicate_key")


def test_every_image_of_a_tar_has_a_row(tmp_path: Path):
    tar(tmp_path / "0.tar", [("same.png", png()), ("same.jpg", png()), ("same.txt", b"t"),
                             ("IMG.1.jpg", png()), ("IMG.2.jpg", png()),
                             ("IMG.txt", b"t")])  # fmt: skip
    assert reasons(read(tmp_path)) == {
        "same": "", "same.jpg": "second_image", "IMG.1.jpg": "dot_in_name",
        "IMG.2.jpg": "dot_in_name",
    }  # fmt: skip


# ---------------------------------------------------------------------- what follows the end


def test_tars_that_were_joined_are_read_to_the_last(tmp_path: Path):
    one, two = tar(tmp_path / "x", pair("a")), tar(tmp_path / "y", pair("b"))
    (tmp_path / "0.tar").write_bytes(one + two)
    (tmp_path / "1.tar").write_bytes(one + b"\0" * (6_000 * 512) + two)
    (tmp_path / "2.tar").write_bytes(one[: 4 * 512] + b"\0" * 512 + two)  # one block of zeros
    assert keys(read(tmp_path)) == ["a", "b"] * 3
    assert [key for key, _, _ in index_tar(tmp_path / "0.tar")] == ["a", "b"]


@pytest.mark.parametrize("garbage", [b"x", b"<html>" * 400, b"\0" * 700 + b"end", b"\xff" * 512])
def test_other_bytes_behind_the_end_are_a_row(tmp_path: Path, garbage: bytes):
    data = tar(tmp_path / "0.tar", pair("a"))
    (tmp_path / "0.tar").write_bytes(data + garbage)
    records = read(tmp_path)
    assert keys(records[:1]) == ["a"]
    assert reasons(records[1:]) == {"0.tar": "bytes_after_end"}
    with pytest.raises(ValueError, match=r"0\.tar: bytes_after_end: .* is no archive"):
        index_tar(tmp_path / "0.tar")


def test_zeros_behind_the_end_are_nothing(tmp_path: Path):
    data = tar(tmp_path / "0.tar", pair("a"))
    (tmp_path / "0.tar").write_bytes(data + b"\0" * 2_000_123)
    assert keys(read(tmp_path)) == ["a"]


def test_a_joined_tar_that_is_cut_is_truncated(tmp_path: Path):
    one, two = tar(tmp_path / "x", pair("a")), tar(tmp_path / "y", [*pair("b"), *pair("c")])
    (tmp_path / "0.tar").write_bytes(one + two[: two.index(b"c.txt")])
    said = reasons(read(tmp_path / "0.tar"))
    assert said == {"a": "", "b": "", "c": "truncated_tar", "0.tar": "truncated_tar"}


@pytest.mark.parametrize(
    ("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_a_compressed_tar_says_so(tmp_path: Path, pack, name: str):
    data = tar(tmp_path / "0.tar", pair("a"))
    (tmp_path / "0.tar").write_bytes(pack(data))
    assert reasons(read(tmp_path)) == {"0.tar": "compressed_tar"}
    with pytest.raises(ValueError, match=rf"compressed \({name}\); unpack it"):
        index_tar(tmp_path / "0.tar")
    (tmp_path / "0.tar").rename(tmp_path / "0.tar.gz")
    with pytest.raises(ValueError, match=r"0\.tar\.gz is compressed: unpack it"):
        open_source(str(tmp_path))
    tar(tmp_path / "1.tar", pair("BZhang"))  # begins like a bzip2 file
    assert keys(read(tmp_path)) == ["BZhang"]


def test_long_names_in_folders_are_whole_in_a_joined_tar(tmp_path: Path):
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{number}", "w", format=form) as out:
            for name, data in pair(f"folder/{'ä' * 120}{number}"):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    (tmp_path / "0.tar").write_bytes(
        (tmp_path / "0").read_bytes() + (tmp_path / "1").read_bytes()
    )  # fmt: skip
    assert keys(read(tmp_path)) == [f"folder/{'ä' * 120}{number}" for number in (0, 1)]


# ------------------------------------------------------------------------------ hidden


def test_members_that_macos_adds_are_skipped(tmp_path: Path):
    members = [("._000.tar", MAC), (".DS_Store", MAC)]
    for key in ("000", "sub/001"):
        folder, slash, base = key.rpartition("/")
        for name, data in trio(key):
            hidden = f"{folder}{slash}._{base}.{name.rpartition('.')[2]}"
            members += [(hidden, MAC), (name, data), (f"__MACOSX/{hidden}", MAC)]
    tar(tmp_path / "0.tar", [*members, ("Thumbs.db", MAC)])
    (tmp_path / "._0.tar").write_bytes(MAC)
    assert keys(read(tmp_path)) == ["000", "sub/001"]
    tar(tmp_path / "0.tar", [("._0.jpg", MAC)])
    assert reasons(read(tmp_path)) == {"0.tar": "empty_tar"}


def test_training_reads_tars_from_macos(tmp_path: Path):
    members = []
    for number in range(8):
        for name, data in ((f"{number}.jpg", jpeg(number)), (f"{number}.txt", b"text %d" % number)):
            members += [(f"._{name}", MAC), (name, data)]
    tar(tmp_path / "0.tar", members)
    (batch,) = batches(tmp_path, range(1))
    assert sorted(batch.texts) == [f"text {number}" for number in range(8)] and not batch.replaced


# ----------------------------------------------------------------------------- training


def test_training_refuses_a_tar_whose_samples_are_in_pieces(tmp_path: Path):
    tar(tmp_path / "0.tar", sorted((m for key in "ab" for m in pair(key)), key=lambda m: m[0][-3:]))
    with pytest.raises(ValueError, match=r"0\.tar: its members are not sorted by sample \('a' has"):
        open_shards(str(tmp_path), NodeCache(tmp_path / "cache"))


def test_training_replaces_samples_whose_text_is_no_text(tmp_path: Path):
    wrong = [b'{"caption": "a cut emoji \\ud83d"}', b'{"caption": ' + b"7" * 5_000 + b"}",
             b"[" * 50_000, b'{"caption": null}', b'{"caption": 7}', "{}".encode("utf-16"),
             b'{"caption": "a\\u0000b"}', b'{"captions": ["a"], "kept": [9]}']  # fmt: skip
    good = [b'\xef\xbb\xbf{"caption": "good", "similarity": NaN}'] * 8
    members = []
    for number, data in enumerate(wrong + good):
        members += [(f"{number:02d}.jpg", jpeg(number)), (f"{number:02d}.json", data)]
    tar(tmp_path / "0.tar", members)
    made = batches(tmp_path, range(2))
    assert {text for batch in made for text in batch.texts} == {"good"}
    told = " ".join(line for batch in made for line in batch.replaced)
    for number in range(len(wrong)):
        assert f"0.tar#{number}: it" in told


# ------------------------------------------------------------------------------ parquet


def beside(path: Path, **columns: list) -> None:
    pq.write_table(pa.table(columns), path)


def numbered(count: int) -> list[tuple[str, bytes]]:
    return [member for n in range(count) for member in pair(f"{n:09d}")]


@pytest.mark.parametrize(
    "found", [[0, 1], [b"0", b"1"], ["0", "1"], [0.0, 1.0], ["000000000", "000000001"]]
)
def test_a_parquet_finds_its_samples_by_number(tmp_path: Path, found: list):
    tar(tmp_path / "0.tar", numbered(2))
    beside(tmp_path / "0.parquet", key=found, punsafe=[0.99, 0.01])
    assert [record.meta["punsafe"] for record in read(tmp_path)] == [0.99, 0.01]


@pytest.mark.parametrize(
    "columns",
    [
        {"key": ["x", "y"], "punsafe": [0.9, 0.9]},
        {"id": [0, 1], "NSFW": ["NSFW", "NSFW"]},
        {"key": ["000000000", "000000000"], "punsafe": [0.1, 0.9]},
    ],
)
def test_a_parquet_whose_safety_columns_cannot_be_looked_at_is_a_reason(tmp_path: Path, columns):
    tar(tmp_path / "0.tar", numbered(2))
    beside(tmp_path / "0.parquet", **columns)
    assert set(reasons(read(tmp_path)).values()) == {"not_in_parquet"}


def test_a_json_that_has_the_columns_needs_no_row(tmp_path: Path):
    told = json.dumps({"punsafe": 0.01, "similarity": None}).encode()
    tar(tmp_path / "0.tar", [*pair("a"), ("a.json", told), *pair("b"), ("b.json", b"{}")])
    beside(tmp_path / "0.parquet", key=["x"], punsafe=[0.9])
    assert reasons(read(tmp_path)) == {"a": "", "b": "not_in_parquet"}
    beside(tmp_path / "0.parquet", key=["x"], similarity=[0.2])
    assert reasons(read(tmp_path)) == {"a": "", "b": ""}
    beside(tmp_path / "0.parquet", key=["a", "b"], similarity=[0.2, 0.3])  # a json's null is none
    assert [record.meta["similarity"] for record in read(tmp_path)] == [0.2, 0.3]


def test_walking_names_the_damage_of_each_kind():
    for data, reason in ((b"PK\x03\x04" * 200, "compressed_tar"), (b"\x1f\x8b", "compressed_tar")):
        with pytest.raises(TarError, match=reason):
            list(walk_tar(io.BytesIO(data), len(data)))
