"""LLaVA's recipes (arXiv:2304.08485, section 4.2 and appendix) and LLaVA-1.5's (arXiv:2310.03744).

A recipe has two stages: 1 trains the bridge on captions, 2 the bridge and the language model on
instructions. ``steps`` are the paper's epochs over its data. Numbers marked [P!] are recalled and
were not read in the paper: they are ours until checked.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cluster.ranks.zero import ZeroConfig
from jobs.recipes.schema import EncoderChoice, LanguageChoice, LlavaRecipe, RunConfig
from modeling.llava import Kind, LlavaConfig
from modeling.optim import OptimConfig
from modeling.vision.features import FeatureConfig
from pipeline.loading.loader import LoaderConfig
from pipeline.pixels import PixelConfig
from pipeline.transforms import TransformConfig

Stage = Literal[1, 2]
GRID = FeatureConfig(-2, "no", "patches")
"""The output of the block before the last, without class token and final norm (section 4.1)."""
CAPTIONS, CAPTIONS_1_5 = 595_375, 558_128
"""CC595K, and LLaVA-1.5's pairs of LAION, CC and SBU."""
INSTRUCTIONS, INSTRUCTIONS_1_5 = 157_712, 665_298
"""LLaVA-Instruct-158K [P!], and LLaVA-1.5's mix."""


@dataclass(frozen=True)
class _Numbers:
    """What a stage of a paper states: samples, passes over them, batch, highest rate."""

    samples: int
    epochs: int
    batch: int
    lr: float


PAPER = {1: _Numbers(CAPTIONS, 1, 128, 2e-3), 2: _Numbers(INSTRUCTIONS, 3, 32, 2e-5)}
PAPER_1_5 = {1: _Numbers(CAPTIONS_1_5, 1, 256, 1e-3), 2: _Numbers(INSTRUCTIONS_1_5, 1, 128, 2e-5)}


def llava_7b(stage: Stage) -> LlavaRecipe:
    """LLaVA with Vicuna-7B: 224 px, the centre of the image, one linear map."""
    return _llava("llava-7b", stage, "vicuna-7b-v0", 4096)


def llava_13b(stage: Stage) -> LlavaRecipe:
    """LLaVA with Vicuna-13B."""
    return _llava("llava-13b", stage, "vicuna-13b-v0", 5120)


def llava_1_5_7b(stage: Stage) -> LlavaRecipe:
    """LLaVA-1.5 with Vicuna-7B v1.5: 336 px, the whole image in a square, two maps."""
    return _llava_1_5("llava-1.5-7b", stage, "lmsys/vicuna-7b-v1.5", 4096)


def llava_1_5_13b(stage: Stage) -> LlavaRecipe:
    """LLaVA-1.5 with Vicuna-13B v1.5."""
    return _llava_1_5("llava-1.5-13b", stage, "lmsys/vicuna-13b-v1.5", 5120)


def _llava(name: str, stage: Stage, language: str, width: int) -> LlavaRecipe:
    encoder = _encoder("openai/clip-vit-large-patch14", 224, "crop")
    layout = {1: "plain", 2: "v0"}[stage]
    recipe = _recipe(name, stage, PAPER[stage], encoder, language)
    return replace(
        recipe,
        layout=layout,
        image_place="file",
        model=LlavaConfig("linear", 1024, width),
    )


def _llava_1_5(name: str, stage: Stage, language: str, width: int) -> LlavaRecipe:
    encoder = _encoder("openai/clip-vit-large-patch14-336", 336, "pad")
    recipe = _recipe(name, stage, PAPER_1_5[stage], encoder, language)
    run = recipe.run
    if stage == 2:  # its mix has text alone, and answers of one word beside those of hundreds
        run = replace(run, loader=replace(run.loader, group=64))
    kind: Kind = "mlp2x_gelu"
    layout = {1: "plain", 2: "v1"}[stage]
    return replace(recipe, layout=layout, model=LlavaConfig(kind, 1024, width), run=run)


def _encoder(name: str, size: int, geometry: Literal["crop", "pad"]) -> EncoderChoice:
    pixels = PixelConfig(geometry=geometry)
    return EncoderChoice(name, size, "bf16", features=GRID, pixels=pixels)


def _recipe(
    name: str, stage: Stage, numbers: _Numbers, encoder: EncoderChoice, language: str
) -> LlavaRecipe:
    """AdamW without decay, betas 0.9 and 0.999, cosine to 0 with 3 % of warm-up (appendix)."""
    steps = math.ceil(numbers.samples * numbers.epochs / numbers.batch)
    optim = OptimConfig(
        lr=numbers.lr,
        min_lr=0.0,
        warmup_lr=0.0,
        warmup_steps=math.ceil(0.03 * steps),
        total_steps=steps,
        betas=(0.9, 0.999),
        weight_decay=0.0,
    )
    patches = (encoder.image_size // 14) ** 2
    # A caption has a dozen words; 128 are ours, for the memory that a dry run counts.
    longest = {1: patches + 128, 2: 2048}[stage]
    run = RunConfig(
        steps=steps,
        global_batch=numbers.batch,
        optim=optim,
        zero=ZeroConfig(stage=2 if stage == 1 else 3, precision="bf16"),
        loader=LoaderConfig(workers=8),
        transform=_transform(encoder.image_size),
    )
    return LlavaRecipe(
        name=name,
        stage=stage,
        encoder=encoder,
        model=LlavaConfig(),
        language=LanguageChoice(language, "decoder", "bf16", longest, text_rules="own"),
        usual_text={1: 24, 2: 200}[stage],
        run=run,
    )


def _transform(size: int) -> TransformConfig:
    """No augmentation: what the encoder is shown in training is what it is shown after it."""
    return TransformConfig(size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, whole="own")


def llava_tinyworld(stage: Stage) -> LlavaRecipe:
    """TinyWorld with the zoo's models: minutes on two CPU cores."""
    steps = {1: 200, 2: 400}[stage]
    optim = OptimConfig(
        lr={1: 2e-3, 2: 5e-4}[stage],
        min_lr=0.0,
        warmup_lr=0.0,
        warmup_steps=steps // 20,
        total_steps=steps,
        betas=(0.9, 0.999),
        weight_decay=0.0,
    )
    run = RunConfig(
        steps=steps,
        global_batch=32,
        save_every=100,
        optim=optim,
        zero=ZeroConfig(stage=0 if stage == 1 else 3, clip=1.0),
        loader=LoaderConfig(group={1: 0, 2: 8}[stage]),
        transform=_transform(64),
    )
    return LlavaRecipe(
        name="llava-tinyworld",
        stage=stage,
        encoder=EncoderChoice(
            "modeling/zoo/clip", 64, features=GRID, pixels=PixelConfig(geometry="crop")
        ),
        model=LlavaConfig("linear", 128, 128),
        language=LanguageChoice("modeling/zoo/opt", "decoder", max_text=256, text_rules="own"),
        layout={1: "plain", 2: "tinyworld"}[stage],
        usual_text={1: 24, 2: 100}[stage],
        run=run,
    )


def _of_stage(stage: Stage) -> dict[str, Callable[[], LlavaRecipe]]:
    made = (llava_7b, llava_13b, llava_1_5_7b, llava_1_5_13b, llava_tinyworld)
    return {make(stage).name: lambda make=make: make(stage) for make in made}  # type: ignore[misc]


STAGE1, STAGE2 = _of_stage(1), _of_stage(2)
