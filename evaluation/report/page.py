"""One run as one static HTML page: no network, no script, light and dark, wide and narrow.

A report is plain data: a title, and any of the sections below in any order and number. A job fills
them from its run folder and calls ``write_report``. Everything in a section is text that is escaped
or an image that is embedded; nothing in it can become markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.report import plots
from evaluation.report.changes import Changes
from evaluation.report.pictures import Picture, picture_uri
from evaluation.report.plots import Chart
from evaluation.tables import Comparison


@dataclass(frozen=True)
class Facts:
    """Names and values, such as machine, commit and duration."""

    kind: ClassVar[str] = "facts"
    title: str
    rows: Mapping[str, object]
    note: str = ""


@dataclass(frozen=True)
class Result:
    """One measured number.

    Attributes:
        control: score of a control, such as chance, as text.
        passed: whether the target was reached; None where there is none.
        interval: ends of the 95 % interval; None where there is none.
    """

    name: str
    value: float | str
    target: str = ""
    control: str = ""
    passed: bool | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Results:
    """Table of results with their targets and controls."""

    kind: ClassVar[str] = "results"
    title: str
    rows: Sequence[Result]
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """Our results beside a published row (``tables.beside``)."""

    kind: ClassVar[str] = "paper"
    title: str
    rows: Sequence[Comparison]
    note: str = ""


@dataclass(frozen=True)
class Link:
    """A cell that leads to a file beside the page."""

    text: str
    target: str


@dataclass(frozen=True)
class Grid:
    """Table of text cells, for breakdowns such as accuracy by question type."""

    kind: ClassVar[str] = "grid"
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Charts side by side, below each other on a phone."""

    kind: ClassVar[str] = "curves"
    title: str
    charts: Sequence[Chart]
    note: str = ""


@dataclass(frozen=True)
class RankedCaption:
    """One candidate caption.

    Attributes:
        right: verdict of the audit; None where the truth is not known.
    """

    text: str
    score: float | None
    origin: str
    kept: bool
    right: bool | None = None


@dataclass(frozen=True)
class FilteredImage:
    """One image with all its candidates in rank order."""

    image: Picture
    key: str
    captions: Sequence[RankedCaption]


@dataclass(frozen=True)
class CapFilt:
    """Effect of the caption filter: counts, shares and samples.

    Attributes:
        right_before: share of right web captions, 0 to 1; None where the truth is not known.
        right_after: share of right kept captions.
        web_won: share of kept images whose web caption ranks first.
    """

    kind: ClassVar[str] = "capfilt"
    title: str
    counts: Mapping[str, int]
    right_before: float | None = None
    right_after: float | None = None
    web_won: float | None = None
    samples: Sequence[FilteredImage] = ()
    note: str = ""


@dataclass(frozen=True)
class CaptionSample:
    """One image with the caption of each model and the reference captions."""

    image: Picture
    key: str
    generated: Mapping[str, str]
    references: Sequence[str] = ()


@dataclass(frozen=True)
class Captions:
    """Generated captions beside references."""

    kind: ClassVar[str] = "captions"
    title: str
    samples: Sequence[CaptionSample]
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """One question.

    Attributes:
        predicted: answer of each model, with its accuracy or None where there is no reference.
    """

    question: str
    predicted: Mapping[str, tuple[str, float | None]]
    references: Sequence[str] = ()


@dataclass(frozen=True)
class AnswerSample:
    """One image with the questions asked of it."""

    image: Picture
    key: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Answers:
    """Answers beside references; the verdict is a word, not a colour alone."""

    kind: ClassVar[str] = "answers"
    title: str
    samples: Sequence[AnswerSample]
    note: str = ""


@dataclass(frozen=True)
class Retrieved:
    """One candidate of a query: a text, or an image with perhaps its name as text.

    Attributes:
        right: whether it is a right answer; None where that is not known.
    """

    right: bool | None
    score: float
    text: str = ""
    image: Picture = None


@dataclass(frozen=True)
class Query:
    """One query, a text or an image, with its results, best first."""

    results: Sequence[Retrieved]
    text: str = ""
    image: Picture = None


@dataclass(frozen=True)
class Retrieval:
    """Retrieval examples of both directions."""

    kind: ClassVar[str] = "retrieval"
    title: str
    queries: Sequence[Query]
    note: str = ""


@dataclass(frozen=True)
class Dropped:
    """One sample that was left out, with its reason."""

    key: str
    status: str
    reason: str
    image: Picture = None


@dataclass(frozen=True)
class Failures:
    """Reasons with their counts, and samples of each."""

    kind: ClassVar[str] = "failures"
    title: str
    reasons: Mapping[str, int] = field(default_factory=dict)
    samples: Sequence[Dropped] = ()
    note: str = ""


Section = (
    Facts
    | Results
    | PaperTable
    | Changes
    | Grid
    | Curves
    | CapFilt
    | Captions
    | Answers
    | Retrieval
    | Failures
)


@dataclass(frozen=True)
class Said:
    """One image and texts on it by their source, the model's first."""

    image: Picture
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Overview:
    """The first screen: what was made, then what was measured, then how long it took and on what.

    Attributes:
        pictures: images with what the model says of them beside a reference.
        numbers: headline results, each with its target and its control.
        facts: names and values, such as duration, processor and number formats.
        note: line above the pictures.
    """

    pictures: Sequence[Said] = ()
    numbers: Sequence[Result] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A page: its title, one line below the title, its first screen, and its sections in order."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    overview: Overview = field(default_factory=Overview)


def write_report(path: Path, report: Report) -> None:
    """Write the page to ``path``, whose folders are made; an older page is replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(render(report), encoding="utf-8")
    aside.replace(path)


def render(report: Report) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = picture_uri
    environment.filters["chart"] = _chart
    environment.filters["legend"] = _legend
    environment.filters["number"] = format_number
    environment.filters["percent"] = _percent
    environment.globals["interval_bar"] = _interval_bar
    return environment.get_template("report.html.jinja").render(report=report)


def _chart(chart: Chart) -> Markup:
    return Markup(plots.line_chart(chart))  # drawn by us, its words escaped there


def _legend(chart: Chart) -> list[tuple[str, Markup]]:
    return [(name, Markup(key)) for name, key in plots.legend(chart)]


def _interval_bar(value: float, ends: tuple[float, float], low: float, high: float) -> Markup:
    return Markup(plots.interval_bar(value, ends, (low, high)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def format_number(value: object) -> str:
    """Floats with three decimals (one from 100 on, none from 1000 on), others as they are."""
    if isinstance(value, float):
        return f"{value:,.{3 if abs(value) < 100 else 1 if abs(value) < 1000 else 0}f}"
    return str(value)
