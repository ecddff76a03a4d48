"""TinyWorld as small copies of the benchmarks whose answers are judged: LLaVA-Bench."""

from pathlib import Path
from typing import Any

from pipeline.tinyworld.files import write_jsonl, write_picture
from pipeline.tinyworld.scene import Scene, Thing, sample_scene, stream
from pipeline.tinyworld.text import caption, captions, describe, questions

_CATEGORIES = ("conv", "detail", "complex")


def write_judged(directory: Path, count: int, seed: int) -> None:
    """Write LLaVA-Bench In-the-Wild and COCO to ``directory/NAME``: ``count`` pictures each, with a
    question of every category.
    """
    _in_the_wild(directory / "llava_bench", count, seed)
    _coco(directory / "llava_bench_coco", count, seed)


def _in_the_wild(folder: Path, count: int, seed: int) -> None:
    asked: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    contexts = []
    for number in range(1, count + 1):
        rng = stream(seed, "llava_bench", number)
        scene = sample_scene(rng, "eval")
        name = f"{number:03d}.jpg"
        write_picture(folder / "images" / name, scene, rng)
        contexts.append({"id": f"{number:03d}", "image": name, "caption": caption(scene, rng)})
        _ask(scene, name, asked, said)
    write_jsonl(folder / "questions.jsonl", asked)
    write_jsonl(folder / "context.jsonl", contexts)
    write_jsonl(folder / "answers_gpt4.jsonl", said)


def _coco(folder: Path, count: int, seed: int) -> None:
    asked: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    contexts = []
    for number in range(1, count + 1):
        rng = stream(seed, "llava_bench_coco", number)
        scene = sample_scene(rng, "eval")
        path = folder / "val2014" / f"COCO_val2014_{number:012d}.jpg"
        write_picture(path, scene, rng)
        name = f"{number:012d}.jpg"
        boxes = [{"category": thing.shape, "bbox": _box(thing)} for thing in scene.things]
        contexts.append({"image": name, "captions": captions(scene, rng), "instances": boxes})
        _ask(scene, name, asked, said)
    write_jsonl(folder / "qa90_questions.jsonl", asked)
    write_jsonl(folder / "caps_boxes_coco2014_val_80.jsonl", contexts)
    write_jsonl(folder / "qa90_gpt4_answer.jsonl", said)


def _box(thing: Thing) -> list[float]:
    """The quarter that holds the object: left, top, right, bottom as shares of the picture."""
    left, top = 0.5 * (thing.column == "right"), 0.5 * (thing.row == "bottom")
    return [left, top, left + 0.5, top + 0.5]


def _ask(scene: Scene, image: str, asked: list[dict[str, Any]], said: list[dict[str, Any]]) -> None:
    """Add a question of every category, and the reference's answers."""
    short = questions(scene, stream("ask", image))[0]
    told = describe(scene)
    pairs = (
        (short.text, f"It is {short.answer}."),
        ("Describe the picture in detail.", f"The picture shows {told}."),
        ("Why might somebody have drawn this?", f"To show {told}, so that a child can learn it."),
    )
    for category, (question, answer) in zip(_CATEGORIES, pairs, strict=True):
        key = len(asked)
        asked.append({"question_id": key, "image": image, "category": category, "text": question})
        said.append(
            {"question_id": key, "text": answer, "answer_id": f"r{key}", "model_id": "gpt-4"}
        )
