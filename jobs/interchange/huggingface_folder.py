"""A new Hugging Face folder for weights that came from elsewhere: configuration and processors.

One number has no exact place there. The reference's ``ln_vision`` has an eps of 1e-5, and the norms
of the tower's blocks have 1e-6; Hugging Face has one field for both. It gets the blocks' 1e-6, as
in the released folders. With 39 random blocks (width 176, four scales of weights) the features then
have a relative error of 0 to 2.3e-4; with 1e-5, which changes 78 norms to correct one, the error is
2.6e-6 to 4.2e-4. For exact features, set ``model.vision_model.post_layernorm.eps = 1e-5`` after
loading.
"""

from collections.abc import Mapping
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

from jobs.interchange.instruct import instruct_tokenizer
from jobs.interchange.parts import (
    Frozen,
    Options,
    Parts,
    language_outline,
)
from jobs.models.bert import load_reader
from jobs.models.encoder_settings import pixels_of
from jobs.models.languages import config_changes
from jobs.models.missing_parts import check_tokenizer
from jobs.models.tensors import read_json
from jobs.recipes.schema import EncoderChoice, LanguageChoice, Stage1Recipe, Stage2Recipe
from modeling.language.text import text_form
from modeling.qformer import QFormerConfig

# Fields of a configuration that describe the file and not the model.
_ABOUT = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def prepare_folder(parts: Parts, options: Options, folder: Path) -> tuple[dict[str, Any], int]:
    """Write configuration, tokenizer and processor files of a new folder.

    Returns:
        The configuration written, and how many words the language model lacks for ``<image>``.

    Raises:
        ValueError: A tokenizer cannot be loaded.
    """
    recipe, encoder, language = parts.recipe, parts.encoder, parts.language
    assert encoder is not None
    qformer = recipe.model.qformer
    instruct = isinstance(recipe, Stage2Recipe) and qformer.text
    vision = _clean(encoder.config)
    fields: dict[str, Any] = {
        "qformer_config": _qformer_config(qformer, instruct),
        "num_query_tokens": qformer.queries,
    }
    pictures = _image_processor(recipe.encoder)
    if isinstance(recipe, Stage1Recipe):
        tokenizer = load_reader(_reader_name(parts, options), recipe.model)
        # No image tokens in front of the text: the model joins queries and text itself.
        Blip2Processor(pictures, tokenizer, num_query_tokens=None).save_pretrained(folder)
        fields["image_text_hidden_size"] = recipe.model.embed
        config: Any = Blip2Config(vision_config=vision, **fields)
        return _save_config(config, "Blip2ForImageTextRetrieval", _dtype(encoder), folder), 0
    assert language is not None and language.files is not None
    check_tokenizer("language model", language.files)
    tokenizer = AutoTokenizer.from_pretrained(language.files)
    text = _text_config(language, tokenizer, recipe.language)
    if instruct:
        reader = load_reader(_reader_name(parts, options), recipe.model)
        if recipe.language.max_prompt:
            # The attribute's value is saved where the tokenizer was built with this argument.
            reader.init_kwargs["truncation_side"] = reader.truncation_side = "left"
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
    """The number format of most of a model's bytes; transformers loads the whole model in it."""
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
    """The language model's configuration with the token ids that generation needs; InstructBLIP's
    Vicuna also gets the tokenizer that its code makes of Vicuna's.

    BLIP-2's ``generate`` reads them from there. A decoder ends a caption with the token that it was
    trained to end it with (``modeling.language.text``): OPT with the end of the line, as in the
    released folders.

    Raises:
        ValueError: The tokenizer does not fit the model.
    """
    config = _clean(language.config)
    outline = language_outline(language.config)
    pair = outline.config.is_encoder_decoder
    config |= config_changes(choice.text_rules, pair)
    generation = (language.files or Path()) / "generation_config.json"
    if generation.is_file():
        saved = read_json(generation, "generation config")
        config = {n: saved[n] for n in _TOKENS if saved.get(n) is not None} | config
    form = text_form(tokenizer, outline, choice.text_rules, choice.prompt_template)
    if not pair:
        config["eos_token_id"] = form.stops if len(form.stops) > 1 else form.end
    if config.get("pad_token_id") is None:
        config["pad_token_id"] = form.pad
    if choice.text_rules == "instruct" and not pair:
        instruct_tokenizer(tokenizer)
        config |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return config


def _image_processor(choice: EncoderChoice) -> Any:
    """Hugging Face's image processor with the encoder's own size and normalisation."""
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
