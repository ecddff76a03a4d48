"""The published results of papers by table, and our results beside them."""

from evaluation.tables.beside import Comparison, beside, compare, measured, render_text
from evaluation.tables.published import METRICS, ROWS, TABLES, TITLES, find_row
from evaluation.tables.rows import Measure, Row, Table

__all__ = [
    "METRICS",
    "ROWS",
    "TABLES",
    "TITLES",
    "Comparison",
    "Measure",
    "Row",
    "Table",
    "beside",
    "compare",
    "find_row",
    "measured",
    "render_text",
]
