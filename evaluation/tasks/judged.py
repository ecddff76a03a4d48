"""Questions whose answers a judge compares with a reference (LLaVA-Bench).

Answers are written first, in the form of LLaVA's scripts. The judge's texts are written as they
come, with the prompts they answer, and one that is there already is not asked for again: a judge
costs money, and a run that ends early has lost nothing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.benchmarks.judged.llava_bench import Rule, judge_prompt, read_rules
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.intervals.answers import observe_judged
from evaluation.judge import TRIES, Judge, open_judge
from evaluation.notes import warn_of_empty
from evaluation.outputs import Outputs
from evaluation.scores.judged import Pair, judged_scores, parse_verdict
from evaluation.tasks.base import Pass, without_failed
from evaluation.tasks.observing import with_items
from evaluation.tasks.questions import askings

Verdict = dict[str, Any]
"""A judged answer: question_id, category, judge, prompt, verdicts (a text each attempt), scores."""


@dataclass(frozen=True)
class JudgeArgs:
    """Options of the tasks whose answers are judged."""

    judge: str | None = None
    """judge of the answers to llava_bench and llava_bench_coco: URL of a server with OpenAI's
    interface, or a file of verdicts; default: the answers are written and not scored"""
    judge_model: str | None = None
    """name of the server's model, which goes with the scores"""
    judge_key: str = "OPENAI_API_KEY"
    """name of the environment variable that holds the server's key"""
    longest_answer: int = 1024
    """number of tokens of an answer that is judged, at most; LLaVA's script has 1024"""

    def open(self) -> Judge | None:
        """The judge; None: there is none."""
        return open_judge(self.judge, self.judge_model, self.judge_key) if self.judge else None


@dataclass(frozen=True)
class JudgedTask:
    """Questions whose answers a judge compares with a reference.

    Attributes:
        questions: the questions, in the order of the results.
        judge: the judge; None: the answers are written and not scored.
        rules: folder with the authors' rules for judges (``read_rules``).
        model_id: name of the model in the file of answers.
        name: name of the task, as its files begin.
    """

    questions: QuestionSet
    judge: Judge | None
    rules: Path
    model_id: str
    name: str = "llava_bench"
    split: str = "test"

    def passes(self, done: Mapping[str, list[Any]]) -> list[Pass]:
        """One pass over the questions."""
        return [askings(self.questions)]

    def score(self, done: Mapping[str, list[Any]], out: Outputs) -> dict[str, Any]:
        """The judge's scores.

        Writes ``TASK_SPLIT_results.json``, the answers in the form of LLaVA's scripts to
        ``TASK_SPLIT_answers.jsonl``, and the judge's texts to ``TASK_SPLIT_verdicts.jsonl``.

        Returns:
            The scores of ``judged_scores``, metric: ``judged.NAME`` with the judge's name, missing:
            number of questions without a verdict, rule: origin of the judge's instruction, empty:
            share of empty answers, notes.

        Raises:
            JudgeError: the judge refuses or does not answer.
        """
        rows, notes = without_failed(done[""], "questions")
        out.write(f"{self.name}_{self.split}_results.json", rows)
        said = {row["question_id"]: row["answer"] for row in rows}
        questions = self.questions.only(said).questions
        lines = [answer_row(one, said[one.question_id], self.model_id) for one in questions]
        out.write_text(f"{self.name}_{self.split}_answers.jsonl", _lines(lines))
        empty, warnings = warn_of_empty(list(said.values()))
        notes += warnings
        if self.judge is None:
            notes.append("nothing was scored: answers are compared by a judge (--judge)")
            return {"count": 0, "metric": "judged", "empty": empty, "notes": notes}
        categories = {question.question_type for question in questions}
        by_category, origin = read_rules(self.rules, categories)
        name = f"{self.name}_{self.split}_verdicts.jsonl"
        verdicts = judge_answers(questions, said, self.judge, by_category, out=out, name=name)
        scores = score_verdicts(verdicts)
        scores |= {"metric": f"judged.{self.judge.name}", "rule": origin, "empty": empty}
        scores |= {"notes": [*notes, *scores["notes"]]}
        pairs = {
            v["question_id"]: (v["scores"][0], v["scores"][1]) for v in verdicts if v["scores"]
        }
        observed = observe_judged(questions, pairs)
        return with_items(scores, [observed], out, self.name, self.split)


def answer_row(question: Question, answer: str, model_id: str) -> dict[str, Any]:
    """The row of an answer in LLaVA's form; the answer's id follows from its content."""
    content = json.dumps([model_id, question.question_id, answer])
    return {
        "question_id": question.question_id,
        "prompt": question.text,
        "text": answer,
        "answer_id": hashlib.sha256(content.encode()).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {},
    }


def judge_answers(
    questions: Sequence[Question],
    answers: Mapping[ImageId, str],
    judge: Judge,
    rules: Mapping[str, Rule],
    *,
    out: Outputs,
    name: str,
) -> list[Verdict]:
    """The verdict on each answer, in the questions' order.

    Args:
        name: file of ``out`` to which every verdict is written as it comes; those in it of the same
            judge on the same prompt are taken from there.
    """
    kept = _kept(out.read_text(name))
    verdicts: list[Verdict] = []
    for question in tqdm(questions, desc=f"judge {judge.name}", unit="answer"):
        prompt = judge_prompt(
            question, answers[question.question_id], rules[question.question_type]
        )
        found = kept.get((judge.name, prompt))
        if found is None or found["scores"] is None:
            kept[judge.name, prompt] = found = _judge(question, prompt, judge)
            out.write_text(name, _lines(list(kept.values())))
        verdicts.append(found | {"question_id": question.question_id})
    out.write_text(name, _lines(verdicts))  # without what belonged to other answers
    return verdicts


def score_verdicts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The scores of verdicts; those without two numbers are left out, counted and named."""
    pairs: dict[str, list[Pair]] = {}
    missing = []
    for verdict in verdicts:
        of_category = pairs.setdefault(verdict["category"], [])
        if verdict["scores"] is None:
            missing.append(str(verdict["question_id"]))
        else:
            of_category.append(tuple(verdict["scores"]))
    notes = []
    if missing:
        named = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
        notes.append(
            f"{len(missing)} of {len(verdicts)} verdicts have no two numbers on their first line "
            f"and are left out: question {named}"
        )
    return {**judged_scores(pairs), "missing": len(missing), "notes": notes}


def _judge(question: Question, prompt: str, judge: Judge) -> Verdict:
    texts: list[str] = []
    scores: Pair | None = None
    while scores is None and len(texts) < TRIES:
        text = judge.verdict(question.question_id, prompt, len(texts))
        if text is None:
            break
        texts.append(text)
        scores = parse_verdict(text)
    return {
        "question_id": question.question_id,
        "category": question.question_type,
        "judge": judge.name,
        "prompt": prompt,
        "verdicts": texts,
        "scores": None if scores is None else list(scores),
    }


def _kept(text: str) -> dict[tuple[str, str], Verdict]:
    """The verdicts of an earlier run by judge and prompt."""
    kept: dict[tuple[str, str], Verdict] = {}
    for line in text.splitlines():
        try:
            verdict = json.loads(line)
            kept[verdict["judge"], verdict["prompt"]] = verdict
        except (ValueError, LookupError, TypeError):
            continue
    return kept


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
