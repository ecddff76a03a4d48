"""Checkpoint folders of our own, with the frozen models that a conversion brought.

OUT/trainable.safetensors, recipe.json, state.json   a checkpoint at step 0 (cluster.checkpoint)
OUT/encoder/, language/, tokenizer/                  Hugging Face folders, where it has them
OUT/huggingface/                                     small files of the folder it came from
OUT/interchange.json                                 dtypes and LAVIS keys, to convert it back
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster import checkpoint
from jobs.interchange.frozen_models import eva_of
from jobs.interchange.huggingface import FILES, NOTE
from jobs.interchange.parts import Frozen, Parts, module_shapes
from jobs.models import trained
from jobs.models.encoders import load_encoder
from jobs.models.missing_parts import find_checkpoint
from jobs.models.tensors import (
    FLOATS,
    Lazy,
    copy_small,
    open_folder,
    published,
    read_json,
    shapes,
    write_folder,
    write_json,
)
from jobs.recipes.schema import EncoderChoice, Stage2Recipe
from modeling.blip2 import stage_weights
from modeling.names import compare_shapes

RECORD, HUGGINGFACE = "interchange.json", "huggingface"
# Files of a BLIP-2 folder that belong to neither its language model nor its tokenizer.
_OF_THE_WHOLE = ("config.json", "preprocessor_config.json", "processor_config.json", "README.md")


def read_native(path: Path) -> Parts:
    """Read a checkpoint, with the frozen models that lie in its folder.

    Args:
        path: a run, for its latest checkpoint, or one checkpoint's folder.

    Raises:
        ValueError: No checkpoint is there, it is damaged, or its weights do not fit its recipe.
    """
    found = find_checkpoint(path)
    found.verify()
    recipe = trained.read_recipe(found)
    where = f"checkpoint {found.folder}"
    whole = found.trainable()
    tensors = stage_weights(whole)
    compare_shapes(module_shapes(recipe.model), shapes(tensors), where)
    record: dict[str, Any] = {}
    if (found.folder / RECORD).is_file():
        record = read_json(found.folder / RECORD, "record")
    dtypes = record.get("dtypes", {})
    trainable = {n: t.to(FLOATS[dtypes.get(n, "float32")]) for n, t in tensors.items()}
    encoder = _own(found.folder / "encoder", recipe.encoder.name)
    if recipe.encoder.train:
        encoder = _finetuned(recipe.encoder, whole)
    language = None
    if isinstance(recipe, Stage2Recipe):
        language = _own(found.folder / "language", recipe.language.name)
    tokenizer, small = found.folder / "tokenizer", found.folder / HUGGINGFACE
    return Parts(
        recipe,
        trainable,
        encoder,
        language,
        tokenizer if tokenizer.is_dir() else None,
        record.get("lavis"),
        small if small.is_dir() else None,
        record.get("counters", {}),
    )


def write_native(parts: Parts, out: Path) -> None:
    """Write a checkpoint folder that training, prediction and evaluation load.

    Raises:
        ValueError: ``out`` exists already.
    """
    masters = {name: _master(tensor) for name, tensor in parts.trainable.items()}
    dtypes = {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in parts.trainable.items()
        if tensor.dtype != torch.float32
    }
    with published(out) as aside:
        aside.mkdir()
        for name, frozen in (("encoder", parts.encoder), ("language", parts.language)):
            if frozen is not None:
                _write_frozen(frozen, aside / name, name == "encoder", parts)
        if parts.tokenizer is not None:
            skip = (*_OF_THE_WHOLE, NOTE, FILES, "generation_config.json")
            copy_small(parts.tokenizer, aside / "tokenizer", skip)
        if parts.huggingface is not None:
            copy_small(parts.huggingface, aside / HUGGINGFACE, (NOTE, FILES))
        record = {"format": 1, "dtypes": dtypes, "lavis": parts.lavis}
        write_json(aside / RECORD, record | {"counters": parts.counters})
        files = {checkpoint.TRAINABLE: masters}
        recipe = json.loads(json.dumps(asdict(parts.recipe)))
        checkpoint.fill(aside, files, recipe, {"step": 0, "updates": 0})


def _own(folder: Path, name: str) -> Frozen | None:
    """A frozen model inside the checkpoint's folder, if the recipe names that one."""
    if not folder.is_dir() or Path(name) != folder:
        return None
    return Frozen(read_json(folder / "config.json", "config"), open_folder(folder), folder)


def _finetuned(choice: EncoderChoice, state: dict[str, Tensor]) -> Frozen:
    """The image encoder that was finetuned with a stage (``WithEncoder``)."""
    with torch.device("meta"):
        vit: Any = load_encoder(choice, weights=False).vit
    prefix = "encoder.vit."
    tower = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    compare_shapes(shapes(vit.state_dict()), shapes(tower), f"encoder {choice.name!r}")
    return eva_of(vit, {name: Lazy.of(tensor) for name, tensor in tower.items()}, choice.name)


def _write_frozen(frozen: Frozen, folder: Path, is_encoder: bool, parts: Parts) -> None:
    tensors = dict(frozen.tensors)
    if frozen.files is not None:
        skip = [path.name for path in frozen.files.iterdir() if path.is_dir()]
        copy_small(frozen.files, folder, (*_OF_THE_WHOLE, NOTE, *skip))
    if is_encoder and frozen.config.get("model_type") != "clip_vision_model":
        # A whole Blip2VisionModel has the norm that we train; ours is in the trained weights.
        for kind in ("weight", "bias"):
            norm = parts.trainable[f"ln_vision.{kind}"]
            tensors[f"post_layernorm.{kind}"] = Lazy.of(norm)
    write_folder(folder, tensors, folder.name)
    write_json(folder / "config.json", frozen.config)


def _master(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()
