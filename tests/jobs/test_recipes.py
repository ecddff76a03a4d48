"""Every recipe: its numbers, its round trip through JSON, and its dry run on the meta device."""

import dataclasses
import json
import re
from importlib import import_module

import pytest

from jobs import recipes
from jobs.recipes import finetune
from jobs.training import budget
from jobs.training.memory import LIBRARIES, plan_memory
from jobs.training.sketch import frozen_models, sketch, trainable

JOBS = ["stage1", "stage2", "finetune_caption", "finetune_retrieval", "finetune_vqa", "instruct"]
RECIPES = [(job, name) for job in JOBS for name in recipes.names(job)]
PAPER = [(job, name) for job, name in RECIPES if "tinyworld" not in name and job != "instruct"]


@pytest.mark.parametrize(("job", "name"), RECIPES)
def test_every_recipe_survives_json(job, name):
    made = recipes.recipe(job, name)
    kinds = {"stage1": "stage1", "finetune_retrieval": "stage1"}
    assert (made.kind, made.name) == (kinds.get(job, "stage2"), name)
    assert made.run.optim.total_steps == made.run.steps
    assert made.run.transform.size == made.encoder.image_size
    assert made.encoder.train == job.startswith("finetune")
    data = json.loads(json.dumps(dataclasses.asdict(made)))
    assert recipes.from_dict(type(made), data) == made


@pytest.mark.parametrize(("job", "name"), RECIPES)
def test_the_paper_s_recipes_read_texts_as_the_reference(job, name):
    made = recipes.recipe(job, name)
    assert made.text == ("reference" if (job, name) in PAPER else "plain")
    older = dataclasses.asdict(made)
    del older["text"]  # written before there was a rule: its texts were plain
    assert recipes.from_dict(type(made), older).text == "plain"


@pytest.mark.parametrize(("job", "name"), RECIPES)
def test_dry_run_of_every_recipe(job, name, capsys):
    """By the job's own command line; nothing is downloaded and no weight is made."""
    main = import_module(f"jobs.{job}").main
    world = 1 if "tinyworld" in name else 16
    assert main(["--recipe", name, "--dry-run", "--world", str(world)]) == 0
    said = capsys.readouterr().out
    assert json.loads(said[: said.rindex("\n}") + 2])["name"] == name
    made = recipes.recipe(job, name)
    share = made.run.global_batch // world
    assert f"batch {made.run.global_batch} = {world} ranks x {share} x 1" in said
    for line in ("trainable parameters", "frozen parameters", "memory a rank", "GFLOP a sample"):
        assert re.search(rf"^{line}.*[0-9]", said, re.MULTILINE), line
    assert "not counted" not in said


