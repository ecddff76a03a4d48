"""Log files of one JSON record a line, written by a run that may be killed at any moment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line; a full disk costs the line, not the run."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        print(f"WARNING: {path.name} has no record of step {record['step']} ({error})", flush=True)


def cut_after(path: Path, step: int) -> None:
    """Remove the records of later steps, so that the file is that of a run that ended there."""
    if path.is_file():
        kept = [record for record in records_so_far(path) if record["step"] <= step]
        aside = path.with_name(f".{path.name}.partial")
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(aside, path)


def records_so_far(path: Path) -> list[dict[str, Any]]:
    """The records of a log that a run may be writing, or was killed while it wrote.

    Returns:
        All records before the first damaged line; [] where there is no file yet.
    """
    return _parse(path)[0] if path.is_file() else []


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut short by a kill is left out.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: a line before the last is not a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such training log: {path}")
    records, fault = _parse(path)
    if fault:
        raise ValueError(fault)
    return records


def _parse(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The records before the first damaged line, and its fault; "" where only the last is cut."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as wrong:
            last = number == len(lines)
            return records, "" if last else f"{path}, line {number} is not JSON: {wrong}"
        if not isinstance(record, dict):
            return records, f"{path}, line {number} is not a JSON object"
        records.append(record)
    return records, ""
