"""Our scores of our own answers, beside others' scores of the same answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.benchmarks.records import CaptionedImage, QuestionSet
from evaluation.scores.captions import caption_metrics, tokenise_captions
from evaluation.tasks.questions import score_answers
from tests.crosscheck import lmms, official

FORMULAS, LMMS = "formulas", "lmms-eval"


@dataclass(frozen=True)
class Score:
    """One score of the same answers by two scorers.

    Attributes:
        metric: name of the metric.
        scorer: name of the other scorer.
        ours: our score.
        theirs: the other scorer's.
        count: number of answers or captions.
    """

    metric: str
    scorer: str
    ours: float
    theirs: float
    count: int

    @property
    def difference(self) -> float:
        """Absolute difference of the two."""
        return abs(self.ours - self.theirs)


class Scored:
    """Texts of a model, with our scores of them.

    Attributes:
        found: our score of each metric.
    """

    def __init__(
        self,
        vqa: tuple[QuestionSet, Sequence[str]],
        gqa: tuple[QuestionSet, Sequence[str]],
        captions: tuple[Sequence[CaptionedImage], Sequence[str]],
    ) -> None:
        """Args:
        vqa: questions with ten references each, and an answer to each.
        gqa: questions with one reference each, and an answer to each.
        captions: images with references, and a caption of each.
        """
        self._vqa, self._gqa, self._captions = vqa, gqa, captions
        items, texts = captions
        self._references = {str(item.image_id): list(item.references) for item in items}
        self._texts = dict(zip(self._references, texts, strict=True))
        made = caption_metrics(self._references, self._texts)[0]
        self.found = {
            "vqa.always": _accuracy(*vqa, "vqa.always"),
            "gqa": _accuracy(
                _plain(gqa[0]), [official.plain(text) for text in gqa[1]], "gqa.strict"
            ),
            "CIDEr": made["cider"],
            "BLEU-4": made["bleu4"],
            "ROUGE-L": made["rouge_l"],
        }

    def by_formulas(self) -> list[Score]:
        """VQA accuracy, GQA's accuracy and CIDEr by formulas that are written anew."""
        questions, texts = self._vqa
        vqa = [
            official.vqa_accuracy(text, question.answers)
            for question, text in zip(questions.questions, texts, strict=True)
        ]
        asked, said = self._gqa
        gqa = [
            official.plain(text) == official.plain(question.answers[0])
            for question, text in zip(asked.questions, said, strict=True)
        ]
        gold = tokenise_captions(self._references)
        made = tokenise_captions({key: [text] for key, text in self._texts.items()})
        cider = official.cider(gold, {key: texts[0] for key, texts in made.items()})
        theirs = {"vqa.always": _mean(vqa), "gqa": _mean(gqa), "CIDEr": cider}
        return self._beside(FORMULAS, theirs)

    def by_lmms(self, python: Path, folder: Path) -> list[Score]:
        """The same scores, BLEU-4 and ROUGE-L by lmms-eval.

        Args:
            python: interpreter of the environment that has lmms-eval.
            folder: folder for its tasks and our log.
        """
        questions, texts = self._vqa
        documents: list[dict[str, Any]] = [
            {"question_id": place, "question": question.text, "answer": question.answers[0],
             "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(question.answers)]}
            for place, question in enumerate(questions.questions)
        ]  # fmt: skip
        lmms.write_task(folder, "vqa", documents, texts)
        asked, said = self._gqa
        documents = [
            {"question_id": place, "question": question.text, "answer": question.answers[0]}
            for place, question in enumerate(asked.questions)
        ]
        lmms.write_task(folder, "gqa", documents, said)
        documents = [
            {"question_id": f"{place}.jpg", "id": place, "question": "", "answer": captions}
            for place, captions in enumerate(self._references.values())
        ]
        lmms.write_task(folder, "caption", documents, list(self._texts.values()))
        scores = lmms.scores(python, folder, ("vqa", "gqa", "caption"))
        captions = scores["caption"]
        theirs = {
            "vqa.always": scores["vqa"]["exact_match"],
            "gqa": scores["gqa"]["exact_match"],
            "CIDEr": captions["coco_CIDEr"],
            "BLEU-4": captions["coco_Bleu_4"],
            "ROUGE-L": captions["coco_ROUGE_L"],
        }
        return self._beside(LMMS, theirs)

    def _beside(self, scorer: str, theirs: dict[str, float]) -> list[Score]:
        counts = {"vqa.always": len(self._vqa[1]), "gqa": len(self._gqa[1])}
        return [
            Score(metric, scorer, self.found[metric], score, counts.get(metric, len(self._texts)))
            for metric, score in theirs.items()
        ]


def _accuracy(questions: QuestionSet, texts: Sequence[str], metric: str) -> float:
    results = [
        {"question_id": question.question_id, "answer": text}
        for question, text in zip(questions.questions, texts, strict=True)
    ]
    return float(score_answers(questions, results, metric)["accuracy"])


def _plain(questions: QuestionSet) -> QuestionSet:
    """The questions with references that have neither case nor punctuation."""
    return replace(
        questions,
        questions=tuple(
            replace(question, answers=tuple(map(official.plain, question.answers)))
            for question in questions.questions
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
