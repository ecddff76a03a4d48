"""Questions whose answers a judge compares with a reference (LLaVA-Bench).

Answers are written first, in the form of LLaVA's scripts. The judge's texts are written as they
come, with the prompts they answer, and one that is there already is not asked for again: a judge
costs money, and a run that ends early has lost nothing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.benchmarks.judged.llava_bench import Rule, judge_prompt, read_rules
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.judge import TRIES, Judge, open_judge
from evaluation.notes import warn_of_empty
from evaluation.outputs import Outputs
from evaluation.scores.judged import Pair, judged_scores, parse_verdict
from evaluation.vqa import Answerer, answer_questions

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


def evaluate_judged(
    questions: QuestionSet,
    model: Answerer,
    judge: Judge | None,
    out: Outputs,
    *,
    rules: Path,
    model_id: str,
    task: str = "llava_bench",
    split: str = "test",
    batch_size: int = 64,
) -> dict[str, Any]:
    """Answer the questions, and let the judge compare each answer with the reference.

    Writes ``TASK_SPLIT_results.json``, the answers in the form of LLaVA's scripts to
    ``TASK_SPLIT_answers.jsonl``, and the judge's texts to ``TASK_SPLIT_verdicts.jsonl``.

    Args:
        judge: the judge; None: the answers are written and not scored.
        rules: folder with the authors' rules for judges (``read_rules``).
        model_id: name of the model in the file of answers.

    Returns:
        The scores of ``judged_scores``, metric: ``judged.NAME`` with the judge's name, missing:
        number of questions without a verdict, rule: origin of the judge's instruction, empty:
        share of empty answers, notes.

    Raises:
        JudgeError: the judge refuses or does not answer.
    """
    predict = partial(answer_questions, questions, model.encode, model.respond, title=task)
    rows = out.predictions(
        f"{task}_{split}_results.json",
        lambda keep: predict(keep=keep, batch_size=batch_size, ask=model.ask),
    )
    said = {row["question_id"]: row["answer"] for row in rows}
    lines = [answer_row(one, said[one.question_id], model_id) for one in questions.questions]
    out.write_text(f"{task}_{split}_answers.jsonl", _lines(lines))
    empty, notes = warn_of_empty(list(said.values()), model.remedy)
    if judge is None:
        notes = [*notes, "nothing was scored: answers are compared by a judge (--judge)"]
        return {"count": 0, "metric": "judged", "empty": empty, "notes": notes}
    categories = {question.question_type for question in questions.questions}
    by_category, origin = read_rules(rules, categories)
    path = None if out.folder is None else out.folder / f"{task}_{split}_verdicts.jsonl"
    verdicts = judge_answers(questions.questions, said, judge, by_category, path)
    scores = score_verdicts(verdicts)
    scores |= {"metric": f"judged.{judge.name}", "rule": origin, "empty": empty}
    return scores | {"notes": [*notes, *scores["notes"]]}


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
    path: Path | None,
) -> list[Verdict]:
    """The verdict on each answer, in the questions' order.

    Args:
        path: file to which verdicts are added as they come; those in it of the same judge on the
            same prompt are taken from there. None: nothing is written.
    """
    kept = _read_kept(path)
    verdicts = []
    for question in tqdm(questions, desc=f"judge {judge.name}", unit="answer"):
        prompt = judge_prompt(
            question, answers[question.question_id], rules[question.question_type]
        )
        found = kept.get((judge.name, prompt))
        if found is None or found["scores"] is None:
            found = _judge(question, prompt, judge)
            _append(path, found)
        verdicts.append(found | {"question_id": question.question_id})
    if path is not None:  # without what belonged to other answers
        Outputs(path.parent).write_text(path.name, _lines(verdicts))
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


def _read_kept(path: Path | None) -> dict[tuple[str, str], Verdict]:
    """The verdicts of an earlier run by judge and prompt; a last line that was cut off is left."""
    kept: dict[tuple[str, str], Verdict] = {}
    if path is None or not path.is_file():
        return kept
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            verdict = json.loads(line)
            kept[verdict["judge"], verdict["prompt"]] = verdict
        except (ValueError, LookupError, TypeError):
            continue
    return kept


def _append(path: Path | None, verdict: Verdict) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(_lines([verdict]))


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
