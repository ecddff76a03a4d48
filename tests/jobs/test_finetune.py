"""The finetunes as a person runs them: from a checkpoint, resumed, loaded again, and misused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from cluster import checkpoint
from cluster.logfiles import records_so_far
from cluster.runlog import LOG
from jobs import finetune_caption, finetune_retrieval, finetune_vqa, predict
from jobs.models import encoders
from jobs.models import trained as models
from jobs.recipes import recipe
from jobs.training import start
from jobs.training.command import Given
from jobs.training.plan import make_plan
from modeling.blip2 import stage_weights
from tests.jobs.run_jobs import run_jobs
from tests.jobs.training.test_training import curve, mistake
from tests.tiny_training import capfilt_output

STEPS, DECAY = 8, 0.5
NAMES = ["caption", "retrieval", "vqa"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_root, stage1_run, t5_run, benchmark_data) -> dict[str, Path]:
    """Data of both kinds, frozen models, and the pre-training runs to start from."""
    shards = capfilt_output(tmp_path_factory.mktemp("data"), shards=2, samples=20, bad=(5,))
    return {
        **{"shards": shards, "questions": benchmark_data, "clip": tiny_root / "t5" / "clip"},
        **{"t5": tiny_root / "t5" / "t5", "stage1": stage1_run, "stage2": t5_run},
        **{"out": tmp_path_factory.mktemp("out")},
    }


def command(world: dict[str, Path], name: str, *more: str) -> list[str]:
    """A finetune of eight steps on the small models, into its own folder."""
    recipe = {"retrieval": "retrieval-tinyworld"}.get(name, f"{name}-tinyworld-t5")
    sizes = {"width": 32, "layers": 2, "heads": 4, "ffn": 64, "queries": 4}
    batch = "12" if name == "vqa" else "8"  # all questions at every step
    language = [] if name == "retrieval" else ["--language.name", str(world["t5"])]
    data = f"{world['questions']}:test" if name == "vqa" else str(world["shards"])
    init = {"retrieval": str(world["stage1"]), "caption": str(world["stage2"])}
    return [
        *(f"finetune_{name}", "--recipe", recipe, "--data", data),
        *("--init", init.get(name, f"{world['stage1']},{world['stage2']}")),
        *("--encoder.name", str(world["clip"]), "--encoder.image-size", "32"),
        *(word for key, n in sizes.items() for word in (f"--model.qformer.{key}", str(n))),
        *("--optim.warmup-steps", "0", "--optim.layer-decay", str(DECAY), "--optim.lr", "1e-3"),
        *("--steps", str(STEPS), "--global-batch", batch, "--save-every", "4", "--log-every", "1"),
        *("--out", str(world["out"] / name), *language, *more),
    ]


@pytest.fixture(scope="module")
def runs(world):
    """All three, one whose learning rate is nothing, and one whose rate breaks everything."""
    still = command(world, "caption", "--out", str(world["out"] / "still"), "--encoder.drop-path")
    rates = ("0.1", "--optim.lr", "0", "--optim.min-lr", "0", "--optim.warmup-lr", "0")
    wild = command(world, "caption", "--out", str(world["out"] / "broken"), "--optim.lr", "1e25")
    commands, once = [command(world, name) for name in NAMES], ("--guard.limit", "1")
    done = run_jobs(
        [*commands, [*still, *rates, "--steps", "1"], [*wild, "--zero.clip", "0", *once]]
    )
    for result in done[:-1]:
        assert result["code"] == 0, result["err"]
    return dict(zip([*NAMES, "still", "broken"], done, strict=True))


def pretrained(world) -> dict[str, torch.Tensor]:
    choice = checkpoint_recipe(world, "caption").encoder
    named = encoders.load_encoder(choice).named_parameters(prefix="encoder")
    return {name: parameter.detach() for name, parameter in named}


def checkpoint_recipe(world, name):
    return models.read_recipe(checkpoint.find(world["out"] / name))


@pytest.mark.parametrize("name", NAMES)
def test_learns_from_where_pretraining_ended(world, runs, name):
    records = records_so_far(world["out"] / name / LOG)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    losses = [record["loss"] for record in records]
    assert sum(losses[-2:]) < sum(losses[:2])
    assert "starting from" in runs[name]["out"] and "step_00000003" in runs[name]["out"]
    assert runs[name]["out"].count("starting from") == (2 if name == "vqa" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_encoder_trains_at_rates_that_fall_towards_the_image(world, runs, name):
    """Adam's step is about the rate, whatever the gradient: movements show the rates."""
    before = pretrained(world)
    after = checkpoint.find(world["out"] / name).trainable()
    moved = {key: float((after[key] - was).abs().mean()) for key, was in before.items()}
    assert min(moved.values()) > 0
    block, embedding = moved["encoder.vit.blocks.0.mlp.fc1.weight"], moved["encoder.vit.pos_embed"]
    assert embedding / block == pytest.approx(DECAY, rel=0.35)


