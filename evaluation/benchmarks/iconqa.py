"""Reader of IconQA's questions with a choice of texts (``choose_txt``), a folder each."""

from pathlib import Path

from evaluation.benchmarks.fields import field, index_of, not_empty, read_json, texts
from evaluation.benchmarks.records import ImageId, Question, QuestionSet
from evaluation.images.files import existing


def read_iconqa(folder: Path) -> QuestionSet:
    """The questions of ``FOLDER/ID/{data.json,image.png}``, by rising id.

    Raises:
        FileNotFoundError: the folder, a file or an image is not there.
        ValueError: a field is missing, or the answer is not among the choices.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    questions: list[Question] = []
    files: dict[ImageId, Path] = {}
    names = (path.name for path in folder.iterdir() if path.is_dir())
    for name in sorted(names, key=lambda name: (len(name), name)):
        path = folder / name / "data.json"
        entry = read_json(path)
        choices = texts(entry, "choices", path)
        files[name] = existing(folder / name, ["image.png"], path)
        text = field(entry, "question", str, path)
        correct = index_of(entry, "answer", choices, path)
        questions.append(Question(name, name, text, candidates=choices, correct=correct))
    return QuestionSet(tuple(not_empty(questions, folder)), files)
