"""A new Hugging Face folder around weights that never were in one: configuration and processors.

One number has no exact place there. The reference's ``ln_vision`` has an eps of 1e-5 and the norms
of the tower's blocks 1e-6; Hugging Face has one field for both. We keep the blocks' 1e-6, as the
released folders do: with 39 random blocks (width 176, four scales of weights) the features are then
0 to 2.3e-4 off, relative, against 2.6e-6 to 4.2e-4 with 1e-5, which moves 78 norms to mend one.
Whoever wants the last digit sets ``model.vision_model.post_layernorm.eps = 1e-5`` after loading.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2Processor,
    BlipImageProcessor,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipProcessor,
)

from jobs.interchange.parts import (
    Frozen,
    Options,
    Parts,
    check_language,
    check_tower,
    language_outline,
)
from jobs.interchange.towers import count_blocks, eva_to_huggingface
from jobs.models.encoder_settings import pixels_of
from jobs.models.encoders import load_encoder
from jobs.models.files import find_folder, read_config
from jobs.models.missing_parts import check_tokenizer
from jobs.models.tensors import Lazy, Tensors, apply_table, open_folder, read_json
from jobs.models.trained import load_reader
from jobs.recipes.schema import EncoderChoice, LanguageChoice
from modeling.language.text import text_form
from modeling.qformer import QFormerConfig
from modeling.vision.encoders import resize_positions

POSITIONS = "embeddings.position_embedding"
# Of a configuration file, what is about the file and not about the model.
_ABOUT = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


# ------------------------------------------------------------------------------ frozen models


def with_frozen(parts: Parts, options: Options) -> Parts:
    """The checkpoint with the frozen models that its recipe (or the user) names.

    Raises:
        ValueError: One cannot be had, or does not fit the trained weights.
    """
    encoder, language = parts.encoder, parts.language
    if encoder is None:
        encoder = _named_encoder(options.encoder or parts.recipe.encoder.name, parts)
    size = parts.recipe.encoder.image_size
    if encoder.config.get("model_type") == "clip_vision_model":
        raise ValueError(
            f"encoder {parts.recipe.encoder.name!r} is a CLIP, which Hugging Face's BLIP-2 has no "
            "place for (it lacks the norm before the first block); only EVA encoders can go there. "
            "Use --to lavis, or keep the native folder"
        )
    if encoder.config["image_size"] != size:
        encoder = _resized(encoder, size)
    if parts.recipe.kind == "stage2" and language is None:
        name = options.language or parts.recipe.language.name  # type: ignore[union-attr]
        folder = find_folder("language model", name)
        language = Frozen(read_config(folder), open_folder(folder), folder)
        check_language(language, f"language model {name!r}")
    parts = replace(parts, encoder=encoder, language=language)
    _check_widths(parts)
    return parts


def _named_encoder(name: str, parts: Parts) -> Frozen:
    if name.startswith("timm:") or name.endswith((".pth", ".pt")):
        return _built_encoder(name, parts)
    folder = find_folder("encoder", name)
    config = read_config(folder)
    tensors = open_folder(folder)
    if "vision_config" in config:
        config = {"model_type": f"{config['model_type']}_vision"} | config["vision_config"]
        tower = "vision_model."
        tensors = {n.removeprefix(tower): t for n, t in tensors.items() if n.startswith(tower)}
    if "clip" in config.get("model_type", ""):
        return Frozen(config | {"model_type": "clip_vision_model"}, tensors)
    if config.get("model_type") != "blip_2_vision_model":
        raise ValueError(
            f"encoder {name!r} is a {config.get('model_type')!r} model, which Hugging Face's "
            "BLIP-2 has no place for; only EVA encoders can go there"
        )
    frozen = Frozen(config, tensors, folder)
    check_tower(frozen, f"encoder {name!r}")
    return frozen


def _built_encoder(name: str, parts: Parts) -> Frozen:
    """An encoder that comes as a module."""
    vit: Any = load_encoder(replace(parts.recipe.encoder, name=name)).vit
    return eva_of(vit, {n: Lazy.of(t) for n, t in vit.state_dict().items()}, name)


def eva_of(vit: Any, state: Tensors, name: str) -> Frozen:
    """The tower of Hugging Face's BLIP-2 from timm's Eva.

    Args:
        vit: the module, for its sizes; may be on the meta device.
        state: its weights by timm's names.
        name: says in messages which encoder it is.

    Raises:
        ValueError: It is another architecture than EVA-CLIP's.
    """
    if "blocks.0.attn.q_bias" not in state:
        raise ValueError(
            f"encoder {name!r} has another form than EVA-CLIP's, and other formats have no place "
            "for it; keep the native folder"
        )
    blocks = count_blocks(state, "blocks.")
    config = {
        "architectures": ["Blip2VisionModel"],
        "model_type": "blip_2_vision_model",
        "hidden_size": vit.embed_dim,
        "intermediate_size": state["blocks.0.mlp.fc1.bias"].shape[0],
        "num_hidden_layers": blocks,
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "image_size": vit.patch_embed.img_size[0],
        "patch_size": vit.patch_embed.patch_size[0],
        "layer_norm_eps": vit.blocks[0].norm1.eps,
        "hidden_act": "gelu",
    }
    return Frozen(config, apply_table(eva_to_huggingface(blocks), state))


def _resized(encoder: Frozen, size: int) -> Frozen:
    """Position embeddings for the size that the recipe trained with."""
    old = encoder.tensors[POSITIONS]
    patches = (size // encoder.config["patch_size"]) ** 2
    shape = (1, patches + 1, old.shape[-1])
    lazy = Lazy(shape, old.dtype, lambda: resize_positions(old.read(), patches))
    config = encoder.config | {"image_size": size}
    return replace(encoder, config=config, tensors={**encoder.tensors, POSITIONS: lazy})


def _check_widths(parts: Parts) -> None:
    model = parts.recipe.model
    assert parts.encoder is not None
    width = parts.encoder.config["hidden_size"]
    if width != model.qformer.encoder_width:
        raise ValueError(
            f"encoder {parts.recipe.encoder.name!r} has width {width}, but the weights were "
            f"trained on one of {model.qformer.encoder_width}; name it with --encoder"
        )
    if parts.language is None:
        return
    embeds = language_outline(parts.language.config).get_input_embeddings().weight
    if embeds.shape[1] != model.llm_width:  # type: ignore[union-attr]
        raise ValueError(
            f"language model of width {embeds.shape[1]}, but the weights were trained on one of "
            f"{model.llm_width}; name it with --language"  # type: ignore[union-attr]
        )


# ------------------------------------------------------------------------------ small files


def prepare_folder(parts: Parts, options: Options, folder: Path) -> tuple[dict[str, Any], int]:
    """Write configuration, tokenizer and processor files of a new folder.

    Returns:
        The configuration written, and how many words the language model lacks for ``<image>``.

    Raises:
        ValueError: A tokenizer cannot be had.
    """
    qformer, encoder = parts.recipe.model.qformer, parts.encoder
    assert encoder is not None
    instruct = parts.recipe.kind == "stage2" and qformer.text
    vision = _clean(encoder.config)
    fields: dict[str, Any] = {
        "qformer_config": _qformer_config(qformer, instruct),
        "num_query_tokens": qformer.queries,
    }
    pictures = _image_processor(parts.recipe.encoder)
    if parts.recipe.kind == "stage1":
        tokenizer = load_reader(_reader_name(parts, options), parts.recipe.model)
        # No image tokens in front of the text: the model joins queries and text itself.
        Blip2Processor(pictures, tokenizer, num_query_tokens=None).save_pretrained(folder)
        fields["image_text_hidden_size"] = parts.recipe.model.embed  # type: ignore[union-attr]
        config: Any = Blip2Config(vision_config=vision, **fields)
        return _save_config(config, "Blip2ForImageTextRetrieval", _dtype(encoder), folder), 0
    language = parts.language
    assert language is not None and language.files is not None
    check_tokenizer("language model", language.files)
    tokenizer = AutoTokenizer.from_pretrained(language.files)
    text = _text_config(language, tokenizer, parts.recipe.language)  # type: ignore[union-attr]
    if instruct:
        reader = load_reader(_reader_name(parts, options), parts.recipe.model)
        processor: Any = InstructBlipProcessor(pictures, tokenizer, reader, qformer.queries)
        vision["model_type"] = "instructblip_vision_model"
    else:
        processor = Blip2Processor(pictures, tokenizer, num_query_tokens=qformer.queries)
    processor.save_pretrained(folder)
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    rows = max(0, image + 1 - text["vocab_size"])
    text["vocab_size"] += rows
    family = InstructBlipConfig if instruct else Blip2Config
    config = family(vision_config=vision, text_config=text, image_token_index=image, **fields)
    GenerationConfig.from_model_config(config.text_config).save_pretrained(folder)
    name = f"{'InstructBlip' if instruct else 'Blip2'}ForConditionalGeneration"
    return _save_config(config, name, _dtype(language), folder), rows


def _save_config(config: Any, architecture: str, dtype: str, folder: Path) -> dict[str, Any]:
    config.architectures = [architecture]
    config.dtype = dtype
    config.save_pretrained(folder)
    return read_json(folder / "config.json", "config")


def _dtype(frozen: Frozen) -> str:
    """What most of a frozen model's weights are; transformers loads the whole model in it."""
    sizes: dict[torch.dtype, int] = {}
    for lazy in frozen.tensors.values():
        sizes[lazy.dtype] = sizes.get(lazy.dtype, 0) + lazy.nbytes
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")


