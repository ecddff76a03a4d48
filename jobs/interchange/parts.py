"""What every format is read to and written from: typed recipe, weights, frozen models."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from jobs import recipes
from jobs.models.files import find_folder, local_path, read_config
from jobs.models.tensors import FLOATS, Lazy, Tensors, shapes
from jobs.recipes.pretrain import BERT
from jobs.recipes.schema import (
    EncoderChoice,
    LanguageChoice,
    Stage1Recipe,
    Stage2Recipe,
)
from modeling.blip2 import Stage1, Stage1Config, Stage2, Stage2Config
from modeling.names import compare_shapes
from modeling.vision.features import PAPER
from pipeline.pixels import CLIP_PIXELS
from pipeline.text_processors import TextRule

Recipe = Stage1Recipe | Stage2Recipe
SHORT: dict[torch.dtype, Any] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True)
class Options:
    """What a checkpoint itself does not say.

    Attributes:
        recipe: name of a training recipe for everything that is not in the weights.
        encoder: folder, hub id or ``timm:NAME`` of the frozen image encoder.
        language: folder or hub id of the frozen language model.
        tokenizer: folder or hub id of BERT's tokenizer.
        config: fields of a Q-Former's configuration, under our names or BERT's; and of the run:
            ``image_size``, ``max_txt_len``, ``encoder_heads``, and ``text``, the rule for its
            texts (``pipeline.text``), which is the reference's unless the recipe has another.
    """

    recipe: str = ""
    encoder: str = ""
    language: str = ""
    tokenizer: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Frozen:
    """A frozen model as in a Hugging Face folder.

    Attributes:
        config: its ``config.json``.
        tensors: its weights under Hugging Face's names.
        files: a folder with its other small files (tokenizer), where there is one.
    """

    config: dict[str, Any]
    tensors: Tensors
    files: Path | None = None


@dataclass(frozen=True)
class Parts:
    """A checkpoint of any format.

    Attributes:
        recipe: the resolved recipe; its model configuration fits the weights.
        trainable: weights by our names, in the dtypes that they came in.
        encoder: the image encoder, where the checkpoint holds it; else the recipe names it.
        language: the language model, likewise.
        tokenizer: folder of the Q-Former's tokenizer, where the checkpoint holds it.
        lavis: what a LAVIS file has besides (``interchange_lavis``), for the way back.
        huggingface: folder of a Hugging Face checkpoint's small files, for the way back.
        counters: shapes of the ``position_ids`` that a Hugging Face folder has, by name.
        notes: one line each of what the user should know.
    """

    recipe: Recipe
    trainable: dict[str, Tensor]
    encoder: Frozen | None = None
    language: Frozen | None = None
    tokenizer: Path | None = None
    lavis: dict[str, Any] | None = None
    huggingface: Path | None = None
    counters: Mapping[str, list[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def module(self) -> Stage1 | Stage2:
        """What trains, with these weights in fp32: it takes image tokens, and text in stage 1."""
        model: Any = self.recipe.model
        made = Stage1(model) if isinstance(model, Stage1Config) else Stage2(model)
        made.load_state_dict({name: tensor.float() for name, tensor in self.trainable.items()})
        return made


# ------------------------------------------------------------------------------------ checks


def module_shapes(model: Stage1Config | Stage2Config) -> dict[str, tuple[int, ...]]:
    """Shapes of all trainable parameters of a configuration."""
    with torch.device("meta"):
        module: nn.Module = Stage1(model) if isinstance(model, Stage1Config) else Stage2(model)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def check_dtypes(tensors: Mapping[str, Tensor | Lazy], where: str) -> None:
    """Check that weights are of a type that fp32 masters can hold exactly.

    Raises:
        ValueError: One is not; names it.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS.values():
            raise ValueError(
                f"{where}: {name} is of type {tensor.dtype}; weights must be of one of "
                f"{', '.join(FLOATS)}"
            )


