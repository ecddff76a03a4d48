"""Every benchmark of the catalogue, read from the files that TinyWorld writes in its format."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.benchmarks import catalogue
from evaluation.benchmarks.catalogue import BENCHMARKS
from evaluation.benchmarks.folder import Asked, Captioned
from evaluation.benchmarks.prompts import list_options
from evaluation.benchmarks.records import Question
from evaluation.scores.answers import METRICS
from pipeline.tinyworld.benchmarks import write_benchmarks
from pipeline.video import video_file
from tests.evaluation.benchmarks.tiny_benchmarks import edit

COUNT = 6


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder, COUNT, seed=0)
    return folder


def questions_of(data: Path, name: str, split: str | None = None) -> tuple[Question, ...]:
    asked = BENCHMARKS[name].load(data, split)
    assert isinstance(asked, Asked)
    return asked.questions.questions


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_splits_are_read_and_can_be_scored(world: Path, name: str) -> None:
    benchmark = BENCHMARKS[name]
    data = benchmark.load(world)
    assert all(video_file(path).is_file() for path in data.paths())
    if isinstance(data, Captioned):
        assert benchmark.way in ("caption", "retrieve")
        assert len(data.items) == COUNT
        assert all(item.references for item in data.items)
        return
    asked = data.questions
    assert asked.answered().questions
    assert len({question.question_id for question in asked.questions}) == len(asked.questions)
    for question in asked.questions:
        prompt = benchmark.prompt(question)
        assert question.text in prompt
        assert prompt == prompt.strip()
        assert bool(question.candidates) == (benchmark.way == "choose")
    if benchmark.way == "answer":
        assert benchmark.metric in METRICS
    else:
        assert benchmark.metric in ("accuracy", "auroc", "dialog", "judged")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("vqav2", "test-dev"),
        ("aokvqa", "test"),
        ("aokvqa_choice", "test"),
        ("vizwiz", "test"),
        ("textvqa", "test"),
        ("hatefulmemes", "test"),
        ("visdial", "test"),
    ],
)
def test_test_sets_have_no_answers(world: Path, name: str, split: str) -> None:
    asked = questions_of(world, name, split)
    assert asked
    assert not any(question.answered for question in asked)


def test_nocaps_has_domains_and_a_test_set_without_captions(world: Path) -> None:
    data, hidden = (BENCHMARKS["nocaps"].load(world, split) for split in ("val", "test"))
    assert isinstance(data, Captioned) and isinstance(hidden, Captioned)
    assert {item.domain for item in data.items} == {"in-domain", "near-domain", "out-domain"}
    assert all(len(item.captions) == 10 for item in data.items)
    assert [item.image_id for item in data.items] == list(range(COUNT))  # not the Open Images id
    assert not any(item.references for item in hidden.items)


def test_aokvqa_scores_no_direct_answer_of_difficult_questions(world: Path) -> None:
    direct, choices = questions_of(world, "aokvqa"), questions_of(world, "aokvqa_choice")
    difficult = [question for question in direct if not question.answers]
    assert 0 < len(difficult) < len(direct)
    assert all(len(q.answers) == 10 for q in direct if q not in difficult)
    assert all(len(q.candidates) == 4 and q.correct is not None for q in choices)


def test_vizwiz_may_be_unanswerable(world: Path) -> None:
    asked = questions_of(world, "vizwiz")
    assert asked[3].answers == ("unanswerable",) * 10
    assert asked[3].answer_type == "unanswerable"
    assert asked[0].question_id == asked[0].image_id == "VizWiz_val_00000001.jpg"


def test_textvqa_reads_ocr_words_where_there_are_any(world: Path, tmp_path: Path) -> None:
    asked = questions_of(world, "textvqa")
    assert all(question.context.startswith(question.answers[0]) for question in asked)
    assert BENCHMARKS["textvqa"].prompt(asked[0]).startswith("OCR tokens: ")
    copy = Path(shutil.copytree(world, tmp_path / "copy"))
    words = copy / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json"
    edit(words, lambda c: c["data"][0].update(ocr_tokens=[f"w{n}" for n in range(40)]))
    assert questions_of(copy, "textvqa")[0].context.endswith(", w29")
    edit(words, lambda c: c["data"].pop(0) and None)
    with pytest.raises(ValueError, match="no OCR words for image 0000000000000001"):
        questions_of(copy, "textvqa")
    words.unlink()
    bare = questions_of(copy, "textvqa")
    assert bare[0].context == ""
    assert BENCHMARKS["textvqa"].prompt(bare[0]).startswith("Question: ")


def test_scienceqa_keeps_questions_with_an_image(world: Path) -> None:
    asked = questions_of(world, "scienceqa")
    assert [question.question_id for question in asked] == ["1", "2", "4", "5", "7", "8"]
    prompt = BENCHMARKS["scienceqa"].prompt
    assert prompt(asked[0]).startswith("Context: Colors and shapes differ. Question: ")
    assert prompt(asked[1]).startswith("Question: ")
    with pytest.raises(ValueError, match="no question of split 'val' has an image"):
        questions_of(world, "scienceqa", "val")


def test_visdial_tells_the_dialog_so_far(world: Path) -> None:
    asked = questions_of(world, "visdial")
    assert len(asked) == 10 * COUNT
    first, third = asked[0], asked[2]
    assert (first.question_id, third.question_id) == ("1-1", "1-3")
    assert first.context.startswith('This image has the caption "')
    assert f"q: {asked[1].text} a: {asked[1].candidates[asked[1].correct or 0]}" in third.context
    assert third.text not in third.context
    judged = [question for question in asked if question.relevance]
    assert len(judged) == COUNT
    assert all(len(q.candidates) == len(q.relevance) == 100 for q in judged)
    assert all(q.relevance[q.correct or 0] == 1.0 for q in judged)
    hidden = questions_of(world, "visdial", "test")
    assert [q.question_id for q in hidden] == [f"{n}-10" for n in range(1, COUNT + 1)]


def test_options_have_letters() -> None:
    assert list_options(("red", "blue")) == "(a) red (b) blue"


def test_cocos_images_may_be_shared(world: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(world / "okvqa", tmp_path / "okvqa")).parent
    (copy / "coco").mkdir()
    (copy / "okvqa/val2014").rename(copy / "coco/val2014")
    assert len(questions_of(copy, "okvqa")) == len(questions_of(world, "okvqa"))


def test_unknown_splits_and_missing_folders_are_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"visdial has no split 'dev'; its splits: val, test"):
        BENCHMARKS["visdial"].load(world, "dev")
    with pytest.raises(FileNotFoundError, match=r"for the files of IconQA"):
        BENCHMARKS["iconqa"].load(tmp_path)
    assert set(catalogue._VQAV2_FILES) == set(BENCHMARKS["vqav2"].splits)


def first_of(key: str) -> Callable[[list], None]:
    """A change that gives the second entry the first one's value of a field."""
    return lambda rows: rows[1].update({key: rows[0][key]})


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("aokvqa aokvqa_v1p0_val.json", first_of("question_id"), "question id val00010 is given"),
        ("aokvqa aokvqa_v1p0_val.json", lambda c: {"a": c}, "questions are a list"),
        ("aokvqa aokvqa_v1p0_val.json", lambda c: c[0].pop("question") and None, "'question' is m"),
        (
            "aokvqa aokvqa_v1p0_val.json",
            lambda c: c[1].update(difficult_direct_answer=False, direct_answers=[1]),
            "'direct_answers' must hold texts, got 1",
        ),
        (
            "aokvqa_choice aokvqa_v1p0_val.json",
            lambda c: c[2].update(correct_choice_idx=4),
            "'correct_choice_idx' is 4, and there are 4",
        ),
        ("vizwiz val.json", first_of("image"), "image id VizWiz_val_00000001.jpg is given"),
        ("vizwiz val.json", lambda c: [], "holds no entries"),
        (
            "textvqa TextVQA_0.5.1_val.json",
            lambda c: first_of("question_id")(c["data"]),
            "question id 1 is given",
        ),
        ("scienceqa pid_splits.json", lambda c: c["test"].append("1"), "question id 1 is given"),
        ("scienceqa pid_splits.json", lambda c: c["test"].append("99"), "'99' is missing"),
        ("scienceqa problems.json", lambda c: c["1"].update(answer=-1), "'answer' is -1"),
        (
            "iconqa iconqa_data/iconqa/test/choose_txt/2/data.json",
            lambda c: c.update(answer="1"),
            "'answer' must be int, got '1'",
        ),
        (
            "visdial visdial_1.0_val.json",
            lambda c: first_of("image_id")(c["data"]["dialogs"]),
            "image id 1 is given",
        ),
        (
            "visdial visdial_1.0_val.json",
            lambda c: c["data"]["dialogs"][0]["dialog"][0]["answer_options"].append(999),
            "index 999 points at none of",
        ),
        (
            "visdial visdial_1.0_val_dense_annotations.json",
            lambda c: c[0]["gt_relevance"].clear() or c[0]["gt_relevance"].append(1.0),
            "has 1 relevances for 100 options",
        ),
        (
            "visdial visdial_1.0_val_dense_annotations.json",
            lambda c: c[0].update(image_id=77),
            r"round 77-\d+ is not in",
        ),
        ("hatefulmemes dev.jsonl", first_of("id"), "meme id 1 is given more than once"),
        ("hatefulmemes dev.jsonl", lambda r: r[0].update(label=2), "'label' is 2, and there"),
        ("hatefulmemes dev.jsonl", lambda r: [], "holds no entries"),
        (
            "vsr splits/zeroshot/test.jsonl",
            lambda r: r[1].pop("caption") and None,
            "'caption' is missing",
        ),
    ],
)
def test_mistakes_in_files_are_named(
    world: Path, tmp_path: Path, source: str, change: Callable, message: str
) -> None:
    name, file = source.split()
    folder = BENCHMARKS[name].shares or name
    copy = Path(shutil.copytree(world / folder, tmp_path / folder))
    edit(copy / file, change)
    with pytest.raises(ValueError, match=message) as raised:
        BENCHMARKS[name].load(tmp_path)
    assert str(copy) in str(raised.value)


