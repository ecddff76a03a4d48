"""The captions of a sample of somebody else's data: in a text file, or in a field of its record."""

from collections.abc import Mapping
from typing import Any

from pipeline.filenames import TEXT_SUFFIXES
from pipeline.text import TextError, check_caption, decode_text

TEXT_FIELDS = ("caption", "text", "TEXT", "captions")
"""Fields of a record that may hold its captions, in the order in which they are tried."""


def member_captions(
    members: Mapping[str, bytes], record: dict[str, Any]
) -> tuple[tuple[str, ...], str]:
    """The captions of a tar's sample: of its text member, or else of its record.

    Args:
        members: the sample's files by extension.
        record: fields of its json and of the parquet beside the tar.

    Returns:
        As ``field_captions``; the reason ``caption_not_utf8`` also stands for a damaged text file.
    """
    text = next((members[ext] for ext in TEXT_SUFFIXES if ext in members), None)
    if text is None:
        return field_captions(record)
    try:
        caption, reason = check_caption(decode_text(text))
    except TextError:
        return (text.decode("utf-8", "replace"),), "caption_not_utf8"
    return (caption,), reason


def field_captions(record: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """The captions of a record, and "" or the reason why none of them can be used.

    Returns:
        All captions of a field that holds a text or a list of texts; with a reason
        (``pipeline.text.check_caption``) what is there, for showing only.
    """
    value = caption_field(record)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        checked = [check_caption(item) for item in value]
    else:
        checked = [check_caption(value)]
    good = tuple(text for text, reason in checked if not reason)
    if good:
        return good, ""
    return tuple(text for text, _ in checked if text), checked[0][1]


def caption_field(record: dict[str, Any]) -> Any:
    """What the first caption field of a record that has a value holds, or None."""
    value = next((record[name] for name in TEXT_FIELDS if record.get(name) not in (None, [])), None)
    return _told(record["conversations"]) if value is None and "conversations" in record else value


def _told(turns: Any) -> Any:
    """What LLaVA's ``conversations`` of one question and one answer say of the image.

    Those of several turns are talk about the image, not captions of it: they come back as they are.
    """
    if not isinstance(turns, list) or len(turns) != 2 or not isinstance(turns[1], dict):
        return turns
    told = turns[1].get("value")
    return told.replace("<image>", "").strip() if isinstance(told, str) else told
