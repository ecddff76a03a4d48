"""The trial's scores: forms, kinds, the blind control, intervals and differences."""

import math

import pytest
import torch

from evaluation.benchmarks.folder import read_questions
from jobs.instructions.trial import COMPARISONS, forms, interval, measure, table
from pipeline.tinyworld.write import write_eval


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    write_eval(folder, val=1, test=6, out=1, seed=0)
    return read_questions(folder, "test", "vqa")


def test_a_model_that_knows_one_form_and_looks_is_seen_through(questions):
    """The fake knows the truth of each picture, and only where it is asked in its own form."""
    truth = {}
    for one in questions.questions:
        right = max(set(one.answers), key=one.answers.count)
        truth[str(questions.images[one.image_id]), one.text] = right
    places = sorted({str(path) for path in questions.images.values()})

    def encode(images):
        return torch.tensor([[places.index(str(image))] for image in images])

    def respond(encoded, prompts):
        found = []
        for row, prompt in zip(encoded.tolist(), prompts, strict=True):
            before, asked, after = prompt[:10], prompt[10:-14], prompt[-14:]
            known = (before, after) == ("Question: ", " Short answer:")
            found.append(truth.get((places[row[0]], asked), "zero") if known else "zero")
        return found

    scores = measure(questions, encode, respond, leave_out=3)
    assert len(scores) == 12
    assert scores["own/taught"] > 0.9 and scores["own/new"] > 0.9
    assert scores["own/taught/blind"] < 0.7
    assert scores["held out/taught"] == scores["held out/new"] == 0
    assert 0 < scores["drawn/taught"] < 0.4  # one template in seven is its own


def test_the_held_out_templates_are_none_that_training_draws():
    found = forms(3)
    assert len(found["drawn"]) == 7 and len(found["held out"]) == 3
    assert not set(found["drawn"]) & set(found["held out"])


def test_intervals_are_students():
    middle, half = interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert middle == pytest.approx(0.3)
    assert half == pytest.approx(2.776 * math.sqrt(0.025) / math.sqrt(5), rel=1e-3)
    assert math.isnan(interval([0.5])[1])
    with pytest.raises(ValueError, match="11 seeds"):
        interval([0.0] * 11)


def test_the_table_has_differences_in_pairs():
    names = {one.score for one in COMPARISONS}
    low, high = dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.75)
    lines = table([{"stage 2": low, "plain": low, "aware": high}] * 2)
    assert sum("0.250 ± 0.000" in line for line in lines) == len(COMPARISONS)
