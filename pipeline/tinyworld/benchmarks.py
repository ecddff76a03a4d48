"""TinyWorld as small copies of the benchmarks: their files, folders and fields, byte for byte.

:func:`write_benchmarks` writes every benchmark that asks for a caption or a free answer, and calls
``choices.write_choices`` for those with candidates, ``videos.write_videos`` for those about videos
and ``judged.write_judged`` for those with a judge. Test splits have no answers where the authors
publish none.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tinyworld.choices import write_choices
from pipeline.tinyworld.files import write_json, write_picture
from pipeline.tinyworld.judged import write_judged
from pipeline.tinyworld.scene import Domain, Scene, sample_scene, stream
from pipeline.tinyworld.text import (
    SceneQuestion,
    annotators,
    captions,
    compositional,
    plausible_answers,
    questions,
)
from pipeline.tinyworld.videos import write_videos
from pipeline.tinyworld.write import novelty, vqa_note

_NOVELTIES = ("in-domain", "near-domain", "out-domain")
_EXISTS_PROGRAM = [
    {"operation": "select", "dependencies": [], "argument": "shape (1)"},
    {"operation": "exist", "dependencies": [0], "argument": "?"},
]
_WORDS = ("open", "closed", "exit", "taxi", "coffee", "museum", "stop", "hotel", "north", "bakery")


@dataclass(frozen=True)
class Home:
    """The folder of one benchmark, the number of pictures in a split of it, and the seed."""

    folder: Path
    count: int
    seed: int

    def pictures(
        self, images: str, name: str, novelties: tuple[str, ...] = ("in-domain",)
    ) -> Iterator[tuple[int, Path, Scene, random.Random]]:
        """Draw the pictures of a split to the folder ``images``.

        Args:
            name: template of the file names (``{:012d}.jpg``), of the number of a picture.
            novelties: NoCaps' domains of the scenes, which alternate.

        Yields:
            Number from 1, file, scene and random stream of each picture.
        """
        for number in range(1, self.count + 1):
            rng = stream(self.seed, self.folder.name, images, number)
            scene = _sample(rng, novelties[number % len(novelties)])
            path = self.folder / images / name.format(number)
            write_picture(path, scene, rng)
            yield number, path, scene, rng

    def write(self, name: str, content: object) -> None:
        """Write a JSON file of the benchmark."""
        write_json(self.folder / name, content)


def _sample(rng: random.Random, wanted: str) -> Scene:
    """A scene that training never shows, of one of NoCaps' domains."""
    domain: Domain = "eval" if wanted == "in-domain" else "out"
    while novelty(scene := sample_scene(rng, domain)) != wanted:
        pass
    return scene


def write_benchmarks(directory: Path, count: int, seed: int) -> None:
    """Write each benchmark to ``directory/NAME``, with ``count`` pictures a split.

    Raises:
        ValueError: ``count`` is below 2.
    """
    if count < 2:
        raise ValueError(f"count {count}: a benchmark needs at least 2 pictures")
    for name, write in _WRITERS.items():
        write(Home(directory / name, count, seed))
    write_choices(directory, count, seed)
    write_videos(directory, count, seed)
    write_judged(directory, count, seed)


# ---------------------------------------------------------------------- questions as VQAv2's


def _vqa(home: Home, images: str, questions_name: str, notes_name: str = "") -> None:
    """Questions, and annotations where they have a name."""
    asked, notes = [], []
    for image_id, _, scene, rng in home.pictures(images, f"COCO_{images}_{{:012d}}.jpg"):
        for number, question in enumerate(questions(scene, rng)):
            key = image_id * 1000 + number
            asked.append({"image_id": image_id, "question": question.text, "question_id": key})
            notes.append(vqa_note(key, image_id, question, annotators(question, rng)))
    home.write(questions_name, {"task_type": "Open-Ended", "questions": asked})
    if notes_name:
        home.write(notes_name, {"annotations": notes})


def _vqav2(home: Home) -> None:
    val = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
    _vqa(home, "val2014", *val)
    _vqa(home, "test2015", "v2_OpenEnded_mscoco_test-dev2015_questions.json")


def _okvqa(home: Home) -> None:
    names = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
    _vqa(home, "val2014", *names)


# -------------------------------------------------------------------- questions of other forms


def _aokvqa(home: Home) -> None:
    for split in ("val", "test"):
        entries = []
        images = home.pictures(f"{split}2017", "{:012d}.jpg")
        for image_id, _, scene, rng in images:
            asked = [q for q in questions(scene, rng) if q.kind in ("color", "shape")]
            for number, question in enumerate(asked):
                entry = _aokvqa_entry(question, rng)
                entry |= {"split": split, "image_id": image_id}
                entry["question_id"] = f"{split}{image_id:04d}{number}"
                if split == "test":
                    for hidden in ("correct_choice_idx", "direct_answers", "rationales"):
                        del entry[hidden]
                entries.append(entry)
        home.write(f"aokvqa_v1p0_{split}.json", entries)


def _aokvqa_entry(question: SceneQuestion, rng: random.Random) -> dict[str, Any]:
    wrong = [answer for answer in plausible_answers(question) if answer != question.answer]
    choices = [question.answer, *rng.sample(wrong, 3)]
    rng.shuffle(choices)
    return {
        "question": question.text,
        "choices": choices,
        "correct_choice_idx": choices.index(question.answer),
        "direct_answers": annotators(question, rng),
        "difficult_direct_answer": rng.random() < 0.2,
        "rationales": ["It can be seen."],
    }


