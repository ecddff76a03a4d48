"""The cross-check on tiny checkpoints; and that it fails where the two sides differ."""

from dataclasses import replace

import pytest

from evaluation.scores.answers import METRICS
from evaluation.scores.captions import cider
from tests.crosscheck import __main__ as crosscheck
from tests.crosscheck import official
from tests.crosscheck.answers import Compared
from tests.crosscheck.scoring import FORMULAS, Score
from tests.jobs.tiny_checkpoints import save_benchmark, save_stage2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "opt"])
def test_a_checkpoint_speaks_and_is_scored_alike(family, tmp_path, capsys):
    """With a CLIP tower, for which Hugging Face's BLIP-2 has no place."""
    run, data = save_stage2(tmp_path, family), save_benchmark(tmp_path / "data")
    options = ["--checkpoint", str(run), "--data", str(data), "--questions", "12"]
    assert crosscheck.main(options) == 0
    said = capsys.readouterr().out
    for search in ("greedy", "beams"):
        [line] = [line for line in said.splitlines() if line.startswith(f"answers, {search}")]
        assert line.split()[2:5] == ["12", "12", "100.0%"]
    assert sum(line.split()[1] == FORMULAS for line in said.splitlines() if line.strip()) == 3


def test_it_fails_where_texts_or_scores_differ():
    texts = Compared("answers", "beams", ["a"] * 100, ["a"] * 99 + ["b"])
    score = Score("CIDEr", FORMULAS, 0.5, 0.5 + 9e-7, 100)
    assert crosscheck.agree([texts], [score])
    assert not crosscheck.agree([texts], [replace(score, theirs=0.500002)])
    assert not crosscheck.agree([replace(texts, theirs=["a"] * 98 + ["b", "b"])], [score])
    assert "'a' / 'b'" in crosscheck.text_rows([texts])[1]


@pytest.mark.parametrize("answer", ["red", "The red.", "two", "1,000", "blue/green", "none", "x"])
def test_accuracy_by_its_formula(answer):
    references = ["red"] * 4 + ["2", "2", "1000", "blue green", "0", "a red"]
    ours = METRICS["vqa.always"](answer, references)
    assert official.vqa_accuracy(answer, references) == pytest.approx(ours, abs=1e-12)
    assert ours > 0 or answer == "x"


def test_cider_by_its_formula():
    references = {
        "1": ["a red star on a ring", "one red star"],
        "2": ["two blue circles", "a blue circle and a blue circle"],
        "3": ["a green cross in the top left", "a cross"],
    }
    texts = {"1": ["a red star"], "2": ["two blue blue circles"], "3": ["a star in the top left"]}
    score, _ = cider(references, texts)
    found = official.cider(references, {key: said for key, [said] in texts.items()})
    assert found == pytest.approx(score, abs=1e-12)
    assert 0.1 < score < 10