@pytest.mark.parametrize("job", JOBS)
def test_help_of_every_job(job, capsys):
    with pytest.raises(SystemExit) as done:
        import_module(f"jobs.{job}").main(["--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert "--encoder.image-size" in said and "--dry-run" in said and f"jobs/{job}.py" in said


@pytest.mark.parametrize(
    ("job", "name", "parameters"),
    [
        ("stage1", "vit-g", 186_705_470),
        ("stage2", "vit-g-opt-2.7b", 107_133_696),
        ("stage2", "vit-g-opt-6.7b", 108_314_880),
        ("stage2", "vit-g-flant5-xl", 106_739_968),
        ("stage2", "vit-g-flant5-xxl", 108_314_880),
        ("finetune_caption", "caption-vit-g-opt-2.7b", 1_093_619_584),
        ("instruct", "instruct-vicuna-7b", 188_837_376),  # recalled of the paper: about 188M
    ],
)
def test_the_papers_parameter_counts(job, name, parameters):
    made = recipes.recipe(job, name)
    assert sum(trainable(made, sketch(made)).values()) == parameters


@pytest.mark.parametrize(
    ("name", "encoder", "language"),
    [
        ("vit-g-opt-2.7b", 985_894_528, 2_651_596_800),
        ("vit-g-opt-6.7b", 985_894_528, 6_658_473_984),
        ("vit-g-flant5-xl", 985_894_528, 2_849_757_184),
        ("vit-g-flant5-xxl", 985_894_528, 11_135_332_352),
    ],
)
def test_the_frozen_models_counts(name, encoder, language):
    made = recipes.recipe("stage2", name)
    frozen = frozen_models(made, sketch(made))
    assert frozen == {"encoder": encoder, "language model": language}


def test_the_papers_batches():
    batches = {
        name: recipes.recipe(job, name).run.global_batch
        for job, name in PAPER
        if job.startswith("stage")
    }
    assert batches.pop("vit-g") == 1680 and batches.pop("vit-l") == 2320
    assert {v for k, v in batches.items() if "opt" in k} == {1920}
    assert {v for k, v in batches.items() if "t5" in k or "vicuna" in k} == {1520}


@pytest.mark.parametrize(
    ("job", "name", "size", "batch", "rate"),
    [
        ("caption", "caption-vit-g-opt-2.7b", 364, 256, (1e-5, (0.9, 0.999), 1.0)),
        ("caption", "caption-vit-g-opt-6.7b", 364, 256, (1e-5, (0.9, 0.999), 0.95)),
        ("caption", "caption-vit-g-flant5-xl", 364, 256, (1e-5, (0.9, 0.999), 1.0)),
        ("vqa", "vqa-vit-g-opt-2.7b", 490, 128, (1e-5, (0.9, 0.999), 0.95)),
        ("vqa", "vqa-vit-g-opt-6.7b", 490, 128, (1e-5, (0.9, 0.999), 0.9)),
        ("vqa", "vqa-vit-g-flant5-xl", 490, 128, (1e-5, (0.9, 0.999), 0.95)),
        ("retrieval", "retrieval-vit-l", 364, 224, (5e-6, (0.9, 0.98), 1.0)),
        ("retrieval", "retrieval-vit-g", 364, 224, (1e-5, (0.9, 0.999), 0.95)),
        ("retrieval", "retrieval-vit-g-itc-itm", 364, 224, (1e-5, (0.9, 0.999), 0.95)),
    ],
)
def test_the_papers_finetunes(job, name, size, batch, rate):
    """Tables 7, 8 and 9."""
    made = recipes.recipe(f"finetune_{job}", name)
    optim = made.run.optim
    assert (made.encoder.image_size, made.run.global_batch) == (size, batch)
    assert (optim.lr, optim.betas, optim.layer_decay) == rate
    assert (optim.weight_decay, optim.warmup_steps) == (0.05, 1000)
    assert (made.encoder.drop_path, made.encoder.checkpoint_blocks) == (0.0, True)
    samples = finetune.VQA_QUESTIONS if job == "vqa" else finetune.COCO_PAIRS
    assert 0 <= made.run.steps * batch - 5 * samples < batch
    if job == "retrieval":
        assert made.image_ids and made.model.itg == (not name.endswith("itc-itm"))
    else:
        assert made.prompt == {"caption": "a photo of", "vqa": "Question: {} Answer:"}[job]
        assert made.model.qformer.text == (job == "vqa")


def test_every_row_of_the_paper_has_its_recipe():
    """Tables 2 to 6 and figure 5."""
    rows = {
        "stage2": [
            *("vit-l-opt-2.7b", "vit-g-opt-2.7b", "vit-g-opt-6.7b"),
            *("vit-l-flant5-xl", "vit-g-flant5-xl", "vit-g-flant5-xxl"),
            *("vit-g-opt-2.7b-without-stage1", "vit-g-flant5-xl-without-stage1"),
            *("vit-g-vicuna-7b", "vit-g-vicuna-13b"),  # before InstructBLIP
        ],
        "finetune_caption": [f"caption-vit-g-{n}" for n in ("opt-2.7b", "opt-6.7b", "flant5-xl")],
        "finetune_vqa": [f"vqa-vit-g-{n}" for n in ("opt-2.7b", "opt-6.7b", "flant5-xl")],
        "finetune_retrieval": ["retrieval-vit-l", "retrieval-vit-g", "retrieval-vit-g-itc-itm"],
        "stage1": ["vit-g", "vit-l"],
    }
    assert {pair for job, names in rows.items() for pair in ((job, n) for n in names)} == set(PAPER)
    assert recipes.recipe("stage2", "vit-g-opt-2.7b-without-stage1").bert


def test_memory_follows_the_zero_stage():
    made = recipes.recipe("finetune_caption", "caption-vit-g-opt-2.7b")
    sketched, count = sketch(made), 1_093_619_584
    for stage, weights, gradients, state in (
        (1, 2, 4, 12 / 8),
        (2, 2, 0.5, 1.5),
        (3, 0.25, 0.5, 1.5),
    ):
        zero = dataclasses.replace(made.run.zero, stage=stage)
        recipe = dataclasses.replace(made, run=dataclasses.replace(made.run, zero=zero))
        memory = plan_memory(recipe, sketched, world=8, micro=16)
        held = (memory.weights, memory.gradients, memory.optimizer)
        assert held == tuple(pytest.approx(n * count) for n in (weights, gradients, state))
        assert memory.frozen == 2 * 2_651_596_800


def test_micro_batches_and_saves_have_their_memory():
    made = recipes.recipe("stage1", "vit-g")
    sketched = sketch(made)
    count = 186_705_470
    whole = plan_memory(made, sketched, world=8, micro=210)
    halves = plan_memory(made, sketched, world=8, micro=105)
    kept = 210 * 257 * 1408 * 2  # bf16 tokens of both micro-batches
    assert halves.exchange - whole.exchange == kept and whole.exchange == 4 * count
    assert halves.activations < 0.6 * whole.activations
    assert whole.saving == 20 * count
    assert whole.on_cpu == LIBRARIES + whole.total > whole.states + whole.saving


def test_time_cost_and_room_on_a_gpu(capsys):
    """568 samples a second would be 40 % of an H200's peak; 0.1 an hour for 205 hours is 21."""
    main = import_module("jobs.stage1").main
    given = ["--recipe", "vit-g", "--dry-run", "--gpu", "h200", "--price", "0.1"]
    assert main(given) == 0
    said = capsys.readouterr().out
    seconds, hours = re.search(r"([\d.]+) s a step.*? ([\d.]+) hours on 1 GPUs", said).groups()
    flop = float(re.search(r"PFLOP a step: +([\d.]+)", said).group(1)) * 1e15
    assert float(seconds) == pytest.approx(flop / (0.4 * 989e12), rel=0.01)
    assert float(hours) == pytest.approx(250_000 * float(seconds) / 3600, rel=0.01)
    assert "IT DOES NOT FIT; --micro-batch 840 would" in said and "at 0.1 a GPU" in said
    assert main([*given, "--micro-batch", "840"]) == 0
    assert "it fits" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--gpu tpu: not known; choose one of a6000"):
        main([*given, "--gpu", "tpu"])


def test_too_little_memory_is_said_before_anything_is_loaded():
    made = recipes.recipe("stage1", "vit-g")
    sketched = sketch(made)
    budget.check_room(made, sketched, 16, 40 * 2**30, on_cpu=False)
    with pytest.raises(ValueError, match=r"--micro-batch 1680: a rank needs about .* would"):
        budget.check_room(made, sketched, 1, 40 * 2**30, on_cpu=False)
    with pytest.raises(ValueError, match="not with one sample either"):
        budget.check_room(made, sketched, 1, 2**30, on_cpu=True)


def test_unknown_frozen_models_are_said_not_guessed(capsys):
    main = import_module("jobs.stage2").main
    name = ["--language.name", "nobody/nothing"]
    assert main(["--recipe", "vit-g-opt-2.7b", "--dry-run", *name]) == 0
    assert "not counted, since its folder is not here: nobody/nothing" in capsys.readouterr().out


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(ValueError, match=r"no stage2 recipe of that name; choose one of tinyworld"):
        recipes.recipe("stage2", "vit-g")
    with pytest.raises(ValueError, match="unknown field surprise"):
        recipes.from_dict(type(recipes.recipe("stage1", "vit-g")), {"surprise": 1})
