"""The training runs that `benchmark.py gpu` measures: the project's own loop, engine and jobs, with
models of random weights that are made on the device, so that no file is read.
"""

import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from cluster.ranks import zero
from cluster.ranks.watchdog import Watchdog
from cluster.runlog import RunLog
from jobs import recipes
from jobs.benchmarks import train_contenders as contenders
from jobs.models import precision
from jobs.models.encoders import load_encoder
from jobs.models.files import dtype_of, local_path
from jobs.models.sizes import with_model_sizes
from jobs.recipes import published
from jobs.recipes.schema import Stage1Recipe
from jobs.training import budget, hardware, objectives, start
from jobs.training.loop import Loop
from jobs.training.run import start_engine
from jobs.training.sketch import sketch
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.precision import multiplies_bf16
from modeling.vision.encoders import ImageEncoder
from pipeline.loading.batch import Batch, empty_squares

RECIPES = {
    "full": {
        "stage1": ("stage1", "vit-g"),
        "opt-2.7b": ("stage2", "vit-g-opt-2.7b"),
        "flan-t5-xl": ("stage2", "vit-g-flant5-xl"),
        "flan-t5-xxl": ("stage2", "vit-g-flant5-xxl"),
    },
    "tiny": {
        "stage1": ("stage1", "tinyworld"),
        "opt-2.7b": ("stage2", "tinyworld-opt"),
        "flan-t5-xl": ("stage2", "tinyworld-t5"),
        "flan-t5-xxl": ("stage2", "tinyworld-t5"),
    },
}
"""Kind and name of the recipe of each training part, by size."""
RANKS = {"full": 16, "tiny": 16}
"""Ranks of the cluster whose share of a recipe's global batch is measured on one device."""


@dataclass
class MadeUp:
    """The models of random weights that a job was given, for measurements of their own."""

    encoder: ImageEncoder | None = None
    language: Any = None


