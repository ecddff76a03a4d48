"""Checkpoints of our own with the models that a LLaVA conversion brought.

OUT/trainable.safetensors, recipe.json, state.json   the bridge, a checkpoint at step 0
OUT/encoder/, language/                              Hugging Face folders
OUT/huggingface/                                     small files of the folder it came from
OUT/interchange.json                                 number formats, to convert it back
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cluster import checkpoint
from jobs.interchange.llava.parts import LlavaParts, open_language, open_tower
from jobs.interchange.parts import Frozen
from jobs.models.llava import read_recipe
from jobs.models.missing_parts import find_checkpoint
from jobs.models.tensors import (
    FLOATS,
    Tensors,
    copy_small,
    open_safetensors,
    published,
    read_json,
    write_folder,
    write_json,
)

RECORD, HUGGINGFACE = "interchange.json", "huggingface"
_OF_THE_WHOLE = ("config.json", "preprocessor_config.json", "processor_config.json", "README.md")


def read_checkpoint(path: Path) -> LlavaParts:
    """Read a checkpoint of either stage, with the models that it names or holds.

    Raises:
        ValueError: no checkpoint is there, it is damaged, or a model cannot be found.
    """
    found = find_checkpoint(path)
    found.verify()
    recipe, weights = read_recipe(found), open_safetensors(found.folder / checkpoint.TRAINABLE)
    record = found.folder / RECORD
    noted = read_json(record, "record") if record.is_file() else {}
    dtypes = noted.get("dtypes", {})
    bridge = {
        name: lazy.read().to(FLOATS[dtypes.get(name, "float32")])
        for name, lazy in weights.items()
        if name.startswith("bridge.")
    }
    language = open_language(recipe.language.name)
    if recipe.stage == 2:
        language = replace(language, tensors=_trained(weights, language))
    encoder = open_tower(recipe.encoder.name)
    if encoder.config.get("image_size") != recipe.encoder.image_size:
        raise ValueError(
            f"checkpoint {found.where}: its encoder is shown {recipe.encoder.image_size} px but is "
            f"made for {encoder.config.get('image_size')}; Hugging Face's LLaVA has one size"
        )
    small = found.folder / HUGGINGFACE
    return LlavaParts(
        recipe,
        bridge,
        encoder,
        language,
        small if small.is_dir() else None,
        noted.get("tower", "vision_tower."),
    )


def _trained(weights: Tensors, stored: Frozen) -> Tensors:
    """The language model of stage 2, in fp32, by the names of its folder."""
    prefix = "language."
    trained = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    result: Tensors = {}
    for name in stored.tensors:
        # Of matrices that are one (input and output), the checkpoint has the first alone.
        own = name if name in trained else next((n for n in trained if _same(n, name)), None)
        if own is None:
            raise ValueError(f"the checkpoint's language model has no {name}")
        result[name] = trained[own]
    return result


def _same(ours: str, theirs: str) -> bool:
    """Whether two names are of one weight: of a tied matrix, or with and without ``model.``."""
    return ours == f"model.{theirs}" or ("embed_tokens" in ours and theirs == "lm_head.weight")


def write_checkpoint(parts: LlavaParts, out: Path) -> None:
    """Write a checkpoint folder that training, prediction and evaluation load.

    Raises:
        ValueError: ``out`` exists already.
    """
    masters = {n: t.detach().to(torch.float32).contiguous() for n, t in parts.bridge.items()}
    dtypes = {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in parts.bridge.items()
        if tensor.dtype != torch.float32
    }
    with published(out) as aside:
        aside.mkdir()
        for name, frozen in (("encoder", parts.encoder), ("language", parts.language)):
            if frozen.files is not None:
                inner = [path.name for path in frozen.files.iterdir() if path.is_dir()]
                copy_small(frozen.files, aside / name, (*_OF_THE_WHOLE, "isthmus.json", *inner))
            write_folder(aside / name, frozen.tensors, name)
            write_json(aside / name / "config.json", frozen.config)
        if parts.huggingface is not None:
            copy_small(parts.huggingface, aside / HUGGINGFACE)
        write_json(aside / RECORD, {"format": 1, "dtypes": dtypes, "tower": parts.tower})
        recipe = json.loads(json.dumps(asdict(parts.recipe)))
        recipe["encoder"]["name"], recipe["language"]["name"] = "./encoder", "./language"
        recipe["made_for"] = {"encoder": "", "language": ""}  # they lie beside the bridge
        checkpoint.fill(aside, {checkpoint.TRAINABLE: masters}, recipe, {"step": 0, "updates": 0})