def _clean(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _ABOUT}


def _qformer_config(qformer: QFormerConfig, instruct: bool) -> dict[str, Any]:
    fields = {
        "vocab_size": qformer.vocab,
        "hidden_size": qformer.width,
        "num_hidden_layers": qformer.layers,
        "num_attention_heads": qformer.heads,
        "intermediate_size": qformer.ffn,
        "hidden_dropout_prob": qformer.dropout,
        "attention_probs_dropout_prob": qformer.attention_drop,
        "max_position_embeddings": qformer.max_positions,
        "initializer_range": qformer.init_std,
        "layer_norm_eps": qformer.eps,
        "cross_attention_frequency": qformer.cross_every,
        "encoder_hidden_size": qformer.encoder_width,
    }
    return fields if instruct else fields | {"use_qformer_text_input": qformer.text}


def _text_config(language: Frozen, tokenizer: Any, choice: LanguageChoice) -> dict[str, Any]:
    """The language model's configuration with the token ids that generation needs.

    ``generate`` of BLIP-2 takes them from here. A causal model ends a caption as it was taught to
    (``modeling.language.text``): OPT with the end of the line, as in the released folders.

    Raises:
        ValueError: the tokenizer does not fit the model.
    """
    config = _clean(language.config)
    generation = (language.files or Path()) / "generation_config.json"
    if generation.is_file():
        saved = read_json(generation, "generation config")
        config = {n: saved[n] for n in _TOKENS if saved.get(n) is not None} | config
    outline = language_outline(language.config)
    form = text_form(tokenizer, outline, choice.text_rules, choice.prompt_template)
    if not outline.config.is_encoder_decoder:
        config["eos_token_id"] = form.stops if len(form.stops) > 1 else form.end
    if config.get("pad_token_id") is None:
        config["pad_token_id"] = form.pad
    return config


def _image_processor(choice: EncoderChoice) -> Any:
    """The encoder's own square and normalisation, as Hugging Face's processor takes them."""
    pixels, size = pixels_of(choice), choice.image_size
    square = {"height": size, "width": size}
    side = pixels.resize_to or size
    fields: dict[str, Any] = {"size": {"height": side, "width": side}}
    if pixels.geometry == "crop":
        fields["size"] = {"shortest_edge": side}
    if pixels.geometry == "crop" or side != size:
        fields |= {"do_center_crop": True, "crop_size": square}
    return BlipImageProcessor(
        **fields,
        image_mean=list(pixels.mean),
        image_std=list(pixels.std),
        resample={"bilinear": 2, "bicubic": 3}[pixels.interpolation],
    )


def _reader_name(parts: Parts, options: Options) -> str:
    name = options.tokenizer or str(parts.tokenizer or "") or parts.recipe.tokenizer
    if name:
        return name
    raise ValueError(
        "this Q-Former reads text, and the checkpoint does not say its tokenizer; give "
        "--tokenizer FOLDER (BERT's)"
    )
