"""The form of a published table: its metrics, its rows, and where our results have the same score.

Numbers are as the paper prints them: accuracy and recall in percent; CIDEr, SPICE and BLEU-4 times
100. Everywhere else in this project our results are fractions; here they become percentages.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """The place of a score in our results.

    Attributes:
        task: benchmark (``nocaps``). A task in a common format counts as one, too: ``vqa`` as
            ``vqav2``, ``retrieval`` as ``coco_retrieval``, ``caption`` as ``nocaps`` where its
            images have domains, else as ``coco``.
        key: dotted name of the score (``domains.in-domain.cider``).
        split: split of the benchmark's data that the number is of; empty: any.
        common: whether a task in a common format counts, whose split has any name.
    """

    task: str
    key: str = "accuracy"
    split: str = ""
    common: bool = True


@dataclass(frozen=True)
class Row:
    """One published row.

    Attributes:
        table: name of its table.
        name: option value that names the row (``vit-g-flant5-xl``).
        model: name of the model as the paper prints it.
        values: value of each metric as the paper prints it; a metric that it leaves out is absent.
        recalled: metrics whose values were written down from memory and not from the paper.
    """

    table: str
    name: str
    model: str
    values: Mapping[str, float]
    recalled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Table:
    """One published table.

    Attributes:
        name: option value that names it: ``2``, or with the paper's name, ``instructblip.1``.
        measures: place of each of its metrics in our results; None: we have no such score.
    """

    name: str
    title: str
    measures: Mapping[str, Measure | None]
    rows: tuple[Row, ...]


def make_table(
    name: str,
    title: str,
    measures: Mapping[str, Measure | None],
    rows: Mapping[str, Sequence[float | None]],
    recalled: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """A table from the cells of its rows.

    Args:
        rows: values in the order of the metrics by the model's name; None: no value is printed.
        recalled: metrics that were written down from memory, by model.
    """
    made = []
    for model, cells in rows.items():
        pairs = zip(measures, cells, strict=True)
        values = {metric: value for metric, value in pairs if value is not None}
        from_memory = frozenset((recalled or {}).get(model, ()))
        made.append(Row(name, slug(model), model, values, from_memory))
    return Table(name, title, measures, tuple(made))


def slug(model: str) -> str:
    """A model's name as an option value.

    >>> slug("ViT-g OPT-6.7B")
    'vit-g-opt-6.7b'
    """
    return re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-")