def check_tower(frozen: Frozen, where: str) -> None:
    """Check a vision tower against its configuration; ``post_layernorm`` is the trainable norm.

    Raises:
        ValueError: Weights are missing, unknown or misshapen.
    """
    clip = frozen.config.get("model_type") == "clip_vision_model"
    with torch.device("meta"):
        tower: Any = (
            CLIPVisionModel(CLIPVisionConfig(**frozen.config))
            if clip
            else Blip2VisionModel(Blip2VisionConfig(**frozen.config))
        )
    expected = {
        name.removeprefix("vision_model."): tuple(p.shape) for name, p in tower.named_parameters()
    }
    found = {n: s for n, s in shapes(frozen.tensors).items() if n != "embeddings.position_ids"}
    if not clip:
        expected = {n: s for n, s in expected.items() if not n.startswith("post_layernorm.")}
        found = {n: s for n, s in found.items() if not n.startswith("post_layernorm.")}
    compare_shapes(expected, found, where)


def language_outline(config: Mapping[str, Any]) -> Any:
    """A language model without memory, from its ``config.json``.

    Raises:
        ValueError: transformers knows no language model of that kind.
    """
    fields = {name: value for name, value in config.items() if name != "model_type"}
    try:
        parsed = AutoConfig.for_model(config.get("model_type", "opt"), **fields)
        family: Any = AutoModelForSeq2SeqLM if parsed.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            return family.from_config(parsed)
    except (ValueError, KeyError) as unknown:
        raise ValueError(
            f"language model of type {config.get('model_type')!r}: {str(unknown).splitlines()[0]}"
        ) from unknown


def check_language(frozen: Frozen, where: str) -> None:
    """Check a language model's weights; of weights that are tied one is enough.

    Raises:
        ValueError: Weights are missing, unknown or misshapen.
    """
    model = language_outline(frozen.config)
    names = dict(model.named_parameters(remove_duplicate=False))
    groups: dict[int, list[str]] = {}
    for name, parameter in names.items():
        groups.setdefault(id(parameter), []).append(name)
    optional = {name for name, _ in model.named_buffers()}
    optional |= {n for n in frozen.tensors if n.endswith("rotary_emb.inv_freq")}
    expected: dict[str, tuple[int, ...]] = {}
    for tied in groups.values():
        present = [name for name in tied if name in frozen.tensors]
        expected |= {name: tuple(names[name].shape) for name in present or tied[:1]}
    found = {n: s for n, s in shapes(frozen.tensors).items() if n in expected or n not in optional}
    compare_shapes(expected, found, where)


# ------------------------------------------------------------------------------------ recipes


