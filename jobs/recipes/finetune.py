"""Finetuning recipes: the image encoder trains with the Q-Former, at a higher resolution.

A recipe here is a pre-training recipe with a few fields replaced; it starts from that recipe's
checkpoint (``--init``). Numbers are the paper's (BLIP-2, arXiv:2301.12597, tables 7-9: 5 epochs,
1,000 steps of warm-up, AdamW, weight decay 0.05, no drop path); where it is silent, the minimum
rate 0 and the warm-up's start 1e-8 are the reference's.

An epoch of the paper goes over image-caption *pairs* or over questions, while a sample of the
loader is an image, with one of its captions a visit. ``steps`` holds the paper's 5 epochs on the
paper's data; ``--epochs N`` counts passes over the samples of ``--data`` instead.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from jobs.recipes.pretrain import (
    BERT,
    vit_g,
    vit_g_flant5_xl,
    vit_g_opt_2_7b,
    vit_g_opt_6_7b,
    vit_l,
)
from jobs.recipes.schema import RunConfig, Stage1Recipe, Stage2Recipe
from jobs.recipes.tinyworld import tinyworld_opt, tinyworld_stage1, tinyworld_t5
from modeling.prompts import CAPTION_FINETUNED, VQA_FINETUNED

EPOCHS = 5
COCO_PAIRS = 566_747
"""Captions of the 113,287 training images of COCO's Karpathy split."""
VQA_QUESTIONS = 658_111
"""VQAv2 train (443,757) and val (214,354). The paper adds questions of Visual Genome without
saying how many: with them, give ``--epochs 5``."""

RecipeT = TypeVar("RecipeT", Stage1Recipe, Stage2Recipe)


def _finetune(
    base: RecipeT, name: str, image_size: int, run: RunConfig, checkpoint_blocks: bool = True
) -> RecipeT:
    """What all finetunes share: a base whose encoder trains, at a resolution, with a run."""
    encoder = replace(
        base.encoder, image_size=image_size, train=True, checkpoint_blocks=checkpoint_blocks
    )
    transform = replace(base.run.transform, size=image_size)
    return replace(base, name=name, encoder=encoder, run=replace(run, transform=transform))


def _paper_run(
    base: RunConfig,
    *,
    samples: int,
    batch: int,
    lr: float = 1e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    layer_decay: float,
) -> RunConfig:
    """Five epochs of ``samples`` (tables 7-9)."""
    steps = math.ceil(EPOCHS * samples / batch)
    optim = replace(
        base.optim,
        lr=lr,
        min_lr=0.0,
        warmup_lr=1e-8,
        warmup_steps=1000,
        total_steps=steps,
        betas=betas,
        layer_decay=layer_decay,
    )
    return replace(base, steps=steps, global_batch=batch, optim=optim, save_every=1000)


# ----------------------------------------------------------------- captioning (tables 3 and 7)


def _caption(base: Stage2Recipe, layer_decay: float) -> Stage2Recipe:
    """COCO captions at 364 px: batch 256, rate 1e-5, the prompt "a photo of" (table 7)."""
    run = _paper_run(base.run, samples=COCO_PAIRS, batch=256, layer_decay=layer_decay)
    recipe = _finetune(base, f"caption-{base.name}", 364, run)
    return replace(recipe, prompt=CAPTION_FINETUNED)


def caption_vit_g_opt_2_7b() -> Stage2Recipe:
    """Table 3, ViT-g OPT-2.7B; no layer-wise decay (table 7)."""
    return _caption(vit_g_opt_2_7b(), layer_decay=1.0)


def caption_vit_g_opt_6_7b() -> Stage2Recipe:
    """Table 3, ViT-g OPT-6.7B; layer-wise decay 0.95 (table 7)."""
    return _caption(vit_g_opt_6_7b(), layer_decay=0.95)


def caption_vit_g_flant5_xl() -> Stage2Recipe:
    """Table 3, ViT-g FlanT5-XL; no layer-wise decay (table 7)."""
    return _caption(vit_g_flant5_xl(), layer_decay=1.0)


# ------------------------------------------------------------------------ VQA (tables 4 and 8)


def _vqa(base: Stage2Recipe, layer_decay: float) -> Stage2Recipe:
    """VQAv2 at 490 px: batch 128, rate 1e-5; the Q-Former reads the question too (table 8)."""
    run = _paper_run(base.run, samples=VQA_QUESTIONS, batch=128, layer_decay=layer_decay)
    return _reads_questions(_finetune(base, f"vqa-{base.name}", 490, run), BERT, BERT)


def _reads_questions(recipe: Stage2Recipe, tokenizer: str, bert: str) -> Stage2Recipe:
    """A Q-Former with text; no flip where a question or its answer names a side."""
    model = replace(recipe.model, qformer=replace(recipe.model.qformer, text=True))
    run = replace(recipe.run, transform=replace(recipe.run.transform, keep_sides=True))
    return replace(
        recipe, model=model, run=run, prompt=VQA_FINETUNED, tokenizer=tokenizer, bert=bert
    )


