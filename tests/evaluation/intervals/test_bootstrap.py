import hashlib
import itertools
import time

import numpy as np
import pytest

from evaluation.intervals import bootstrap
from evaluation.intervals.bootstrap import estimate, standard_error, t_interval, wilson
from evaluation.intervals.estimators import auroc_of_rows, effective, estimators, midranks
from evaluation.intervals.observed import Observation, Observed, amounts, fractions
from evaluation.intervals.quantiles import t_quantile
from evaluation.intervals.resampling import image_sums, index_of, on_grid, resamples, swaps
from evaluation.scores.choices import auroc


def one(observed: Observed, name: str = "accuracy") -> bootstrap.Estimate:
    return bootstrap_by_name(observed)[name, ""]


def bootstrap_by_name(observed: Observed) -> dict[tuple[str, str], bootstrap.Estimate]:
    return {found.name: found for found in estimate(observed)}


def test_students_t_equals_the_printed_table() -> None:
    """Any table of Student's t at 97.5 %."""
    table = {9: 2.262157, 14: 2.144787, 29: 2.045230, 99: 1.984217, 499: 1.964729}
    for freedom, value in table.items():
        assert t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-4)
        assert t_quantile(0.025, freedom) == pytest.approx(-t_quantile(0.975, freedom))


def test_wilson_by_hand() -> None:
    """81 of 100 right, errors of independent items: with z for t the interval is (.722, .875)."""
    low, high = wilson(0.81, (0.81 * 0.19 / 100) ** 0.5, 1e9)
    assert (low, high) == pytest.approx((0.7222, 0.8749), abs=2e-4)


def test_all_right_is_not_surely_1() -> None:
    found = one(Observed(tuple(range(40)), tuple(range(40)), {"accuracy": fractions([1.0] * 40)}))
    assert found.interval is not None and found.reason == bootstrap.ROUGH
    low, high = found.interval
    t = t_quantile(0.975, 39)
    assert high == 1.0
    assert low == pytest.approx(1 / (1 + t * t / 40), abs=1e-6)  # Wilson's formula at 1


def test_the_standard_error_is_that_of_the_images_and_not_of_the_questions() -> None:
    """Copies of a question add nothing: 30 images with 8 equal answers are 30 answers."""
    draw = np.random.default_rng(0)
    each = (draw.random(30) < 0.6).astype(float)
    images = np.repeat(np.arange(30), 8)
    found = one(
        Observed(tuple(range(240)), tuple(images.tolist()), {"accuracy": fractions(each[images])})
    )
    exact = each.std(ddof=1) / 30**0.5
    assert found.error == pytest.approx(exact, rel=0.05)
    assert found.images == pytest.approx(30)


def test_the_bootstrap_of_three_images_equals_all_27_resamples() -> None:
    """Ratio of sums: images with 1, 2 and 3 questions, of which 1, 0 and 2 are right."""
    right, asked = np.array([1.0, 0, 2]), np.array([1.0, 2, 3])
    chosen = [list(pick) for pick in itertools.product(range(3), repeat=3)]
    every = [right[pick].sum() / asked[pick].sum() for pick in chosen]
    values = [1.0, 0, 0, 1, 1, 0]
    observed = Observed(
        tuple("abcdef"), ("x", "y", "y", "z", "z", "z"), {"accuracy": fractions(values)}
    )
    found = estimators(observed)
    drawn = np.concatenate([found.of(block)[0] for block in resamples(3, 20_000, 0)])[:, 0]
    assert sorted(set(drawn.round(9))) == sorted({round(value, 9) for value in every})
    assert drawn.mean() == pytest.approx(np.mean(every), abs=0.005)
    assert drawn.std() == pytest.approx(np.std(every), abs=0.005)


def test_resamples_draw_as_many_images_as_there_are_and_each_as_often() -> None:
    counts = np.concatenate(list(resamples(7, 5000, 3)))
    assert (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.06)
    assert counts.var(axis=0) == pytest.approx(np.full(7, 6 / 7), abs=0.08)
    coins = np.concatenate(list(swaps(70, 2000, 3)))
    assert coins.mean(axis=0) == pytest.approx(np.full(70, 0.5), abs=0.06)


def test_the_draws_are_the_same_bytes_everywhere() -> None:
    drawn = np.concatenate(list(resamples(123, 50, 7))).astype(np.uint8).tobytes()
    assert hashlib.sha256(drawn).hexdigest()[:16] == "e83609a59b5e8de7"
    turned = np.concatenate(list(swaps(123, 50, 7))).astype(np.uint8).tobytes()
    assert hashlib.sha256(turned).hexdigest()[:16] == "c39261bde5bd4756"


def test_blocks_of_any_size_give_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resamples(11, 40, 1)))
    monkeypatch.setattr("evaluation.intervals.resampling._CELLS", 30)
    assert (np.concatenate(list(resamples(11, 40, 1))) == whole).all()


def test_sums_are_exact_in_any_order() -> None:
    draw = np.random.default_rng(0)
    rows = draw.random((5000, 3)) * [1, 1e-5, 1e6]
    index = draw.integers(0, 400, 5000)
    order = draw.permutation(5000)
    sums = image_sums(rows, index, 400)
    assert (image_sums(rows[order], index[order], 400) == sums).all()
    counts = next(resamples(400, 20, 0))
    shuffled = draw.permutation(400)
    assert (counts @ sums == counts[:, shuffled] @ sums[shuffled]).all()
    assert (on_grid(sums, 400) == sums).all()
    assert sums.sum(axis=0) == pytest.approx(rows.sum(axis=0), rel=1e-11)


