"""The way in which the answers of a task are scored and handed in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evaluation.benchmarks.catalogue import Benchmark
from evaluation.benchmarks.submissions import Submission
from evaluation.scores.answers import GqaVariant, VqaVariant
from evaluation.scores.lemmas import NOT_LEMMATISED, load_lemmatiser


@dataclass(frozen=True)
class Scoring:
    """The way in which answers are scored and handed in.

    Attributes:
        metric: name of the metric (``evaluation.scores.answers.METRICS``).
        lemmatise: change of an answer before it is scored, not in the files; None: none.
        notes: notes on the scoring for the results.
        submission: writer of the server's file; None: the results file is what a server takes.
    """

    metric: str = "vqa.official"
    lemmatise: Callable[[str], str] | None = None
    notes: tuple[str, ...] = ()
    submission: Submission | None = None

    def lemmas(self, predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The predictions as they are scored."""
        if self.lemmatise is None:
            return predictions
        return [row | {"answer": self.lemmatise(row["answer"])} for row in predictions]


def scoring_of(
    benchmark: Benchmark | None,
    family: str = "vqa",
    *,
    vqa: VqaVariant | None = None,
    gqa: GqaVariant | None = None,
    lemmatise: bool = True,
) -> Scoring:
    """The scoring of a task.

    Args:
        benchmark: the benchmark; None: questions in a common format.
        family: family of the metric without a benchmark: vqa or gqa.
        vqa: variant of VQA accuracy; None: the benchmark's own, else official.
        gqa: variant of GQA's accuracy; None: normalised.
        lemmatise: whether answers become lemmas where the references are (OK-VQA).
    """
    default = {"vqa": "vqa.official", "gqa": "gqa.normalised"}[family]
    metric = default if benchmark is None else benchmark.metric
    asked = {"vqa": vqa, "gqa": gqa}.get(metric.partition(".")[0])
    if asked is not None:
        metric = f"{metric.partition('.')[0]}.{asked}"
    if benchmark is None or not benchmark.lemmatise:
        return Scoring(metric, submission=benchmark.submission if benchmark else None)
    change, note = load_lemmatiser() if lemmatise else (None, NOT_LEMMATISED)
    return Scoring(metric, change, (note,), benchmark.submission)
