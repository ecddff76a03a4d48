"""The paper's published results (tables 2 to 5), and our results beside them.

Numbers are as the paper prints them: accuracy and recall in percent; CIDEr, SPICE and BLEU-4 times
100. Everywhere else in this project our results are fractions; here they become percentages.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One published row.

    Attributes:
        name: option value that names the row (``vit-g-flant5-xl``).
        model: name of the model as the paper prints it.
        values: value of each metric as the paper prints it.
    """

    table: int
    name: str
    model: str
    values: Mapping[str, float]


_CAPTION_METRICS = (
    "nocaps.in.cider", "nocaps.in.spice", "nocaps.near.cider", "nocaps.near.spice",
    "nocaps.out.cider", "nocaps.out.spice", "nocaps.overall.cider", "nocaps.overall.spice",
    "coco.bleu4", "coco.cider",
)  # fmt: skip
METRICS: dict[int, tuple[str, ...]] = {
    2: ("vqav2.val", "vqav2.test-dev", "okvqa.test", "gqa.test-dev"),
    3: _CAPTION_METRICS,
    4: ("vqav2.test-dev", "vqav2.test-std"),
    5: tuple(
        f"{data}.{side}_r{cutoff}"
        for data in ("flickr30k", "coco")
        for side in ("tr", "ir")
        for cutoff in (1, 5, 10)
    ),
}
TITLES = {
    2: "Zero-shot visual question answering (table 2)",
    3: "Image captioning after finetuning on COCO (table 3)",
    4: "Visual question answering after finetuning (table 4)",
    5: "Image-text retrieval after finetuning on COCO (table 5)",
}
_PAPER: dict[int, dict[str, tuple[float, ...]]] = {
    2: {
        "ViT-L OPT-2.7B": (50.1, 49.7, 30.2, 33.9),
        "ViT-g OPT-2.7B": (53.5, 52.3, 31.7, 34.6),
        "ViT-g OPT-6.7B": (54.3, 52.6, 36.4, 36.4),
        "ViT-L FlanT5-XL": (62.6, 62.3, 39.4, 44.4),
        "ViT-g FlanT5-XL": (63.1, 63.0, 40.7, 44.2),
        "ViT-g FlanT5-XXL": (65.2, 65.0, 45.9, 44.7),
    },
    3: {
        "ViT-g OPT-2.7B": (123.0, 15.8, 117.8, 15.4, 123.4, 15.1, 119.7, 15.4, 43.7, 145.8),
        "ViT-g OPT-6.7B": (123.7, 15.8, 119.2, 15.3, 124.4, 14.8, 121.0, 15.3, 43.5, 145.2),
        "ViT-g FlanT5-XL": (123.7, 16.3, 120.2, 15.9, 124.8, 15.1, 121.6, 15.8, 42.4, 144.5),
    },
    4: {
        "ViT-g FlanT5-XL": (81.55, 81.66),
        "ViT-g OPT-2.7B": (81.59, 81.74),
        "ViT-g OPT-6.7B": (82.19, 82.30),
    },
    5: {
        "ViT-L": (96.9, 100.0, 100.0, 88.6, 97.6, 98.9, 83.5, 96.0, 98.0, 66.3, 86.5, 91.8),
        "ViT-g": (97.6, 100.0, 100.0, 89.7, 98.1, 98.9, 85.4, 97.0, 98.5, 68.3, 87.7, 92.6),
    },
}
ROWS: tuple[Row, ...] = tuple(
    Row(
        table,
        model.lower().replace(" ", "-"),
        model,
        dict(zip(METRICS[table], values, strict=True)),
    )
    for table, rows in _PAPER.items()
    for model, values in rows.items()
)


def find_row(table: int, name: str) -> Row:
    """The row of a table by its name.

    Raises:
        ValueError: no such table or row; lists what there is.
    """
    rows = [row for row in ROWS if row.table == table]
    if not rows:
        known = ", ".join(str(number) for number in METRICS)
        raise ValueError(f"the paper's table {table} has no preset; tables: {known}")
    for row in rows:
        if row.name == name:
            return row
    raise ValueError(f"table {table} has no row {name!r}; rows: {', '.join(r.name for r in rows)}")


@dataclass(frozen=True)
class Comparison:
    """One metric: the paper's value, and ours in the same unit (None: not measured)."""

    metric: str
    paper: float
    ours: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.ours is None else self.ours - self.paper

    def cells(self) -> tuple[str, str, str, str]:
        """The printed cells: metric, paper, ours, difference."""
        if self.ours is None:
            return self.metric, f"{self.paper:.1f}", "–", "–"
        return self.metric, f"{self.paper:.1f}", f"{self.ours:.1f}", f"{self.difference:+.1f}"


def compare(row: Row, ours: Mapping[str, float]) -> list[Comparison]:
    """Our results beside a row of the paper.

    Args:
        ours: fractions by the metrics' names in ``METRICS``.

    Raises:
        ValueError: ``ours`` names a metric that the row does not have.
    """
    unknown = sorted(set(ours) - set(row.values))
    if unknown:
        raise ValueError(
            f"table {row.table} has no metric {unknown[0]!r}; metrics: {', '.join(row.values)}"
        )
    return [
        Comparison(metric, value, 100 * ours[metric] if metric in ours else None)
        for metric, value in row.values.items()
    ]


_HEAD = ("metric", "paper", "ours", "difference")


def render_text(row: Row, lines: list[Comparison]) -> str:
    """The comparison as aligned text."""
    cells = [_HEAD, *(line.cells() for line in lines)]
    wide = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    body = [
        f"{line[0]:<{wide[0]}}  {line[1]:>{wide[1]}}  {line[2]:>{wide[2]}}  {line[3]:>{wide[3]}}"
        for line in cells
    ]
    return "\n".join([f"{TITLES[row.table]}: {row.model}", *body])
