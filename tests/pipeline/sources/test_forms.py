"""Lists and folders of images in the forms that people have them in."""

import json
import os
from pathlib import Path

import pytest

from pipeline.filenames import IMAGE_SUFFIXES, is_hidden, is_image
from pipeline.sample import Rejected, Sample
from pipeline.sources.open import open_source
from tests.pipeline.sources.test_sources import png, read, reasons


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png((number, 0, 0)))


def jsonl(path: Path, *records: object, end: str = "\n") -> None:
    path.write_bytes("".join(json.dumps(record) + end for record in records).encode())


def captions(records: list[Sample | Rejected]) -> dict[str, tuple[str, ...]]:
    assert all(isinstance(record, Sample) for record in records), reasons(records)
    return {record.key: record.captions for record in records}


# ------------------------------------------------------------------------------- JSONL


def test_a_jsonl_may_have_a_byte_order_mark_dots_absolute_paths_and_lists(tmp_path: Path):
    pictures(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg", "d.jpg", "e.jpg", "f.jpg")
    records = [
        {"file": "a.jpg", "caption": "first"},
        {"image": "./b.jpg", "text": "second"},
        {"file_name": str(tmp_path / "sub" / "c.jpg"), "caption": "third"},
        {"filepath": "d.jpg", "captions": ["one", "two"]},
        {"path": f"../{tmp_path.name}/e.jpg", "caption": "fifth"},
        {"image": "sub//../f.jpg", "caption": "sixth"},
    ]
    lines = "\r\n".join(json.dumps(record) for record in records) + "\r\n\r\n \n"
    (tmp_path / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert captions(read(tmp_path)) == {
        "a": ("first",), "b": ("second",), "sub/c": ("third",), "d": ("one", "two"),
        "e": ("fifth",), "f": ("sixth",),
    }  # fmt: skip


def test_paths_of_windows_and_through_links_are_found_in_the_folder(tmp_path: Path):
    pictures(tmp_path / "real", "sub/a.jpg", "b.jpg")
    (tmp_path / "link").symlink_to("real")
    jsonl(
        tmp_path / "real" / "captions.jsonl",
        {"image": "sub\\a.jpg", "caption": "A"},
        {"image": str(tmp_path / "link" / "b.jpg"), "caption": "B"},
    )
    assert captions(read(tmp_path / "real")) == {"sub/a": ("A",), "b": ("B",)}
    assert captions(read(tmp_path / "link")) == {"sub/a": ("A",), "b": ("B",)}


def test_no_name_leads_out_of_the_folder(tmp_path: Path):
    pictures(tmp_path, "in/a.jpg", "out.jpg", "in-side/b.jpg")
    names = ["../out.jpg", str(tmp_path / "out.jpg"), "x/../../out.jpg", "..\\out.jpg",
             f"file://{tmp_path}/out.jpg", "../in-side/b.jpg", "a\0.jpg", "..", "."]  # fmt: skip
    jsonl(tmp_path / "in" / "c.jsonl", {"image": "a.jpg", "caption": "A"},
          *({"image": name, "caption": "x"} for name in names))  # fmt: skip
    good, *bad = read(tmp_path / "in")
    assert isinstance(good, Sample) and good.key == "a"
    assert [record.reason for record in bad] == ["unsafe_name"] * len(names)


@pytest.mark.parametrize("shard_size", [1, 4, 100])
def test_a_line_per_caption_gives_each_image_all_of_them(tmp_path: Path, shard_size: int):
    pictures(tmp_path, "a.jpg", "b.jpg")
    records = [{"file": f"{f}.jpg", "caption": f"{n} of {f}"} for n in range(5) for f in "ab"]
    jsonl(tmp_path / "captions.jsonl", *records)
    (tmp_path / "list.json").write_text(json.dumps(records))
    right = {f: tuple(f"{n} of {f}" for n in range(5)) for f in "ab"}
    assert captions(read(tmp_path, shard_size=shard_size)) == right
    found = read(tmp_path / "list.json", shard_size=shard_size)
    assert captions(found) == right


def test_a_line_that_cannot_be_used_is_a_row_and_its_image_keeps_the_others(tmp_path: Path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    jsonl(
        tmp_path / "captions.jsonl",
        {"image": "a.jpg", "caption": 7},
        {"image": "a.jpg", "caption": "good", "punsafe": 0.9},
        {"image": "b.jpg", "caption": None},
        {"image": "a.jpg"},
        {"image": "a.jpg", "caption": "too", "NSFW": "NSFW"},
        {"image": "./a.jpg", "caption": "good"},
    )
    records = read(tmp_path)
    assert reasons(records) == {
        "a": "", "b": "no_caption", "(line 000000001)": "caption_not_text",
        "(line 000000004)": "no_caption", "(line 000000006)": "duplicate_key",
    }  # fmt: skip
    (good,) = [record for record in records if isinstance(record, Sample)]
    assert good.captions == ("good", "too")
    assert good.meta["punsafe"] == 0.9 and good.meta["NSFW"] == "NSFW"


def test_conversations_of_one_question_are_captions(tmp_path: Path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "a dog"}]
    records = [
        {"id": "1", "image": "a.jpg", "conversations": turns},
        {"id": "2", "image": "b.jpg", "conversations": turns * 2},
        {"id": "3", "image": "a.jpg", "conversations": [{}, {"value": "a hound\n<image>"}]},
    ]
    jsonl(tmp_path / "captions.jsonl", *records)
    (tmp_path / "chat.json").write_text(json.dumps([{"id": "0", "conversations": []}, *records]))
    for url in (tmp_path, tmp_path / "chat.json"):
        found = {record.key: record for record in read(url)}
        assert found["a"].captions == ("a dog", "a hound") and not found["a"].human
        assert found["b"].reason == "caption_not_text"


def test_json_that_cannot_be_used_is_a_row_and_no_crash(tmp_path: Path):
    pictures(tmp_path, "a.jpg")
    lines = [b'{"image": "a.jpg", "caption": "A", "similarity": NaN}', b'{"n": 1',
             b"[" * 50_000, b'{"image": "x.jpg", "image": "y.jpg"}',
             b'{"n": ' + b"7" * 5_000 + b"}",
             b'{"image": "b.jpg", "caption": "\\u0000"}']  # fmt: skip
    (tmp_path / "captions.jsonl").write_bytes(b"\n".join(lines))
    assert sorted(reasons(read(tmp_path)).values()) == ["", *["bad_json"] * 4, "caption_not_text"]


def test_files_that_are_not_utf8_or_of_another_form_are_named(tmp_path: Path):
    file = tmp_path / "captions.jsonl"
    file.write_text('{"image": "a.jpg", "caption": "A"}\n', "utf-16")
    with pytest.raises(ValueError, match=r"captions\.jsonl' is UTF-16; save it as UTF-8"):
        open_source(str(tmp_path))
    file.write_text('[{"image": "a.jpg", "caption": "A"}]')
    with pytest.raises(ValueError, match=r"a JSON list goes into a \.json file"):
        open_source(str(tmp_path))
    lines = tmp_path / "lines.json"
    jsonl(lines, {"image": "a.jpg"}, {"image": "b.jpg"})
    with pytest.raises(ValueError, match=r"name it \.jsonl if it has an object a line"):
        open_source(str(lines))
    lines.write_bytes(b"[" + b"7" * 5_000 + b"]")
    with pytest.raises(ValueError, match="4300 digits"):
        open_source(str(lines))


# --------------------------------------------------------------------------------- ids


def coco(path: Path, images: list[tuple[int, str]], notes: list[tuple[int, str]]) -> None:
    data = {
        "images": [{"id": number, "file_name": file} for number, file in images],
        "annotations": [{"image_id": number, "caption": text} for number, text in notes],
    }
    path.write_text(json.dumps(data))


def test_an_id_of_two_images_is_a_row_of_both(tmp_path: Path):
    """Nobody knows which of them its captions describe; the other images stay."""
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    coco(
        tmp_path / "x.json",
        [(1, "a.jpg"), (1, "b.jpg"), (2, "c.jpg"), (2, "./c.jpg")],
        [(1, "red"), (1, "green"), (2, "blue")],
    )
    for shard_size in (1, 100):
        records = read(tmp_path / "x.json", shard_size=shard_size)
        assert reasons(records) == {"a": "doubled_image_id", "b": "doubled_image_id", "c": ""}
        assert isinstance(records[2], Sample) and records[2].captions == ("blue",)
        assert [record.caption for record in records[:2]] == ["red", "red"]


def test_ids_and_names_that_are_no_text_are_rows(tmp_path: Path):
    pictures(tmp_path, "a.jpg")
    data = {
        "images": [{"id": "\ud800", "file_name": 7}, {"id": 2, "file_name": "\ud800.jpg"},
                   {"id": 3, "file_name": "a.jpg"}],
        "annotations": [{"image_id": number, "caption": text}
                        for number, text in ((3, "a\0b"), (3, "good"), ("\ud83d", "\ud83d"))],
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert reasons(read(tmp_path / "x.json")) == {
        "(image ?)": "no_image", "(image 2)": "unsafe_name", "a": "",
    }  # fmt: skip
    (tmp_path / "x.json").write_text(
        json.dumps([{"image": "\ud800", "caption": "A"}, {"image": 7}])
    )
    assert set(reasons(read(tmp_path / "x.json")).values()) == {"unsafe_name", "no_image_field"}


def test_a_file_of_two_ids_has_the_captions_of_both(tmp_path: Path):
    pictures(tmp_path, "a.jpg")
    coco(tmp_path / "x.json", [(1, "a.jpg"), (2, "a.jpg")], [(1, "one"), (2, "two")])
    assert captions(read(tmp_path / "x.json", shard_size=1)) == {"a": ("one", "two")}


def test_a_doubled_record_of_visual_genome_is_a_row_in_any_shard(tmp_path: Path):
    pictures(tmp_path, "VG_100K/1.jpg")
    data = [{"id": 1, "regions": [{"phrase": text}]} for text in ("grass", "again")]
    (tmp_path / "region_descriptions.json").write_text(json.dumps(data))
    for shard_size in (1, 100):
        first, second = read(tmp_path, shard_size=shard_size)
        assert isinstance(first, Sample) and first.captions == ("grass",)
        assert isinstance(second, Rejected) and second.reason == "duplicate_key"
        assert second.caption == "again"


# ------------------------------------------------------------------------------- names


@pytest.mark.parametrize("shard_size", [1, 100])
def test_files_of_like_names_are_samples_each(tmp_path: Path, shard_size: int):
    files = ("same.png", "same.jpg", "SAME.png", "a.x.jpg", "a_x.jpg", "a_x_jpg.png", "s/same.png")
    pictures(tmp_path, *files)
    jsonl(tmp_path / "captions.jsonl", *({"image": file, "caption": file} for file in files))
    found = captions(read(tmp_path, shard_size=shard_size))
    keys = {texts[0]: key for key, texts in found.items()}
    assert len(found) == len(files) == len(keys)
    # Where nothing clashes, and for the first of those that do, the key is the name as ever.
    assert keys["same.png"] == "same" and keys["SAME.png"] == "SAME" and keys["a.x.jpg"] == "a_x"
    assert keys["same.jpg"] == "same_jpg" and keys["s/same.png"] == "s/same"
    assert keys["a_x_jpg.png"] == "a_x_jpg" and keys["a_x.jpg"].startswith("a_x_")
    assert not any("." in key for key in found)


# ------------------------------------------------------------------------ hidden and links


def test_what_file_systems_add_is_hidden():
    hidden = ("._1.jpg", "a/._1.jpg", "__MACOSX/a/1.jpg", ".DS_Store", "x/Thumbs.db",
              "x/desktop.ini", "@eaDir/1.jpg", ".git/1.jpg")  # fmt: skip
    shown = ("1.jpg", "./1.jpg", "../1.jpg", "a.b/1.jpg", "thumbs.jpg", "MACOSX/1.jpg")
    assert all(is_hidden(name) for name in hidden)
    assert not any(is_hidden(name) for name in shown)
    assert is_image("a/B.JPG") and is_image("x.jfif") and "jpg" in IMAGE_SUFFIXES
    assert not is_image("a/._b.jpg") and not is_image("a.txt") and not is_image("jpg.")


def test_hidden_files_in_a_folder_are_no_images_and_no_lists(tmp_path: Path):
    pictures(tmp_path, "a.jpg", "._a.jpg", "__MACOSX/._a.jpg", "__MACOSX/a.jpg", ".x/a.jpg")
    jsonl(tmp_path / "captions.jsonl", {"image": "a.jpg", "caption": "A"})
    (tmp_path / "._captions.jsonl").write_bytes(b"\0\5\x16\7")
    assert captions(read(tmp_path)) == {"a": ("A",)}


def test_linked_folders_are_read_once_and_without_loops(tmp_path: Path):
    pictures(tmp_path / "disk", "vg/VG_100K/1.jpg", "other/2.jpg")
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "VG_100K").symlink_to(tmp_path / "disk" / "vg" / "VG_100K")
    (home / "again").symlink_to(home / "VG_100K")
    (home / "sub" / "other").symlink_to(tmp_path / "disk" / "other")
    (home / "sub" / "up").symlink_to(home)
    (home / "sub" / "top").symlink_to(tmp_path)
    (home / "self").symlink_to("self")
    (tmp_path / "disk" / "other" / "back").symlink_to(tmp_path / "disk")
    data = [{"id": 1, "regions": [{"phrase": "grass"}]}]
    (home / "region_descriptions.json").write_text(json.dumps(data))
    assert captions(read(home, name="vg")) == {"VG_100K/1": ("grass",)}
    jsonl(home / "captions.jsonl", {"image": "VG_100K/1.jpg", "caption": "A"})
    assert reasons(read(home)) == {"VG_100K/1": "", "sub/other/2": "no_line"}


def test_tars_in_a_linked_folder_are_found(tmp_path: Path):
    from tests.pipeline.sources.test_sources import tar, trio

    (tmp_path / "disk" / "part").mkdir(parents=True)
    tar(tmp_path / "disk" / "part" / "0.tar", trio("1"))
    (tmp_path / "home").mkdir()
    os.symlink(tmp_path / "disk" / "part", tmp_path / "home" / "part")
    (record,) = read(tmp_path / "home")
    assert isinstance(record, Sample) and record.shard == "part/0.tar"
