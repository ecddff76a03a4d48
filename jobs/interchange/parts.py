"""A checkpoint of any format in one common form, and checks of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from jobs.models.tensors import FLOATS, Lazy, Tensors, shapes
from jobs.models.trained import Recipe, new_module
from modeling.blip2 import Stage1, Stage1Config, Stage2, Stage2Config
from modeling.names import compare_shapes


@dataclass(frozen=True)
class Options:
    """Settings that a checkpoint itself does not hold.

    Attributes:
        recipe: name of the training recipe with the settings that weights do not show.
        encoder: folder, hub id or ``timm:NAME`` of the frozen image encoder.
        language: folder or hub id of the frozen language model.
        tokenizer: folder or hub id of BERT's tokenizer.
        config: fields of a Q-Former's configuration, under our names or BERT's, and of a run:
            ``image_size``, ``max_txt_len``, ``encoder_heads`` and ``text``, the rule for its texts
            (``pipeline.text_processors``).
    """

    recipe: str = ""
    encoder: str = ""
    language: str = ""
    tokenizer: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Frozen:
    """A frozen model in the form of a Hugging Face folder.

    Attributes:
        config: content of its ``config.json``.
        tensors: weights by Hugging Face's names, not read yet.
        files: folder with its other small files (tokenizer); None where there is none.
    """

    config: dict[str, Any]
    tensors: Tensors
    files: Path | None = None


@dataclass(frozen=True)
class Parts:
    """A checkpoint of any format.

    Attributes:
        recipe: resolved recipe; its model configuration fits the weights.
        trainable: trained weights by our names, in the number formats that they came in.
        encoder: image encoder, if the checkpoint holds it; else the recipe names it.
        language: language model, if the checkpoint holds it; else the recipe names it.
        tokenizer: folder of the Q-Former's tokenizer, if the checkpoint holds it.
        lavis: record of a LAVIS file's keys (``jobs.interchange.lavis``), to convert it back.
        huggingface: folder of a Hugging Face checkpoint's small files, to convert it back.
        counters: shapes of a Hugging Face folder's ``position_ids``, by name.
        notes: notes for the user, one line each.
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
        """``Stage1`` or ``Stage2`` with these weights in fp32."""
        made = new_module(self.recipe.model)
        made.load_state_dict({name: tensor.float() for name, tensor in self.trainable.items()})
        return made


# ------------------------------------------------------------------------------------ checks


def module_shapes(model: Stage1Config | Stage2Config) -> dict[str, tuple[int, ...]]:
    """Shapes of all trained parameters of a configuration, by our names."""
    with torch.device("meta"):
        module = new_module(model)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def check_dtypes(tensors: Mapping[str, Tensor | Lazy], where: str) -> None:
    """Check that weights are in a number format that fp32 masters can hold exactly.

    Raises:
        ValueError: A weight is not; the message names it.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS.values():
            raise ValueError(
                f"{where}: {name} is of type {tensor.dtype}; weights must be of one of "
                f"{', '.join(FLOATS)}"
            )


def check_tower(frozen: Frozen, where: str) -> None:
    """Check a vision tower against its configuration.

    The ``post_layernorm`` of a BLIP-2 is left out: it is our trainable ``ln_vision``.

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
    """A language model without weights, on the meta device, from its ``config.json``.

    Raises:
        ValueError: transformers knows no language model of that type.
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
    """Check a language model's weights against its configuration; of tied weights one is enough.

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
