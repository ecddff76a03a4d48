"""One run as one static HTML page: no network, no script, light and dark, wide and narrow.

A report is plain data: a title and any of the sections below, in any order and number. A job fills
them from its run folder and calls ``write_report``. Everything a section holds is text to be
escaped or an image to be embedded; nothing in it can become markup.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from evaluation.report import plots
from evaluation.report.plots import Chart
from evaluation.tables import Comparison

Picture = Path | bytes | Image.Image | None
"""An image to show: a file, encoded bytes, a PIL image, or None where there is none to show."""

_AS_IT_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}
_MOST_BYTES = 24_000
_MOST_PIXELS = 256


@dataclass(frozen=True)
class Facts:
    """Names and values: what ran, where, for how long."""

    kind: ClassVar[str] = "facts"
    title: str
    rows: Mapping[str, object]
    note: str = ""


@dataclass(frozen=True)
class Result:
    """One measured number; ``passed`` is None where there is no target."""

    name: str
    value: float | str
    target: str = ""
    control: str = ""
    passed: bool | None = None


@dataclass(frozen=True)
class Results:
    """The result table with targets and controls."""

    kind: ClassVar[str] = "results"
    title: str
    rows: Sequence[Result]
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """Ours beside the paper's (``tables.compare``)."""

    kind: ClassVar[str] = "paper"
    title: str
    rows: Sequence[Comparison]
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of text cells, for breakdowns (accuracy per question type and model)."""

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
    """One candidate caption; ``right`` is the audit's verdict where the truth is known."""

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
    """What the caption filter did: shares (0 to 1, None: truth unknown), counts and samples."""

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
    """One image, what each model says of it, and what people said."""

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
    """One question: what each model answers, with its accuracy where known, and the references."""

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
    """Answers beside references, right and wrong in words."""

    kind: ClassVar[str] = "answers"
    title: str
    samples: Sequence[AnswerSample]
    note: str = ""


@dataclass(frozen=True)
class Retrieved:
    """One candidate of a query: a text or an image, its score, and whether it is the right one."""

    right: bool
    score: float
    text: str = ""
    image: Picture = None


@dataclass(frozen=True)
class Query:
    """One query: a text or an image, and what was retrieved, best first."""

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
    """One sample that did not make it, and why."""

    key: str
    status: str
    reason: str
    image: Picture = None


@dataclass(frozen=True)
class Failures:
    """Counted reasons, and the samples behind them."""

    kind: ClassVar[str] = "failures"
    title: str
    reasons: Mapping[str, int] = field(default_factory=dict)
    samples: Sequence[Dropped] = ()
    note: str = ""


Section = (
    Facts
    | Results
    | PaperTable
    | Grid
    | Curves
    | CapFilt
    | Captions
    | Answers
    | Retrieval
    | Failures
)


@dataclass(frozen=True)
class Report:
    """A page: title, one line under it, and its sections in order."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""


def write_report(path: Path, report: Report) -> None:
    """Write the page to ``path`` (folders are made); an older page there is replaced at once."""
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
    return environment.get_template("report.html.jinja").render(report=report)


def _chart(chart: Chart) -> Markup:
    return Markup(plots.line_chart(chart))  # drawn by us, its words escaped there


def _legend(chart: Chart) -> list[tuple[str, Markup]]:
    return [(name, Markup(key)) for name, key in plots.legend(chart)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def format_number(value: object) -> str:
    """Floats with three decimals (one from 100 on, none from 1000 on), others as they are."""
    if isinstance(value, float):
        return f"{value:,.{3 if abs(value) < 100 else 1 if abs(value) < 1000 else 0}f}"
    return str(value)


def picture_uri(picture: Picture) -> str:
    """A ``data:`` URI: small browser formats as they are, others as a PNG of at most 256 pixels.

    Empty where there is nothing to show or the image cannot be read: a report also shows samples
    that were dropped because they are broken.
    """
    if picture is None:
        return ""
    try:
        if isinstance(picture, Image.Image):
            return _thumbnail(picture)
        content = picture.read_bytes() if isinstance(picture, Path) else picture
        with Image.open(io.BytesIO(content)) as opened:
            mime = _AS_IT_IS.get(opened.format or "")
            if mime and len(content) <= _MOST_BYTES:
                return _uri(mime, content)
            return _thumbnail(opened)
    except Exception:  # which ones damaged bytes cause, no decoder documents
        return ""


def _thumbnail(image: Image.Image) -> str:
    image.draft("RGB", (_MOST_PIXELS, _MOST_PIXELS))
    transparent = image.has_transparency_data
    small = image.convert("RGBA" if transparent else "RGB")
    small.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    content = io.BytesIO()
    if transparent:
        small.save(content, "PNG", optimize=True)
        return _uri("image/png", content.getvalue())
    small.save(content, "JPEG", quality=85)
    return _uri("image/jpeg", content.getvalue())


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
