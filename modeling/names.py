"""Weights of Hugging Face's CLIP, BLIP-2 and BERT under our names, or timm's, and back.

The functions take and return tensors or names; no file is read here. Except for the vision towers,
whose projections are joined or split, every conversion is a renaming of parameters.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

CLIP_TO_TIMM = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "pre_layrnorm.weight": "norm_pre.weight",
    "pre_layrnorm.bias": "norm_pre.bias",
}
CLIP_BLOCK_TO_TIMM = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
EVA_TO_TIMM = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
}
BLIP2_BLOCK_TO_TIMM = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.projection": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
ATTENTION = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "out": "output.dense",
    "norm": "output.LayerNorm",
}


def clip_vision_to_timm(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A Hugging Face CLIP vision tower by timm's names; query, key and value become one matrix.

    Args:
        state: State dict of a `CLIPModel` or `CLIPVisionModel`; the text tower is left out.
        layers: Number of blocks in the tower.

    Raises:
        ValueError: A weight is missing; the message names it.
    """
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in state) else ""
    source = {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
    }
    result = {ours: take(source, theirs) for theirs, ours in CLIP_TO_TIMM.items()}
    result["cls_token"] = result["cls_token"].reshape(1, 1, -1)
    result["pos_embed"] = result["pos_embed"][None]
    for kind in ("weight", "bias"):
        if f"post_layernorm.{kind}" in source:
            result[f"norm.{kind}"] = source[f"post_layernorm.{kind}"]
    for index in range(layers):
        block = f"encoder.layers.{index}."
        for kind in ("weight", "bias"):
            for theirs, ours in CLIP_BLOCK_TO_TIMM.items():
                result[f"blocks.{index}.{ours}.{kind}"] = take(source, f"{block}{theirs}.{kind}")
            parts = [take(source, f"{block}self_attn.{name}_proj.{kind}") for name in "qkv"]
            result[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
    return result


def blip2_vision_to_eva(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Hugging Face's `Blip2VisionModel` by the names of timm's `Eva`, which has no key bias.

    `post_layernorm` is left out: it is our trainable `ln_vision`.

    Args:
        state: State dict of the tower.
        layers: Number of blocks in the tower.

    Raises:
        ValueError: A weight is missing, or a key bias is not zero; the message names it.
    """
    result = {ours: take(state, theirs) for theirs, ours in EVA_TO_TIMM.items()}
    for index in range(layers):
        block = f"encoder.layers.{index}."
        for theirs, ours in BLIP2_BLOCK_TO_TIMM.items():
            for kind in ("weight", "bias"):
                result[f"blocks.{index}.{ours}.{kind}"] = take(state, f"{block}{theirs}.{kind}")
        result[f"blocks.{index}.attn.qkv.weight"] = take(state, f"{block}self_attn.qkv.weight")
        q_bias, k_bias, v_bias = take(state, f"{block}self_attn.qkv.bias").chunk(3)
        if k_bias.any():
            raise ValueError(
                f"{block}self_attn.qkv.bias has a key part that is not zero; this encoder has none."
            )
        result[f"blocks.{index}.attn.q_bias"] = q_bias
        result[f"blocks.{index}.attn.v_bias"] = v_bias
    return result


def all_names(layers: int) -> list[str]:
    """All parameter names that stage 1 or stage 2 can have, with that many Q-Former layers."""
    modules = [
        *("ln_vision", "vision_proj", "text_proj", "itm_head", "language_proj"),
        *("qformer.norm", "lm_head.dense", "lm_head.norm"),
    ]
    blocks = {
        **dict.fromkeys(("self_attn", "cross_attn"), tuple(ATTENTION)),
        **dict.fromkeys(("text_ffn", "query_ffn"), ("up", "down", "norm")),
    }
    for index in range(layers):
        for block, parts in blocks.items():
            modules += [f"qformer.layers.{index}.{block}.{part}" for part in parts]
    whole = ["qformer.query_tokens", "temperature", "lm_head.bias"]
    whole += [f"qformer.{kind}_embeddings.weight" for kind in ("word", "position")]
    return whole + [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def huggingface_names(names: Iterable[str], instruct: bool = False) -> dict[str, str]:
    """Hugging Face's parameter names for ours, which are the keys of the result.

    Stage 1 is `Blip2ForImageTextRetrieval` there, stage 2 `Blip2ForConditionalGeneration`.
    `temperature` and `lm_head` have no place there and are absent from the result.

    Args:
        names: Our names of trainable parameters, of stage 1 or stage 2.
        instruct: Whether the model is `InstructBlipForConditionalGeneration`.
    """
    table = {name: _huggingface_name(name, instruct) for name in names}
    return {ours: theirs for ours, theirs in table.items() if theirs is not None}


def compare_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Check that a file has all expected tensors, no others, and each in its expected shape.

    Args:
        expected: Shapes by name.
        found: Shapes of the file's tensors by name.
        where: The file, for the message.

    Raises:
        ValueError: Tensors are missing, unknown or misshapen; one message with the first names of
            each kind.
    """
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    wrong = [
        f"{name} has shape {tuple(found[name])}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    complaints = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has unknown", unknown), ("misshapen:", wrong))
        if names
    ]
    if complaints:
        raise ValueError(
            f"{where} {'; '.join(complaints)}: is this the right model, and is the file whole? "
            "Every weight must be there under its own name"
        )


