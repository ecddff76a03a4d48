"""All published tables, and their rows by name."""

from collections.abc import Mapping

from evaluation.tables import blip2, instructblip, llava
from evaluation.tables.rows import Row, Table

TABLES: Mapping[str, Table] = {
    table.name: table for table in (*blip2.TABLES, *instructblip.TABLES, *llava.TABLES)
}
ROWS: tuple[Row, ...] = tuple(row for table in TABLES.values() for row in table.rows)
METRICS: Mapping[str, tuple[str, ...]] = {
    name: tuple(table.measures) for name, table in TABLES.items()
}
TITLES: Mapping[str, str] = {name: table.title for name, table in TABLES.items()}


def find_row(table: str | int, name: str) -> Row:
    """The row of a table by its name.

    Args:
        table: name of the table; BLIP-2's are known by their numbers.

    Raises:
        ValueError: no such table or row; lists what there is.
    """
    found = TABLES.get(str(table))
    if found is None:
        raise ValueError(f"there is no table {table!r}; tables: {', '.join(TABLES)}")
    for row in found.rows:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in found.rows)
    raise ValueError(f"table {table} has no row {name!r}; rows: {known}")
