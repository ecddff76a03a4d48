import os
from pathlib import Path

import pytest
from PIL import Image

from evaluation.images.files import index_images
from evaluation.images.unreadable import name_some, unreadable


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    put(folder, "000001.jpg", "COCO_val2014_000000000002.jpg", "n3.png", "notes.txt")
    return folder


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_images_by_stem_and_number(images: Path) -> None:
    index = index_images(images)
    assert index.candidates(1) == index.candidates("01") == (images / "000001.jpg",)
    assert index.candidates(2) == (images / "COCO_val2014_000000000002.jpg",)
    assert index.candidates("n3") == index.candidates(3) == (images / "n3.png",)
    assert index.candidates("notes") == index.candidates(4) == ()
    assert index.candidates("9" * 5000) == index.candidates("\u00b2") == ()


def test_an_exact_name_goes_before_a_number_at_the_end(images: Path) -> None:
    put(images, "1.jpg", "cam_1.jpg", "cam_01.jpg", "cam_7.jpg")
    index = index_images(images)
    assert index.candidates(1) == index.candidates("1") == (images / "1.jpg",)
    assert index.candidates("000001") == (images / "000001.jpg",)
    assert index.candidates("cam_1") == (images / "cam_1.jpg",)
    assert index.candidates(7) == (images / "cam_7.jpg",)
    (images / "1.jpg").unlink()  # 000001 as a whole is 1; cam_1 only ends with it
    assert index_images(images).candidates(1) == (images / "000001.jpg",)


def test_an_ambiguous_number_is_nobodys(images: Path) -> None:
    put(images, "other_2.jpg", "n3.jpg", "a/n4.jpg", "b/n4.jpg")
    index = index_images(images)
    both = (images / "COCO_val2014_000000000002.jpg", images / "other_2.jpg")
    assert index.candidates(2) == both
    assert index.candidates("other_2") == both[1:]
    assert index.candidates("n3") == (images / "n3.jpg", images / "n3.png")
    assert index.candidates("n3.png") == (images / "n3.png",)
    assert len(index.candidates("n4")) == len(index.candidates("n4.jpg")) == 2
    assert index.candidates("b/n4.jpg") == (images / "b/n4.jpg",)
    assert index.candidates("other/n4.jpg") == ()


def test_every_format_that_can_be_decoded_is_found(tmp_path: Path) -> None:
    suffixes = ("jpg", "JPEG", "png", "webp", "gif", "bmp", "tif", "TIFF", "avif")
    put(tmp_path, *(f"{n}.{suffix}" for n, suffix in enumerate(suffixes)))
    index = index_images(tmp_path)
    assert all(len(index.candidates(n)) == 1 for n in range(len(suffixes)))


def test_what_a_file_system_adds_is_no_image(images: Path) -> None:
    put(images, "._000001.jpg", "__MACOSX/000001.jpg", ".thumbnails/000001.jpg")
    (images / "5.jpg").mkdir()
    index = index_images(images)
    assert index.candidates(1) == (images / "000001.jpg",)
    assert index.candidates("._000001") == index.candidates(5) == ()


def test_a_hidden_folder_above_hides_nothing(tmp_path: Path) -> None:
    put(tmp_path, ".cache/images/1.jpg")
    assert index_images(tmp_path / ".cache" / "images").candidates(1)


def test_links_are_followed_without_loops(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/8.jpg", "images/9.jpg")
    images = tmp_path / "images"
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "again").symlink_to(tmp_path / "elsewhere")
    (images / "loop").symlink_to(images)
    (images / "0009.jpg").symlink_to(images / "9.jpg")
    (images / "gone.jpg").symlink_to(images / "nowhere.jpg")
    index = index_images(images)
    (found,) = index.candidates(8)
    assert found.samefile(tmp_path / "elsewhere" / "8.jpg")
    assert index.candidates(9) == (images / "9.jpg",)
    assert index.candidates("0009") == (images / "0009.jpg",)
    assert index.candidates("gone") == ()
    os.rename(images / "9.jpg", images / "010.jpg")
    os.symlink(images / "010.jpg", images / "10x010.jpg")
    assert index_images(images).candidates(10) == (images / "010.jpg",)
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        index_images(tmp_path / "none")


def test_files_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    good, cut, page, gone = (tmp_path / f"{name}.png" for name in ("good", "cut", "page", "gone"))
    Image.effect_noise((40, 30), 50).save(good)
    cut.write_bytes(good.read_bytes()[:400])
    page.write_text("<html>")
    broken = unreadable([good, cut, page, good, gone])
    assert list(broken) == [cut, page, gone]
    assert broken[cut].startswith("truncated_image")
    assert broken[page].startswith("not_an_image")
    assert "No such file" in broken[gone]
    assert name_some(broken).startswith(f"{cut}: truncated_image")
    many = {Path(f"{n}.jpg"): "why" for n in range(7)}
    assert name_some(many).endswith("4.jpg: why; and 2 more")