def run_fields(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the fields of a run (image size, text length and rule, encoder heads) from a
    model's.
    """
    synonyms = {
        **dict.fromkeys(("image_size", "img_size"), "image_size"),
        **dict.fromkeys(("max_text", "max_txt_len"), "max_text"),
        "encoder_heads": "encoder_heads",
        "text": "text",
    }
    run = {synonyms[name]: value for name, value in config.items() if name in synonyms}
    rules = get_args(TextRule)
    for name, value in run.items():
        if name == "text" and value not in rules:
            raise ValueError(f"--config: text = {value!r}; choose {' or '.join(rules)}")
        if name != "text" and (not isinstance(value, int) or value < 1):
            raise ValueError(f"--config: {name} = {value!r} must be a whole number above 0")
    return run, {name: value for name, value in config.items() if name not in synonyms}


def base_recipe(kind: str, name: str, encoder_decoder: bool = False) -> Any:
    """The recipe that gives what weights do not say.

    Raises:
        ValueError: ``name`` is a recipe of the other stage, or none.
    """
    default = {"stage1": "vit-g", "stage2": "vit-g-flant5-xl" if encoder_decoder else ""}[kind]
    name_or_default = name or default or "vit-g-opt-2.7b"
    other = "stage2" if kind == "stage1" else "stage1"
    if name in recipes.names(other) and name not in recipes.names(kind):
        raise ValueError(
            f"--recipe {name!r} is of {other}, but the checkpoint is of {kind}; choose one of "
            f"{', '.join(recipes.names(kind))}"
        )
    base = recipes.recipe(kind, name_or_default)
    return base if name else replace(base, name="converted")


def build_recipe(
    model: Stage1Config | Stage2Config,
    options: Options,
    encoder: Frozen | None,
    language: Frozen | None,
    tokenizer: bool = False,
) -> Recipe:
    """The recipe of a checkpoint read from elsewhere.

    Args:
        model: its model, from the weights.
        options: what the user adds; names of frozen models that the checkpoint does not hold.
        encoder: the image encoder, where the checkpoint holds it.
        language: the language model, likewise.
        tokenizer: whether the checkpoint holds the Q-Former's tokenizer.

    Raises:
        ValueError: A frozen model is neither there nor named.
    """
    kind = "stage1" if isinstance(model, Stage1Config) else "stage2"
    pair = language is not None and bool(
        language_outline(language.config).config.is_encoder_decoder
    )
    base = base_recipe(kind, options.recipe, pair)
    run, _ = run_fields(options.config)
    choice = _encoder_choice(base.encoder, options, encoder)
    choice = replace(choice, image_size=run.get("image_size", choice.image_size))
    # Both formats are of models trained on CLIP's pixels and the paper's features.
    choice = replace(choice, pixels=CLIP_PIXELS, features=PAPER)
    transform = replace(base.run.transform, size=choice.image_size)
    base = replace(base, encoder=choice, run=replace(base.run, transform=transform))
    max_text = run.get("max_text")
    name = "./tokenizer" if tokenizer else options.tokenizer or base.tokenizer
    # Its weights are here: it starts from no BERT.
    base = replace(base, model=model, tokenizer=name, bert="", text=run.get("text", base.text))
    if kind == "stage1":
        return replace(base, max_text=max_text or base.max_text)
    if model.qformer.text and not name:
        base = replace(base, tokenizer=BERT)
    spoken = _language_choice(base.language, options, language)
    spoken = replace(spoken, max_text=max_text or spoken.max_text)
    return replace(base, language=spoken)


def _encoder_choice(base: EncoderChoice, options: Options, own: Frozen | None) -> EncoderChoice:
    if own is not None:
        size, dtype = own.config["image_size"], SHORT[_main_dtype(own.tensors)]
        return replace(base, name="./encoder", image_size=size, dtype=dtype)
    if not options.encoder and not options.recipe:
        raise ValueError(
            "the checkpoint does not hold its frozen image encoder; name it: --recipe NAME, or "
            "--encoder FOLDER (a Hugging Face folder, a hub id, timm:NAME)"
        )
    name = options.encoder or base.name
    if not options.recipe and local_path(name) is not None and not name.endswith((".pth", ".pt")):
        # No recipe says what it is shown: what it was trained on.
        config = read_config(find_folder("encoder", name))
        size = config.get("vision_config", config).get("image_size", base.image_size)
        base = replace(base, image_size=size)
    return replace(base, name=name)


def _language_choice(base: LanguageChoice, options: Options, own: Frozen | None) -> LanguageChoice:
    if own is not None:
        dtype = SHORT[_main_dtype(own.tensors)]
        if own.config.get("model_type") == "t5" and dtype == "fp16":
            dtype = "bf16"  # T5 overflows in fp16
        return replace(base, name="./language", dtype=dtype)
    if not options.language and not options.recipe:
        raise ValueError(
            "the checkpoint does not hold its frozen language model; name it: --recipe NAME, or "
            "--language FOLDER (a Hugging Face folder or a hub id)"
        )
    return replace(base, name=options.language or base.name)


def _main_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of most of a model's numbers."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + torch.Size(tensor.shape).numel()
    best = max(sizes, key=lambda dtype: sizes[dtype])
    return best if best in SHORT else torch.float32
