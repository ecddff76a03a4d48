import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.compare import compare_runs, format_p, render_comparison
from evaluation.intervals.items import dumps, items_name
from evaluation.intervals.observed import Observation, Observed, amounts, fractions
from evaluation.intervals.pairs import SWAPS, NotComparable, compare_pairs
from evaluation.intervals.scores import with_intervals


def observed(seed: int, rate: float, questions: int = 200) -> Observed:
    """Two questions an image; the same seed gives questions of the same difficulty."""
    hard = np.random.default_rng(0).random(questions)
    noise = np.random.default_rng(seed).normal(0, 0.2, questions)
    right = (hard + noise < rate).astype(float)
    ids = tuple(range(questions))
    return Observed(ids, tuple(n // 2 for n in ids), {"accuracy": fractions(right.tolist())})


def folder(path: Path, parts: Observed, **scores: object) -> str:
    path.mkdir()
    accuracy = float(np.mean(parts.scores["accuracy"].rows))
    found = with_intervals({"accuracy": accuracy, "metric": "vqa.official", **scores}, [parts])
    results = {"split": "val", "vqa": found, "seconds": {"vqa": 1.0}}
    (path / "results.json").write_text(json.dumps(results))
    (path / items_name("vqa", "val")).write_text(dumps([parts]))
    return str(path)


def test_the_same_run_twice_has_no_difference(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", observed(1, 0.5))
    found = compare_runs(run, run)
    [one] = found.tasks["vqa"]
    assert (one.value, one.interval, one.p, one.images) == (0.0, (0.0, 0.0), 1.0, 0)
    assert render_comparison(found).splitlines()[-1].split()[-2:] == ["+0.000", "1"]


def test_a_better_run_is_told_from_a_run_with_another_seed(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", observed(1, 0.5))
    seed = folder(tmp_path / "seed", observed(2, 0.5))
    better = folder(tmp_path / "better", observed(3, 0.75))
    [other] = compare_runs(base, seed).tasks["vqa"]
    [gain] = compare_runs(base, better).tasks["vqa"]
    [loss] = compare_runs(better, base).tasks["vqa"]
    assert other.interval and other.interval[0] < 0 < other.interval[1]
    assert other.p > 0.05
    assert gain.interval and gain.interval[0] > 0
    assert gain.p == loss.p == 1 / (1 + SWAPS)
    assert loss.value == -gain.value
    assert compare_runs(base, seed) == compare_runs(base, seed)


def test_p_equals_the_count_over_all_sign_flips() -> None:
    """Eight images, of which five differ: 256 ways to swap them."""
    first = [1.0, 0, 1, 0, 0.3, 0, 1, 0.5]
    second = [1.0, 1, 1, 1, 0.9, 0.6, 0, 0.5]
    changes = np.array(second) - np.array(first)
    signs = np.array([[1 if n >> i & 1 else -1 for i in range(8)] for n in range(256)])
    exact = np.mean(np.abs(signs @ changes) >= abs(changes.sum()) - 1e-9)
    ids = tuple("abcdefgh")
    a, b = (Observed(ids, ids, {"accuracy": fractions(values)}) for values in (first, second))
    [one] = compare_pairs(a, b)
    assert one.p == pytest.approx(exact, abs=0.015)
    assert one.images == 5
    assert one.interval is None and one.reason == "few"


def test_items_of_one_image_are_swapped_together() -> None:
    """All questions about an image change alike: 12 images decide, not 120 questions."""
    ids = tuple(range(120))
    images = tuple(n // 10 for n in ids)
    gained = [float(n // 10 < 9) for n in ids]
    first = Observed(ids, images, {"accuracy": fractions([1 - value for value in gained])})
    second = Observed(ids, images, {"accuracy": fractions(gained)})
    [one] = compare_pairs(first, second)
    assert one.p == pytest.approx(2 * (1 + 12 + 66 + 220) / 2**12, abs=0.015)  # 9 of 12 coins


def test_the_order_of_items_does_not_matter() -> None:
    run, other = observed(1, 0.5), observed(2, 0.6)
    order = np.random.default_rng(0).permutation(200).tolist()
    moved = Observed(
        tuple(order),
        tuple(n // 2 for n in order),
        {"accuracy": fractions(other.scores["accuracy"].rows[order, 0].tolist())},
    )
    assert compare_pairs(run, moved) == compare_pairs(run, other)


def test_bleu_means_and_auroc_are_compared_too() -> None:
    draw, ids = np.random.default_rng(4), tuple(range(60))
    counts = draw.integers(1, 6, (60, 10)).astype(float)
    counts[:, 4:8] = 6
    fewer = counts.copy()
    fewer[:, :4] = np.maximum(counts[:, :4] - draw.integers(0, 2, (60, 4)), 0)
    positive = (np.arange(60) % 2).astype(float)
    good = np.stack([positive + draw.normal(0, 0.5, 60), positive], axis=1)
    scaled = np.stack([np.exp(3 * good[:, 0]), positive], axis=1)  # the same order
    worse = np.stack([draw.normal(0, 1, 60), positive], axis=1)

    def run(bleu: np.ndarray, area: np.ndarray, cider: list[float]) -> Observed:
        scores = {"bleu": Observation(bleu, "bleu"), "auroc": Observation(area, "auroc")}
        return Observed(ids, ids, {**scores, "cider": amounts(cider)})

    cider = draw.gamma(1, 1, 60)
    first = run(counts, good, cider.tolist())
    found = {
        one.score: one for one in compare_pairs(first, run(fewer, worse, (cider / 2).tolist()))
    }
    assert set(found) == {"bleu1", "bleu2", "bleu3", "bleu4", "auroc", "cider"}
    for one in found.values():
        assert one.value < 0 and one.p < 0.01 and one.interval and one.interval[1] < 0, one
    same = {one.score: one for one in compare_pairs(first, run(counts, scaled, cider.tolist()))}
    assert same["auroc"].p == 1 and same["auroc"].interval == (0.0, 0.0)


def test_other_questions_metrics_and_tasks_are_refused_in_one_line(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", observed(1, 0.5))
    fewer = folder(tmp_path / "fewer", observed(1, 0.5, 198))
    lavis = folder(tmp_path / "lavis", observed(1, 0.5), metric="vqa.lavis")
    with pytest.raises(NotComparable, match="vqa: the runs answered different items: 2 of 200"):
        compare_runs(base, fewer)
    with pytest.raises(NotComparable, match=r"metric is vqa\.official in the first run and vqa\.l"):
        compare_runs(base, lavis)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no results\.json"):
        compare_runs(base, str(tmp_path / "none"))
    (tmp_path / "none" / "results.json").write_text('{"split": "val", "gqa": {"intervals": {}}}')
    with pytest.raises(NotComparable, match=r"no task in common: .* has vqa, .* has gqa"):
        compare_runs(base, str(tmp_path / "none"))
    (tmp_path / "fewer" / "vqa_val_items.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        compare_runs(base, fewer)
    (tmp_path / "fewer" / "vqa_val_items.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no vqa_val_items\.json"):
        compare_runs(base, fewer)
    moved = Observed(tuple(range(200)), tuple(range(200)), observed(1, 0.5).scores)
    with pytest.raises(NotComparable, match="item 1 is of image 0 in the first run and of 1"):
        compare_pairs(observed(1, 0.5), moved)


def test_p_is_printed_for_people() -> None:
    assert [format_p(p) for p in (0.0001, 0.0123, 1.0)] == ["< 0.001", "0.012", "1"]
