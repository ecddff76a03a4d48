"""A small random LLaMA with a toy tokenizer, and conversations about coloured squares."""

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from tests.modeling.language.pieces_tokenizer import IDS, tokenizer


def tiny_llama(folder: Path, seed: int = 4, width: int = 24) -> Path:
    """A random LLaMA of two blocks with the toy tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(IDS),
        hidden_size=width,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def talks(folder: Path, count: int = 48) -> str:
    """A ``--data`` of conversations: of three, one has two questions and one has no image."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = {"red": (220, 30, 30), "big": (30, 30, 220)}
    for name, colour in colours.items():
        Image.new("RGB", (40, 56), colour).save(folder / f"{name}.png")
    records = []
    for number in range(count):
        name = ("red", "big")[number // 3 % 2]
        asked = [("human", "<image>\nWhat is the star?"), ("gpt", name)]
        if number % 3 == 1:
            asked += [("human", "Is it big?"), ("gpt", "yes, it is a star")]
        image = {"image": f"{name}.png"}
        if number % 3 == 2:
            asked, image = [("human", "Is a star big?"), ("gpt", "a star is big")], {}
        told = [{"from": role, "value": text} for role, text in asked]
        records.append({"id": number, **image, "conversations": told})
    (folder / "talks.json").write_text(json.dumps(records))
    return f"{folder / 'talks.json'}:{folder}"
