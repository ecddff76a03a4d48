"""TinyWorld's pictures and files: the same for a seed, in the formats they claim."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.tinyworld.render import IMAGE_SIZE, jpeg, render
from pipeline.tinyworld.scene import (
    COLORS,
    SHAPES,
    Scene,
    Thing,
    domain_of,
    sample_scene,
    stream,
)
from pipeline.tinyworld.text import is_true
from pipeline.tinyworld.write import (
    load_truth,
    novelty,
    scene_from_json,
    scene_to_json,
    write_coco,
    write_eval,
    write_web,
)


def tree_digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one(color: str, shape: str, size: str = "large") -> Scene:
    return Scene((Thing(color, shape, size, "top", "right"),), "plain")


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


# ------------------------------------------------------------------------------ pictures


def test_the_object_is_drawn_in_its_quarter_only() -> None:
    scene = one("white", "square")
    for seed in range(20):
        pixels = np.asarray(render(scene, stream(seed)).convert("L"))
        bright = np.argwhere(pixels > 160)
        assert len(bright) > 300
        assert bright[:, 0].max() < 34 and bright[:, 1].min() >= 30  # jitter may cross by a pixel


def test_large_covers_about_three_times_small() -> None:
    def area(size: str) -> int:
        image = render(one("white", "circle", size), stream("area"))
        return int((np.asarray(image.convert("L")) > 128).sum())

    assert 2.4 < area("large") / area("small") < 3.8


@pytest.mark.parametrize("color", COLORS)
def test_every_color_is_nearest_to_itself_after_jpeg(color: str) -> None:
    def centre(name: str, seed: int) -> np.ndarray:
        image = Image.open(io.BytesIO(jpeg(render(one(name, "square"), stream(seed)))))
        return np.asarray(image.convert("RGB"), float)[14:19, 46:51].mean((0, 1))

    anchors = {name: np.mean([centre(name, s) for s in range(30)], 0) for name in COLORS}
    for seed in range(100, 120):
        seen = centre(color, seed)
        assert min(anchors, key=lambda name: np.abs(anchors[name] - seen).sum()) == color


def test_no_two_shapes_look_alike() -> None:
    pictures = {shape: render(one("white", shape), stream("same")) for shape in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            assert a == b or difference(pictures[a], pictures[b]) > 4


def test_a_stream_gives_one_picture_and_one_file() -> None:
    scene = sample_scene(stream(1))
    assert jpeg(render(scene, stream(2))) == jpeg(render(scene, stream(2)))
    assert jpeg(render(scene, stream(2))) != jpeg(render(scene, stream(3)))
    with Image.open(io.BytesIO(jpeg(render(scene, stream(2))))) as image:
        assert (image.size, image.mode) == ((IMAGE_SIZE, IMAGE_SIZE), "RGB")


# ----------------------------------------------------------------------------------- web


def test_scene_json_round_trip() -> None:
    for seed in range(50):
        scene = sample_scene(stream(seed))
        assert scene_from_json(json.loads(json.dumps(scene_to_json(scene)))) == scene


def test_web_is_img2dataset_output_with_the_truth_outside(tmp_path: Path) -> None:
    web = tmp_path / "web"
    truth_file = write_web(web, 130, seed=3, shard_size=64)
    assert sorted(p.name for p in web.iterdir()) == [
        f"{i:06d}.{kind}" for i in range(3) for kind in ("parquet", "tar")
    ]
    truth = load_truth(web)
    assert len(truth) == 130 and web not in truth_file.parents
    with tarfile.open(web / "000001.tar") as tar:
        names = tar.getnames()
        assert names[:3] == [f"0000010000.{kind}" for kind in ("jpg", "json", "txt")]
        assert len(names) == 3 * 64
        for name in names[::3]:
            key = name.removesuffix(".jpg")
            record = json.loads(tar.extractfile(f"{key}.json").read())  # type: ignore[union-attr]
            image = tar.extractfile(name).read()  # type: ignore[union-attr]
            text = tar.extractfile(f"{key}.txt").read().decode()  # type: ignore[union-attr]
            assert record["caption"] == text and record["key"] == key
            assert record["sha256"] == hashlib.sha256(image).hexdigest()
            assert domain_of(truth[key]) == "train"
    table = pq.read_table(web / "000002.parquet").to_pylist()
    assert [row["key"] for row in table] == ["0000020000", "0000020001"]


def test_about_half_the_web_captions_are_right(tmp_path: Path) -> None:
    truth = write_web(tmp_path / "web", 1000, seed=0, shard_size=500)
    records = [json.loads(line) for line in truth.read_text().splitlines()]
    assert 0.44 < sum(record["right"] for record in records) / 1000 < 0.56
    assert all(r["right"] for r in records if r["kind"] == "right")
    assert not any(r["right"] for r in records if r["kind"] in ("vague", "truncated", "file name"))


def test_web_refuses_sizes_that_do_not_fit_its_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_size 20000"):
        write_web(tmp_path / "web", 10, seed=0, shard_size=20_000)


# -------------------------------------------------------------------- human and evaluation


def write_all(folder: Path, seed: int) -> None:
    write_web(folder / "web", 40, seed, shard_size=20)
    write_coco(folder / "coco", 20, seed)
    write_eval(folder / "eval", val=8, test=12, out=8, seed=seed)


def test_everything_is_byte_deterministic(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_all(tmp_path / name, seed)
    first, again, other = (tree_digest(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    write_eval(folder, val=20, test=300, out=20, seed=0)
    return folder


def load(folder: Path, name: str) -> dict:
    return json.loads((folder / "annotations" / name).read_text())


@pytest.mark.parametrize(("split", "count"), [("val", 20), ("test", 300), ("test_out", 20)])
def test_coco_and_vqa_files_agree(evaluation: Path, split: str, count: int) -> None:
    coco = load(evaluation, f"captions_{split}.json")
    ids = {image["id"]: image["file_name"] for image in coco["images"]}
    assert len(ids) == count
    files = {path.name for path in (evaluation / "images" / split).iterdir()}
    assert files == set(ids.values())
    assert len({note["id"] for note in coco["annotations"]}) == 5 * count
    assert {note["image_id"] for note in coco["annotations"]} == set(ids)
    questions = load(evaluation, f"vqa_{split}_questions.json")["questions"]
    notes = load(evaluation, f"vqa_{split}_annotations.json")["annotations"]
    assert {q["image_id"] for q in questions} == set(ids)
    assert [q["question_id"] for q in questions] == [n["question_id"] for n in notes]
    assert len({q["question_id"] for q in questions}) == len(questions)
    for note in notes:
        answers = [answer["answer"] for answer in note["answers"]]
        assert len(answers) == 10
        assert answers.count(note["multiple_choice_answer"]) >= 4
    kinds = {note["question_type"]: note["answer_type"] for note in notes}
    assert kinds == {
        "color": "other",
        "shape": "other",
        "count": "number",
        "exists": "yes/no",
        "relation": "yes/no",
        "position": "other",
    }
    for question in load(evaluation, f"gqa_{split}_questions.json").values():
        assert int(question["imageId"]) in ids and question["answer"] in (*COLORS, *SHAPES)


def test_ids_differ_between_splits(evaluation: Path) -> None:
    ids = [
        image["id"]
        for split in ("val", "test", "test_out")
        for image in load(evaluation, f"captions_{split}.json")["images"]
    ]
    assert len(set(ids)) == 340


def test_novelty_is_nocaps_domain(evaluation: Path) -> None:
    def domains(split: str) -> set[str]:
        return {i["domain"] for i in load(evaluation, f"captions_{split}.json")["images"]}

    assert domains("test") == {"in-domain"}
    assert domains("test_out") == {"near-domain", "out-domain"}
    assert novelty(one("red", "ring")) == "out-domain"


def test_karpathy_lists_val_and_test_with_their_sentences(evaluation: Path) -> None:
    entries = load(evaluation, "dataset_karpathy.json")["images"]
    assert [e["split"] for e in entries] == ["val"] * 20 + ["test"] * 300
    raw = [s["raw"] for e in entries if e["split"] == "test" for s in e["sentences"]]
    coco = load(evaluation, "captions_test.json")
    assert raw == [note["caption"] for note in coco["annotations"]]
    assert all((evaluation / "images" / e["filepath"] / e["filename"]).exists() for e in entries)


def test_the_first_256_test_images_are_distinct(evaluation: Path) -> None:
    coco = load(evaluation, "captions_test.json")
    first = [i["id"] for i in coco["images"][:256]]
    texts: dict[int, list[str]] = {}
    for note in coco["annotations"]:
        texts.setdefault(note["image_id"], []).append(note["caption"])
    complete = [texts[i][0] for i in first]
    assert len(set(complete)) == 256


def test_no_evaluation_scene_is_seen_in_training(tmp_path: Path) -> None:
    write_web(tmp_path / "web", 400, seed=0)
    seen = {scene.signature for scene in load_truth(tmp_path / "web").values()}
    rng = stream("eval scenes")
    for domain in ("eval", "out"):
        for _ in range(400):
            scene = sample_scene(rng, domain)  # type: ignore[arg-type]
            assert scene.signature not in seen


def test_human_captions_are_true_and_start_complete(tmp_path: Path) -> None:
    path = write_coco(tmp_path, 30, seed=5)
    coco = json.loads(path.read_text())
    rng = stream(5, "coco")
    scenes = [sample_scene(rng) for _ in range(30)]
    for note in coco["annotations"]:
        assert is_true(note["caption"], scenes[note["image_id"] - 1])
