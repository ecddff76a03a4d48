"""Recipes of instruction tuning: InstructBLIP (arXiv:2305.06500) and its small copies.

A recipe starts from the stage-2 recipe of the same language model, whose checkpoint and that of
stage 1 behind it are ``--init STAGE2,STAGE1``. The numbers are the paper's (section 2.6): at most
60,000 steps, a checkpoint every 3,000, batch 192 for FlanT5-XL, 128 for Vicuna-7B and 64 for the
two larger models, AdamW with betas 0.9 and 0.999 and weight decay 0.05, a warm-up from 1e-8 to 1e-5
over 1,000 steps, then a cosine to 0. They are recalled: the text of the paper could not be read
when this was written; rate, warm-up and decay are confirmed by the training configurations that
LAVIS and BLIVA published.
"""

from collections.abc import Callable
from dataclasses import fields, replace

from jobs.recipes.pretrain import BERT, vit_g_flant5_xl, vit_g_flant5_xxl, with_language
from jobs.recipes.schema import InstructRecipe, Stage2Recipe
from jobs.recipes.tinyworld import tinyworld_opt, tinyworld_stage1, tinyworld_t5
from pipeline.instructions.config import InstructionConfig

MAX_INSTRUCTION, MAX_ANSWER = 128, 256
STEPS, VALIDATE_EVERY = 60_000, 3_000


def _instruct(
    base: Stage2Recipe, name: str, max_prompt: int, max_question: int, tokenizer: str
) -> InstructRecipe:
    """A stage 2 whose Q-Former reads instructions, which keep their last words."""
    model = replace(base.model, qformer=replace(base.model.qformer, text=True))
    language = replace(base.language, max_prompt=max_prompt)
    given = {field.name: getattr(base, field.name) for field in fields(base)}
    given |= {"name": name, "model": model, "language": language, "tokenizer": tokenizer}
    return InstructRecipe(**given | {"max_question": max_question, "bert": "", "text": "plain"})


def _paper(base: Stage2Recipe, name: str, batch: int) -> InstructRecipe:
    """What the paper's four models share."""
    recipe = _instruct(base, name, MAX_INSTRUCTION, MAX_INSTRUCTION, BERT)
    optim = replace(
        base.run.optim,
        lr=1e-5,
        min_lr=0.0,
        warmup_lr=1e-8,
        warmup_steps=1000,
        total_steps=STEPS,
        betas=(0.9, 0.999),
    )
    run = replace(
        base.run,
        steps=STEPS,
        global_batch=batch,
        save_every=VALIDATE_EVERY,
        validate_every=VALIDATE_EVERY,
        keep=STEPS // VALIDATE_EVERY,  # one of them is picked on validation
        optim=optim,
    )
    language = replace(recipe.language, max_text=MAX_ANSWER, text_rules="instruct")
    return replace(recipe, run=run, language=language)


def instruct_flant5_xl() -> InstructRecipe:
    """FlanT5-XL, batch 192."""
    return _paper(vit_g_flant5_xl(), "instruct-flant5-xl", 192)


def instruct_flant5_xxl() -> InstructRecipe:
    """FlanT5-XXL, batch 64."""
    return _paper(vit_g_flant5_xxl(), "instruct-flant5-xxl", 64)


def vit_g_vicuna(size: str, width: int) -> Stage2Recipe:
    """BLIP-2's stage 2 with Vicuna v1.1, which the authors of InstructBLIP ran first.

    They state no numbers for it: these are FlanT5-XL's.
    """
    name = f"lmsys/vicuna-{size}-v1.1"
    return with_language(vit_g_flant5_xl(), f"vit-g-vicuna-{size}", name, width)


def instruct_vicuna_7b() -> InstructRecipe:
    """Vicuna-7B v1.1, batch 128."""
    return _paper(vit_g_vicuna("7b", 4096), "instruct-vicuna-7b", 128)


def instruct_vicuna_13b() -> InstructRecipe:
    """Vicuna-13B v1.1, batch 64."""
    return _paper(vit_g_vicuna("13b", 5120), "instruct-vicuna-13b", 64)


# ---------------------------------------------------------------------------------- TinyWorld

TINY = InstructionConfig(
    sets=("coco", "vqav2", "aokvqa", "vqg_vqav2", "llava_conversation"), leave_out=3
)
"""Of each task the last three templates are left out, and test what was learned."""


def _tiny(base: Stage2Recipe, name: str) -> InstructRecipe:
    """The small models: the small tokenizers spell the templates, so 64 tokens are less here."""
    recipe = _instruct(base, name, MAX_INSTRUCTION, 64, tinyworld_stage1().tokenizer)
    optim = replace(base.run.optim, lr=3e-4, min_lr=0.0, warmup_steps=20, total_steps=300)
    run = replace(base.run, steps=300, optim=optim)
    return replace(recipe, run=run, instructions=TINY)


def instruct_tinyworld_t5() -> InstructRecipe:
    """TinyWorld's instructions with the small T5."""
    return _tiny(tinyworld_t5(), "instruct-tinyworld-t5")


def instruct_tinyworld_opt() -> InstructRecipe:
    """TinyWorld's instructions with the small OPT."""
    return _tiny(tinyworld_opt(), "instruct-tinyworld-opt")


def tinyworld_llama() -> Stage2Recipe:
    """Stage 2 on TinyWorld with the small LLaMA, which stands for Vicuna."""
    return with_language(tinyworld_t5(), "tinyworld-llama", "modeling/zoo/llama", 128)


def instruct_tinyworld_llama() -> InstructRecipe:
    """TinyWorld's instructions with the small LLaMA."""
    return _tiny(tinyworld_llama(), "instruct-tinyworld-llama")


STAGE2 = {
    "tinyworld-llama": tinyworld_llama,
    "vit-g-vicuna-7b": lambda: vit_g_vicuna("7b", 4096),
    "vit-g-vicuna-13b": lambda: vit_g_vicuna("13b", 5120),
}
INSTRUCT: dict[str, Callable[[], InstructRecipe]] = {
    made().name: made
    for made in (
        instruct_tinyworld_t5,
        instruct_tinyworld_opt,
        instruct_tinyworld_llama,
        instruct_flant5_xl,
        instruct_flant5_xxl,
        instruct_vicuna_7b,
        instruct_vicuna_13b,
    )
}