def vqa_vit_g_flant5_xl() -> Stage2Recipe:
    """Table 4, ViT-g FlanT5-XL; layer-wise decay 0.95 (table 8)."""
    return _vqa(vit_g_flant5_xl(), layer_decay=0.95)


def vqa_vit_g_opt_2_7b() -> Stage2Recipe:
    """Table 4, ViT-g OPT-2.7B; layer-wise decay 0.95 (table 8)."""
    return _vqa(vit_g_opt_2_7b(), layer_decay=0.95)


def vqa_vit_g_opt_6_7b() -> Stage2Recipe:
    """Table 4, ViT-g OPT-6.7B; layer-wise decay 0.9 (table 8)."""
    return _vqa(vit_g_opt_6_7b(), layer_decay=0.9)


# ---------------------------------------------------------------- retrieval (tables 5, 6 and 9)


def _retrieval(base: Stage1Recipe, run: RunConfig) -> Stage1Recipe:
    """COCO retrieval at 364 px with ITC, ITM and ITG; samples of an image are no negatives."""
    recipe = _finetune(base, f"retrieval-{base.name}", 364, run)
    return replace(recipe, bert="", image_ids=True)


def retrieval_vit_g() -> Stage1Recipe:
    """Table 5, ViT-g: batch 224, rate 1e-5, layer-wise decay 0.95 (table 9)."""
    base = vit_g()
    run = _paper_run(base.run, samples=COCO_PAIRS, batch=224, layer_decay=0.95)
    return _retrieval(base, run)


def retrieval_vit_l() -> Stage1Recipe:
    """Table 5, ViT-L: batch 224, rate 5e-6, betas 0.9 and 0.98, no layer-wise decay (table 9)."""
    base = vit_l()
    run = _paper_run(
        base.run, samples=COCO_PAIRS, batch=224, lr=5e-6, betas=(0.9, 0.98), layer_decay=1.0
    )
    return _retrieval(base, run)


def retrieval_vit_g_itc_itm() -> Stage1Recipe:
    """Table 6: the same finetuning without ITG."""
    return _without_itg(retrieval_vit_g())


def _without_itg(base: Stage1Recipe) -> Stage1Recipe:
    return replace(base, name=f"{base.name}-itc-itm", model=replace(base.model, itg=False))


# ---------------------------------------------------------------------------------- TinyWorld


def _tiny(base: RecipeT, task: str) -> RecipeT:
    """A finetune of the small models: 100 steps at their own resolution, with layer-wise decay."""
    optim = replace(base.run.optim, lr=1e-4, warmup_steps=10, total_steps=100, layer_decay=0.9)
    run = replace(base.run, steps=100, optim=optim)
    return _finetune(base, f"{task}-{base.name}", base.encoder.image_size, run, False)


def caption_tinyworld_t5() -> Stage2Recipe:
    """Captioning on TinyWorld with the small T5."""
    return replace(_tiny(tinyworld_t5(), "caption"), prompt=CAPTION_FINETUNED)


def caption_tinyworld_opt() -> Stage2Recipe:
    """Captioning on TinyWorld with the small OPT."""
    return replace(_tiny(tinyworld_opt(), "caption"), prompt=CAPTION_FINETUNED)


def vqa_tinyworld_t5() -> Stage2Recipe:
    """Questions about TinyWorld with the small T5."""
    return _reads_questions(_tiny(tinyworld_t5(), "vqa"), tinyworld_stage1().tokenizer, "")


def vqa_tinyworld_opt() -> Stage2Recipe:
    """Questions about TinyWorld with the small OPT."""
    return _reads_questions(_tiny(tinyworld_opt(), "vqa"), tinyworld_stage1().tokenizer, "")


def retrieval_tinyworld() -> Stage1Recipe:
    """Retrieval on TinyWorld."""
    return replace(_tiny(tinyworld_stage1(), "retrieval"), image_ids=True)


def retrieval_tinyworld_itc_itm() -> Stage1Recipe:
    """Retrieval on TinyWorld without ITG."""
    return _without_itg(retrieval_tinyworld())


def _by_name(*made: Callable[[], RecipeT]) -> dict[str, Callable[[], RecipeT]]:
    return {make().name: make for make in made}


CAPTION = _by_name(
    caption_tinyworld_t5,
    caption_tinyworld_opt,
    caption_vit_g_opt_2_7b,
    caption_vit_g_opt_6_7b,
    caption_vit_g_flant5_xl,
)
VQA = _by_name(
    vqa_tinyworld_t5,
    vqa_tinyworld_opt,
    vqa_vit_g_flant5_xl,
    vqa_vit_g_opt_2_7b,
    vqa_vit_g_opt_6_7b,
)
RETRIEVAL = _by_name(
    retrieval_tinyworld,
    retrieval_tinyworld_itc_itm,
    retrieval_vit_g,
    retrieval_vit_l,
    retrieval_vit_g_itc_itm,
)
