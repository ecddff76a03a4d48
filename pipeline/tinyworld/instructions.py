"""TinyWorld's instructions: training scenes in the published files of InstructBLIP's data sets.

    python -m pipeline.tinyworld.instructions --out data/instructions --pictures 1500

:func:`write_instructions` writes COCO captions (Karpathy's file), VQAv2's questions, A-OKVQA's
choices and LLaVA's conversations. The truth is known, so all of it is right but for the annotators'
slips. No question of the kind ``HELD_OUT`` is asked in any of them: it tests what tuning teaches
beyond its own questions, as templates that are left out do. Evaluation sets are those of
``pipeline.tinyworld.write``, with questions of every kind.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.tinyworld.files import write_json, write_picture
from pipeline.tinyworld.scene import Scene, sample_scene, stream
from pipeline.tinyworld.text import (
    QUESTION_KINDS,
    QuestionKind,
    SceneQuestion,
    annotators,
    captions,
    describe,
    plausible_answers,
    question,
)
from pipeline.tinyworld.write import vqa_note

HELD_OUT: QuestionKind = "position"
TAUGHT = tuple(kind for kind in QUESTION_KINDS if kind != HELD_OUT)
_COCO = "COCO_train2014_{:012d}.jpg"


def write_instructions(directory: Path, pictures: int, seed: int) -> None:
    """Write the training files of ``coco``, ``vqav2``, ``aokvqa`` and ``llava`` into ``directory``.

    Byte for byte the same for a seed.

    Args:
        directory: folder of the data sets, each in a folder of its name.
        pictures: number of pictures; a quarter as many again are made for ``aokvqa``.
        seed: seed of scenes, texts and pictures.

    Raises:
        ValueError: fewer than 4 pictures.
    """
    if pictures < 4:
        raise ValueError(f"pictures {pictures}: give at least 4")
    images, asked, notes, told = [], [], [], []
    folder = directory / "coco" / "train2014"
    for number, scene, rng in _scenes(seed, "coco", pictures):
        name = _COCO.format(number)
        write_picture(folder / name, scene, rng)
        images.append(_karpathy(number, name, captions(scene, rng)))
        for at, one in enumerate(_questions(scene, rng)):
            key = 1000 * number + at
            asked.append({"image_id": number, "question": one.text, "question_id": key})
            notes.append(vqa_note(key, number, one, annotators(one, rng)))
        told.append(_conversation(number, scene, rng))
    write_json(directory / "coco" / "dataset_coco.json", {"dataset": "coco", "images": images})
    home = directory / "vqav2"
    content = {"task_type": "Open-Ended", "questions": asked}
    write_json(home / "v2_OpenEnded_mscoco_train2014_questions.json", content)
    write_json(home / "v2_mscoco_train2014_annotations.json", {"annotations": notes})
    write_json(directory / "llava" / "conversation_58k.json", told)
    _write_choices(directory / "aokvqa", max(1, pictures // 4), seed)


def _scenes(seed: int, name: str, count: int) -> Iterator[tuple[int, Scene, random.Random]]:
    """Number from 1, training scene and random stream of each picture."""
    for number in range(1, count + 1):
        rng = stream(seed, "instructions", name, number)
        yield number, sample_scene(rng), rng


def _questions(scene: Scene, rng: random.Random) -> list[SceneQuestion]:
    """A question of each taught kind that the scene allows."""
    found = (question(scene, kind, rng) for kind in TAUGHT)
    return [one for one in found if one is not None]


def _karpathy(number: int, name: str, texts: list[str]) -> dict[str, Any]:
    sentences = [
        {"raw": text, "imgid": number, "sentid": 5 * number + at} for at, text in enumerate(texts)
    ]
    return {
        "filepath": "train2014",
        "filename": name,
        "imgid": number,
        "cocoid": number,
        "split": "train",
        "sentences": sentences,
    }


def _conversation(number: int, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """Two to four turns about one picture: questions of the taught kinds, or a description."""
    asked = [(one.text, _sentence(one, rng)) for one in _questions(scene, rng)]
    asked.append(("Describe the image.", f"The image shows {describe(scene)}."))
    rng.shuffle(asked)
    turns: list[dict[str, str]] = []
    for at, (text, answer) in enumerate(asked[: rng.randint(2, 4)]):
        mark = "" if at else rng.choice(("<image>\n{}", "{}\n<image>"))
        turns.append({"from": "human", "value": mark.format(text) if mark else text})
        turns.append({"from": "gpt", "value": answer})
    name = f"{number:012d}"
    return {"id": name, "image": f"{name}.jpg", "conversations": turns}


def _sentence(asked: SceneQuestion, rng: random.Random) -> str:
    """The answer as an assistant says it: sometimes one word, sometimes a sentence."""
    if rng.random() < 0.5:
        return asked.answer
    match asked.kind:
        case "color" | "shape":
            return f"It is {asked.answer}."
        case "count":
            return f"There are {asked.answer}."
        case _:
            return f"{asked.answer}, this is what the image shows."


def _write_choices(home: Path, pictures: int, seed: int) -> None:
    """``aokvqa_v1p0_train.json``: questions of colours and shapes with four choices each."""
    entries = []
    for number, scene, rng in _scenes(seed, "aokvqa", pictures):
        write_picture(home / "train2017" / f"{number:012d}.jpg", scene, rng)
        for at, one in enumerate(_questions(scene, rng)):
            wrong = [answer for answer in plausible_answers(one) if answer != one.answer]
            if len(wrong) < 3:
                continue
            choices = [one.answer, *rng.sample(wrong, 3)]
            rng.shuffle(choices)
            entry = {"split": "train", "image_id": number, "question": one.text}
            entry |= {"question_id": f"train{number:06d}{at}", "choices": choices}
            entry |= {"correct_choice_idx": choices.index(one.answer)}
            entry |= {"direct_answers": annotators(one, rng), "difficult_direct_answer": False}
            entries.append(entry | {"rationales": ["It can be seen."]})
    write_json(home / "aokvqa_v1p0_train.json", entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--pictures", type=int, default=1500, help="number of training pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data")
    given = parser.parse_args()
    write_instructions(given.out, given.pictures, given.seed)


if __name__ == "__main__":
    main()
