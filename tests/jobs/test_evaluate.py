import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation.benchmarks.folder import read_questions as read
from evaluation.benchmarks.folder import true_captions
from evaluation.results import paper_metrics, print_results
from jobs.evaluation.arguments import AnswerArgs, EvaluateArgs, FurtherArgs, RetrievalArgs
from jobs.evaluation.run import evaluate
from jobs.predict import load

ROOT = Path(__file__).parents[2]


def test_captions(t5_run: Path, benchmark_data: Path, tmp_path: Path) -> None:
    results = evaluate(EvaluateArgs(t5_run, benchmark_data, ("caption",), out=tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {"cider", "bleu4", "meteor", "rouge_l", "shuffled_cider"} <= set(results["caption"])
    captions = json.loads((tmp_path / "captions_test_results.json").read_text())
    assert [c["image_id"] for c in captions] == list(range(6))
    pictures = sorted((benchmark_data / "images/test").iterdir())
    assert [c["caption"] for c in captions] == load(t5_run).caption(pictures)


def test_answers(stage2_run: Path, benchmark_data: Path, tmp_path: Path) -> None:
    results = evaluate(EvaluateArgs(stage2_run, benchmark_data, ("vqa", "gqa"), out=tmp_path))
    vqa = results["vqa"]
    assert set(vqa["by_question_type"]) == {"colour", "count"}
    assert all(0 <= vqa[key] <= 1 for key in ("accuracy", "blind", "text_only"))
    assert set(vqa["by_question_type_text_only"]) == {"colour", "count"}
    assert results["gqa"]["count"] == 6
    assert set(results["seconds"]) == {"vqa", "gqa"}
    answers = json.loads((tmp_path / "vqa_test_results.json").read_text())
    asked = json.loads((benchmark_data / "annotations/vqa_test_questions.json").read_text())
    assert [a["question_id"] for a in answers] == [q["question_id"] for q in asked["questions"]]


def test_answers_are_chosen_among_candidates(
    stage2_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "answers.txt"
    listed.write_text("red\ngreen\n\n1\nred\nyes\n")
    args = EvaluateArgs(
        *(stage2_run, benchmark_data, ("vqa", "gqa")),
        out=tmp_path,
        answering=AnswerArgs("rank", listed, candidate_score="mean"),
    )
    results = evaluate(args)
    assert results["candidates"] == {"file": str(listed), "score": "mean"}
    vqa = results["vqa"]
    assert vqa["candidates"] == 4  # a blank line and a doubled one do not count
    assert vqa["within_reach"] == pytest.approx((6 + 2) / 12)  # 1 for all counts, two colours
    assert 0 <= vqa["accuracy"] <= vqa["within_reach"] and {"blind", "text_only"} <= set(vqa)
    assert results["gqa"]["within_reach"] == 1.0
    for name in ("vqa_test", "vqa_test_blind", "vqa_test_text_only", "gqa_test"):
        answers = json.loads((tmp_path / f"{name}_results.json").read_text())
        assert {one["answer"] for one in answers} <= {"red", "green", "1", "yes"}
    model = load(stage2_run)
    pictures = sorted((benchmark_data / "images/test").iterdir())
    prompts = [model.vqa_prompt("Is it a square?")] * 6
    best = [one.best("mean") for one in model.rank(pictures, prompts, ["red", "green", "1", "yes"])]
    assert [one["answer"] for one in answers] == best


def test_retrieval(stage1_run: Path, benchmark_data: Path, tmp_path: Path) -> None:
    args = EvaluateArgs(
        *(stage1_run, benchmark_data, ("retrieval",)),
        out=tmp_path,
        retrieval=RetrievalArgs(images=5, k=3),
    )
    scores = evaluate(args)["retrieval"]
    assert (scores["images"], scores["texts"], scores["chance"]) == (5, 10, 0.2)
    assert {"tr_r1", "ir_r10"} <= set(scores)
    shown = json.loads((tmp_path / "retrieval_test_examples.json").read_text())
    assert len(shown["image_to_text"]) == len(shown["text_to_image"]) == 5
    assert all(len(query["results"]) == 5 for query in shown["text_to_image"])


def test_reranking_adds_the_logit_of_match_to_the_similarity(
    stage1_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    """The reference's score: the mean over queries of class 1's logit, plus the best query's cosine
    similarity, which no temperature divides.
    """
    args = EvaluateArgs(stage1_run, benchmark_data, ("retrieval",), out=tmp_path)
    model = load(stage1_run, dtype="fp32")
    evaluate(args, model)
    shown = json.loads((tmp_path / "retrieval_test_examples.json").read_text())
    query = shown["image_to_text"][2]
    texts = [result["text"] for result in query["results"]]
    feats, tokens = model.embed_images([benchmark_data / "images/test/000002.jpg"])
    similarity = (feats[0] @ model.text_embeds(texts).T).amax(0)
    logits = model.match_tokens(tokens, torch.zeros(len(texts), dtype=torch.long), texts)
    assert logits.shape == (5, 2)
    assert torch.allclose(
        torch.tensor([result["score"] for result in query["results"]]),
        logits[:, 1] + similarity,
        atol=1e-5,
    )


def test_reranking_by_odds_adds_the_lead_of_match_to_the_similarity_over_the_temperature(
    stage1_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    model = load(stage1_run, dtype="fp32")
    args = EvaluateArgs(
        *(stage1_run, benchmark_data, ("retrieval",)),
        out=tmp_path,
        retrieval=RetrievalArgs(rerank="odds"),
    )
    assert evaluate(args, model)["retrieval"]["rerank"] == "odds"
    shown = json.loads((tmp_path / "retrieval_test_examples.json").read_text())
    query = shown["image_to_text"][2]
    texts = [result["text"] for result in query["results"]]
    feats, tokens = model.embed_images([benchmark_data / "images/test/000002.jpg"])
    similarity = (feats[0] @ model.text_embeds(texts).T).amax(0)
    logits = model.match_tokens(tokens, torch.zeros(len(texts), dtype=torch.long), texts)
    assert 0.001 <= model.temperature <= 0.5
    assert torch.allclose(
        torch.tensor([result["score"] for result in query["results"]]),
        logits[:, 1] - logits[:, 0] + similarity / model.temperature,
        atol=1e-4,
    )


def test_limit_and_no_controls(stage2_run: Path, benchmark_data: Path) -> None:
    args = EvaluateArgs(
        stage2_run, benchmark_data, ("vqa",), limit=3, further=FurtherArgs(controls=False)
    )
    vqa = evaluate(args)["vqa"]
    assert vqa["count"] == 3
    assert "blind" not in vqa


def test_the_first_caption_is_what_is_read(benchmark_data: Path) -> None:
    questions = read(benchmark_data, "test", "vqa")
    contexts = true_captions(benchmark_data, "test", questions)
    assert contexts is not None
    assert contexts[0] == "a red square."
    gqa = true_captions(benchmark_data, "test", read(benchmark_data, "test", "gqa"))
    assert gqa is not None
    assert gqa["00000000"] == contexts[0]


def test_ours_under_the_papers_names(capsys: pytest.CaptureFixture) -> None:
    results = {
        "vqa": {"accuracy": 0.5, "by_question_type": {"colour": 0.25}},
        "gqa": {"accuracy": 0.4},
        "caption": {"bleu4": 0.3, "cider": 1.2, "notes": ["SPICE is left out"]},
        "retrieval": {"tr_r1": 0.8, "chance": 0.1, "itc": {"tr_r1": 0.7}},
    }
    assert paper_metrics(2, results) == {"vqav2.val": 0.5, "gqa.test-dev": 0.4}
    assert paper_metrics(3, results) == {"coco.bleu4": 0.3, "coco.cider": 1.2}
    domains = {"in-domain": {"cider": 1.1}, "out-domain": {"cider": 0.9}}
    nocaps = {"caption": {"cider": 1.0, "domains": domains}}
    assert paper_metrics(3, nocaps) == {
        "nocaps.in.cider": 1.1,
        "nocaps.out.cider": 0.9,
        "nocaps.overall.cider": 1.0,
    }
    assert paper_metrics(5, results) == {"coco.tr_r1": 0.8}
    print_results(results)
    printed = capsys.readouterr().out
    assert "vqa.by_question_type.colour" in printed
    assert "note: SPICE" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": "rank"}, "belong together"),
        ({"candidates": Path("c")}, "belong together"),
        ({"most_frequent": 0}, "--most-frequent 0"),
    ],
)
def test_mistakes_in_the_choice_of_candidates(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerArgs(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 0}, "--limit 0"),
        ({"tasks": ()}, "--tasks"),
        ({"out": Path(__file__)}, "is a file; name a folder"),
        ({"table": 2}, "belong together"),
        ({"table": 2, "row": "vit-h"}, "no row 'vit-h'"),
    ],
)
def test_mistakes_in_arguments(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateArgs(**{"checkpoint": Path("c"), "data": Path("d"), "tasks": ("vqa",)} | change)


def test_the_wrong_stage_and_missing_data(
    stage1_run: Path, benchmark_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--tasks vqa needs a stage2 checkpoint"):
        evaluate(EvaluateArgs(stage1_run, benchmark_data, ("vqa",)))
    with pytest.raises(FileNotFoundError, match="--data"):
        evaluate(EvaluateArgs(stage1_run, tmp_path / "none", ("retrieval",)))
    with pytest.raises(FileNotFoundError, match=r"captions_val\.json"):
        evaluate(EvaluateArgs(stage1_run, benchmark_data, ("retrieval",), split="val"))


def run_job(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_command_line(tiny_root: Path, stage1_run: Path, benchmark_data: Path) -> None:
    common = ["--checkpoint", stage1_run, "--data", benchmark_data, "--tasks", "retrieval"]
    done = run_job("jobs/evaluate.py", *common, "--table", 5, "--row", "vit-g")
    assert done.returncode == 0, done.stderr
    assert "retrieval.tr_r1" in done.stdout
    assert "coco.tr_r1" in done.stdout and "85.4" in done.stdout
    wrong = run_job("jobs/evaluate.py", *common[:1], tiny_root, *common[2:])
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in wrong.stderr