def _huggingface_name(name: str, instruct: bool) -> str | None:
    embeddings = "qformer.embeddings" if instruct else "embeddings"
    whole = {
        "ln_vision": "vision_model.post_layernorm",
        "vision_proj": "vision_projection",
        "text_proj": "text_projection",
        "itm_head": "itm_head",
        "language_proj": "language_projection",
        "qformer.norm": "qformer.embeddings.layernorm" if instruct else "qformer.layernorm",
        "qformer.word_embeddings": f"{embeddings}.word_embeddings",
        "qformer.position_embeddings": f"{embeddings}.position_embeddings",
    }
    if name == "qformer.query_tokens":
        return "query_tokens"
    module, _, kind = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{kind}"
    if not name.startswith("qformer.layers."):
        return None
    _, _, index, block, part, kind = name.split(".")
    return f"qformer.encoder.layer.{index}.{layer_part(block, part)}.{kind}"


def layer_part(block: str, part: str) -> str:
    """Hugging Face's name, inside a layer, of a part of one of our Q-Former layers.

    Args:
        block: `self_attn`, `cross_attn`, `text_ffn` or `query_ffn`.
        part: `query`, `key`, `value`, `out` or `norm` of an attention; `up`, `down` or `norm` of a
            feed-forward network.
    """
    if block in ("self_attn", "cross_attn"):
        return f"{'attention' if block == 'self_attn' else 'crossattention'}.{ATTENTION[part]}"
    suffix = "_query" if block == "query_ffn" else ""
    if part == "up":
        return f"intermediate{suffix}.dense"
    return f"output{suffix}.{'dense' if part == 'down' else 'LayerNorm'}"


def from_bert(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Initial weights, by stage 1's names, of a Q-Former that reads text.

    The query FFN starts as a copy of the text FFN. Cross-attention, queries and projections are
    not in BERT and keep their random initialisation; so does the row of [DEC], which the caller
    appends to the word embeddings.

    Args:
        state: State dict of a `BertModel` or `BertForMaskedLM`.
        layers: Number of Q-Former layers; BERT must have as many or more.

    Raises:
        ValueError: A weight is missing; the message names it.
    """
    prefix = "bert." if any(key.startswith("bert.") for key in state) else ""
    result = {}
    for kind in ("weight", "bias"):
        result[f"qformer.norm.{kind}"] = take(state, f"{prefix}embeddings.LayerNorm.{kind}")
    for name in ("word_embeddings", "position_embeddings"):
        result[f"qformer.{name}.weight"] = take(state, f"{prefix}embeddings.{name}.weight")
    for index in range(layers):
        theirs = f"{prefix}encoder.layer.{index}."
        for kind in ("weight", "bias"):
            for ours, part in ATTENTION.items():
                source = "attention." + part.replace("attention.", "self.")
                result[f"qformer.layers.{index}.self_attn.{ours}.{kind}"] = take(
                    state, f"{theirs}{source}.{kind}"
                )
            for ours, part in {
                "up": "intermediate.dense",
                "down": "output.dense",
                "norm": "output.LayerNorm",
            }.items():
                tensor = take(state, f"{theirs}{part}.{kind}")
                result[f"qformer.layers.{index}.text_ffn.{ours}.{kind}"] = tensor
                result[f"qformer.layers.{index}.query_ffn.{ours}.{kind}"] = tensor.clone()
    if "cls.predictions.bias" in state:
        head = "cls.predictions.transform."
        for kind in ("weight", "bias"):
            result[f"lm_head.dense.{kind}"] = take(state, f"{head}dense.{kind}")
            result[f"lm_head.norm.{kind}"] = take(state, f"{head}LayerNorm.{kind}")
        result["lm_head.bias"] = state["cls.predictions.bias"]
    return result


def take(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight by its name.

    Raises:
        ValueError: The weight is missing.
    """
    if name not in state:
        raise ValueError(f"weights lack {name!r}: is this the right model, and is the file whole?")
    return state[name]
