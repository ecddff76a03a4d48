"""Sizes of the papers' frozen models, so that a dry run needs none of their files.

BLIP-2's are named in its section 4.1, LLaVA's in its section 4.1 too.
"""

from collections.abc import Callable
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, OPTConfig, T5Config


def clip_vit_l(image_size: int = 224) -> CLIPVisionConfig:
    """CLIP ViT-L/14 with OpenAI's activation."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=image_size,
        patch_size=14,
        hidden_act="quick_gelu",
    )


def opt(width: int) -> OPTConfig:
    """OPT-2.7B (width 2560) and OPT-6.7B (4096): 32 blocks of 32 heads."""
    return OPTConfig(
        vocab_size=50272,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
    )


def vicuna(width: int, positions: int = 2048) -> LlamaConfig:
    """Vicuna-7B (width 4096: 32 blocks) and Vicuna-13B (5120: 40 blocks), with heads of 128."""
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size={4096: 11008, 5120: 13824}[width],
        num_hidden_layers=width // 128,
        num_attention_heads=width // 128,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def flan_t5(width: int) -> T5Config:
    """FlanT5-XL (width 2048) and FlanT5-XXL (4096): 24 + 24 blocks with heads of 64."""
    return T5Config.from_dict(
        {
            "vocab_size": 32128,
            "d_model": width,
            "d_kv": 64,
            "d_ff": 5 * width // 2,
            "num_layers": 24,
            "num_heads": width // 64,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,  # newer transformers take T5's pad token by themselves
        }
    )


VISION: dict[str, Callable[[], CLIPVisionConfig]] = {
    "openai/clip-vit-large-patch14": clip_vit_l,
    "openai/clip-vit-large-patch14-336": lambda: clip_vit_l(336),
}
LANGUAGE: dict[str, Callable[[], Any]] = {
    "facebook/opt-2.7b": lambda: opt(2560),
    "facebook/opt-6.7b": lambda: opt(4096),
    "vicuna-7b-v0": lambda: vicuna(4096),
    "vicuna-13b-v0": lambda: vicuna(5120),
    "lmsys/vicuna-7b-v1.5": lambda: vicuna(4096, 4096),
    "lmsys/vicuna-13b-v1.5": lambda: vicuna(5120, 4096),
    "google/flan-t5-xl": lambda: flan_t5(2048),
    "google/flan-t5-xxl": lambda: flan_t5(4096),
    "lmsys/vicuna-7b-v1.1": lambda: vicuna(4096),
    "lmsys/vicuna-13b-v1.1": lambda: vicuna(5120),
}
