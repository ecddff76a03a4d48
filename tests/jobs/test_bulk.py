"""Captions, answers, features and search of a folder, as their commands give them."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import tyro

from jobs import caption as caption_job
from jobs import embed as embed_job
from jobs.bulk.captions import CaptionArgs
from jobs.bulk.features import EmbedArgs
from jobs.bulk.nearest import Vectors, build_index, by_index, exact
from jobs.bulk.search import SearchArgs, Searcher, report
from jobs.predict import VQA, load_embedder, load_writer, pool


@pytest.fixture
def photos(benchmark_data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((benchmark_data / "images" / "test").iterdir())[:5]):
        shutil.copy(path, folder / f"{number}{path.suffix}")
    (folder / "page.jpg").write_text("<html>")
    return folder


def caption(run: Path, photos: Path, out: Path, *more: str) -> int:
    given = ["--checkpoint", str(run), "--input", str(photos), "--out", str(out)]
    fixed = ["--device", "cpu", "--threads", "1", "--chunk", "2", "--max-new-tokens", "6"]
    return caption_job.caption(tyro.cli(CaptionArgs, args=[*given, *fixed, *more]))


def embed(run: Path, photos: Path, out: Path, *more: str) -> int:
    given = ["--checkpoint", str(run), "--input", str(photos), "--out", str(out)]
    fixed = ["--device", "cpu", "--threads", "1", "--chunk", "2"]
    return embed_job.embed(tyro.cli(EmbedArgs, args=[*given, *fixed, *more]))


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_image_has_a_row(
    t5_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.jsonl"
    assert caption(t5_run, photos, out, "--beside", "--beams", "2") == 0
    rows = rows_of(out)
    assert [row["image"] for row in rows] == sorted(path.name for path in photos.glob("*g"))
    assert [row["failed"] for row in rows] == ["", "", "", "", "", "not_an_image"]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["images"], told["texts"], told["failed"]) == (6, 5, {"not_an_image": 1})
    beside = {path.stem: path.read_text() for path in photos.glob("*.txt")}
    assert beside == {row["image"][0]: row["caption"] + "\n" for row in rows[:5]}


def test_what_is_done_is_skipped(t5_run: Path, photos: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "c.csv", tmp_path / "w.csv"
    drawn = ("--sample", "--count", "3")
    assert caption(t5_run, photos, out, *drawn) == 0
    parts = tmp_path / "c.csv.parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    next(parts.glob("*.jsonl")).unlink()
    (photos / "0.txt").write_text("no image")
    first = out.read_bytes()
    out.unlink()
    assert caption(t5_run, photos, out, *drawn) == 0
    assert out.read_bytes() == first
    after = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert after.keys() == before.keys()
    assert sum(after[name] != before[name] for name in before) == 1
    assert caption(t5_run, photos, whole, *drawn, "--batch-size", "3") == 0
    assert whole.read_bytes() == first  # draws do not depend on batches
    rows = list(csv.DictReader(first.decode().splitlines()))
    assert len(rows) == 5 * 3 + 1
    with pytest.raises(ValueError, match=r"made otherwise \(decoding\.seed: 0 there, 1 now\)"):
        caption(t5_run, photos, out, *drawn, "--seed", "1")


def test_questions_in_bulk(t5_run: Path, photos: Path, tmp_path: Path) -> None:
    asked = tmp_path / "q.txt"
    asked.write_text("What is it?\n\nWhat colour is it?\n")
    assert caption(t5_run, photos, tmp_path / "a.parquet", "--questions", str(asked)) == 0
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert len(rows) == 5 * 2 + 1
    model = load_writer(t5_run, "cpu", batch_size=16)
    images = sorted(photos.glob("[0-4].*"))
    said = model.answer([images[0]], ["What is it?"], replace(VQA, max_new_tokens=6))
    assert rows[0]["answer"] == said[0]
    own = tmp_path / "q.jsonl"
    own.write_text(json.dumps({"image": images[1].name, "question": "What is it?"}) + "\n")
    assert caption(t5_run, photos, tmp_path / "b.jsonl", "--questions", str(own)) == 0
    good = [row for row in rows_of(tmp_path / "b.jsonl") if not row["failed"]]
    assert [row["image"] for row in good] == [images[1].name]


def test_nothing_readable_is_told(t5_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    assert caption(t5_run, folder, tmp_path / "c.jsonl") == caption_job.NOTHING_READ


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--count", "2"], "needs --sample"),
        (["--sample", "--beams", "3"], "exclude each other"),
        (["--task", "answer"], "belong together"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", "c", "--input", "i", "--out", "o.jsonl", *options]
    with pytest.raises(SystemExit):
        tyro.cli(CaptionArgs, args=given)
    said = capsys.readouterr().err.replace("│", " ")
    assert told in " ".join(said.split())


def test_features_are_the_models(stage1_run: Path, photos: Path, tmp_path: Path) -> None:
    pairs, texts = tmp_path / "p.jsonl", tmp_path / "t.txt"
    images = sorted(photos.glob("[0-4].*"))
    asked = [(images[3].name, "a red star"), ("gone.png", "x"), (images[0].name, "a circle")]
    pairs.write_text("".join(json.dumps({"image": i, "text": t}) + "\n" for i, t in asked))
    texts.write_text("a red star\na circle\n")
    out = tmp_path / "f"
    more = ("--pairs", str(pairs), "--texts", str(texts), "--joint")
    assert embed(stage1_run, photos, out, *more) == 0
    model = load_embedder(stage1_run, "cpu")
    queries = np.load(out / "images.npy")
    expected = model.image_embeds(images)
    assert np.allclose(queries, expected.numpy(), atol=1e-5)
    assert np.allclose(np.load(out / "pooled.npy"), pool(expected).numpy(), atol=1e-5)
    assert np.allclose(np.load(out / "texts.npy"), model.text_embeds(["a red star", "a circle"]))
    rows = pq.read_table(out / "images.parquet").to_pylist()
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4, -1]
    scored = pq.read_table(out / "pairs.parquet").to_pylist()
    itm = model.match([images[3], images[0]], ["a red star", "a circle"])
    assert scored[1]["itm"] is None
    assert torch.allclose(torch.tensor([scored[0]["itm"], scored[2]["itm"]]), itm, atol=1e-4)
    assert [row["row"] for row in scored] == [0, -1, 1]
    joint = model.joint_embeds([images[3], images[0]], ["a red star", "a circle"]).numpy()
    assert np.allclose(np.load(out / "joint.npy"), joint, atol=1e-5)


def test_search_ranks_as_the_model_does(stage1_run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    embed(stage1_run, photos, out)
    images = sorted(photos.glob("[0-4].*"))
    model = load_embedder(stage1_run, "cpu")
    cosines = model.similarity(images, ["a red star"] * 5)
    order = [images[n].name for n in cosines.argsort(descending=True)]
    args = SearchArgs(out, ("a red star",), (images[2],), device="cpu")
    searcher = Searcher(args)
    found = searcher.by_text("a red star")
    assert found.images == order
    assert searcher.by_image(images[2]).images[0] == images[2].name
    through = Searcher(SearchArgs(out, ("x",), way="index", device="cpu"))
    assert through.by_text("a red star") == found
    assert (out / "images.usearch").is_file()
    ranked = Searcher(SearchArgs(out, ("x",), rerank=5, k=3, device="cpu")).by_text("a red star")
    itm = model.match(images, ["a red star"] * 5)
    assert ranked.images == [images[n].name for n in itm.argsort(descending=True)][:3]
    page = report(args, searcher, [found])
    assert page.sections[0].queries[0].results[0].image == (photos / order[0]).read_bytes()  # type: ignore[union-attr]


def test_the_index_finds_what_exact_search_finds() -> None:
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((500, 4, 16)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=-1, keepdims=True)
    vectors = Vectors(queries)
    index = build_index(vectors.flat, threads=1)
    for _ in range(5):
        query = rng.standard_normal(16).astype(np.float32)
        query /= np.linalg.norm(query)
        rows, scores = exact(vectors, query, 10)
        best = (queries @ query).max(1)
        assert np.array_equal(rows, np.argsort(-best, kind="stable")[:10])
        assert np.allclose(scores, best[rows])
        near, _ = by_index(vectors, index, query, 10)
        assert len(set(near) & set(rows)) >= 9
