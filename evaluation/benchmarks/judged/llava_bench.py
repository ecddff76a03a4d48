"""Reader of LLaVA-Bench (In-the-Wild, and its 90 questions about COCO), and the judge's prompts.

A judge that sees no image compares two answers: a reference, which GPT-4 wrote from a description
of the image, and the model's. The facts are those of the authors' scripts
(``eval_gpt_review_bench.py``, ``eval_gpt_review_visual.py``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.benchmarks.fields import (
    field,
    not_empty,
    read_json,
    read_jsonl,
    refuse_doubled,
    texts,
)
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.images.files import find_images

_RULE_FILE = "rule.json"


@dataclass(frozen=True)
class Rule:
    """The words in which a judge is asked.

    Attributes:
        role: name under which both answers are given, with 1 and 2 behind it.
        prompt: instruction after both answers.
    """

    role: str
    prompt: str


OUR_RULE = Rule(
    "Assistant",
    "Two assistants have answered the question above, which a user asked about an image. You do "
    "not see the image; the context describes it truly. Rate how helpful, relevant, accurate and "
    "detailed each answer is, with a number from 1 to 10, where 10 is the best. The order of the "
    "answers must not change your rating.\n"
    "Write nothing but both numbers on the first line, that of Assistant 1 first, with a blank "
    "between them. Explain your rating from the second line on.",
)
"""Rule of this project, for benchmark folders without the authors' ``rule.json``."""


def read_llava_bench(questions: Path, contexts: Path, answers: Path, images: Path) -> QuestionSet:
    """The questions, each with its category as type, its context, and GPT-4's answer as reference.

    Args:
        questions: lines ``{question_id, image, category, text}``.
        contexts: lines ``{image, caption}``, or ``{image, captions, instances}`` with the boxes of
            objects (COCO).
        answers: lines ``{question_id, text}`` of GPT-4.
        images: folder of the images.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing, an id is given twice, a question has no context or no
            answer of GPT-4, or an answer belongs to no question.
    """
    entries = not_empty(read_jsonl(questions), questions)
    keys = [field(entry, "question_id", (int, str), questions) for entry in entries]
    refuse_doubled(keys, "question", questions)
    described = _by_key(contexts, "image", (str,))
    said = _by_key(answers, "question_id", (int, str))
    unknown = sorted(said.keys() - set(map(str, keys)))
    if unknown:
        raise ValueError(f"{answers}: question {unknown[0]} is not in {questions}")
    asked = []
    for key, entry in zip(keys, entries, strict=True):
        image = field(entry, "image", str, questions)
        if image not in described:
            raise ValueError(f"{contexts}: no context for image {image} of {questions}")
        if str(key) not in said:
            raise ValueError(f"{answers}: no answer to question {key} of {questions}")
        asked.append(
            Question(
                question_id=key,
                image_id=Path(image).stem,
                text=field(entry, "text", str, questions),
                answers=(field(said[str(key)], "text", str, answers),),
                question_type=field(entry, "category", str, questions),
                context=_context(described[image], contexts),
            )
        )
    return QuestionSet(tuple(asked), find_images(asked, images, questions))


def read_rules(folder: Path, categories: set[str]) -> tuple[Mapping[str, Rule], str]:
    """The rule of each category, and where they are from.

    Args:
        folder: folder with the authors' ``rule.json``, ``{name: {role, prompt}}``, in which the
            name is a category or ``llava_bench_CATEGORY``; without the file it is ``OUR_RULE``.

    Returns:
        Rules by category; and ``rule.json`` or ``this project's``.

    Raises:
        ValueError: the file has no rule for a category.
    """
    path = folder / _RULE_FILE
    if not path.is_file():
        return dict.fromkeys(categories, OUR_RULE), "this project's"
    content = read_json(path)
    rules = {}
    for category in sorted(categories):
        names = [name for name in (f"llava_bench_{category}", category) if name in content]
        if not names:
            raise ValueError(f"{path}: no rule for category {category!r}")
        entry = content[names[0]]
        rules[category] = Rule(*(field(entry, name, str, path) for name in ("role", "prompt")))
    return rules, _RULE_FILE


def judge_prompt(question: Question, answer: str, rule: Rule) -> str:
    """The text that a judge is given: context, question, reference, the model's answer, rule."""
    blocks = [f"[Context]\n{question.context}", f"[Question]\n{question.text}"]
    for number, text in ((1, question.answers[0]), (2, answer)):
        name = f"{rule.role} {number}"
        blocks += [f"[{name}]\n{text}", f"[End of {name}]"]
    return "\n\n".join([*blocks, f"[System]\n{rule.prompt}"]) + "\n\n"


def _by_key(path: Path, name: str, kinds: tuple[type, ...]) -> dict[str, Any]:
    entries = read_jsonl(path)
    keys = [field(entry, name, kinds, path) for entry in entries]
    refuse_doubled(keys, name.removesuffix("_id"), path)
    return dict(zip(map(str, keys), entries, strict=True))


def _context(entry: Any, path: Path) -> str:
    """The captions, a line each; then the boxes of objects, where there are any."""
    key = "captions" if "captions" in entry else "caption"
    given = field(entry, key, (list, str), path)
    lines = [given] if isinstance(given, str) else texts(entry, key, path)
    if "instances" not in entry:
        return "\n".join(lines)
    objects = field(entry, "instances", list, path)
    boxes = [f"{field(o, 'category', str, path)}: {field(o, 'bbox', list, path)}" for o in objects]
    return "\n".join(lines) + "\n\n" + "\n".join(boxes)
