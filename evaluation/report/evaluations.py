"""The report's sections on evaluations: the folders that ``jobs/evaluate.py`` wrote."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.benchmarks.folder import read_captions, read_questions
from evaluation.benchmarks.records import Question
from evaluation.intervals.scores import METHOD
from evaluation.outputs import read_output
from evaluation.report.names import readable
from evaluation.report.page import (
    Answer,
    Answers,
    AnswerSample,
    Captions,
    CaptionSample,
    Grid,
    PaperTable,
    Query,
    Result,
    Results,
    Retrieval,
    Retrieved,
    Section,
)
from evaluation.results import TASKS, beside_paper, shown
from evaluation.scores.answers import FEWEST_ANSWERS, matches_any, vqa_accuracy
from evaluation.tables import TITLES

SHOWN_TESTS = 12
_CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: its folder, and the content of its ``results.json``."""

    folder: Path
    results: dict[str, Any]

    @property
    def data(self) -> Path:
        return Path(self.results["data"])

    @property
    def split(self) -> str:
        return self.results["split"]

    def interval(self, task: str, key: str) -> tuple[float, float] | None:
        """Ends of the 95 % interval of a score; None: it has none."""
        ends = self.results.get(task, {}).get("intervals", {}).get(key)
        return (ends[0], ends[1]) if ends else None

    def read(self, name: str) -> Any:
        """The content of a file of predictions; None where the task was not run."""
        path = self.folder / name.format(split=self.split)
        return read_output(path) if path.is_file() else None


