"""The bridge of a LLaVA checkpoint of any origin: ours, Hugging Face's, the authors'."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs import recipes
from jobs.models.files import read_config
from jobs.models.missing_parts import find_checkpoint
from jobs.models.tensors import Lazy, Tensors, open_folder, open_tensors
from jobs.recipes.schema import Digests
from modeling.llava import Kind, LlavaConfig

PROJECTOR = "mm_projector.bin"
"""The file in which the authors' code leaves a bridge alone."""
_AUTHORS = ("model.mm_projector.", "mm_projector.")
_HUGGINGFACE = "multi_modal_projector."


@dataclass(frozen=True)
class Bridged:
    """A bridge with its sizes and origin.

    Attributes:
        where: file or folder that was read.
        config: its kind and sizes.
        bridge: weights by our names, ``bridge.linear_1.weight`` and so on.
        language: weights of the language model by our names, where it trained in a run of ours.
        made_for: models that it belongs to; None where the origin does not say.
    """

    where: Path
    config: LlavaConfig
    bridge: dict[str, Tensor]
    language: dict[str, Tensor] = field(default_factory=dict)
    made_for: Digests | None = None


def read_bridge(path: str) -> Bridged:
    """The bridge of a run or checkpoint of ours, of a projector file, or of a folder.

    Args:
        path: also the authors' ``mm_projector.bin`` or a folder with one; their whole model's
            folder; a folder of Hugging Face's LLaVA.

    Raises:
        ValueError: no LLaVA checkpoint is there, or its bridge is none of ours.
    """
    place = Path(path)
    if place.suffix == ".bin":
        return _of_tensors(place, _opened(place))
    if (place / PROJECTOR).is_file():
        return _of_tensors(place / PROJECTOR, _opened(place / PROJECTOR))
    if (place / "config.json").is_file() and not (place / "state.json").is_file():
        read_config(place)
        return _of_tensors(place, open_weights(place))
    return _of_our_own(path)


def open_weights(folder: Path) -> Tensors:
    """A folder's weights by name: safetensors, or torch's ``.bin`` files, in one file or several.

    Raises:
        ValueError: there are none, or one is damaged.
    """
    if any(folder.glob("*.safetensors")):
        return open_folder(folder)
    tensors: Tensors = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        tensors |= _opened(file)
    if not tensors:
        raise ValueError(f"{folder} has no weights: no *.safetensors and no pytorch_model*.bin")
    return tensors


def _opened(file: Path) -> Tensors:
    content = open_tensors("LLaVA weights", file)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"LLaVA weights {file} are no {{name: tensor}}; give a file of LLaVA's")
    return {name: Lazy.of(tensor) for name, tensor in content.items()}


def _of_our_own(path: str) -> Bridged:
    found = find_checkpoint(path)
    if found.recipe.get("kind") != "llava":
        raise ValueError(
            f"--init {path}: the checkpoint's kind is {found.recipe.get('kind')!r}; give one of "
            "jobs/llava.py"
        )
    found.verify()
    config = recipes.from_dict(LlavaConfig, found.recipe["model"])
    made_for = recipes.from_dict(Digests, found.recipe["made_for"])
    weights = found.trainable()
    bridge = {name: t for name, t in weights.items() if name.startswith("bridge.")}
    language = {name: t for name, t in weights.items() if name not in bridge}
    return Bridged(found.folder, config, bridge, language, made_for)


def _of_tensors(where: Path, tensors: Tensors) -> Bridged:
    named = bridge_names(tensors)
    if not named:
        raise ValueError(
            f"--init {where}: no bridge in it (mm_projector or multi_modal_projector); give a "
            "checkpoint of LLaVA"
        )
    weights = {ours: tensors[theirs].read() for ours, theirs in named.items()}
    return Bridged(where, *plain_bridge(weights, str(where)))


def bridge_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Our names of a bridge's weights, and those under which the origin has them."""
    found: dict[str, str] = {}
    for name in names:
        tail = name.rpartition(_HUGGINGFACE)[2] if _HUGGINGFACE in name else ""
        for prefix in _AUTHORS:
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                layer, _, kind = rest.rpartition(".")
                tail = {"": "linear_1.", "0": "linear_1.", "2": "linear_2."}.get(layer, "?.") + kind
        if tail:
            found[f"bridge.{tail}"] = name
    return found


def plain_bridge(
    weights: dict[str, Tensor], where: str, activation: str = ""
) -> tuple[LlavaConfig, dict[str, Tensor]]:
    """Kind and weights of a bridge; a second map that is the identity is no map.

    Args:
        weights: by our names.
        where: origin, for messages.
        activation: Hugging Face's ``projector_hidden_act``; empty: the authors' GELU.

    Raises:
        ValueError: another number of maps, a map without a bias, or another activation.
    """
    first, second = (
        {f"bridge.{n}.{k}" for k in ("weight", "bias")} for n in ("linear_1", "linear_2")
    )
    if set(weights) not in (first, first | second):
        raise ValueError(
            f"{where}: its bridge has {', '.join(sorted(weights))}; one map or two, each with a "
            "bias, are supported (linear, mlp2x_gelu)"
        )
    width, encoder = weights["bridge.linear_1.weight"].shape
    if activation == "linear" and set(weights) != first:
        identity = torch.eye(width, dtype=weights["bridge.linear_2.weight"].dtype)
        same = torch.equal(weights["bridge.linear_2.weight"], identity)
        if not same or weights["bridge.linear_2.bias"].any():
            raise ValueError(f"{where}: two maps without an activation between them; give one map")
        weights = {name: weights[name] for name in sorted(first)}
    elif activation not in ("", "gelu", "linear"):
        raise ValueError(f"{where}: projector_hidden_act {activation!r}; gelu and linear are known")
    kind: Kind = "linear" if set(weights) == first else "mlp2x_gelu"
    return LlavaConfig(kind, encoder, width), weights