@dataclass
class Training:
    """A training run on one device that makes steps of the same two batches.

    Attributes:
        recipe: resolved; its global batch is one rank's share.
        folder: where its log is.
        made: its frozen models.
    """

    recipe: Any
    loop: Loop
    batches: list[Batch]
    folder: Path
    made: MadeUp
    steps_made: int = field(default=0)

    def steps(self, count: int) -> None:
        """Make ``count`` more steps."""
        steps = range(self.steps_made, self.steps_made + count)
        source: Any = itertools.cycle(self.batches)
        self.loop.go(source, steps)
        self.steps_made = steps.stop

    def close(self) -> None:
        """Give the memory back."""
        engine, self.loop = self.loop.engine, None  # type: ignore[assignment]
        self.batches, self.made = [], MadeUp()
        if hasattr(engine, "destroy"):
            engine.destroy()
        del engine
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def share_of(size: str, part: str) -> int:
    """Samples that one rank of the recipe's cluster takes in a step."""
    run = recipes.recipe(*RECIPES[size][part]).run
    return max(1, run.global_batch // RANKS[size])


def settled_recipe(size: str, part: str, batch: int, device: torch.device) -> Any:
    """A part's recipe for one rank that takes ``batch`` samples a step, its formats settled."""
    recipe = with_model_sizes(recipes.recipe(*RECIPES[size][part]))
    recipe = precision.resolve(recipe, multiplies_bf16(device))
    return replace(recipe, run=replace(recipe.run, global_batch=batch, micro_batch=batch))


def make_training(
    recipe: Any, device: torch.device, folder: Path, *, every: int, steps: int
) -> Training:
    """A part's run up to its first step.

    Args:
        recipe: settled.
        every: steps between two log lines, which time the steps between them.
        steps: number of steps that will be made in all.
    """
    here = zero.start(recipe.run.zero.timeout_s)
    recipe = replace(recipe, run=replace(recipe.run, log_every=every, save_every=steps + 1))
    run, batch = recipe.run, recipe.run.global_batch
    with made_up_models(device) as made:
        with torch.device(device):
            if isinstance(recipe, Stage1Recipe):
                stage: nn.Module = start.new_stage1(recipe, bert=False)
            else:
                stage = start.new_stage2(recipe, bert=False)
        make: Any = OBJECTIVES[recipe.kind]
        objective = make(recipe, stage, device)
    engine, guard = start_engine(objective.module, run, batch)
    gpu, sketched = hardware.this_gpu(), sketch(recipe)
    peak = gpu.tflops * 1e12 / budget.step_flops(recipe, sketched, 1) if gpu else 0.0
    log = RunLog(
        folder, here, steps=steps, done=0, every=every, samples=batch, peak_steps_per_s=peak
    )
    nobody: Any = SimpleNamespace(raised=False)
    loop = Loop(
        run=run,
        here=here,
        engine=engine,
        objective=objective,
        log=log,
        guard=guard,
        watchdog=Watchdog(0, here.rank),
        stop=nobody,
        save=lambda *_: None,
        accumulation=1,
    )
    batches = [made_up_batch(recipe, device, seed) for seed in (0, 1)]
    return Training(recipe, loop, batches, folder, made)


OBJECTIVES = {"stage1": objectives.representation, "stage2": objectives.captions}


@contextmanager
def made_up_models(device: torch.device) -> Iterator[MadeUp]:
    """Inside, the jobs get random weights made on the device in place of models' files."""
    made = MadeUp()

    def encoder(choice: Any) -> ImageEncoder:
        with torch.device(device):
            made.encoder = load_encoder(choice, weights=False)
        return made.encoder

    def language(choice: Any) -> Any:
        made.language = random_language(choice, device)
        return made.language

    with (
        mock.patch.object(objectives, "load_encoder", encoder),
        mock.patch.object(objectives, "load_language", language),
        mock.patch.object(objectives, "text_reader", lambda recipe: None),
    ):
        yield made


def random_language(choice: Any, device: torch.device) -> Any:
    """A frozen language model of a recipe's sizes with a tokenizer of made-up words."""
    config = language_config(choice.name)
    pair = config.is_encoder_decoder
    family: Any = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
    with torch.device(device):
        model = family.from_config(config, dtype=dtype_of(choice.dtype))
        if pair:  # FlanT5's head is a matrix of its own
            head = torch.empty_like(model.lm_head.weight).normal_(std=config.d_model**-0.5)
            model.lm_head.weight = nn.Parameter(head)
    adapter = EncoderDecoderLM if pair else DecoderLM
    words = contenders.tokenizer(config.vocab_size, "t5" if pair else "opt")
    return adapter(model, words, choice.max_text)


def language_config(name: str) -> Any:
    """A language model's configuration from its folder, else by the paper's sizes."""
    folder = local_path(name)
    return published.LANGUAGE[name]() if folder is None else AutoConfig.from_pretrained(folder)


def made_up_batch(recipe: Any, device: torch.device, seed: int) -> Batch:
    """Random images, and texts of the recipe's full length; page-locked for a GPU, as the loader
    leaves it.
    """
    count, side = recipe.run.global_batch, recipe.encoder.image_size
    generator = torch.Generator().manual_seed(seed)
    images = empty_squares(count, side)
    images.copy_(torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator))
    texts = [""] * count
    tokens: dict[str, Tensor] = {}
    if recipe.kind == "stage1":
        lengths = [recipe.max_text] * count
        ids, mask = contenders.text_batch(lengths, recipe.model.qformer.vocab - 2, "cpu")
        tokens = {"ids": ids, "mask": mask}
    else:
        config = language_config(recipe.language.name)
        words = recipe.language.max_text - (1 if config.is_encoder_decoder else 2)  # begin and end
        texts = contenders.random_texts([words] * count, config.vocab_size)
    batch = Batch(
        images_B3HW=images,
        texts=texts,
        uids=[f"{number:032x}" for number in range(count)],
        image_ids_B=torch.arange(count),
        questions=[],
        draws_B2=torch.rand(count, 2, generator=generator, dtype=torch.float64),
        tokens=tokens,
        replaced=[],
    )
    return batch.pin_memory() if device.type == "cuda" else batch
