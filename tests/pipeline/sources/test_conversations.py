import json

import pytest
from PIL import Image

from pipeline.sources.conversations import read_conversations

ASK = {"from": "human", "value": "<image>\nWhat is this?"}
SAY = {"from": "gpt", "value": "A bench.\nIt is green."}
PLAIN = {"from": "human", "value": "Who are you?"}


def write(folder, *records):
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "images" / "COCO_train2014_000000000009.jpg")
    path = folder / "told.json"
    path.write_text(json.dumps(list(records)))
    return path


def test_turns_and_images_are_read(tmp_path):
    path = write(
        tmp_path,
        {"id": "000000000009", "image": "000000000009.jpg", "conversations": [ASK, SAY]},
        {"id": 7, "conversations": [PLAIN, SAY, PLAIN, SAY], "boxes": [[1, 2]]},
        {"id": "gone", "image": "gone.jpg", "conversations": [ASK, SAY]},
    )
    first, second, third = read_conversations(path, tmp_path / "images")
    assert first.image == tmp_path / "images" / "COCO_train2014_000000000009.jpg"
    assert first.turns == (("human", ASK["value"]), ("gpt", SAY["value"]))
    assert second.id == "7" and second.image is None and len(second.turns) == 4
    assert third.image == tmp_path / "images" / "gone.jpg"  # the loader will tell of it


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"conversations": [SAY, PLAIN]}, "turn 0 is of gpt; human begins"),
        ({"conversations": [PLAIN, PLAIN]}, "turn 1 is of human"),
        ({"conversations": [PLAIN]}, "ends with a turn of human"),
        ({"conversations": []}, "no turns"),
        ({"conversations": [{"from": "bing", "value": "x"}, SAY]}, "turn 0 is no"),
        ({"conversations": [ASK, SAY]}, "turn 0 has 1 <image>, none is allowed there, since"),
        ({"image": "a.jpg", "conversations": [PLAIN, SAY]}, "first turn has no <image>"),
        ({"image": "a.jpg", "conversations": [ASK, SAY, ASK, SAY]}, "turn 2 has 1 <image>, none"),
        ({"image": "../a.jpg", "conversations": [ASK, SAY]}, "no file name inside the folder"),
    ],
)
def test_a_malformed_conversation_is_named(tmp_path, wrong, said):
    path = write(tmp_path, {"id": "good", "conversations": [PLAIN, SAY]}, {"id": "x42", **wrong})
    with pytest.raises(ValueError, match="sample x42") as error:
        read_conversations(path, tmp_path / "images")
    assert said in str(error.value)


def test_a_wrong_image_folder_is_refused_at_once(tmp_path):
    path = write(tmp_path, {"id": "a", "image": "b.jpg", "conversations": [ASK, SAY]})
    with pytest.raises(ValueError, match="give their folder"):
        read_conversations(path, tmp_path / "elsewhere")
