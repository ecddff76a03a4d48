"""Sets of images without captions, and the pieces that they are cut into."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.sample import Rejected, Sample
from pipeline.sources.pictures import Piece, cut_pieces, open_pictures


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        path = tmp_path / "photos" / f"sub{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def named(pieces: list[Piece], source) -> list[tuple[str, Sample | Rejected]]:
    return [one for piece in pieces for one in piece.records(source.reader())]


def test_a_folder_gives_all_its_images_in_order(folder: Path) -> None:
    source = open_pictures(str(folder))
    found = named(cut_pieces(source, 4), source)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert [name for name, _ in found] == names
    assert all(record.image == (folder / name).read_bytes() for name, record in found)


def test_a_new_image_changes_one_piece(folder: Path) -> None:
    before = {piece.name for piece in cut_pieces(open_pictures(str(folder)), 4)}
    assert len(before) > 3
    (folder / "sub1" / "0005.png").write_bytes(png(7))
    after = {piece.name for piece in cut_pieces(open_pictures(str(folder)), 4)}
    assert 1 <= len(after - before) <= 2  # two, where the new image ends a piece
    (folder / "sub1" / "0005.png").unlink()
    assert {piece.name for piece in cut_pieces(open_pictures(str(folder)), 4)} == before


def test_a_list_names_its_images_and_needs_no_captions(folder: Path) -> None:
    lines = [{"image": "sub0/000.png"}, {"image": "gone.png"}, {"image": "../out.png"}]
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_pictures(str(path))
    found = named(cut_pieces(source, 64), source)
    assert [name for name, _ in found] == ["sub0/000.png", "gone.png", "../out.png"]
    assert isinstance(found[0][1], Sample)
    reasons = [record.reason for _, record in found[1:] if isinstance(record, Rejected)]
    assert reasons == ["missing_file", "unsafe_name"]


def test_tars_need_no_captions_and_are_cut(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number in range(5):
            data = png(number)
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = open_pictures(str(tmp_path))
    pieces = cut_pieces(source, 2)
    assert [piece.size for piece in pieces] == [2, 2, 1]
    found = named(pieces, source)
    assert [name for name, _ in found] == [f"00000.tar/{n:05d}" for n in range(5)]
    assert [record.image for _, record in found] == [png(n) for n in range(5)]


def test_one_image_and_nothing(folder: Path, tmp_path: Path) -> None:
    source = open_pictures(str(folder / "sub0" / "000.png"))
    assert [name for name, _ in named(cut_pieces(source, 8), source)] == ["000.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image and no"):
        open_pictures(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_pictures(str(tmp_path / "gone"))
