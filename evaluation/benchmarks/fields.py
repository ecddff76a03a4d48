"""Checked access to annotation files: JSON and JSON lines, fields of a type, ids that are unique.

Every error is one line that names the file, the field or id, and the value.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.text import TextError, find_surrogate, load_json

_Entry = TypeVar("_Entry")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not JSON in UTF-8 (``pipeline.text`` has the rules), or a text in it has
            half of a character; the message names the entry.
    """
    return _parse(_read(path), str(path))


def read_jsonl(path: Path) -> list[Any]:
    """The values of a file with one JSON text a line; blank lines are left out.

    Raises:
        FileNotFoundError, ValueError: as ``read_json``; the message names the line.
    """
    lines = enumerate(_read(path).splitlines(), 1)
    return [_parse(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return path.read_bytes()


def _parse(data: bytes, source: str) -> Any:
    try:
        content = load_json(data)
    except TextError as wrong:
        raise ValueError(f"{source} is not JSON in UTF-8: {wrong}") from wrong
    # A file in UTF-8 can only hold a lone surrogate as an escape: most files need no search.
    place = find_surrogate(content) if b"\\ud" in data or b"\\uD" in data else ""
    if place:
        raise ValueError(
            f"{source}: {place} has half of a character (a lone surrogate, such as \\ud83d), "
            "which no tokenizer takes; repair or remove the text"
        )
    return content


def field(entry: Any, name: str, kind: type | tuple[type, ...], source: Path) -> Any:
    """The value of one field of an entry.

    Args:
        kind: type or types that the value must have; a bool is no int.
        source: file that the messages name.

    Raises:
        ValueError: the field is missing, or its value has another type.
    """
    if not isinstance(entry, dict) or name not in entry:
        shown = json.dumps(entry, ensure_ascii=False, default=str)[:120]
        raise ValueError(f"{source}: field {name!r} is missing in {shown}")
    if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{source}: field {name!r} must be {kinds}, got {entry[name]!r:.80}")
    return entry[name]


def texts(entry: Any, name: str, source: Path) -> tuple[str, ...]:
    """The value of a field that is a list of texts.

    Raises:
        ValueError: the field is missing, or is no list of texts.
    """
    values = field(entry, name, list, source)
    wrong = next((value for value in values if not isinstance(value, str)), None)
    if wrong is not None:
        raise ValueError(f"{source}: field {name!r} must hold texts, got {wrong!r:.80}")
    return tuple(values)


def index_of(entry: Any, name: str, candidates: Sequence[Any], source: Path) -> int | None:
    """The value of a field that points at one of the candidates; None: there is none (a test set).

    Raises:
        ValueError: the value is no whole number, or there are fewer candidates.
    """
    if entry.get(name) is None:
        return None
    index = field(entry, name, int, source)
    if not 0 <= index < len(candidates):
        raise ValueError(
            f"{source}: field {name!r} is {index}, and there are {len(candidates)} candidates "
            f"(0 to {len(candidates) - 1})"
        )
    return index


def first_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of the files that is in the folder.

    Raises:
        FileNotFoundError: none is; names them all.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no {' or '.join(names)} in {folder}")


def refuse_doubled(ids: Iterable[Any], what: str, source: Path) -> None:
    """Refuse ids that occur twice; 7 and "7" are one id, since servers and files mix them.

    Raises:
        ValueError: names the first doubled ids.
    """
    doubled = [key for key, times in Counter(map(str, ids)).items() if times > 1]
    if doubled:
        named = ", ".join(doubled[:5]) + (f" and {len(doubled) - 5} more" if doubled[5:] else "")
        raise ValueError(
            f"{source}: {what} id {named} is given more than once; give each {what} an id of its "
            "own, or remove the repetition"
        )


def not_empty(entries: Iterable[_Entry], source: Path) -> list[_Entry]:
    """The entries as a list.

    Raises:
        ValueError: there are none.
    """
    found = list(entries)
    if not found:
        raise ValueError(f"{source} holds no entries")
    return found
