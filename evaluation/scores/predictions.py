"""The check that every image or question has a prediction."""

from collections.abc import Hashable, Iterable, Mapping


def require_predictions(wanted: Iterable[Hashable], given: Mapping, what: str) -> None:
    """Refuse predictions that are not complete; the message names the missing ones.

    Args:
        wanted: ids that need a prediction.
        given: predictions by id.
        what: noun for the messages: ``image`` or ``question``.

    Raises:
        ValueError: a wanted id has no prediction.
    """
    missing = [key for key in wanted if key not in given]
    if missing:
        named = ", ".join(str(key) for key in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"no prediction for {what} {named}{more}; every {what} needs exactly one")