def _gqa(home: Home) -> None:
    """Of val there are also questions that do not count, and choices."""
    content, val, choices = {}, {}, {}
    for number, path, scene, rng in home.pictures("images", "n{:06d}.jpg"):
        question = compositional(scene, rng)
        if question is None:
            continue
        key, follows = f"{number:08d}", f"{number:08d}1"
        content[key] = _gqa_entry(path, question)
        val[key] = content[key] | {"entailed": [key, follows]}
        seen = SceneQuestion(f"Is there something {question.answer}?", "yes", "exists")
        val[follows] = _gqa_entry(path, seen) | {"isBalanced": False}
        plausible = [answer for answer in plausible_answers(question) if rng.random() < 0.5]
        choices[key] = {
            "valid": list(plausible_answers(question)),
            "plausible": sorted({question.answer, *plausible}),
        }
    home.write("testdev_balanced_questions.json", content)
    home.write("val_all_questions.json", val)
    home.write("val_choices.json", choices)


def _gqa_entry(path: Path, question: SceneQuestion) -> dict[str, Any]:
    verified = question.kind == "exists"
    return {
        "imageId": path.stem,
        "question": question.text,
        "answer": question.answer,
        "isBalanced": True,
        "groups": {"global": None if verified else question.kind, "local": f"10q-{question.kind}"},
        "entailed": [],
        "types": {
            "structural": "verify" if verified else "query",
            "semantic": "obj" if verified else "rel",
            "detailed": "existAttr" if verified else "relS",
        },
        "semantic": _EXISTS_PROGRAM if verified else [
            *_EXISTS_PROGRAM[:1],
            {"operation": "relate", "dependencies": [0], "argument": "_,beside,s (2)"},
            {"operation": "query", "dependencies": [1], "argument": question.kind},
        ],
    }  # fmt: skip


def _vizwiz(home: Home) -> None:
    for split in ("val", "test"):
        entries: list[dict[str, Any]] = []
        images = home.pictures(split, f"VizWiz_{split}_{{:08d}}.jpg")
        for number, path, scene, rng in images:
            question = questions(scene, rng)[0]
            entry: dict[str, Any] = {"image": path.name, "question": question.text}
            if split == "val":
                # Every fourth photograph does not show what is asked about.
                blurred = number % 4 == 0
                answers = ["unanswerable"] * 10 if blurred else annotators(question, rng)
                entry |= {
                    "answers": [{"answer": a, "answer_confidence": "yes"} for a in answers],
                    "answer_type": "unanswerable" if blurred else "other",
                    "answerable": int(not blurred),
                }
            entries.append(entry)
        home.write(f"{split}.json", entries)


def _textvqa(home: Home) -> None:
    """The words are in the OCR file alone: nothing is written on the pictures."""
    for split, images in (("val", "train_images"), ("test", "test_images")):
        asked, read = [], []
        for number, path, _, rng in home.pictures(images, "{:016x}.jpg"):
            word, other = rng.sample(_WORDS, 2)
            entry: dict[str, Any] = {
                "question": "what does the sign say?",
                "question_id": number,
                "image_id": path.stem,
                "set_name": split,
            }
            if split == "val":
                entry["answers"] = [word] * 8 + [word.title(), "answering does not require text"]
            asked.append(entry)
            read.append({"image_id": path.stem, "ocr_tokens": [word, other], "ocr_info": []})
        head = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        home.write(f"TextVQA_0.5.1_{split}.json", head | {"data": asked})
        home.write(f"TextVQA_Rosetta_OCR_v0.2_{split}.json", head | {"data": read})


# ----------------------------------------------------------------------------------- captions


def _nocaps(home: Home) -> None:
    for split, name in (
        ("val", "nocaps_val_4500_captions.json"),
        ("test", "nocaps_test_image_info.json"),
    ):
        images: list[dict[str, Any]] = []
        notes: list[dict[str, Any]] = []
        pictures = home.pictures(split, "{:016x}.jpg", _NOVELTIES)
        for number, path, scene, rng in pictures:
            image = {"id": number - 1, "open_images_id": path.stem, "file_name": path.name}
            images.append(image | {"domain": novelty(scene)})
            for text in captions(scene, rng, count=10):
                notes.append({"id": len(notes), "image_id": number - 1, "caption": text})
        content: dict[str, Any] = {"info": {}, "licenses": [], "images": images}
        home.write(name, content | ({"annotations": notes} if split == "val" else {}))


def _karpathy(home: Home, images: str, name: str, more: dict[str, object]) -> list[dict[str, Any]]:
    """The entries of Karpathy's test split."""
    return [
        {
            "filename": path.name,
            "imgid": number,
            "split": "test",
            "sentences": [
                {"raw": text, "imgid": number, "sentid": 5 * number + place}
                for place, text in enumerate(captions(scene, rng))
            ],
        }
        | more
        for number, path, scene, rng in home.pictures(images, name)
    ]


def _flickr30k(home: Home) -> None:
    entries = _karpathy(home, "flickr30k-images", "{:010d}.jpg", {})
    home.write("dataset_flickr30k.json", {"dataset": "flickr30k", "images": entries})


def _coco(home: Home) -> None:
    entries = _karpathy(home, "val2014", "COCO_val2014_{:012d}.jpg", {"filepath": "val2014"})
    entries = [entry | {"cocoid": entry["imgid"]} for entry in entries]
    home.write("dataset_coco.json", {"dataset": "coco", "images": entries})


_WRITERS: Mapping[str, Callable[[Home], None]] = {
    "aokvqa": _aokvqa,
    "coco": _coco,
    "flickr30k": _flickr30k,
    "gqa": _gqa,
    "nocaps": _nocaps,
    "okvqa": _okvqa,
    "textvqa": _textvqa,
    "vizwiz": _vizwiz,
    "vqav2": _vqav2,
}
