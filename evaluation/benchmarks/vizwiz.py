"""Reader of VizWiz-VQA: photographs and questions of blind people, ten answers each.

A question has no id of its own: the name of its image stands for it. Annotators may have answered
"unanswerable", which is scored like any other answer; the confidence they gave is not scored.
"""

from pathlib import Path

from evaluation.benchmarks.fields import field, not_empty, read_json, refuse_doubled
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.images.files import existing


def read_vizwiz(path: Path, images: Path) -> QuestionSet:
    """The questions of ``val.json`` and the like; ``test.json`` has no answers.

    Raises:
        FileNotFoundError: the file or an image is not there.
        ValueError: a field is missing or an image is given twice.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: VizWiz's questions are a list")
    questions, files = [], {}
    names = [field(entry, "image", str, path) for entry in content]
    refuse_doubled(names, "image", path)
    for name, entry in zip(names, not_empty(content, path), strict=True):
        files[name] = existing(images, [name], path)
        given = field(entry, "answers", list, path) if "answers" in entry else []
        questions.append(
            Question(
                question_id=name,
                image_id=name,
                text=field(entry, "question", str, path),
                answers=tuple(field(one, "answer", str, path) for one in given),
                answer_type=str(entry.get("answer_type", "")),
            )
        )
    return QuestionSet(tuple(questions), files)
