"""The paper's pre-training recipes: stages 1 and 2 with ViT-L and ViT-g, OPT and FlanT5.

A variant calls its base and replaces a few fields. Numbers cite their section or table (BLIP-2,
arXiv:2301.12597). Widths and token ids that depend on a frozen model are read from the model's
folder when a job starts.
"""

from dataclasses import replace
from typing import Any

from cluster.ranks.zero import ZeroConfig
from jobs.recipes.schema import (
    EncoderChoice,
    LanguageChoice,
    RunConfig,
    Stage1Recipe,
    Stage2Recipe,
)
from modeling.blip2 import Stage1Config, Stage2Config
from modeling.optim import OptimConfig
from pipeline.loading.loader import LoaderConfig

BERT = "google-bert/bert-base-uncased"
VIT_G = EncoderChoice("timm:eva_giant_patch14_clip_224", dtype="bf16")
VIT_L = EncoderChoice("openai/clip-vit-large-patch14", dtype="bf16")


def vit_g() -> Stage1Recipe:
    """Stage 1 with ViT-g: batch 1680, 250,000 steps (section 3.4)."""
    optim = OptimConfig(lr=1e-4, min_lr=1e-5, warmup_steps=2000, total_steps=250_000)
    run = RunConfig(
        steps=250_000,
        global_batch=1680,
        optim=optim,
        zero=ZeroConfig(precision="bf16"),
        loader=LoaderConfig(workers=8),
        save_every=2000,
        log_every=50,
    )
    return Stage1Recipe(
        name="vit-g",
        encoder=VIT_G,
        model=Stage1Config(),
        run=run,
        tokenizer=BERT,
        bert=BERT,
        text="reference",
    )


def vit_l() -> Stage1Recipe:
    """Stage 1 with ViT-L: batch 2320 (section 3.4)."""
    base = vit_g()
    model = replace(base.model, qformer=replace(base.model.qformer, encoder_width=1024))
    run = replace(base.run, global_batch=2320)
    return replace(base, name="vit-l", encoder=VIT_L, model=model, run=run)


def vit_g_opt_2_7b() -> Stage2Recipe:
    """Stage 2, ViT-g and OPT-2.7B: batch 1920, 80,000 steps, minimum rate 5e-5 (section 3.4)."""
    base = vit_g()
    qformer = replace(base.model.qformer, text=False)
    optim = replace(base.run.optim, min_lr=5e-5, total_steps=80_000)
    return Stage2Recipe(
        name="vit-g-opt-2.7b",
        encoder=base.encoder,
        language=LanguageChoice("facebook/opt-2.7b", "decoder", "bf16"),
        model=Stage2Config(qformer, llm_width=2560),
        run=replace(base.run, steps=80_000, global_batch=1920, optim=optim),
        text=base.text,
    )


def vit_g_opt_6_7b() -> Stage2Recipe:
    """Stage 2, ViT-g and OPT-6.7B (table 2)."""
    return with_language(vit_g_opt_2_7b(), "vit-g-opt-6.7b", "facebook/opt-6.7b", 4096)


def vit_g_flant5_xl() -> Stage2Recipe:
    """Stage 2, ViT-g and FlanT5-XL: batch 1520 (section 3.4)."""
    base = with_language(vit_g_opt_2_7b(), "vit-g-flant5-xl", "google/flan-t5-xl", 2048)
    return replace(base, run=replace(base.run, global_batch=1520))


def vit_g_flant5_xxl() -> Stage2Recipe:
    """Stage 2, ViT-g and FlanT5-XXL (table 2)."""
    return with_language(vit_g_flant5_xl(), "vit-g-flant5-xxl", "google/flan-t5-xxl", 4096)


def vit_l_opt_2_7b() -> Stage2Recipe:
    """Stage 2, ViT-L and OPT-2.7B (table 2)."""
    return _with_vit_l(vit_g_opt_2_7b(), "vit-l-opt-2.7b")


def vit_l_flant5_xl() -> Stage2Recipe:
    """Stage 2, ViT-L and FlanT5-XL (table 2)."""
    return _with_vit_l(vit_g_flant5_xl(), "vit-l-flant5-xl")


def vit_g_opt_2_7b_without_stage1() -> Stage2Recipe:
    """Figure 5: no stage 1, the Q-Former starts from BERT; a checkpoint at each of its points."""
    return _without_stage1(vit_g_opt_2_7b())


def vit_g_flant5_xl_without_stage1() -> Stage2Recipe:
    """Figure 5 with FlanT5-XL."""
    return _without_stage1(vit_g_flant5_xl())


def _without_stage1(base: Stage2Recipe) -> Stage2Recipe:
    run = replace(base.run, save_every=16_000, keep=5)
    return replace(base, name=f"{base.name}-without-stage1", bert=BERT, run=run)


def with_language(base: Stage2Recipe, name: str, language: str, width: int) -> Stage2Recipe:
    """The recipe with another language model, whose hidden states have ``width`` numbers."""
    model = replace(base.model, llm_width=width)
    family: Any = "encoder-decoder" if "t5" in language else "decoder"
    chosen = replace(base.language, name=language, family=family)
    return replace(base, name=name, language=chosen, model=model)


def _with_vit_l(base: Stage2Recipe, name: str) -> Stage2Recipe:
    qformer = replace(base.model.qformer, encoder_width=1024)
    return replace(base, name=name, encoder=VIT_L, model=replace(base.model, qformer=qformer))


STAGE1 = {"vit-g": vit_g, "vit-l": vit_l}
STAGE2 = {
    "vit-g-opt-2.7b": vit_g_opt_2_7b,
    "vit-g-opt-6.7b": vit_g_opt_6_7b,
    "vit-g-flant5-xl": vit_g_flant5_xl,
    "vit-g-flant5-xxl": vit_g_flant5_xxl,
    "vit-l-opt-2.7b": vit_l_opt_2_7b,
    "vit-l-flant5-xl": vit_l_flant5_xl,
    "vit-g-opt-2.7b-without-stage1": vit_g_opt_2_7b_without_stage1,
    "vit-g-flant5-xl-without-stage1": vit_g_flant5_xl_without_stage1,
}
