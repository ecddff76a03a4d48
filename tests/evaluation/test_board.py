"""The leaderboard: which numbers stand on it, and the bands of its curves."""

from dataclasses import replace

from evaluation.board.history import Entry
from evaluation.board.page import board, leading, published
from evaluation.report.plots import Chart, Series, line_chart


def entry(**changes: object) -> Entry:
    first = Entry(
        *("runs/a", "step_00000010-1a2b3c4d", 10, "nightly-12345678", "okvqa", "accuracy"),
        *(0.4, 0.38, 0.42, 100, "{}", "c", "r", "t"),
    )
    return replace(first, **changes)  # type: ignore[arg-type]


def test_one_number_stands_for_a_task() -> None:
    found = [entry(), entry(metric="blind"), entry(task="vsr"), entry(task="vsr", metric="auroc")]
    assert list(leading(found)) == [("okvqa", "accuracy"), ("vsr", "auroc")]


def test_the_best_published_number_is_named() -> None:
    assert published("okvqa", "accuracy").startswith("45.9 (")
    assert published("okvqa", "blind") == ""


def test_runs_stand_side_by_side_and_steps_below() -> None:
    text = str(board("nightly-12345678", [entry(), entry(run="runs/b", step=20, value=0.5)]))
    assert "Leaderboard: nightly" in text
    assert "a, step 10" in text and "b, step 20" in text and "0.400 (0.380 to 0.420)" in text


def test_intervals_are_bands_and_a_lacking_one_is_left_out() -> None:
    nan = float("nan")
    line = Series("a", [1, 2, 3], [0.5, 0.6, 0.7], [(0.4, 0.6), (nan, nan), (0.6, 0.8)])
    drawn = line_chart(Chart("c", [line]))
    assert drawn.count('class="band b0"') == 1
    assert "band" not in line_chart(Chart("c", [replace(line, band=[(nan, nan)] * 3)]))
    assert "band" not in line_chart(Chart("c", [replace(line, band=())]))