def read_evaluation(folder: Path) -> Evaluated:
    """Open an output folder of ``jobs/evaluate.py``.

    Raises:
        FileNotFoundError: it holds no ``results.json``.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"--eval {folder} holds no results.json: not an evaluation")
    return Evaluated(folder, read_output(path))


def caption_section(evaluations: Sequence[Evaluated]) -> list[Section]:
    """The captions of each model for some test images, beside the references."""
    captioned = [e for e in evaluations if "caption" in e.results]
    texts = {
        e.folder.name: {str(row["image_id"]): row["caption"] for row in rows}
        for e in captioned
        if (rows := e.read("captions_{split}_results.json")) is not None
    }
    if not texts:
        return []
    items = read_captions(captioned[0].data, captioned[0].split)
    shown = [i for i in items if all(str(i.image_id) in t for t in texts.values())][:SHOWN_TESTS]
    samples = [
        CaptionSample(
            item.path,
            str(item.image_id),
            {name: text[str(item.image_id)] for name, text in texts.items()},
            item.captions,
        )
        for item in shown
    ]
    return [Captions("Captions of test images", samples)]


def answer_sections(evaluations: Sequence[Evaluated]) -> list[Section]:
    """Accuracy per question type with its controls, and answers beside their references."""
    sections: list[Section] = []
    given: dict[str, dict[Any, str]] = {}
    asked = [e for e in evaluations if "vqa" in e.results]
    for e in asked:
        if "by_question_type" in e.results["vqa"]:
            sections.append(_by_type(e))
        rows = e.read("vqa_{split}_results.json") or []
        given[e.folder.name] = {row["question_id"]: row["answer"] for row in rows}
    if not asked:
        return []
    questions = read_questions(asked[0].data, asked[0].split, "vqa")
    samples: dict[Any, list[Answer]] = {}
    for q in questions.questions:
        if not all(q.question_id in answers for answers in given.values()):
            continue
        predicted = {
            name: (answers[q.question_id], _right(answers[q.question_id], q))
            for name, answers in given.items()
        }
        said = Counter(q.answers).most_common(1)
        samples.setdefault(q.image_id, []).append(
            Answer(q.text, predicted, [answer for answer, _ in said])
        )
    shown = [
        AnswerSample(questions.images[image_id], str(image_id), answers)
        for image_id, answers in list(samples.items())[:SHOWN_TESTS]
    ]
    return [*sections, Answers("Questions about test images, never asked in training", shown)]


def _right(predicted: str, question: Question) -> float | None:
    """The score of an answer: exact match where VQA accuracy lacks references; None without any."""
    if not question.answered:
        return None
    few = len(question.answers) < FEWEST_ANSWERS
    return (matches_any if few else vqa_accuracy)(predicted, question.answers)


def _by_type(e: Evaluated) -> Grid:
    scores = e.results["vqa"]
    columns = [
        ("by_question_type", "accuracy", "with the image"),
        ("by_question_type_blind", "blind", "blind"),
        ("by_question_type_text_only", "text_only", "text only"),
    ]
    present = [column for column in columns if column[0] in scores]
    rows = [
        [
            kind,
            *(_cell(e, "vqa", f"{key}.{kind}", scores[key].get(kind, 0.0)) for key, *_ in present),
        ]
        for kind in sorted(scores[present[0][0]])
    ]
    overall = [(key, scores[key]) for _, key, _ in columns if key in scores]
    rows.append(["all", *(_cell(e, "vqa", key, value) for key, value in overall)])
    return Grid(
        f"VQA accuracy by question type: {e.folder.name}",
        ["question", *(title for *_, title in present)],
        rows,
        "blind: the same model, shown another image. text only: the language model alone, "
        "reading a true caption in place of the image; the ceiling of what it can answer.",
    )


def _cell(e: Evaluated, task: str, key: str, value: float) -> str:
    """A score with its interval, where it has one."""
    ends = e.interval(task, key)
    return f"{value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def retrieval_section(e: Evaluated) -> list[Section]:
    """Recalls before and after re-ranking, and examples after it in both directions."""
    found = e.read("retrieval_{split}_examples.json")
    if found is None or "retrieval" not in e.results:
        return []
    paths = {item.image_id: item.path for item in read_captions(e.data, e.split)}
    queries = [
        Query(
            [Retrieved(r["right"], r["score"], text=r["text"]) for r in query["results"]],
            image=paths[query["image_id"]],
        )
        for query in found["image_to_text"][:4]
    ]
    queries += [
        Query(
            [Retrieved(r["right"], r["score"], image=paths[r["image_id"]]) for r in q["results"]],
            text=q["text"],
        )
        for q in found["text_to_image"][:4]
    ]
    return [_both_rankings(e), Retrieval("Retrieval among test images", queries)]


def _both_rankings(e: Evaluated) -> Grid:
    after = e.results["retrieval"]
    before = after["itc"]
    sides = (("tr", "texts of an image"), ("ir", "images of a text"))
    rows = [
        [f"{name}, R@{cutoff}", before[f"{side}_r{cutoff}"], after[f"{side}_r{cutoff}"]]
        for side, name in sides
        for cutoff in _CUTOFFS
    ]
    return Grid(
        f"Retrieval before and after re-ranking: {e.folder.name}",
        ["recall", "ITC alone", "after ITM's re-ranking"],
        rows,
        f"ITC ranks {after['images']} images and {after['texts']} texts; ITM ranks the first "
        f"{after['k']} again, by its logit plus ITC's similarity.",
    )


def scores(evaluations: Sequence[Evaluated]) -> Results:
    """Every overall score of every evaluation, with the notes on them."""
    rows, notes = [], []
    for e in evaluations:
        for task in TASKS:
            measured = shown(e.results.get(task, {}))
            alone = {f"itc.{key}": value for key, value in measured.get("itc", {}).items()}
            rows += [
                Result(
                    f"{e.folder.name}: {readable(f'{task}.{key}')}",
                    float(value),
                    interval=e.interval(task, key),
                )
                for key, value in (measured | alone).items()
                if isinstance(value, int | float)
            ]
            notes += [f"{e.folder.name}, {task}: {note}." for note in measured.get("notes", [])]
    if any(row.interval for row in rows):
        notes.insert(0, f"{METHOD}. Bars run from 0 to 1.")
    return Results("Results", rows, " ".join(notes))


def paper_sections(evaluations: Sequence[Evaluated]) -> list[Section]:
    """The published row that each evaluation asked for (``--table``, ``--row``), beside ours."""
    sections: list[Section] = []
    for e in evaluations:
        found = beside_paper(e.results)
        if found is None:
            continue
        row, lines = found
        sections.append(
            PaperTable(
                f"Beside the paper: {e.folder.name}",
                lines,
                f"{TITLES[row.table]}, row {row.model}. Accuracy and recall in percent; CIDEr, "
                "SPICE and BLEU-4 times 100. A metric without a number of ours was not measured.",
            )
        )
    return sections
