"""The rules by which every reader takes text and JSON: CapFilt, training and evaluation.

Text is UTF-8; a byte-order mark at its start is dropped. A caption holds no lone surrogate (half of
a character that was cut, which no UTF-8 file and no tokenizer can hold) and no NUL byte. JSON is
what RFC 8259 says, and in addition ``NaN`` and ``Infinity``, which tools of the field write for
missing numbers and which are read as null.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

MAX_DEPTH = 100
"""Levels of nesting in JSON: more than any data set has, less than Python's recursion takes."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class TextError(ValueError):
    """Bytes that are no text or no JSON.

    Attributes:
        reason: ``not_utf8`` or ``bad_json``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode_text(data: bytes) -> str:
    """The text of UTF-8 bytes, without a byte-order mark.

    Raises:
        TextError: reason ``not_utf8``.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as broken:
        if data.startswith(_UTF16):
            raise TextError("not_utf8", "it is UTF-16; save it as UTF-8") from broken
        raise TextError("not_utf8", f"it is not UTF-8 ({broken})") from broken


def load_json(data: bytes, slim: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value of a JSON text.

    Args:
        data: UTF-8, perhaps with a byte-order mark.
        slim: function that gives the part of an object to keep, called as soon as the object has
            been read; default: all of it.

    Raises:
        TextError: reason ``not_utf8``; or ``bad_json``: no JSON, an integer of more digits than
            Python reads (4,300), nesting deeper than ``MAX_DEPTH``, or an object with two different
            values under one name.
    """
    text = decode_text(data)
    try:
        value = json.loads(
            text, object_pairs_hook=partial(_object, slim), parse_constant=lambda _: None
        )
    except RecursionError as broken:
        raise TextError("bad_json", f"it nests deeper than {MAX_DEPTH} levels") from broken
    except TextError:
        raise
    except ValueError as broken:
        raise TextError("bad_json", str(broken)) from broken
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise TextError("bad_json", f"it nests deeper than {MAX_DEPTH} levels")
    return value


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, UTF-8, one trailing newline; NaN is a bug here."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def _object(slim: Callable[[dict[str, Any]], Any] | None, pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise TextError("bad_json", f"an object has two values under {name!r}")
    return slim(found) if slim else found


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Whether lists and objects nest deeper, looked at level by level, without recursion."""
    level = _inner([value])
    for _ in range(limit):
        level = _inner(item for holder in level for item in _values(holder))
        if not level:
            return False
    return True


def _values(holder: Any) -> Iterable[Any]:
    return holder.values() if isinstance(holder, dict) else holder


def _inner(items: Iterable[Any]) -> list[Any]:
    return [item for item in items if isinstance(item, dict | list | tuple)]


def has_lone_surrogate(text: str) -> bool:
    """Whether a text has half of a character, such as the JSON escape ``\\ud83d`` alone gives."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: str) -> str:
    """A text that can be written as UTF-8: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def check_caption(value: Any) -> tuple[str, str]:
    """A caption, and the reason why it cannot be used.

    Args:
        value: value of a field.

    Returns:
        The text without a byte-order mark, and "" or the reason: ``no_caption`` (null),
        ``caption_not_text`` (another type, or a NUL byte) or ``caption_not_utf8`` (a lone
        surrogate). With a reason the text is for showing only.
    """
    if value is None:
        return "", "no_caption"
    if not isinstance(value, str):
        shown = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
        return printable(shown), "caption_not_text"
    text = value.removeprefix("\ufeff")
    if has_lone_surrogate(text):
        return printable(text), "caption_not_utf8"
    return text, "caption_not_text" if "\0" in text else ""


def find_surrogate(value: Any) -> str:
    """The place of the first text with a lone surrogate in a JSON value; "" where there is none.

    >>> find_surrogate({"annotations": [{"caption": "a"}, {"caption": "b" + chr(0xD83D)}]})
    'annotations[1].caption'
    """
    return next(_surrogates(value, ""), "")


def _surrogates(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, str):
        if has_lone_surrogate(value):
            yield place or "the text"
    elif isinstance(value, dict):
        for name, item in value.items():
            if has_lone_surrogate(name):
                yield f"{place}.{printable(name)}".lstrip(".")
            yield from _surrogates(item, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _surrogates(item, f"{place}[{number}]")
