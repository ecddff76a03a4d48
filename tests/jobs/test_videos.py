"""Videos in a stage-2 checkpoint, and their benchmarks as ``jobs/evaluate.py`` runs them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jobs import recipes
from jobs.evaluation.arguments import AnswerArgs, EvaluateArgs, FurtherArgs
from jobs.evaluation.run import evaluate
from jobs.models.bert import load_bert_tokenizer
from jobs.predict import Writer, load
from modeling.blip2 import Stage2
from pipeline.tinyworld.videos import write_videos
from pipeline.video import read_frames

TASKS = ("msvdqa", "msrvttqa", "ivqa")
ASKED = ["What color is the ring?", "Is it there?"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, 3, seed=0)
    return folder


@pytest.fixture(scope="module")
def model(t5_run: Path) -> Writer:
    found = load(t5_run, dtype="fp32", batch_size=3)  # so that a video's frames meet two batches
    assert isinstance(found, Writer)
    found.folder = t5_run  # type: ignore[attr-defined]
    return found


@pytest.fixture
def reader(model: Writer) -> Writer:
    """The same checkpoint, with a Q-Former that reads the text too."""
    recipe = recipes.recipe("finetune_vqa", recipes.names("finetune_vqa")[0])
    sizes = model.trained.recipe.model
    sizes = replace(sizes, qformer=replace(sizes.qformer, text=True))
    torch.manual_seed(5)
    module = Stage2(sizes).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    recipe = replace(recipe, model=sizes, encoder=model.trained.recipe.encoder)
    tokenizer = load_bert_tokenizer("modeling/zoo/bert")
    trained = replace(model.trained, module=module, recipe=recipe, tokenizer=tokenizer)
    return Writer(trained, batch_size=3)


def videos(world: Path) -> list[Path]:
    """Two videos of two scenes each, so that their frames differ."""
    return sorted((world / "ivqa" / "video").iterdir())[:2]


def as_images(video: Path) -> list[Image.Image]:
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in read_frames(video)]


@pytest.mark.parametrize("name", ["model", "reader"])
def test_a_videos_prompt_is_that_of_its_frames_one_after_the_other(
    name: str, world: Path, request: pytest.FixtureRequest
) -> None:
    model: Writer = request.getfixturevalue(name)
    found = model.visual_prompts(model.encode(videos(world)), ASKED)
    queries = model.trained.recipe.model.qformer.queries
    assert found.shape[:2] == (2, 4 * queries)
    for row, video in enumerate(videos(world)):
        frames = as_images(video)
        alone = model.visual_prompts(model.encode(frames), [ASKED[row]] * 4)
        assert alone.shape[:2] == (4, queries)
        assert torch.allclose(found[row], alone.flatten(0, 1), atol=1e-5)
        assert not torch.allclose(alone[0], alone[3], atol=1e-3)  # the frames differ
    if name == "reader":
        other = model.visual_prompts(model.encode(videos(world)), ASKED[::-1])
        assert not torch.allclose(found, other, atol=1e-3)


def test_videos_are_captioned_and_asked_like_images(model: Writer, world: Path) -> None:
    given = videos(world)
    assert (
        model.answer([*given, given[0]], [*ASKED, ASKED[0]])[0]
        == model.answer(given[:1], ASKED[:1])[0]
    )
    ranked = model.rank(given, ASKED, ["red", "blue"])
    assert [len(one.log_probs) for one in ranked] == [2, 2]
    with pytest.raises(ValueError, match="images and videos are in one batch"):
        model.caption([given[0], as_images(given[0])[0]])


def test_stage_1_names_a_video(stage1_run: Path, world: Path) -> None:
    with pytest.raises(ValueError, match=r"\.mp4 is a video, and this takes images"):
        load(stage1_run).image_embeds(videos(world)[:1])


def run(model: Writer, data: Path, out: Path, *tasks: str, **more: Any) -> dict[str, Any]:
    args = EvaluateArgs(model.folder, data, tasks, out=out, **more)  # type: ignore[arg-type]
    return evaluate(args, model)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_video_benchmarks_are_ranked_and_generated(
    model: Writer, world: Path, tmp_path: Path
) -> None:
    results = run(model, world, tmp_path / "a", *TASKS)
    for name in TASKS:
        scores = results[name]
        assert scores["count"] == len(read(tmp_path / f"a/{name}_test_results.json")) > 0
        assert 0 <= scores["accuracy"] <= 1 and "blind" in scores
        assert ("candidates" in scores) == (name != "ivqa")
    for name in TASKS[:2]:
        scores = results[name]
        trained = {entry["answer"] for entry in read(world / name / "train_qa.json")}
        tested = [entry["answer"] for entry in read(world / name / "test_qa.json")]
        said = {row["answer"] for row in read(tmp_path / f"a/{name}_test_results.json")}
        assert said <= trained and scores["candidates"] == len(trained)
        # A test answer that training never had counts as wrong.
        inside = sum(answer in trained for answer in tested) / len(tested)
        assert scores["within_reach"] == pytest.approx(inside)
        assert set(scores["by_question_type"]) <= {"what", "how", "is"}
    assert min(results[name]["within_reach"] for name in TASKS[:2]) < 1
    further = FurtherArgs(controls=False)
    written = AnswerArgs("generate")
    results = run(model, world, tmp_path / "b", *TASKS, answering=written, further=further)
    for name in TASKS:
        assert "candidates" not in results[name]
        assert results[name]["metric"].endswith(".official")
    listed = AnswerArgs("rank", world / "ivqa/train.csv")
    ranked = run(model, world, tmp_path / "c", "ivqa", answering=listed, further=further)["ivqa"]
    rows = read(tmp_path / "c/ivqa_test_results.json")
    assert ranked["candidates"] >= len({row["answer"] for row in rows}) > 0


def test_a_broken_video_is_named_and_counted(model: Writer, world: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(world, tmp_path / "data"))
    broken = data / "msrvttqa/video/video5.mp4"
    broken.write_bytes(broken.read_bytes()[:-150])
    with pytest.raises(ValueError, match=r"1 of 3 videos .*video5\.mp4: undecodable_video.*--skip"):
        run(model, data, tmp_path / "out", "msrvttqa")
    further = FurtherArgs(skip_unreadable=True, controls=False)
    scores = run(model, data, tmp_path / "out", "msrvttqa", further=further)["msrvttqa"]
    asked = read(data / "msrvttqa/test_qa.json")
    assert scores["count"] == sum(entry["video_id"] != 5 for entry in asked) < len(asked)
    assert scores["notes"][0].startswith("1 of 3 videos cannot be decoded and were left out: ")
