"""TinyWorld as small copies of the benchmarks whose questions have candidates."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.tinyworld.files import write_json, write_jsonl, write_picture
from pipeline.tinyworld.scene import COLORS, SHAPES, Scene, sample_scene, stream
from pipeline.tinyworld.text import (
    QUESTION_KINDS,
    RELATIONS,
    SceneQuestion,
    caption,
    is_true,
    plausible_answers,
    question,
    questions,
)

_OPTIONS, _ROUNDS = 100, 10
_SAID = ("{}", "it is {}", "i think {}", "{} i think", "maybe {}")
_ANSWERS = (*COLORS, *SHAPES, "1", "2", "3", "yes", "no", "left", "right", "top", "bottom")


def write_choices(directory: Path, count: int, seed: int) -> None:
    """Write ScienceQA, IconQA, VSR, HatefulMemes and VisDial to ``directory/NAME``."""
    _scienceqa(directory / "scienceqa", count, seed)
    _iconqa(directory / "iconqa", count, seed)
    _vsr(directory / "vsr", count, seed)
    _hatefulmemes(directory / "hatefulmemes", count, seed)
    _visdial(directory / "visdial", count, seed)


def _chosen(scene: Scene, rng: random.Random) -> tuple[SceneQuestion, list[str]]:
    """One question about the scene, and up to five candidates in a random order."""
    asked = rng.choice(questions(scene, rng))
    wrong = [answer for answer in plausible_answers(asked) if answer != asked.answer]
    choices = [asked.answer, *rng.sample(wrong, min(4, len(wrong)))]
    rng.shuffle(choices)
    return asked, choices


def _scienceqa(folder: Path, count: int, seed: int) -> None:
    """Every third problem has no image, as more than half of ScienceQA's have none."""
    problems, names = {}, []
    for number in range(1, 3 * count // 2 + 1):
        rng = stream(seed, "scienceqa", number)
        scene = sample_scene(rng, "eval")
        asked, choices = _chosen(scene, rng)
        pictured = number % 3 != 0
        if pictured:
            write_picture(folder / "images" / "test" / str(number) / "image.png", scene, rng)
        problems[str(number)] = {
            "question": asked.text,
            "choices": choices,
            "answer": choices.index(asked.answer),
            "hint": "Colors and shapes differ." if number % 2 else "",
            "image": "image.png" if pictured else None,
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science" if asked.kind == "count" else "social science",
            "lecture": "",
            "solution": "",
            "split": "test",
        }
        names.append(str(number))
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"train": [], "val": [], "test": names})


def _iconqa(folder: Path, count: int, seed: int) -> None:
    for number in range(1, count + 1):
        rng = stream(seed, "iconqa", number)
        scene = sample_scene(rng, "eval")
        asked, choices = _chosen(scene, rng)
        home = folder / "iconqa_data" / "iconqa" / "test" / "choose_txt" / str(number)
        write_picture(home / "image.png", scene, rng)
        answer = choices.index(asked.answer)
        content = {"question": asked.text, "choices": choices, "answer": answer}
        write_json(home / "data.json", content | {"ques_type": "choose_txt", "grade": "grade1"})


def _vsr(folder: Path, count: int, seed: int) -> None:
    rows = []
    for number in range(1, count + 1):
        rng = stream(seed, "vsr", number)
        scene = sample_scene(rng, "eval")
        while len(scene.things) < 2:
            scene = sample_scene(rng, "eval")
        name = f"{number:012d}.jpg"
        write_picture(folder / "images" / name, scene, rng)
        for _ in range(2):
            a, b = rng.sample(scene.things, 2)
            word = rng.choice(list(RELATIONS))
            rows.append(
                {
                    "image": name,
                    "image_link": f"http://tinyworld.example/{name}",
                    "caption": f"The {a.shape} is {word} the {b.shape}.",
                    "label": int(RELATIONS[word](a, b)),
                    "relation": word,
                }
            )
    write_jsonl(folder / "splits" / "zeroshot" / "test.jsonl", rows)


def _hatefulmemes(folder: Path, count: int, seed: int) -> None:
    """The label is whether the text is wrong about the picture, in place of whether it is hateful.

    Every second text belongs to another picture.
    """
    for split in ("dev", "test"):
        rows: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            rng = stream(seed, "hatefulmemes", split, number)
            scene = sample_scene(rng, "eval")
            name = f"img/{split}{number:05d}.png"
            write_picture(folder / name, scene, rng)
            text = caption(scene if number % 2 else sample_scene(rng, "eval"), rng)
            row = {"id": number, "img": name, "text": text}
            rows.append(row | ({"label": int(not is_true(text, scene))} if split == "dev" else {}))
        write_jsonl(folder / f"{split}.jsonl", rows)


def _visdial(folder: Path, count: int, seed: int) -> None:
    """Ten rounds an image; the test split asks the last round alone and hides its answer."""
    said = [form.format(answer) for form in _SAID for answer in _ANSWERS]
    for split in ("val", "test"):
        asked: dict[str, int] = {}
        dialogs, dense = [], []
        for number in range(1, count + 1):
            rng = stream(seed, "visdial", split, number)
            scene = sample_scene(rng, "eval")
            name = f"VisualDialog_{split}2018_{number:012d}.jpg"
            write_picture(folder / f"VisualDialog_{split}2018" / name, scene, rng)
            turns = [_turn(scene, place, said, asked, rng) for place in range(_ROUNDS)]
            judged = rng.randint(1, _ROUNDS)
            relevance = _relevance(turns[judged - 1], said)
            dense.append({"image_id": number, "round_id": judged, "gt_relevance": relevance})
            if split == "test":
                for turn in turns[:-1]:
                    del turn["answer_options"], turn["gt_index"]
                del turns[-1]["answer"], turns[-1]["gt_index"]
            text = caption(scene, rng)
            dialogs.append({"image_id": number, "caption": text, "dialog": turns})
        data = {"questions": list(asked), "answers": said, "dialogs": dialogs}
        content = {"split": f"{split}2018", "version": "1.0", "data": data}
        write_json(folder / f"visdial_1.0_{split}.json", content)
        if split == "val":
            write_json(folder / "visdial_1.0_val_dense_annotations.json", dense)


def _turn(
    scene: Scene, place: int, said: Sequence[str], asked: dict[str, int], rng: random.Random
) -> dict[str, Any]:
    """One round; a new question is added to ``asked``, which numbers them."""
    one = question(scene, QUESTION_KINDS[place % len(QUESTION_KINDS)], rng)
    if one is None:  # no relation in a scene of one object
        one = question(scene, "color", rng)
    assert one is not None
    right = said.index(one.answer)
    others = [index for index in range(len(said)) if index != right]
    options = [right, *rng.sample(others, _OPTIONS - 1)]
    rng.shuffle(options)
    text = one.text.lower().removesuffix("?")
    return {
        "question": asked.setdefault(text, len(asked)),
        "answer": right,
        "answer_options": options,
        "gt_index": options.index(right),
    }


def _relevance(turn: dict[str, Any], said: Sequence[str]) -> list[float]:
    """1 for the right answer, less for the same answer in other words, else 0."""
    right = said[turn["answer"]]
    same = {form.format(right): 1.0 if form == "{}" else 0.6 for form in _SAID}
    return [same.get(said[option], 0.0) for option in turn["answer_options"]]
