"""The trial of instruction tuning on TinyWorld: how models are asked, and what the answers show.

A question is asked in three forms: as the small language models have read it in their own training,
by templates that tuning draws from, and by those that it leaves out. Questions of the kind that
tuning never asks are scored apart. The blind control asks about another picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.tasks.captions import Encode
from evaluation.tasks.questions import Answerer, Respond, answer_askings, askings, score_answers
from pipeline.instructions.phrasing import drawn, held_out
from pipeline.instructions.templates import fill
from pipeline.tinyworld.instructions import HELD_OUT

OWN_FORM = "Question: {} Short answer:"
Scores = dict[str, float]
"""Accuracies by ``FORM/KINDS``, and under ``FORM/KINDS/blind`` those of the control."""

# Student's t for two-sided intervals of 95 %, for 2 to 10 seeds.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Comparison:
    """One claim: a difference between two models in one score.

    Attributes:
        claim: the claim in words.
        better, worse: models, of which the first is predicted to be better.
        score: name of the score.
    """

    claim: str
    better: str
    worse: str
    score: str


COMPARISONS = (
    Comparison("instruction-aware over plain, taught kinds", "aware", "plain", "drawn/taught"),
    Comparison("tuned over stage 2, held-out templates", "aware", "stage 2", "held out/taught"),
    Comparison("tuned over stage 2, held-out kind", "aware", "stage 2", "held out/new"),
    Comparison("the same, asked in the T5's own form", "aware", "stage 2", "own/new"),
)


def forms(leave_out: int) -> dict[str, tuple[str, ...]]:
    """The templates of each form; a question takes them in turn, by its number."""
    return {
        "own": (OWN_FORM,),
        "drawn": drawn("vqa", leave_out),
        "held out": held_out("vqa", leave_out),
    }


def measure(
    questions: QuestionSet, encode: Encode, respond: Respond, leave_out: int, seed: int = 0
) -> Scores:
    """Ask a model every question in every form, with its picture and blind.

    Args:
        questions: TinyWorld's, whose ``question_type`` is their kind.
        encode: images -> what ``respond`` takes of them.
        respond: encoded images and prompts -> answers.
        leave_out: templates that tuning left out.
        seed: seed of the blind control.
    """
    number = {one.question_id: at for at, one in enumerate(questions.questions)}
    scores: Scores = {}
    for name, templates in forms(leave_out).items():

        def ask(one: Question, among: Sequence[str] = templates) -> str:
            return fill(among[number[one.question_id] % len(among)], one.text)

        for mark, asked in (("", questions), ("/blind", questions.shuffled(seed))):
            answers = answer_askings(askings(asked).items, Answerer(encode, respond, ask=ask))
            for kinds, part in _parts(questions).items():
                mine = {one.question_id for one in part.questions}
                found = [answer for answer in answers if answer["question_id"] in mine]
                scores[f"{name}/{kinds}{mark}"] = score_answers(part, found)["accuracy"]
    return scores


def _parts(questions: QuestionSet) -> dict[str, QuestionSet]:
    """The questions of the taught kinds, and those of the new one."""

    def only(new: bool) -> QuestionSet:
        kept = tuple(q for q in questions.questions if (q.question_type == HELD_OUT) == new)
        return QuestionSet(kept, questions.images)

    return {"taught": only(False), "new": only(True)}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); NaN for a single value.

    Raises:
        ValueError: no value, or more than 10.
    """
    if not 1 <= len(values) <= len(_T) + 1:
        raise ValueError(f"{len(values)} seeds: give 1 to {len(_T) + 1}")
    if len(values) == 1:
        return values[0], float("nan")
    half = _T[len(values) - 2] * stdev(values) / len(values) ** 0.5
    return mean(values), half


def table(seeds: Sequence[Mapping[str, Scores]]) -> list[str]:
    """The scores of all models as a table, and each comparison with its interval, as lines.

    Args:
        seeds: for each seed the scores of each model by its name.
    """
    models = list(seeds[0])
    names = list(seeds[0][models[0]])
    lines = [f"{'':<22}" + "".join(f"{model:>18}" for model in models)]
    for name in names:
        cells = (_shown([seed[model][name] for seed in seeds]) for model in models)
        lines.append(f"{name:<22}" + "".join(f"{cell:>18}" for cell in cells))
    lines.append("differences:")
    for one in COMPARISONS:
        values = [seed[one.better][one.score] - seed[one.worse][one.score] for seed in seeds]
        lines.append(f"  {one.claim}: {_shown(values)}")
    return lines


def _shown(values: Sequence[float]) -> str:
    middle, half = interval(values)
    return f"{middle:.3f}" if len(values) == 1 else f"{middle:.3f} ± {half:.3f}"
