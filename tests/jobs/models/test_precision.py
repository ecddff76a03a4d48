"""Number formats of a run: ``auto`` follows the device, and a resumed run keeps its own."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster import checkpoint
from jobs import recipes
from jobs.captioning.models import Describer
from jobs.models import precision
from jobs.recipes.capfilt import CapFiltRecipe
from tests.tiny_training import capfilt_output, tiny_clip

ROOT = Path(__file__).parents[3]
AVX2_ONLY = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
CPU = torch.device("cpu")


def with_formats(recipe, training, frozen):
    zero = replace(recipe.run.zero, precision=training)
    recipe = replace(recipe, run=replace(recipe.run, zero=zero))
    recipe = replace(recipe, encoder=replace(recipe.encoder, dtype=frozen))
    if recipe.kind == "stage1":
        return recipe
    return replace(recipe, language=replace(recipe.language, dtype=frozen))


@pytest.mark.parametrize("fast, found", [(True, "bf16"), (False, "fp32")])
@pytest.mark.parametrize("name", ["tinyworld-t5", "tinyworld-opt"])
def test_recipes_for_cpus_follow_the_device(fast, found, name):
    recipe = precision.resolve(recipes.recipe("stage2", name), fast)
    parts = ("training", "encoder", "language model")
    assert precision.formats(recipe) == dict.fromkeys(parts, found)
    assert precision.described(recipe) == found


@pytest.mark.parametrize("name", ["vit-g-flant5-xxl", "vit-l-opt-2.7b"])
def test_the_papers_recipes_are_bf16_on_any_device(name):
    recipe = precision.resolve(recipes.recipe("stage2", name), fast_bf16=False)
    assert set(precision.formats(recipe).values()) == {"bf16"}


def test_formats_given_by_name_stay_and_are_told_apart():
    recipe = with_formats(recipes.recipe("stage2", "tinyworld-t5"), "fp32", "bf16")
    assert precision.resolve(recipe, fast_bf16=True) == recipe
    told = "training fp32, encoder bf16, language model bf16"
    assert precision.described(recipe) == told


def test_a_run_that_goes_on_keeps_what_it_began_with_unless_told_otherwise():
    asked = recipes.recipe("stage2", "tinyworld-t5")
    begun = with_formats(asked, "bf16", "fp32")
    assert precision.keep(asked, begun) == begun
    told = with_formats(asked, "fp32", "fp32")
    assert precision.keep(told, begun) == told


def test_slow_formats_are_told_with_the_remedy(monkeypatch):
    recipe = with_formats(recipes.recipe("stage1", "tinyworld"), "bf16", "bf16")
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: False)
    assert "--zero.precision auto" in precision.slow_word(recipe, CPU, resumed=False)
    assert "began in bf16 and goes on in it" in precision.slow_word(recipe, CPU, resumed=True)
    fp32 = with_formats(recipe, "fp32", "fp32")
    assert precision.slow_word(fp32, CPU, resumed=False) == ""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: True)
    assert precision.slow_word(recipe, CPU, resumed=False) == ""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_clip(folder / "clip")
    capfilt_output(folder / "data", shards=1, samples=20)
    return folder


def train(world: Path, out: Path, steps: int, *more: str, **env: str) -> str:
    small = ("--model.qformer.width", "32", "--model.qformer.layers", "2")
    command = [
        *(sys.executable, "jobs/stage1.py", "--recipe", "tinyworld", "--global-batch", "8"),
        *("--data", str(world / "data"), "--encoder.name", str(world / "clip")),
        *(*small, "--model.qformer.heads", "2", "--model.qformer.queries", "4"),
        *("--out", str(out), "--steps", str(steps), *more),
    ]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | env
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_cpu_with_avx2_alone_trains_in_fp32_and_says_so_everywhere(world, tmp_path):
    said = train(world, tmp_path, 2, **AVX2_ONLY)
    assert "precision: fp32" in said and "AVX2)" in said and "warning" not in said
    found = checkpoint.find(tmp_path)
    assert found.recipe["run"]["zero"]["precision"] == found.recipe["encoder"]["dtype"] == "fp32"
    assert found.state["precision"] == {"training": "fp32", "encoder": "fp32"}
    assert found.state["processor"].endswith("AVX2") and "products" in found.state


def test_a_run_begun_in_bf16_goes_on_in_it_where_that_is_slow(world, tmp_path):
    bf16 = ("--zero.precision", "bf16", "--encoder.dtype", "bf16")
    train(world, tmp_path, 2, *bf16)
    said = train(world, tmp_path, 4, **AVX2_ONLY)
    assert "precision: bf16" in said and "the run began in bf16 and goes on in it" in said
    assert checkpoint.find(tmp_path).state["precision"] == {"training": "bf16", "encoder": "bf16"}


@pytest.mark.parametrize("fast, found", [(True, torch.bfloat16), (False, torch.float32)])
def test_capfilts_models_follow_their_device(monkeypatch, fast, found):
    monkeypatch.setattr("jobs.captioning.models.multiplies_bf16", lambda device: fast)
    recipe = CapFiltRecipe("modeling/zoo/captioner", "modeling/zoo/clip")
    assert recipe.dtype == "auto"
    describer = Describer(recipe)
    assert describer.scorer.model.model.dtype == found
