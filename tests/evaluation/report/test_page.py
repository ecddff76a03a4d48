import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cluster.logfiles import read_log
from evaluation.report.page import CapFilt, Curves, Facts, Report, render, write_report
from evaluation.report.pictures import picture_uri
from evaluation.report.plots import (
    Chart,
    Series,
    interval_bar,
    line_chart,
    log_series,
    nice_ticks,
)
from pipeline.images import decode
from tests.evaluation.report.sample_report import HOSTILE, picture, sample_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(HTMLParser):
    """Every tag closed in order; keeps the tags, their attributes and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_whole_and_stands_alone(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.html", sample_report())
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    checker = parse(page)
    names = [tag for tag, _ in checker.tags]
    assert "script" not in names
    assert "link" not in names
    outside = [
        a["src"] for tag, a in checker.tags if tag == "img" and not a["src"].startswith("data:")
    ]
    assert outside == []
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert names.count("section") == 11
    ids = {a["id"] for _, a in checker.tags if "id" in a}
    assert {a["href"].removeprefix("#") for tag, a in checker.tags if tag == "a"} == ids
    assert list(tmp_path.glob("new/*.part")) == []


def test_data_cannot_become_markup() -> None:
    page = render(sample_report(HOSTILE))
    checker = parse(page)
    assert "<script" not in page
    assert not any("onerror" in attributes for _, attributes in checker.tags)
    assert "<script>alert('x')</script>" in "".join(checker.text)  # shown as the words they are


def test_right_and_wrong_are_words_not_only_colours() -> None:
    words = " ".join(parse(render(sample_report())).text)
    for word in ("right", "wrong", "in part, 60.0 %", "reached", "missed", "kept", "no picture"):
        assert word in words


def test_intervals_stand_beside_results_as_words_and_as_bars() -> None:
    page = render(sample_report())
    words = " ".join(parse(page).text)
    assert "0.310 to 0.437" in words  # of a result
    assert "48.1 to 54.3" in words  # beside the paper
    assert "+0.120 to +0.222" in words and "higher" in words and "equal" in words
    assert page.count('<svg class="bar"') == 2


def test_a_bar_has_its_interval_and_its_zero_where_they_are() -> None:
    bar = interval_bar(0.5, (0.25, 0.75), (0, 1))
    assert 'class="span" x1="31.0" y1="7" x2="89.0"' in bar
    assert '<circle cx="60.0"' in bar and bar.count("rail") == 1
    assert bar.count("<line") == 2
    around = interval_bar(0.1, (-0.1, 0.3), (-0.3, 0.3))
    assert 'x1="60.0" y1="1" x2="60.0" y2="13"' in around


def test_any_section_may_be_absent() -> None:
    parse(render(Report("empty", [])))
    only = [CapFilt("CapFilt", {"kept": 425}), Curves("Curves", [])]
    words = " ".join(parse(render(Report("stamps", only))).text)
    assert "425" in words
    assert "right captions" not in words  # the truth is unknown: no share is invented


def test_pictures(tmp_path: Path) -> None:
    small = picture("red")
    assert picture_uri(small).startswith("data:image/png;base64,")
    path = tmp_path / "p.png"
    path.write_bytes(small)
    assert picture_uri(path) == picture_uri(small)
    assert picture_uri(tmp_path / "gone.png") == picture_uri(b"<html>") == picture_uri(None) == ""
    big = Image.effect_noise((900, 600), 80)
    assert len(picture_uri(big)) < 60_000
    for mode in ("LA", "CMYK"):
        assert picture_uri(Image.new(mode, (5, 5))).startswith("data:image/jpeg")


def test_thumbnails_of_16_bit_pictures_show_what_the_models_see(tmp_path: Path) -> None:
    """Grey levels are scaled: a dark picture stays dark. Pillow alone would clip it to white."""
    path = tmp_path / "deep.tif"
    Image.new("I;16", (40, 30), 0x2000).save(path)
    seen = decode(path.read_bytes())
    uri = picture_uri(path)
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    shown = decode(content)
    assert seen.unique().tolist() == [32]
    assert (shown.int() - seen.int()).abs().max() <= 1


def test_facts_print_numbers_short() -> None:
    words = " ".join(parse(render(Report("r", [Facts("f", {"a": 1.23456, "b": 12345.6})]))).text)
    assert "1.235" in words
    assert "12,346" in words


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.31, 0.52, [0.3, 0.35, 0.4, 0.45, 0.5, 0.55]),
        (4, 4, [2, 3, 4, 5, 6]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_a_line_breaks_where_values_are_not_finite() -> None:
    drawn = line_chart(Chart("c", [Series("s", [0, 1, 2, 3], [1, math.nan, 2, math.inf])]))
    path = re.search(r' d="([^"]*)"', drawn)
    assert path and path[1].count("M") == 2
    assert "nan" not in drawn and "inf" not in drawn
    assert "no finite values" in line_chart(Chart("c", [Series("s", [], [])]))


def test_corners_of_the_axes_hold_the_extremes() -> None:
    drawn = line_chart(Chart("c", [Series("s", [0, 10], [0, 10])]))
    assert ' d="M50.0 200.0L388.0 14.0"' in drawn


def test_long_logs_are_thinned() -> None:
    many = list(range(100_000))
    assert len(line_chart(Chart("c", [Series("s", many, many)]))) < 20_000


def test_training_logs(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.5, "note": "x"}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    (series,) = log_series(read_log(log), ["loss", "note", "itm"])
    assert (series.name, series.x, series.y) == ("loss", [1, 2], [2.5, 2])
    log.write_text('{"step"\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_log(log)
    with pytest.raises(FileNotFoundError, match="no such training log"):
        read_log(tmp_path / "none.jsonl")