def test_without_a_rate_nothing_moves_not_even_by_rounding(world, runs):
    """The fp32 masters are the files' weights, not their bf16 copies."""
    after = checkpoint.find(world["out"] / "still").trainable()
    for key, was in pretrained(world).items():
        assert torch.equal(after[key], was), key
    given = checkpoint.find(world["stage2"]).trainable()
    assert all(torch.equal(given[key], value) for key, value in stage_weights(after).items())


@pytest.mark.parametrize("name", NAMES)
def test_loads_with_the_finetuned_encoder(world, runs, name):
    found = checkpoint.find(world["out"] / name)
    trained = models.load_trained(world["out"] / name)
    assert trained.recipe.encoder.image_size == trained.recipe.run.transform.size == 32
    assert not any(p.requires_grad for p in trained.encoder.parameters())
    weights = found.trainable()
    for key, value in trained.encoder.named_parameters(prefix="encoder"):
        assert torch.equal(value, weights[key].to(value.dtype))
    for key, value in trained.module.named_parameters(prefix="stage"):
        assert torch.equal(value, weights[key])
    assert (trained.tokenizer is not None) == (name != "caption")
    with torch.no_grad():
        tokens = trained.encoder(torch.zeros(2, 3, 32, 32)).float()
        feats = trained.module.image_embeds if name == "retrieval" else trained.module
        assert feats(tokens).shape[:2] == (2, 4)


def test_a_model_finetuned_to_answer_reads_the_question_in_the_qformer(world, runs, monkeypatch):
    model = predict.load(world["out"] / "vqa")
    picture = next((world["questions"] / "images").rglob("*.jpg"))
    assert model.reads_text and model.vqa_prompt("Is it red? ") == "Question: Is it red? Answer:"
    encoded = model.encode([picture])
    red, blue = (model.visual_prompts(encoded, [text]) for text in ("is it red?", "is it blue?"))
    assert not torch.equal(red, blue)
    seen = []
    monkeypatch.setattr(
        model.trained.language, "generate", lambda visual, texts, _: seen.append(visual) or texts
    )
    asked = ["is it red?", "is it blue?"]
    assert model.answer([picture] * 2, asked) == [f"Question: {text} Answer:" for text in asked]
    assert torch.allclose(seen[0], torch.cat((red, blue)), atol=1e-5)
    captioner = predict.load(world["out"] / "caption")
    assert captioner.caption_prompt == "a photo of" and not captioner.reads_text


