"""A task answered by a model that is at hand; nothing is written."""

from typing import Any

from evaluation.chunks.cut import cut, in_order
from evaluation.tasks.base import Answer, Task


def answer_in_memory(task: Task, answer: Answer, chunk: int = 256) -> dict[str, list[Any]]:
    """The answers to all passes of a task, by name.

    Args:
        chunk: number of items of a chunk.
    """
    done: dict[str, list[Any]] = {}
    while todo := [one for one in task.passes(done) if one.name not in done]:
        for one in todo:
            pieces = cut(task.name, task.split, one, chunk)
            found = [answer(one.name, piece.items) for piece in pieces]
            done[one.name] = in_order(one, pieces, found)
    return done
