"""Recipes of TinyWorld: the stages on the embedded data set, in minutes on two CPU cores."""

from dataclasses import replace

from cluster.ranks.zero import ZeroConfig
from jobs.recipes.pretrain import with_language
from jobs.recipes.schema import (
    EncoderChoice,
    LanguageChoice,
    RunConfig,
    Stage1Recipe,
    Stage2Recipe,
)
from modeling.blip2 import Stage1Config, Stage2Config
from modeling.optim import OptimConfig
from modeling.qformer import QFormerConfig
from pipeline.transforms import TransformConfig

TINY_ENCODER = EncoderChoice("modeling/zoo/clip", image_size=64)
# Its captions speak of positions and sizes: no crop, and no flip where a text names a side.
TINY_IMAGES = TransformConfig(size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0), keep_sides=True)


def tinyworld_stage1() -> Stage1Recipe:
    """Stage 1 on TinyWorld: minutes on two CPU cores."""
    qformer = QFormerConfig(
        width=192,
        layers=4,
        heads=4,
        ffn=768,
        queries=16,
        cross_every=2,
        encoder_width=160,
        vocab=284,
        max_positions=64,
        dropout=0.0,
        init_std=0.07,  # 1 / sqrt(width): without BERT, at 0.02 the queries hardly see the image
    )
    model = Stage1Config(qformer, embed=128, dec_token_id=283)
    return Stage1Recipe(
        name="tinyworld",
        encoder=TINY_ENCODER,
        model=model,
        run=_tiny_run(),
        tokenizer="modeling/zoo/bert",
    )


def tinyworld_t5() -> Stage2Recipe:
    """Stage 2 on TinyWorld with the small T5 (prefix LM)."""
    base = tinyworld_stage1()
    qformer = replace(base.model.qformer, text=False)
    return Stage2Recipe(
        name="tinyworld-t5",
        encoder=base.encoder,
        language=LanguageChoice("modeling/zoo/t5", "encoder-decoder"),
        model=Stage2Config(qformer, llm_width=128),
        run=base.run,
    )


def tinyworld_opt() -> Stage2Recipe:
    """Stage 2 on TinyWorld with the small OPT."""
    return with_language(tinyworld_t5(), "tinyworld-opt", "modeling/zoo/opt", 128)


def _tiny_run() -> RunConfig:
    return RunConfig(
        steps=400,
        global_batch=64,
        save_every=100,
        optim=OptimConfig(lr=1e-3, min_lr=1e-5, warmup_steps=20, total_steps=400),
        zero=ZeroConfig(clip=1.0),
        transform=TINY_IMAGES,
    )


STAGE1 = {"tinyworld": tinyworld_stage1}
STAGE2 = {"tinyworld-t5": tinyworld_t5, "tinyworld-opt": tinyworld_opt}