def test_the_order_of_items_and_images_does_not_matter() -> None:
    draw = np.random.default_rng(5)
    values, images = draw.random(300), draw.integers(0, 60, 300)
    order = draw.permutation(300)
    a = Observed(
        tuple(range(300)), tuple(images.tolist()),
        {"accuracy": fractions(values), "cider": amounts(values * 3)},
    )  # fmt: skip
    b = Observed(
        tuple(order.tolist()), tuple(images[order].tolist()),
        {"accuracy": fractions(values[order]), "cider": amounts(values[order] * 3)},
    )  # fmt: skip
    assert estimate(a) == estimate(b)
    assert estimate(a) != estimate(a, seed=1)


def test_images_with_number_and_word_for_an_id_are_two() -> None:
    index, count = index_of([1, "1", 1, "a"])
    assert count == 3
    assert index[0] == index[2] != index[1]


def test_few_images_equal_images_and_few_deciding_images_are_said() -> None:
    few = one(Observed(tuple(range(9)), tuple(range(9)), {"accuracy": fractions([1.0, 0, 1] * 3)}))
    assert (few.interval, few.reason) == (None, bootstrap.FEW)
    ids = tuple(range(40))
    third = one(Observed(ids, ids, {"accuracy": fractions([1 / 3] * 40)}))
    assert (third.interval, third.reason) == (None, bootstrap.CONSTANT)
    nothing = one(Observed(ids, ids, {"cider": amounts([0.0] * 40)}), "cider")
    assert (nothing.interval, nothing.reason) == (None, bootstrap.FEW)
    rough = one(Observed(ids, ids, {"accuracy": fractions([0.0] * 35 + [1.0] * 5)}))
    assert rough.interval is not None and rough.reason == bootstrap.ROUGH
    lone = Observed(ids, (0,) * 36 + (1, 2, 3, 4), {"accuracy": fractions([1.0, 0.0] * 20)})
    assert one(lone).reason == bootstrap.FEW  # one image has nearly all questions
    assert effective(np.array([36.0, 1, 1, 1, 1])) == pytest.approx(40**2 / (36**2 + 4))


def test_items_that_do_not_count_are_left_out() -> None:
    ids = tuple(range(60))
    values = [None if n % 2 else float(n % 4 == 0) for n in ids]
    half = one(Observed(ids, ids, {"ndcg": fractions(values)}), "ndcg")
    assert half.value == pytest.approx(0.5)
    assert half.images == pytest.approx(30)


def test_groups_have_intervals_of_their_own() -> None:
    ids = tuple(range(80))
    kinds = tuple("color" if n < 40 else "" if n < 50 else "shape" for n in ids)
    right = fractions([float(n % 2 == 0 or n >= 50) for n in ids])
    observed = Observed(ids, ids, {"accuracy": right, "blind": right}, {"question_type": kinds})
    found = bootstrap_by_name(observed)
    assert found["by_question_type", "color"].value == 0.5
    assert found["by_question_type_blind", "shape"].value == 1.0
    alone = one(Observed(ids[:40], ids[:40], {"accuracy": fractions([1.0, 0.0] * 20)}))
    grouped = found["by_question_type", "color"]
    assert grouped.error == pytest.approx(alone.error, rel=0.1)
    assert ("by_question_type", "") not in found


def test_auroc_of_resamples_equals_the_count_of_pairs() -> None:
    draw = np.random.default_rng(2)
    scores, positive = draw.integers(0, 6, 40).astype(float), draw.random(40) < 0.4
    images = tuple((np.arange(40) // 2).tolist())
    rows = np.stack([scores, positive.astype(float)], axis=1)
    observed = Observed(tuple(range(40)), images, {"auroc": Observation(rows, "auroc")})
    found = estimators(observed)
    counts, number = next(resamples(20, 5, 0)), index_of(images)[0]
    assert found.of(np.ones((1, 20)))[0][0, 0] == pytest.approx(auroc(scores, list(positive)))
    for row, got in zip(counts, found.of(counts)[0][:, 0], strict=True):
        picked = [n for n in range(40) for _ in range(int(row[number[n]]))]
        assert got == pytest.approx(auroc(scores[picked], [bool(positive[n]) for n in picked]))
    rows = draw.integers(0, 5, (3, 40)).astype(float)
    assert auroc_of_rows(rows, positive)[:, 0] == pytest.approx(
        [auroc(row, list(positive)) for row in rows]
    )
    assert midranks(np.array([3.0, 1, 3, 0])).tolist() == [3.5, 2, 3.5, 1]


def test_many_images_are_resampled_in_blocks_with_the_same_error() -> None:
    draw = np.random.default_rng(6)
    values = (draw.random(30_000) < 0.4).astype(float)
    ids = tuple(range(30_000))
    started = time.process_time()
    found = one(Observed(ids, ids, {"accuracy": fractions(values)}))
    assert time.process_time() - started < 10
    assert found.error == pytest.approx((0.24 / 30_000) ** 0.5, rel=0.06)
    assert found.images == pytest.approx(30_000)


def test_a_wrong_row_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        fractions([0.5, 1.5])
    with pytest.raises(ValueError, match="10 numbers"):
        Observation(np.zeros((3, 2)), "bleu")
    with pytest.raises(ValueError, match="occurs twice"):
        Observed((1, 1), (1, 1), {})
    with pytest.raises(ValueError, match="accuracy has 1 rows for 2 items"):
        Observed((1, 2), (1, 1), {"accuracy": fractions([1.0])})
    with pytest.raises(ValueError, match="not finite"):
        amounts([float("inf")])


def test_small_pieces() -> None:
    assert standard_error(np.array([1.0, np.nan]), 30) == 0.0
    assert t_interval(0.5, 0.0, 30) == (0.5, 0.5)
