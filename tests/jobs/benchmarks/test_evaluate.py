"""The evaluation benchmark on tiny models: equal texts and scores, a table, a line of JSON."""

import json

import pytest

from jobs.benchmarks.evaluate import generation, reranking, run

TINY = ["--size", "tiny", "--images", "2", "--questions", "3", "--rounds", "1", "--batch", "4"]
PAIRS = ["--retrieval-images", "4", "--captions", "2", "--k", "2", "--sample", "3"]


def measured(capsys, *options: str) -> dict:
    assert run.main([*TINY, *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_answers_are_hugging_faces(capsys, family):
    [(title, case)] = measured(capsys, "--cases", "vqa", "--languages", family).items()
    assert title == f"vqa, {family}"
    assert case["equal"] == dict.fromkeys(case["equal"], 6)
    assert case["different_texts"] > 1
    assert {generation.SINGLE, generation.BATCHED, generation.CEILING} == case["ratio"].keys()


def test_pairs_have_the_scores_of_single_calls(capsys):
    case = measured(capsys, "--cases", "rerank", *PAIRS)["rerank"]
    assert 8 <= case["pairs"] <= 24 and 3 <= case["sample"] <= case["pairs"]
    assert case["difference"] <= 1e-5
    assert {reranking.PAIRS, reranking.KEPT} == case["ratio"].keys()


def test_unknown_names_are_told(capsys):
    with pytest.raises(SystemExit):
        run.main([*TINY, "--cases", "ocr"])
    assert "--cases 'ocr': give some of vqa, caption," in capsys.readouterr().err