def test_resumes_exactly(world, runs):
    """From the checkpoint of step 4, without --init and without the encoder's own weights."""
    whole = {name: curve(world["out"] / name) for name in NAMES}
    copies, commands = {}, []
    for name in NAMES:
        copies[name] = world["out"] / f"{name}-resumed"
        shutil.copytree(world["out"] / name, copies[name])
        shutil.rmtree(copies[name] / "checkpoints" / f"step_{STEPS:08d}")
        arguments = command(world, name, "--out", str(copies[name]))
        del arguments[(at := arguments.index("--init")) : at + 2]
        commands.append(arguments)
    for result in run_jobs(commands):
        assert result["code"] == 0, result["err"]
        assert "step_00000004 at step 4" in result["out"]
    for name in NAMES:
        assert curve(copies[name]) == whole[name]
        again, first = (checkpoint.find(p).trainable() for p in (copies[name], world["out"] / name))
        assert again.keys() == first.keys()
        assert all(torch.equal(again[key], first[key]) for key in first)


def test_mistakes_end_with_one_line(world, runs, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    caption, retrieval = (command(world, name, *out)[1:] for name in ("caption", "retrieval"))
    line = mistake(capsys, finetune_caption.main, [*caption, "--init", str(world["stage1"])])
    assert "kind is 'stage1'; give one of stage 2" in line
    line = mistake(capsys, finetune_caption.main, [*caption, "--init", ""])
    assert "--init: none given; finetune_caption starts from a stage-2 run" in line
    line = mistake(capsys, finetune_retrieval.main, [*retrieval, "--init", str(world["stage2"])])
    assert "give one of stage 1" in line
    finetuned = str(world["out"] / "retrieval")
    line = mistake(capsys, finetune_retrieval.main, [*retrieval, "--init", finetuned])
    assert "was finetuned" in line
    line = mistake(capsys, finetune_retrieval.main, [*retrieval, "--encoder.image-size", "30"])
    assert "image_size = 30" in line and "take 24 or 32" in line
    line = mistake(capsys, finetune_retrieval.main, [*retrieval, "--transform.size", "48"])
    assert "--transform.size 48" in line and "--encoder.image-size" in line
    vqa = command(world, "vqa", *out)[1:]
    line = mistake(capsys, finetune_vqa.main, [*vqa, "--data", str(world["questions"])])
    assert "name the split too" in line
    line = mistake(capsys, finetune_vqa.main, [*vqa, "--data", f"{world['questions']}:val"])
    assert "vqa_val" in line


def test_epochs_count_the_data(world, tmp_path):
    base = recipe("stage1", "tinyworld")
    plan = make_plan(Given(base, "", str(world["shards"]), str(tmp_path), epochs=10))
    assert plan.run.steps == plan.run.optim.total_steps == 5  # 10 x 32 samples, batches of 64
    assert plan.run.optim.warmup_steps == 2


def test_losses_that_are_not_finite_stop_the_run_with_one_line(runs):
    """No traceback, exit code 2, and the steps are not applied."""
    result = runs["broken"]
    assert result["code"] == 2 and "Traceback" not in result["err"]
    lines = [line for line in result["err"].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "steps were skipped" in lines[0]
    assert "the last: a loss that is not finite" in lines[0]


def test_without_stage1_the_qformer_starts_from_bert(tmp_path):
    """Figure 5: what a stage 2 without text can take of BERT, it takes."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**sizes, intermediate_size=64, vocab_size=50))
    bert.save_pretrained(tmp_path)
    made = recipe("stage2", "vit-g-opt-2.7b-without-stage1")
    qformer = replace(made.model.qformer, width=32, layers=2, heads=4, ffn=64)
    made = replace(made, bert=str(tmp_path), model=replace(made.model, qformer=qformer))
    stage = start.new_stage2(made, bert=True)
    own, theirs = dict(stage.named_parameters()), bert.state_dict()
    for ours, name in (
        ("qformer.norm.weight", "embeddings.LayerNorm.weight"),
        ("qformer.layers.1.self_attn.key.weight", "encoder.layer.1.attention.self.key.weight"),
        ("qformer.layers.0.query_ffn.up.weight", "encoder.layer.0.intermediate.dense.weight"),
    ):
        assert torch.equal(own[ours], theirs[name])
    other = start.new_stage2(made, bert=False)  # where a checkpoint will fill it
    assert not torch.equal(dict(other.named_parameters())[ours], theirs[name])