def test_a_line_that_is_no_json_is_named(world: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(world / "vsr", tmp_path / "vsr"))
    with (copy / "splits/zeroshot/test.jsonl").open("a") as lines:
        lines.write("\n{oops\n")
    with pytest.raises(ValueError, match=rf"test\.jsonl, line {2 * COUNT + 2} is not JSON"):
        BENCHMARKS["vsr"].load(tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_missing_images_are_named(world: Path, tmp_path: Path, name: str) -> None:
    folder = BENCHMARKS[name].shares or name
    shutil.copytree(world / folder, tmp_path / folder)
    gone = video_file(BENCHMARKS[name].load(tmp_path).paths()[-1])
    gone.unlink()
    with pytest.raises(FileNotFoundError) as raised:
        BENCHMARKS[name].load(tmp_path)
    parts = (gone.name, gone.stem, gone.stem.rpartition("_")[2].lstrip("0"))
    assert any(part in str(raised.value) for part in parts)


def test_gqa_counts_steps_and_reads_choices(world: Path, tmp_path: Path) -> None:
    asked = questions_of(world, "gqa", "val_all")
    balanced = [question for question in asked if question.balanced]
    assert 0 < len(balanced) < len(asked)
    assert all(question.steps == (3 if question.balanced else 1) for question in asked)
    assert all(q.answers[0] in (q.plausible or ()) for q in balanced)
    assert all(set(q.plausible or ()) <= set(q.valid or ()) for q in balanced)
    assert not any(q.valid for q in (*asked, *questions_of(world, "gqa")) if q not in balanced)
    copy = Path(shutil.copytree(world / "gqa", tmp_path / "gqa"))
    key = str(balanced[0].question_id)

    def change(content: dict) -> None:
        content[key]["semantic"] += [
            {"operation": "exist", "argument": "?"},
            {"operation": "query", "argument": "name"},
            {"operation": "choose name", "argument": "dog|cat"},
        ]
        content[key]["types"]["detailed"] = "twoCommon"

    edit(copy / "val_all_questions.json", change)
    (copy / "eval").mkdir()
    (copy / "val_choices.json").rename(copy / "eval/val_choices.json")
    first = next(q for q in questions_of(tmp_path, "gqa", "val_all") if q.question_id == key)
    assert (first.steps, first.valid) == (3, ("color", "material", "shape"))
    edit(copy / "eval/val_choices.json", lambda c: c.pop(key) and None)
    with pytest.raises(ValueError, match=rf"val_choices\.json: field '{key}' is missing"):
        questions_of(tmp_path, "gqa", "val_all")
