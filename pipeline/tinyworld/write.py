"""TinyWorld on disk in the formats of the real data sets, byte for byte the same for a seed.

* :func:`write_web`: noisy pairs as img2dataset leaves them, tars with a parquet beside each;
* :func:`write_coco`: pictures with five human-like captions each, as COCO caption JSON;
* :func:`write_eval`: val, test and out-of-domain test in COCO, Karpathy, VQAv2 and GQA JSON.

The truth about the web pairs is written outside the folder of the tars, for audits only: nothing
that trains or filters reads it. See :func:`load_truth`.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tinyworld.files import write_json, write_jsonl
from pipeline.tinyworld.render import IMAGE_SIZE, jpeg, render
from pipeline.tinyworld.scene import (
    HELD_OUT_PAIRS,
    Domain,
    Scene,
    Thing,
    sample_distinct,
    sample_scene,
    stream,
)
from pipeline.tinyworld.text import (
    SceneQuestion,
    annotators,
    captions,
    compositional,
    is_true,
    questions,
    web_caption,
)

DISTINCT_TEST = 256  # leading test images that no caption can confuse, for retrieval
_INFO = {"description": "TinyWorld", "version": "1.0", "year": 2026}
_ANSWER_TYPE = {"count": "number", "exists": "yes/no", "relation": "yes/no"}
_DETAILED = {"color": "queryColor", "shape": "queryShape"}


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The scene as plain JSON values."""
    return {"things": [asdict(thing) for thing in scene.things], "texture": scene.texture}


def scene_from_json(record: dict[str, Any]) -> Scene:
    """The inverse of :func:`scene_to_json`."""
    return Scene(tuple(Thing(**thing) for thing in record["things"]), record["texture"])


# --------------------------------------------------------------------------------- web


def _web_sample(seed: int, number: int, key: str) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """JPEG, img2dataset's record and the truth of one web pair."""
    rng = stream(seed, "web", number)
    scene = sample_scene(rng)
    text, kind = web_caption(scene, rng)
    image = jpeg(render(scene, rng))
    record = {
        "caption": text,
        "url": f"https://tinyworld.example/{key}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": IMAGE_SIZE,
        "height": IMAGE_SIZE,
        "original_width": IMAGE_SIZE,
        "original_height": IMAGE_SIZE,
        "exif": "{}",
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    truth = {
        "key": key,
        "scene": scene_to_json(scene),
        "caption": text,
        "kind": kind,
        "right": is_true(text, scene),
    }
    return image, record, truth


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime 0, no owner: the same bytes every time
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _web_shard(directory: Path, seed: int, shard: int, numbers: range) -> list[dict[str, Any]]:
    records, truths = [], []
    with tarfile.open(directory / f"{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for place, number in enumerate(numbers):
            key = f"{shard:06d}{place:04d}"
            image, record, truth = _web_sample(seed, number, key)
            _add(tar, f"{key}.jpg", image)
            _add(tar, f"{key}.json", json.dumps(record).encode())
            _add(tar, f"{key}.txt", record["caption"].encode())
            records.append(record)
            truths.append(truth)
    pq.write_table(pa.Table.from_pylist(records), directory / f"{shard:06d}.parquet")
    return truths


def _truth_path(directory: Path) -> Path:
    return directory.parent / "audit" / f"{directory.name}_truth.jsonl"


def write_web(directory: Path, count: int, seed: int, shard_size: int = 512) -> Path:
    """Write ``count`` noisy pairs of training scenes as img2dataset-style shards.

    ``directory`` gets ``000000.tar`` (members ``<key>.jpg .json .txt``) and ``000000.parquet`` and
    so on; the truth goes to ``../audit/<directory name>_truth.jsonl``. Returns that path.

    Raises:
        ValueError: ``count`` or ``shard_size`` is out of range.
    """
    if count < 1 or not 1 <= shard_size <= 10_000:
        raise ValueError(f"count {count} must be ≥ 1 and shard_size {shard_size} in 1 to 10000")
    directory.mkdir(parents=True, exist_ok=True)
    truths: list[dict[str, Any]] = []
    for shard, first in enumerate(range(0, count, shard_size)):
        truths += _web_shard(directory, seed, shard, range(first, min(first + shard_size, count)))
    write_jsonl(_truth_path(directory), truths)
    return _truth_path(directory)


def load_truth(directory: Path) -> dict[str, Scene]:
    """Scene by sample key for the web pairs in ``directory``. For audits only.

    Raises:
        FileNotFoundError: the pairs were not written by :func:`write_web`.
    """
    with _truth_path(directory).open(encoding="utf-8") as lines:
        records = map(json.loads, lines)
        return {record["key"]: scene_from_json(record["scene"]) for record in records}


# ------------------------------------------------------------------------------- COCO


def novelty(scene: Scene) -> str:
    """NoCaps' domain of a scene: how many of its objects were never shown in training."""
    unseen = sum(thing.pair in HELD_OUT_PAIRS for thing in scene.things)
    if not unseen:
        return "in-domain"
    return "out-domain" if unseen == len(scene.things) else "near-domain"


def _coco(directory: Path, split: str, scenes: list[Scene], seed: int, first_id: int) -> None:
    """Pictures and ``captions_<split>.json``; image ids count from ``first_id``."""
    folder = directory / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, first_id):
        rng = stream(seed, split, image_id)
        name = f"{image_id:012d}.jpg"
        (folder / name).write_bytes(jpeg(render(scene, rng)))
        size = {"width": IMAGE_SIZE, "height": IMAGE_SIZE, "domain": novelty(scene)}
        images.append({"id": image_id, "file_name": name, **size})
        for text in captions(scene, rng):
            notes.append({"id": len(notes) + 5 * first_id, "image_id": image_id, "caption": text})
    content = {"info": _INFO, "licenses": [], "images": images, "annotations": notes}
    write_json(directory / "annotations" / f"captions_{split}.json", content)


def write_coco(directory: Path, count: int, seed: int) -> Path:
    """Write the human-captioned training set: ``images/train`` and its COCO caption JSON.

    Five captions a picture, all of them right. Returns the path of the JSON.
    """
    rng = stream(seed, "coco")
    _coco(directory, "train", [sample_scene(rng) for _ in range(count)], seed, 1)
    return directory / "annotations" / "captions_train.json"


# ------------------------------------------------------------------------- evaluation


def _asked(scenes: list[Scene], seed: int, split: str, first_id: int) -> Iterator[tuple]:
    """(question id, image id, question, ten answers) for every question of a split."""
    for image_id, scene in enumerate(scenes, first_id):
        rng = stream(seed, split, "questions", image_id)
        for number, question in enumerate(questions(scene, rng)):
            yield image_id * 1000 + number, image_id, question, annotators(question, rng)


def vqa_note(
    key: int, image_id: int, question: SceneQuestion, answers: list[str]
) -> dict[str, Any]:
    return {
        "question_id": key,
        "image_id": image_id,
        "question_type": question.kind,
        "answer_type": _ANSWER_TYPE.get(question.kind, "other"),
        "multiple_choice_answer": Counter(answers).most_common(1)[0][0],
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(answers, 1)
        ],
    }


