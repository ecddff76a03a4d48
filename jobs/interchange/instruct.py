"""Settings of InstructBLIP's checkpoints: lengths, text rules, and Vicuna's tokenizer.

Source: salesforce/LAVIS at 506965b, `blip2_vicuna_instruct.py` and `blip2_t5_instruct.py`.
"""

from dataclasses import replace
from typing import Any

from tokenizers import processors

from jobs.recipes.schema import Stage2Recipe
from modeling.language.text import Rules

MAX_INSTRUCTION, MAX_ANSWER = 128, 256
"""Tokens of an instruction, in the Q-Former and in the language model, and of an answer."""
PAD = "[PAD]"


def instructed(recipe: Stage2Recipe, kind: str, activation: bool) -> Stage2Recipe:
    """A recipe with InstructBLIP's lengths (instructions keep their last words) and, for its
    language models, text rules.

    Args:
        kind: type of the language model in its ``config.json``; "" where it is not known.
        activation: whether a T5 gets the exact GELU here; False where its configuration says it.
    """
    rules: Rules = recipe.language.text_rules
    if kind == "llama" or (activation and "t5" in kind):
        rules = "instruct"
    language = replace(
        recipe.language, text_rules=rules, max_text=MAX_ANSWER, max_prompt=MAX_INSTRUCTION
    )
    read = min(MAX_INSTRUCTION, recipe.model.qformer.max_positions)
    return replace(recipe, language=language, max_question=read)


def instruct_tokenizer(tokenizer: Any) -> Any:
    """Vicuna's tokenizer as InstructBLIP uses it: its end token begins every text, is its unknown
    token too, and padding has a token of its own. The tokenizer is changed in place.

    A tokenizer of transformers 5 goes on with the begin token that it was built with, whatever is
    said afterwards, until its post-processor is made anew.

    Raises:
        ValueError: the tokenizer has no end token, or goes on with another begin token.
    """
    end = tokenizer.eos_token
    if end is None:
        raise ValueError("the language model's tokenizer has no eos_token: set it")
    tokenizer.bos_token = tokenizer.unk_token = end
    if tokenizer.pad_token is None or tokenizer.pad_token == end:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if hasattr(tokenizer, "update_post_processor"):
        tokenizer.add_bos_token = True
        tokenizer.update_post_processor()
    ids = tokenizer("a")["input_ids"]
    if ids[0] != tokenizer.eos_token_id:
        begin = processors.TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
        )
        tokenizer.backend_tokenizer.post_processor = begin
    check_begin(tokenizer, "the language model's tokenizer")
    return tokenizer


def check_begin(tokenizer: Any, where: str) -> None:
    """Check that a text begins with the end token.

    Raises:
        ValueError: it begins with another token.
    """
    ids = tokenizer("a")["input_ids"]
    if ids[0] != tokenizer.eos_token_id or ids[-1] == tokenizer.eos_token_id:
        raise ValueError(
            f"{where} writes the ids {ids[:4]} for 'a', but InstructBLIP's Vicuna begins a text "
            f"with its end token ({tokenizer.eos_token_id}) and with nothing else"
        )
