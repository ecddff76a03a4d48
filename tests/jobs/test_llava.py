"""LLaVA's job as a person runs it: two stages, ranks, kills, resumption, refusals."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster import checkpoint
from cluster.logfiles import records_so_far
from cluster.runlog import LOG
from jobs import recipes
from jobs.convert import main as convert
from jobs.llava import main, take_stage
from jobs.predict import load
from modeling.language.adapters import GenerationSettings
from modeling.language.conversation import Turn
from tests.jobs.training.test_training import kill_at, launcher, python, run
from tests.run_ranks import run_ranks
from tests.tiny_llava import talks, tiny_llama
from tests.tiny_training import capfilt_output, tiny_clip

FP32 = ("--zero.precision", "fp32", "--encoder.dtype", "fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of models and data, and a run of stage 1."""
    folder = tmp_path_factory.mktemp("world")
    tiny_clip(folder / "clip")
    tiny_llama(folder / "llama")
    capfilt_output(folder / "data", shards=2, samples=20)
    talks(folder / "talks")
    return folder


def command(world, stage, out, steps, *more):
    data = world / "data" if stage == 1 else f"{world}/talks/talks.json:{world}/talks"
    return [
        *("jobs/llava.py", "--stage", str(stage), "--recipe", "llava-tinyworld"),
        *("--encoder.name", str(world / "clip"), "--language.name", str(world / "llama")),
        *("--data", str(data), "--out", str(out), "--steps", str(steps), "--global-batch", "8"),
        *("--language.max-text", "300", "--log-every", "1", "--save-every", "4", *FP32, *more),
    ]


@pytest.fixture(scope="module")
def stage1(world):
    said = run_ranks("tests.jobs.llava_worker", 1, *command(world, 1, world / "one", 4)[1:])
    return world / "one", said


def losses(out):
    return [record["loss"] for record in records_so_far(out / LOG)]


def test_stage1_trains_the_bridge_alone(stage1):
    out, said = stage1
    assert "language weights that changed: 0 of" in said
    found = checkpoint.find(out)
    assert set(found.trainable()) == {"bridge.linear_1.weight", "bridge.linear_1.bias"}
    assert found.recipe["stage"] == 1 and all(found.recipe["made_for"].values())


@pytest.mark.slow
def test_stage2_trains_all_but_the_tower_on_any_ranks(world, stage1, tmp_path):
    """ZeRO-3 on two ranks equals one rank, without recomputation, too.

    A rank has one sample a step, and a third of the samples has no image: often one rank alone runs
    the bridge for nothing.
    """
    init = ("--init", str(stage1[0]), "--optim.bridge-lr", "1e-3", "--loader.group", "0")
    init += ("--global-batch", "2")
    one = command(world, 2, tmp_path / "one", 8, *init, "--no-checkpoint-blocks")
    said = run_ranks("tests.jobs.llava_worker", 1, *one[1:], "--zero-stage", "0")
    assert "language weights that changed: 21 of 21" in said
    two = run(launcher(command(world, 2, tmp_path / "two", 8, *init), 2))
    assert two.returncode == 0, two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    weights = [checkpoint.find(tmp_path / name).trainable() for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys() and len(weights[0]) == 23
    for name, tensor in weights[0].items():
        assert tensor.numel()
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-5, rtol=0)


@pytest.mark.slow
def test_stage2_killed_and_resumed_on_other_ranks_makes_the_same_losses(world, stage1, tmp_path):
    init = ("--init", str(stage1[0]))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(launcher(command(world, 2, whole, 16, *init), 2))
    assert done.returncode == 0, done.stderr
    again = command(world, 2, killed, 16, *init)
    for step, ranks in ((5, 2), (6, 1), (9, 2), (10, 2), (13, 1)):
        kill_at(launcher(again, ranks), killed, step)
    done = python(again)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    assert losses(killed) == pytest.approx(losses(whole), abs=1e-5)


def test_a_bridge_belongs_to_its_models(world, stage1, tmp_path):
    """Another language model of the same sizes, another encoder, another kind of bridge."""
    tiny_llama(world / "other", seed=9)
    shutil.copytree(world / "clip", world / "clip2")
    file = world / "clip2" / "model.safetensors"
    save_file({k: t + 0.25 for k, t in load_file(file).items()}, file, {"format": "pt"})
    init = ("--init", str(stage1[0]))
    arguments = command(world, 2, tmp_path / "out", 4, *init)[1:]
    other = ["--language.name", str(world / "other")]
    with pytest.raises(ValueError, match="other weights of the language model"):
        main([*arguments, *other])
    with pytest.raises(ValueError, match="its bridge is linear of 32 x 24, the recipe's mlp2x"):
        main([*arguments, "--model.bridge", "mlp2x_gelu"])
    with pytest.raises(ValueError, match="other weights of the encoder model"):
        main([*arguments, "--encoder.name", str(world / "clip2")])
    with pytest.raises(ValueError, match="no bridge in it"):
        main([*arguments, "--init", str(world / "clip2")])
    with pytest.raises(ValueError, match="has 512 positions"):
        main([*arguments, "--language.max-text", "600"])
    # Resumed, too: the run's own folder knows its models.
    resumed = command(world, 1, stage1[0], 6)[1:]
    with pytest.raises(ValueError, match=r"language\.name"):
        main([*resumed, *other])


