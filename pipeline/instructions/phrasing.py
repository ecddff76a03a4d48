"""A sample's record becomes an instruction and the answer that is learned.

``Phrasing`` is a function of the record and of random numbers that depend on (seed, uid, visit)
alone, so that a resumed run, and any number of ranks and workers, phrase a sample alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipeline.instructions import templates
from pipeline.instructions.templates import fill, with_ocr, with_options

Task = Literal["caption", "vqa", "vqg", "conversation"]
Draw = Callable[[str], float]
"""Name of a choice -> a number in [0, 1), the same for the same visit of the same sample."""

TEMPLATES: dict[Task, tuple[str, ...]] = {
    "caption": templates.CAPTION,
    "vqa": templates.VQA,
    "vqg": templates.VQG,
}
IMAGE = "<image>"  # LLaVA's files mark the image's place; here it is in front of all text


class Phrased(NamedTuple):
    """An instruction, and the answer that is learned behind it."""

    instruction: str
    answer: str


def drawn(task: Task, leave_out: int) -> tuple[str, ...]:
    """The templates of a task that training draws from: all but the last ``leave_out``."""
    whole = TEMPLATES[task]
    return whole[: len(whole) - leave_out]


def held_out(task: Task, leave_out: int) -> tuple[str, ...]:
    """The templates of a task that training never shows."""
    whole = TEMPLATES[task]
    return whole[len(whole) - leave_out :]


@dataclass(frozen=True)
class Phrasing:
    """Writes the samples of one data set as instructions.

    Attributes:
        task: ``caption``, the image is described; ``vqa``, a question is answered, also by a choice
            among options; ``vqg``, a question is written for an answer; ``conversation``, a turn of
            a conversation is answered, without a template.
        leave_out: number of templates that are not drawn (``InstructionConfig``).
    """

    task: Task
    leave_out: int = 0

    def __call__(self, record: dict[str, Any], text: Callable[[], str], draw: Draw) -> Phrased:
        """The instruction and the answer of one visit.

        Args:
            record: the sample's record. ``question``, ``options`` with ``choice``, the right one,
                and ``ocr_tokens`` are read where it has them; of a conversation,
                ``conversations`` as LLaVA's files have it.
            text: draws one of the captions or answers of the record.
            draw: random numbers of this visit.

        Raises:
            ValueError: nothing can be learned from the sample.
        """
        if self.task == "conversation":
            return _turn(record.get("conversations"), draw)
        template = _one_of(drawn(self.task, self.leave_out), draw("template"))
        question = record.get("question", "")
        if self.task == "caption":
            return Phrased(with_ocr(template, _texts(record, "ocr_tokens")), text())
        if not isinstance(question, str) or not question.strip():
            raise ValueError("it has no question")
        if self.task == "vqg":
            return Phrased(fill(template, text()), question.strip())
        return self._answered(template, question.strip(), record, text, draw)

    def _answered(
        self,
        template: str,
        question: str,
        record: dict[str, Any],
        text: Callable[[], str],
        draw: Draw,
    ) -> Phrased:
        """A question; one that has options and free answers is asked in either way, in turn."""
        options, choice = _texts(record, "options"), record.get("choice")
        chooses = isinstance(choice, str) and bool(choice)
        if chooses and record.get("captions"):
            chooses = draw("form") < 0.5
        asked = with_options(question, options) if chooses else question
        answer = str(choice) if chooses else text()
        return Phrased(with_ocr(fill(template, asked), _texts(record, "ocr_tokens")), answer)


def _texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """A field that is a list of texts; a foreign record may hold anything under its name."""
    given = record.get(name)
    return tuple(t for t in given if isinstance(t, str)) if isinstance(given, list) else ()


def _turn(told: Any, draw: Draw) -> Phrased:
    """One answer of a conversation; earlier turns are lines of the instruction."""
    if not isinstance(told, list) or len(told) < 2:
        raise ValueError("it has no conversation")
    texts = [str(turn.get("value", "")) for turn in told if isinstance(turn, dict)]
    answers = [at for at in range(1, len(texts), 2) if texts[at].strip()]
    if not answers:
        raise ValueError("its conversation has no answer")
    at = _one_of(answers, draw("turn"))
    lines = (text.replace(IMAGE, "").strip() for text in texts[:at])
    return Phrased("\n".join(line for line in lines if line), texts[at].strip())


def _one_of(among: Sequence[Any], share: float) -> Any:
    return among[int(share * len(among))]
