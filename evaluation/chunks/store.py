"""The files of an evaluation's answers: one a chunk, written aside and renamed, never changed.

    OUT/answers/TASK_SPLIT/plan.json            what the answers depend on
    OUT/answers/TASK_SPLIT/answers-00000.jsonl  a header, then a row an item
    OUT/answers/TASK_SPLIT/images-00000.npz     the same with arrays (retrieval)

A chunk is answered when its file is there and its header says what it must
(``cluster.storage.chunks``). Any number of workers, on any number of machines that share OUT, write
their chunks side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.storage.chunks import ChunkStore, OtherPlan
from evaluation.chunks.cut import Chunk
from evaluation.tasks.base import Answers

FOLDER = "answers"


@dataclass(frozen=True)
class AnswerStore:
    """The answers of one evaluation; the object is small and is pickled to workers.

    Attributes:
        url: folder of the evaluation, or its ``s3://`` URL.
    """

    url: str

    # ---------------------------------------------------------------------------- plan

    def plan(self, task: str, split: str) -> dict[str, Any] | None:
        """What the answers of a task depend on; None: there are none yet."""
        return self._of(task, split).plan()

    def open_plan(self, task: str, split: str, plan: Mapping[str, Any]) -> None:
        """Write the plan of a task, or compare with the one that is there.

        Raises:
            ValueError: the answers that are there depend on something else; names it.
        """
        try:
            self._of(task, split).open_plan(plan)
        except OtherPlan as differs:
            raise ValueError(
                f"--out {self.url} holds answers of task {task} that were made otherwise "
                f"({differs}); give another --out, or --replace to answer again in their place"
            ) from differs

    def remove(self, task: str, split: str) -> None:
        """Remove the answers to a task, the plan last."""
        self._of(task, split).remove()

    # -------------------------------------------------------------------------- chunks

    def answered(self, task: str, split: str) -> set[str]:
        """The names of a task's chunks that have a file."""
        return {f"{task}_{split}/{name}" for name in self._of(task, split).names()}

    def is_answered(self, chunk: Chunk) -> bool:
        """Whether a chunk has a file by now."""
        return self._all().has(chunk.name)

    def write(self, chunk: Chunk, answers: Answers) -> bool:
        """Publish the answers of a chunk.

        Returns:
            True if they were published here, False if another worker had published them.

        Raises:
            Conflict: another worker published other answers.
        """
        return self._all().write(chunk.name, _header(chunk), answers)

    def read(self, chunk: Chunk) -> Answers:
        """The answers of a chunk.

        Raises:
            ValueError: the file is damaged, or holds the answers to other items.
        """
        header, answers = self._all().read(chunk.name)
        if header != _header(chunk):
            raise ValueError(
                f"{self.url}/{self._all().file(chunk.name)} holds the answers to other items than "
                "the data have now; give another --out, or --replace to answer again"
            )
        return answers

    def _all(self) -> ChunkStore:
        return ChunkStore(self.url, FOLDER)

    def _of(self, task: str, split: str) -> ChunkStore:
        return ChunkStore(self.url, f"{FOLDER}/{task}_{split}")


def _header(chunk: Chunk) -> dict[str, Any]:
    return {"chunk": chunk.name, "items": len(chunk.items), "sha256": chunk.digest}
