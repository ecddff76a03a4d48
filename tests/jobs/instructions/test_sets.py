"""The data sets of instruction tuning, from the files that their authors publish."""

import json
from pathlib import Path

import pytest
from PIL import Image

from jobs.instructions.published import read_ocrvqa, read_textcaps
from jobs.instructions.sets import SETS, open_sets
from jobs.recipes.instruct import TINY
from pipeline.instructions.config import HELD_IN, InstructionConfig
from pipeline.loading.loader import LoaderConfig
from pipeline.text import load_json
from pipeline.tinyworld.instructions import HELD_OUT, write_instructions
from pipeline.tinyworld.text import QUESTION_KINDS
from tests.tiny_training import capfilt_output

LOADER = LoaderConfig()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("instructions")
    write_instructions(folder, pictures=12, seed=0)
    return folder


def opened(data: str, *names: str):
    return open_sets(data, LOADER, names=names, config=InstructionConfig())


def records(source) -> list[dict]:
    found = [source.members(0, index) for index in range(source.sizes[0])]
    assert all(members["image"][:2] == b"\xff\xd8" for members in found)
    return [load_json(members["json"]) for members in found]


def test_every_data_set_of_the_paper_has_a_reader():
    assert set(HELD_IN) == set(SETS)


def test_tinyworlds_files_are_read_as_the_published_ones(data):
    sources = dict(
        zip(
            TINY.sets,
            open_sets(str(data), LOADER, names=TINY.sets, config=TINY),
            strict=True,
        )
    )
    assert sum(sources["coco"].sizes) == 60  # five captions of each picture
    asked = records(sources["vqav2"])
    assert all(len(record["captions"]) == 10 for record in asked)
    assert not any("left or on" in r["question"] or "top or" in r["question"] for r in asked)
    assert len(QUESTION_KINDS) == 6 and HELD_OUT == "position"
    for record in records(sources["aokvqa"]):
        assert record["choice"] in record["options"] and len(record["options"]) == 4
    told = records(sources["llava_conversation"])
    assert all(r["conversations"][0]["value"].count("<image>") == 1 for r in told)
    assert [s.phrase.task for s in sources.values()] == [SETS[name].task for name in TINY.sets]
    assert all(source.weight > 0 for source in sources.values())


def test_writing_again_gives_the_same_bytes(data, tmp_path):
    write_instructions(tmp_path, pictures=12, seed=0)
    files = sorted(path.relative_to(data) for path in data.rglob("*") if path.is_file())
    assert len(files) > 15
    assert all((data / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_a_data_set_may_lie_elsewhere(data, tmp_path):
    web = capfilt_output(tmp_path / "web", shards=1, samples=10)
    coco, found = opened(f"{data},web={web}", "coco", "web")
    assert (coco.name, found.name, sum(found.sizes)) == ("coco", "web", 8)


def test_captions_of_people_are_no_web_images(data, tmp_path):
    web = capfilt_output(tmp_path / "web", shards=1, samples=5)
    tar = next(web.rglob("*.tar"))
    tar.write_bytes(tar.read_bytes().replace(b'"synthetic"', b'"human"    '))
    with pytest.raises(ValueError, match="GQA, which is held out"):
        opened(f"{data},web={web}", "web")


@pytest.mark.parametrize(
    ("given", "names", "said"),
    [
        ("{data}", ("cocoa",), "--instructions.sets: cocoa; choose of coco"),
        ("{data}", (), "--instructions.sets: none"),
        ("web={data}", ("coco",), "NAME is one of coco"),
        ("{data},{data}", ("coco",), "give one folder"),
        ("coco={data}/coco", ("coco", "vqav2"), "no folder in it holds vqav2"),
        ("{data}", ("okvqa",), "which is no folder; add okvqa=PATH"),
        ("{data}:val", ("coco",), "no image of split 'val'; its splits: train"),
    ],
)
def test_mistakes_are_told(data, given, names, said):
    with pytest.raises(ValueError, match=".*".join(said.split("|"))):
        opened(given.format(data=data), *names)


def test_a_conversation_without_an_image_is_refused(data, tmp_path):
    path = tmp_path / "told.json"
    turns = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]
    path.write_text(json.dumps([{"id": "a7", "conversations": turns}]))
    with pytest.raises(ValueError, match="sample a7 has no image"):
        opened(f"llava_conversation={path}", "llava_conversation")


def test_textcaps_and_ocrvqa(tmp_path):
    for name in ("b1", "b2"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    captions = {"data": [{"image_id": "b1", "caption_id": 5, "caption_str": "a sign: stop"}]}
    words = {"data": [{"image_id": "b1", "ocr_tokens": ["stop", "7"]}]}
    books = {
        "b1": {"split": 1, "questions": ["Who?", "What?"], "answers": ["A. B.", "Law"]},
        "b2": {"split": 3, "questions": ["Who?"], "answers": ["C"]},
    }
    files = [tmp_path / name for name in ("captions.json", "words.json", "books.json")]
    for file, content in zip(files, (captions, words, books), strict=True):
        file.write_text(json.dumps(content))
    (row,) = read_textcaps(files[0], files[1], tmp_path)
    assert row.texts == ("a sign: stop",) and row.ocr_tokens == ("stop", "7")
    rows = read_ocrvqa(files[2], None, tmp_path, "train")
    assert [(row.question, row.texts) for row in rows] == [
        ("Who?", ("A. B.",)),
        ("What?", ("Law",)),
    ]
    assert rows[0].image == tmp_path / "b1.png" and rows[0].ocr_tokens == ()
    with pytest.raises(ValueError, match="no split 'dev'"):
        read_ocrvqa(files[2], None, tmp_path, "dev")
