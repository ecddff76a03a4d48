import json

import numpy as np
import pytest
from PIL import Image

from pipeline.loading.conversations import is_conversations, open_conversations, split_name
from pipeline.loading.loader import Batches, LoaderConfig, Samples, make_schedule
from pipeline.loading.samples import as_conversation
from pipeline.transforms import TrainTransform, TransformConfig
from tests.tiny_training import capfilt_output

TINY = TrainTransform(TransformConfig(size=8, scale=(1, 1), ratio=(1, 1), flip=0.0))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """24 conversations of different lengths, every third without an image."""
    folder = tmp_path_factory.mktemp("told")
    Image.new("RGB", (8, 8), (250, 10, 10)).save(folder / "a.png")
    records = []
    for number in range(24):
        answer = {"from": "gpt", "value": "  word" * (1 + 7 * number % 24)}
        image = {"image": "a.png"} if number % 3 else {}
        asked = {"from": "human", "value": ("<image>\n" if image else "") + "Say it. "}
        records.append({"id": "same", **image, "conversations": [asked, answer]})
    (folder / "told.json").write_text(json.dumps(records))
    return folder


def batches(source, config, steps, world=1):
    """(texts, whether the square is black) of every batch, joined over ranks."""
    schedule = make_schedule([source], config, seed=0, global_batch=4)
    samples = Samples([source], schedule, TINY, text="conversation")
    made = []
    for step in range(steps):
        texts, black = [], []
        for rank in range(world):
            with Batches(samples, config, range(step, step + 1), rank=rank, world=world) as loader:
                batch = next(loader)
            texts += batch.texts
            black += [not square.any() for square in batch.images_B3HW]
        made.append((texts, black))
    return made


def test_a_conversation_arrives_as_it_was_written(told):
    source = open_conversations(str(told / "told.json"))
    seen = batches(source, LoaderConfig(), 6)
    records = json.loads((told / "told.json").read_text())
    texts = [text for batch, _ in seen for text in batch]
    assert sorted(texts) == sorted(json.dumps(record["conversations"]) for record in records)
    for batch, black in seen:  # without an image the square is black
        assert [("<image>" not in text) for text in batch] == black


def test_grouped_steps_hold_samples_of_like_length(told):
    source = open_conversations(f"{told / 'told.json'}:{told}")
    grouped = LoaderConfig(group=6)
    seen = batches(source, grouped, 6)
    assert batches(source, grouped, 6, world=2) == seen  # whatever the ranks
    whole = batches(source, LoaderConfig(), 6)
    assert sorted(t for texts, _ in seen for t in texts) == sorted(
        t for texts, _ in whole for t in texts
    )

    def spread(found):
        return np.mean([np.ptp([len(text) for text in texts]) for texts, _ in found])

    assert spread(seen) < spread(whole) / 2
    assert sum(0 < sum(black) < len(black) for _, black in seen) <= 1  # at most one is mixed


def test_captions_are_conversations_too(tmp_path):
    from pipeline.shards.reading import open_shards

    source = open_shards(str(capfilt_output(tmp_path / "data", shards=1, samples=10)))
    ((texts, _),) = batches(source, LoaderConfig(group=2), 1)
    for text in texts:
        asked, said = json.loads(text)
        assert asked == {"from": "human", "value": "<image>"}
        assert said["from"] == "gpt" and said["value"].startswith("a ")
    asked, said = json.loads(as_conversation("Why?", "So."))
    assert (asked["value"], said["value"]) == ("<image>\nWhy?", "So.")


def test_names_of_data():
    assert split_name("a/b.json:c/d") == ("a/b.json", "c/d")
    assert split_name("a/b.json") == ("a/b.json", "") and is_conversations("a.json:b")
    assert not is_conversations("runs/capfilt")
