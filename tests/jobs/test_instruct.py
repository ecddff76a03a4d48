"""Instruction tuning as a person runs it: started, resumed, loaded, asked, ablated, misused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster import checkpoint
from cluster.logfiles import records_so_far
from cluster.runlog import LOG
from jobs import instruct, predict, recipes
from jobs.models.bert import load_bert_tokenizer, tokenise
from jobs.models.languages import load_language
from jobs.recipes.instruct import INSTRUCT
from jobs.recipes.schema import LanguageChoice, Stage2Recipe
from jobs.training import start
from pipeline.tinyworld.instructions import write_instructions
from tests.jobs.run_jobs import run_jobs
from tests.jobs.training.test_training import curve, mistake

STEPS = 6
SIZES = {"width": 32, "layers": 2, "heads": 4, "ffn": 64, "queries": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_root, stage1_run, t5_run) -> dict[str, Path]:
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    write_instructions(data, pictures=12, seed=0)
    models = {"clip": tiny_root / "t5" / "clip", "t5": tiny_root / "t5" / "t5"}
    return {**models, "data": data, "out": out, "stage1": stage1_run, "stage2": t5_run}


def command(world: dict[str, Path], name: str, *more: str) -> list[str]:
    return [
        *("instruct", "--recipe", "instruct-tinyworld-t5", "--data", str(world["data"])),
        *("--init", f"{world['stage2']},{world['stage1']}", "--language.name", str(world["t5"])),
        *("--encoder.name", str(world["clip"]), "--encoder.image-size", "32"),
        *(word for key, n in SIZES.items() for word in (f"--model.qformer.{key}", str(n))),
        *("--steps", str(STEPS), "--global-batch", "8", "--save-every", "3", "--log-every", "1"),
        *("--optim.warmup-steps", "0", "--optim.lr", "3e-3", "--out", str(world["out"] / name)),
        *more,
    ]


@pytest.fixture(scope="module")
def runs(world) -> dict[str, dict]:
    """A run, and the ablation from a stage-2 checkpoint alone."""
    plain = ("--model.qformer.no-text", "--init", str(world["stage2"]))
    commands = {
        "whole": command(world, "whole"),
        "plain": command(world, "plain", *plain),
    }
    done = dict(zip(commands, run_jobs(list(commands.values())), strict=True))
    for result in done.values():
        assert result["code"] == 0, result["err"]
    return done


def test_a_run_says_its_mix_and_where_it_starts_from(world, runs):
    said = runs["whole"]["out"]
    assert "mix of 5 data sets, by square root of size:" in said
    assert "times 0.5 (our choice: the paper states none)" in said
    assert said.count("starting from") == 2 and runs["plain"]["out"].count("starting from") == 1
    losses = [record["loss"] for record in records_so_far(world["out"] / "whole" / LOG)]
    assert len(losses) == STEPS and all(loss > 0 for loss in losses)


def test_resumes_exactly(world, runs):
    """From the checkpoint of step 3, without --init: the same draws, templates and losses."""
    copy = world["out"] / "resumed"
    shutil.copytree(world["out"] / "whole", copy)
    shutil.rmtree(copy / "checkpoints" / f"step_{STEPS:08d}")
    arguments = command(world, "resumed")
    del arguments[(at := arguments.index("--init")) : at + 2]
    (result,) = run_jobs([arguments])
    assert result["code"] == 0, result["err"]
    assert "step_00000003 at step 3" in result["out"]
    assert curve(copy) == curve(world["out"] / "whole")
    again, first = (checkpoint.find(p).trainable() for p in (copy, world["out"] / "whole"))
    assert all(torch.equal(again[key], first[key]) for key in first)


def test_the_instruction_changes_the_visual_prompt_and_in_the_ablation_does_not(world, runs):
    picture = next((world["data"] / "coco").rglob("*.jpg"))
    asked = ["What color is it?", "How many shapes are there?"]
    for name, differ in (("whole", True), ("plain", False)):
        model = predict.load(world["out"] / name)
        assert model.reads_text == differ
        encoded = model.encode([picture] * 2)
        first, second = model.visual_prompts(encoded, asked)
        assert torch.equal(first, second) != differ
        assert len(model.answer([picture] * 2, asked)) == 2


def test_a_tuned_checkpoint_is_tuned_further_without_stage_1(world, runs):
    recipe = recipes.from_dict(Stage2Recipe, checkpoint.find(world["out"] / "whole").recipe)
    stage = start.new_stage2(recipe, bert=False)
    start.load_for_instructions(stage, str(world["out"] / "whole"))
    given = checkpoint.find(world["out"] / "whole").trainable()
    assert all(torch.equal(value, given[key]) for key, value in stage.named_parameters())


def test_the_text_branch_comes_from_stage_1_and_the_rest_from_stage_2(world):
    recipe = recipes.recipe("instruct", "instruct-tinyworld-t5")
    found = checkpoint.find(world["stage2"])
    own = recipes.from_dict(Stage2Recipe, found.recipe).model
    stage = start.new_stage2(_with_text(recipe, own), bert=False)
    start.load_for_instructions(stage, f"{world['stage2']},{world['stage1']}")
    first, second = checkpoint.find(world["stage1"]).trainable(), found.trainable()
    texts = 0
    for key, value in stage.named_parameters():
        source = second if key in second else first
        texts += key not in second
        assert torch.equal(value, source[key]), key
    assert texts > 3


def _with_text(recipe, model):
    return replace(
        recipe, model=replace(model, qformer=replace(model.qformer, text=True, vocab=284))
    )


def test_mistakes_end_with_one_line(world, tmp_path, capsys):
    given = command(world, "never", "--out", str(tmp_path / "out"))[1:]
    line = mistake(capsys, instruct.main, [*given, "--init", str(world["stage2"])])
    assert "no text branch" in line and f"--init {world['stage2']},STAGE1" in line
    line = mistake(capsys, instruct.main, [*given, "--init", ""])
    assert "--init: none given" in line and "STAGE2,STAGE1" in line
    swapped = f"{world['stage1']},{world['stage2']}"
    line = mistake(capsys, instruct.main, [*given, "--init", swapped])
    assert "kind is 'stage1'; give one of stage 2" in line
    line = mistake(capsys, instruct.main, [*given, "--instructions.sets", "okvqa"])
    assert "add okvqa=PATH" in line


def test_long_instructions_keep_their_last_words_in_both_models(world):
    """Of 200 words the first are cut; the tokens that begin and end a text stay."""
    words = " ".join(["red", "star"] * 100)
    tokenizer = load_bert_tokenizer("modeling/zoo/bert")
    read = tokenise(tokenizer, [f"{words} blue"], 16, keep="last")["ids"][0]
    told = tokenizer.convert_ids_to_tokens(read)
    assert len(told) == 16 and (told[0], told[-2:]) == ("[CLS]", ["blue", "[SEP]"])
    first = tokenise(tokenizer, [f"blue {words}"], 16)["ids"][0]
    assert tokenizer.convert_ids_to_tokens(first)[:2] == ["[CLS]", "blue"]
    language = load_language(LanguageChoice(str(world["t5"]), max_prompt=16))
    whole = language.tokenizer(f"{words} blue")["input_ids"]
    assert language._given([f"{words} blue", "red"]) == [whole[-16:], whole[:1] + whole[-1:]]
    opt = load_language(LanguageChoice("modeling/zoo/opt", max_prompt=16))
    (row,) = opt._given([f"{words} blue"], pictured=True)
    whole = opt.tokenizer(f"{words} blue")["input_ids"]
    assert row == whole[:1] + whole[-15:]


def test_the_papers_numbers():
    batches = {"flant5-xl": 192, "flant5-xxl": 64, "vicuna-7b": 128, "vicuna-13b": 64}
    for name, batch in batches.items():
        recipe = INSTRUCT[f"instruct-{name}"]()
        run, optim = recipe.run, recipe.run.optim
        assert (run.steps, run.global_batch, run.save_every) == (60_000, batch, 3_000)
        assert (optim.lr, optim.warmup_lr, optim.min_lr) == (1e-5, 1e-8, 0.0)
        assert (optim.warmup_steps, optim.betas, optim.weight_decay) == (1000, (0.9, 0.999), 0.05)
        assert (recipe.max_question, recipe.language.max_prompt, recipe.language.max_text) == (
            128, 128, 256,
        )  # fmt: skip
        assert recipe.model.qformer.text and recipe.encoder.image_size == 224
        assert not recipe.encoder.train and len(recipe.instructions.sets) == 13