@pytest.mark.parametrize("line", [["--recipe", "llava-7b"], ["--stage", "3"], ["--stage"]])
def test_a_stage_must_be_given(line):
    with pytest.raises(ValueError, match=r"give 1 \(the bridge\) or 2"):
        take_stage(line)


def test_bad_conversations_are_named(world, tmp_path):
    records = json.loads((world / "talks" / "talks.json").read_text())
    records[5]["conversations"].reverse()
    (tmp_path / "bad.json").write_text(json.dumps(records))
    arguments = command(world, 2, tmp_path / "out", 4)[1:]
    with pytest.raises(ValueError, match="sample 5: turn 0 is of gpt; human begins"):
        main([*arguments, "--data", f"{tmp_path / 'bad.json'}:{world / 'talks'}"])


@pytest.mark.parametrize("kind", ["llava_stage1", "llava_stage2"])
def test_every_recipe_survives_json(kind):
    assert recipes.names(kind) == [
        *("llava-1.5-13b", "llava-1.5-7b", "llava-13b", "llava-7b", "llava-tinyworld"),
    ]
    for name in recipes.names(kind):
        made = recipes.recipe(kind, name)
        assert (made.name, made.stage, made.kind) == (name, int(kind[-1]), "llava")
        assert made.run.transform.size == made.encoder.image_size
        assert made.run.optim.total_steps == made.run.steps
        assert recipes.from_dict(type(made), recipes.as_json(made)) == made


@pytest.mark.parametrize(
    ("name", "stage", "steps", "batch", "rate"),
    [
        ("llava-7b", 1, 4652, 128, 2e-3),
        ("llava-13b", 2, 14786, 32, 2e-5),
        ("llava-1.5-7b", 1, 2181, 256, 1e-3),
        ("llava-1.5-13b", 2, 5198, 128, 2e-5),
    ],
)
def test_the_papers_numbers(name, stage, steps, batch, rate):
    """Section 4.2 and the appendix; LLaVA-1.5's appendix."""
    run = recipes.recipe(f"llava_stage{stage}", name).run
    assert (run.steps, run.global_batch, run.optim.lr) == (steps, batch, rate)
    assert (run.optim.weight_decay, run.optim.betas, run.optim.min_lr) == (0, (0.9, 0.999), 0)


@pytest.mark.parametrize(("stage", "trained"), [(1, 4_198_400), (2, 6_742_614_016)])
def test_dry_run_counts_the_full_finetune(stage, trained, capsys):
    line = ["--stage", str(stage), "--recipe", "llava-7b", "--dry-run", "--world", "8"]
    assert main([*line, "--gpu", "a100-80g"]) == 0
    said = capsys.readouterr().out
    assert f"trainable parameters: {trained:,}" in said and "it fits" in said
    assert main([*line[:3], "llava-1.5-13b", *line[4:]]) == 0


@pytest.mark.slow
def test_a_trained_model_answers_about_its_images(world, stage1, tmp_path):
    """Stage 2 learns two images by heart; the answers then depend on the image that is shown."""
    init = ("--init", str(stage1[0]), "--optim.lr", "0.01", "--zero-stage", "1")
    done = python(command(world, 2, tmp_path, 150, *init, "--save-every", "150"))
    assert done.returncode == 0, done.stderr
    model = load(tmp_path, dtype="fp32")
    red, big = (str(world / "talks" / f"{name}.png") for name in ("red", "big"))
    greedy = GenerationSettings(beams=1, max_new_tokens=12)
    asked = ["What is the star?"] * 2
    assert model.generate([red, big], asked, greedy) == ["red", "big"]
    convert(["--from", "native", "--to", "hf", str(tmp_path), str(tmp_path / "hf")])
    assert load(tmp_path / "hf").generate([red, big], asked, greedy) == ["red", "big"]
    ranked = model.rank([red, big], asked, ["big", "red"])
    assert [one.best() for one in ranked] == ["red", "big"]
    turns = [Turn("user", asked[0]), Turn("assistant", "red"), Turn("user", "Is it big?")]
    turns_said = "yes, it is a star"
    assert model.converse(model.encode([red]), [turns], greedy) == [turns_said]
    chat = model.chat(red)
    assert [chat.ask(asked[0], greedy), chat.ask("Is it big?", greedy)] == ["red", turns_said]
    assert model.speak(None, ["Is a star big?"], greedy) == ["a star is big"]
