"""Tiny random BLIP and CLIP folders with real tokenizers, saved as Hugging Face saves them."""

import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
)

WORDS = [
    *("a", "an", "the", "picture", "photo", "of", "red", "green", "blue", "yellow", "large"),
    *("small", "circle", "square", "triangle", "star", "above", "below", "left", "right"),
    *("and", "on", "with", "one", "two", "three", "background"),
]
CHARACTERS = [chr(code) for code in range(33, 127) if not chr(code).isupper()]


def bert_tokenizer(folder: Path) -> BertTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    pieces = [f"##{c}" for c in CHARACTERS]
    letters = [c for c in CHARACTERS if c not in WORDS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS, *letters, *pieces]) + "\n")
    return BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"])


def save_captioner(folder: Path, image: int = 32, width: int = 32, layers: int = 2) -> Path:
    """A ``BlipForConditionalGeneration`` folder; its logits are spread so that captions vary."""
    tokenizer = bert_tokenizer(folder)
    vision = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "image_size": image, "patch_size": 8,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "encoder_hidden_size": width,
        "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 4,
        "max_position_embeddings": 40, "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3,
        "pad_token_id": 0, "projection_dim": width,
    }  # fmt: skip
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
        model.text_decoder.cls.predictions.bias[3] = 1.0  # captions should end now and then
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = BlipImageProcessor(size={"height": image, "width": image})
    processor.save_pretrained(folder)
    return folder


def save_clip(folder: Path, image: int = 32, width: int = 32, layers: int = 2) -> Path:
    """A ``CLIPModel`` folder with a small BPE tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer(folder)
    vision = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "image_size": image, "patch_size": 8,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(1)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": image}, crop_size={"height": image, "width": image}
    )
    processor.save_pretrained(folder)
    return folder


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    vocab = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder)
