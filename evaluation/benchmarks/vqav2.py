"""Reader of VQAv2's questions and annotations, whose format OK-VQA shares."""

from pathlib import Path

from evaluation.benchmarks.fields import field, not_empty, read_json, refuse_doubled
from evaluation.benchmarks.records import Question, QuestionSet
from evaluation.images.files import find_images


def read_vqa(questions: Path, annotations: Path | None, images: Path) -> QuestionSet:
    """The questions with the annotators' answers; without annotations, the questions alone.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a field is missing, a question id is given twice, or a question has no
            annotation.
    """
    entries = field(read_json(questions), "questions", list, questions)
    keys = [field(entry, "question_id", (int, str), questions) for entry in entries]
    refuse_doubled(keys, "question", questions)
    notes: dict[str, dict] = {}
    if annotations is not None:
        given = field(read_json(annotations), "annotations", list, annotations)
        note_keys = [field(note, "question_id", (int, str), annotations) for note in given]
        refuse_doubled(note_keys, "question", annotations)
        notes = dict(zip(map(str, note_keys), given, strict=True))
    records = []
    for key, entry in zip(keys, entries, strict=True):
        if annotations is not None and str(key) not in notes:
            raise ValueError(f"{annotations}: no annotation for question {key} of {questions}")
        records.append(_question(entry, notes.get(str(key), {}), questions, annotations))
    asked = tuple(not_empty(records, questions))
    return QuestionSet(asked, find_images(asked, images, questions))


def _question(entry: dict, note: dict, questions: Path, annotations: Path | None) -> Question:
    answers: tuple[str, ...] = ()
    if annotations is not None:
        given = field(note, "answers", list, annotations)
        answers = tuple(field(one, "answer", str, annotations) for one in given)
    return Question(
        question_id=entry["question_id"],
        image_id=field(entry, "image_id", (int, str), questions),
        text=field(entry, "question", str, questions),
        answers=answers,
        question_type=str(note.get("question_type", "")),
        answer_type=str(note.get("answer_type", "")),
    )