def _vqa(directory: Path, split: str, scenes: list[Scene], seed: int, first_id: int) -> None:
    """``vqa_<split>_questions.json`` and ``vqa_<split>_annotations.json`` as VQAv2 has them."""
    asked, notes = [], []
    for key, image_id, question, answers in _asked(scenes, seed, split, first_id):
        asked.append({"image_id": image_id, "question": question.text, "question_id": key})
        notes.append(vqa_note(key, image_id, question, answers))
    head = {"info": _INFO, "license": {}, "data_type": "tinyworld", "data_subtype": split}
    folder = directory / "annotations"
    task = {"task_type": "Open-Ended", "questions": asked}
    write_json(folder / f"vqa_{split}_questions.json", head | task)
    write_json(folder / f"vqa_{split}_annotations.json", head | {"annotations": notes})


def _gqa(directory: Path, split: str, scenes: list[Scene], seed: int, first_id: int) -> None:
    """``gqa_<split>_questions.json``: compositional questions keyed by id, as GQA has them."""
    content = {}
    for image_id, scene in enumerate(scenes, first_id):
        question = compositional(scene, stream(seed, split, "gqa", image_id))
        if question is None:
            continue
        content[f"{image_id:012d}00"] = {
            "imageId": f"{image_id:012d}",
            "question": question.text,
            "answer": question.answer,
            "fullAnswer": f"It is {question.answer}.",
            "isBalanced": True,
            "types": {
                "structural": "query",
                "semantic": "rel",
                "detailed": _DETAILED[question.kind],
            },
        }
    write_json(directory / "annotations" / f"gqa_{split}_questions.json", content)


def _karpathy(directory: Path, splits: tuple[str, ...]) -> None:
    """``dataset_karpathy.json`` from the COCO files of ``splits``."""
    entries: list[dict[str, Any]] = []
    sentence_id = 0
    for split in splits:
        coco = json.loads((directory / "annotations" / f"captions_{split}.json").read_text())
        texts: dict[int, list[str]] = {}
        for note in coco["annotations"]:
            texts.setdefault(note["image_id"], []).append(note["caption"])
        for image in coco["images"]:
            sentences = []
            for text in texts[image["id"]]:
                words = [w for w in text.replace(",", "").replace(":", "").split() if w]
                sentences.append(
                    {"raw": text, "tokens": words, "imgid": len(entries), "sentid": sentence_id}
                )
                sentence_id += 1
            entries.append(
                {
                    "filepath": split,
                    "filename": image["file_name"],
                    "imgid": len(entries),
                    "cocoid": image["id"],
                    "split": split,
                    "sentids": [sentence["sentid"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
    content = {"dataset": "tinyworld", "images": entries}
    write_json(directory / "annotations" / "dataset_karpathy.json", content)


def write_eval(directory: Path, val: int, test: int, out: int, seed: int) -> None:
    """Write the splits ``val``, ``test`` (evaluation scenes) and ``test_out`` (held-out pairs).

    ``directory`` gets ``images/<split>/`` and ``annotations/`` with ``captions_<split>.json``,
    ``vqa_<split>_{questions,annotations}.json``, ``gqa_<split>_questions.json`` and
    ``dataset_karpathy.json`` (val and test). The first 256 test scenes are distinct.
    """
    distinct = sample_distinct(stream(seed, "distinct"), "eval", min(test, DISTINCT_TEST))
    plans: tuple[tuple[str, int, Domain, list[Scene]], ...] = (
        ("val", val, "eval", []),
        ("test", test, "eval", distinct),
        ("test_out", out, "out", []),
    )
    first_id = 1
    for split, count, domain, scenes in plans:
        rng = stream(seed, split)
        scenes += [sample_scene(rng, domain) for _ in range(count - len(scenes))]
        for writer in (_coco, _vqa, _gqa):
            writer(directory, split, scenes, seed, first_id)
        first_id += count
    _karpathy(directory, ("val", "test"))
