"""Checkpoints of salesforce/LAVIS: ``.pth`` files with ``{"model": {name: tensor}}``.

LAVIS leaves frozen weights out when it saves, so that the image encoder and the language model may
be missing. No other weight may, except copies of weights (``jobs.interchange.lavis_names``).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2VisionConfig, CLIPVisionConfig

from cluster.storage.local import sync_path
from jobs import recipes
from jobs.interchange import lavis_names
from jobs.interchange.infer_config import infer_stage1, infer_stage2
from jobs.interchange.parts import (
    Frozen,
    Options,
    Parts,
    check_dtypes,
    check_language,
    check_tower,
    module_shapes,
)
from jobs.interchange.recipe import build_recipe, run_fields
from jobs.interchange.towers import (
    apply_table,
    count_blocks,
    eva_to_huggingface,
    huggingface_to_eva,
    huggingface_to_openai,
    openai_to_huggingface,
)
from jobs.models.files import find_folder, local_folder, read_config
from jobs.models.tensors import Lazy, open_pth, published, shapes
from jobs.recipes.schema import Stage1Recipe
from modeling.blip2 import Stage1Config, Stage2Config
from modeling.names import compare_shapes
from pipeline.pixels import CLIP_PIXELS

VISION, ROTARY = "visual_encoder.", "rotary_emb.inv_freq"
LANGUAGES = {"opt_model.": "opt", "t5_model.": "t5", "llm_model.": ""}


def read_lavis(path: Path, options: Options | None = None) -> Parts:
    """Read a LAVIS checkpoint of stage 1, stage 2 or InstructBLIP.

    Sizes are read from the weights; the number of heads is width / 64 unless ``options.config``
    gives another.

    Raises:
        ValueError: The file is damaged or holds objects, a weight is missing, unknown or
            misshapen, the configuration contradicts the file, or a frozen model is neither in the
            file nor named.
    """
    options = options or Options()
    state, others = open_pth(path)
    where = f"LAVIS checkpoint {path}"
    _, given = run_fields(options.config)
    model, trainable = trainable_of(state, given, where)
    encoder = _read_encoder(state, options, where)
    language, dropped = _read_language(state, options, where)
    recipe = build_recipe(model, options, encoder, language, lavis=True)
    notes = [f"left out: {', '.join(others)} (not part of the model)"] if others else []
    notes += [f"left out: {dropped[0]} and {len(dropped) - 1} more tables"] if dropped else []
    if isinstance(model, Stage1Config) and not model.itg:
        notes.append("it has no Qformer.cls: no language-model head, so ITG is off (model.itg)")
    record = _record(state, set(dropped))
    return Parts(recipe, trainable, encoder, language, lavis=record, notes=tuple(notes))


def trainable_of(
    state: Mapping[str, Tensor], given: Mapping[str, Any], where: str
) -> tuple[Stage1Config | Stage2Config, dict[str, Tensor]]:
    """The configuration and the trained weights, under our names, of a LAVIS state dict.

    Args:
        state: All of the file's tensors.
        given: Fields of a Q-Former's configuration, for values that shapes do not show.
        where: The file, for messages.

    Raises:
        ValueError: A weight is missing, unknown or misshapen, or differs from the weight that it
            is a copy of.
    """
    stage = lavis_names.stage_of(state, where)
    table = lavis_names.lavis_names(state)
    names = lavis_names.without_copies(state)
    unknown = [name for name in names if name not in table]
    trainable = {table[name]: state[name] for name in names if name in table}
    if "temperature" in trainable and trainable["temperature"].ndim == 0:
        trainable["temperature"] = trainable["temperature"][None]
    check_dtypes({name: state[name] for name in names if name in table}, where)
    infer: Any = infer_stage1 if stage == "stage1" else infer_stage2
    model = infer(shapes(trainable), given, where)
    expected = module_shapes(model)
    back = {ours: theirs for theirs, ours in table.items()}
    # Compared by the file's own names, so that a message names what is in the file.
    found = {back[name]: tuple(tensor.shape) for name, tensor in trainable.items()}
    found |= {name: tuple(state[name].shape) for name in unknown}
    compare_shapes({back[name]: shape for name, shape in expected.items()}, found, where)
    lavis_names.check_copies(state, where)
    if stage == "stage1" and isinstance(model, Stage1Config):
        model = replace(model, temperature=_bounded(float(trainable["temperature"])))
    return model, trainable


def write_lavis(parts: Parts, out: Path, frozen: bool = False) -> list[str]:
    """Write a LAVIS checkpoint.

    A checkpoint that came from LAVIS gets exactly the keys that it had. Another one gets LAVIS's
    usual keys, without the frozen models unless ``frozen`` asks for those that it holds.

    Returns:
        Notes for the user, one line each.

    Raises:
        ValueError: ``out`` exists already, or LAVIS has no place for a frozen model.
    """
    record = parts.lavis
    projection = record["projection"] if record else _projection(parts)
    state = {lavis_names.to_lavis(name, projection): t for name, t in parts.trainable.items()}
    if "temp" in state and not (record and record["temp_dims"]):
        state["temp"] = state["temp"].reshape(())
    qformer = parts.recipe.model.qformer
    positions = record["positions"] if record else qformer.max_positions
    state = lavis_names.with_copies(state, positions)
    notes = []
    held = any(name.startswith(VISION) for name in (record or {"keys": ()})["keys"])
    if frozen or held or parts.recipe.encoder.train:  # a finetuned encoder exists only here
        state |= _own_encoder(parts)
    prefix = record["language"] if record else f"{projection.removesuffix('proj')}model."
    if parts.language is not None and prefix and (frozen or (record and record["language"])):
        state |= {prefix + n: t.read() for n, t in parts.language.tensors.items()}
    if record:
        state = {name: state[name] for name in record["keys"]}
    elif not any(name.startswith(VISION) for name in state):
        notes.append("without the frozen models, as LAVIS saves it; --frozen writes those at hand")
    pixels = parts.recipe.encoder.pixels
    if pixels.settled and (pixels.mean, pixels.std) != (CLIP_PIXELS.mean, CLIP_PIXELS.std):
        notes.append(
            f"LAVIS normalises images with CLIP's constants; this model needs mean {pixels.mean} "
            f"and std {pixels.std} in its processor's configuration"
        )
    with published(out) as aside:
        torch.save({"model": {name: _alone(t) for name, t in state.items()}}, aside)
        sync_path(aside)
    return notes


def _alone(tensor: Tensor) -> Tensor:
    """The tensor with a storage of its own: torch saves the whole storage of a view."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.detach() if whole and tensor.is_contiguous() else tensor.detach().clone()


def _record(state: Mapping[str, Tensor], dropped: set[str]) -> dict[str, Any]:
    """The record of a LAVIS file that converting back to LAVIS needs."""
    ids = state.get(lavis_names.POSITION_IDS)
    return {
        "keys": [name for name in state if name not in dropped],
        "projection": next(
            (n for n in lavis_names.PROJECTIONS if f"{n}.weight" in state), "opt_proj"
        ),
        "positions": ids.numel() if ids is not None else 512,
        "temp_dims": state["temp"].ndim if "temp" in state else 0,
        "language": next(
            (p for p in LANGUAGES if any(n.startswith(p) for n in state if n not in dropped)), ""
        ),
    }


def _projection(parts: Parts) -> str:
    """LAVIS's name for our ``language_proj``, which depends on the language model's family."""
    recipe = parts.recipe
    if isinstance(recipe, Stage1Recipe):
        return "opt_proj"
    if parts.language is not None:
        kind = parts.language.config.get("model_type", "")
    else:
        folder = local_folder(recipe.language.name)
        config = read_config(folder) if folder else {}
        kind = config.get("model_type") or recipe.language.name
    kind = kind.lower()
    return "opt_proj" if "opt" in kind else "t5_proj" if "t5" in kind else "llm_proj"


def _bounded(temperature: float) -> float:
    return min(max(temperature, 0.001), 0.5)


# ---------------------------------------------------------------------------- frozen models


def _read_encoder(state: Mapping[str, Tensor], options: Options, where: str) -> Frozen | None:
    tower = {n.removeprefix(VISION): Lazy.of(t) for n, t in state.items() if n.startswith(VISION)}
    if not tower:
        return None
    heads = run_fields(options.config)[0].get("encoder_heads")
    if any(name.startswith("transformer.resblocks.") for name in tower):
        return _read_openai(tower, heads, where)
    blocks = count_blocks(tower, "blocks.")
    table = eva_to_huggingface(blocks)
    _check_sources({s for made in table.values() for s in made.sources}, tower, where)
    width, patch = tower["cls_token"].shape[-1], tower["patch_embed.proj.weight"].shape[-1]
    config = Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=tower["blocks.0.mlp.fc1.bias"].shape[0],
        num_hidden_layers=blocks,
        num_attention_heads=heads or _heads(width, (88, 64), where),
        image_size=_side(tower["pos_embed"].shape[1]) * patch,
        patch_size=patch,
    ).to_dict()
    frozen = Frozen(config | {"architectures": ["Blip2VisionModel"]}, apply_table(table, tower))
    check_tower(frozen, f"{where}: visual_encoder")
    return frozen


def _read_openai(tower: dict[str, Lazy], heads: int | None, where: str) -> Frozen:
    blocks = count_blocks(tower, "transformer.resblocks.")
    table = openai_to_huggingface(blocks)
    _check_sources({s for made in table.values() for s in made.sources}, tower, where)
    width, patch = tower["class_embedding"].shape[0], tower["conv1.weight"].shape[-1]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=tower["transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
        num_hidden_layers=blocks + 1,
        num_attention_heads=heads or _heads(width, (64,), where),
        image_size=_side(tower["positional_embedding"].shape[0]) * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    ).to_dict()
    frozen = Frozen(config | {"architectures": ["CLIPVisionModel"]}, apply_table(table, tower))
    check_tower(frozen, f"{where}: visual_encoder")
    return frozen


def _check_sources(sources: set[str], tower: dict[str, Lazy], where: str) -> None:
    """Check the names of a tower's weights; their shapes are compared after renaming."""
    every = {VISION + name: (0,) for name in sorted(sources)}
    compare_shapes(every, {VISION + name: (0,) for name in tower}, where)


def _heads(width: int, head_widths: tuple[int, ...], where: str) -> int:
    """The number of heads from their width, which is 88 in ViT-g and 64 in ViT-L."""
    for size in head_widths:
        if width % size == 0:
            return width // size
    raise ValueError(
        f"{where}: the encoder's heads do not show in its weights (width {width}); "
        'give --config FILE.json with {"encoder_heads": N}'
    )


def _side(positions: int) -> int:
    return round((positions - 1) ** 0.5)


def _read_language(
    state: Mapping[str, Tensor], options: Options, where: str
) -> tuple[Frozen | None, list[str]]:
    """The language model in the file, and the names of its computed tables, which are left out."""
    found = {n: t for n, t in state.items() if n.startswith(tuple(LANGUAGES))}
    tables = [name for name in found if name.endswith(ROTARY)]
    weights = {n: t for n, t in found.items() if n not in tables}
    if not weights:
        return None, tables
    if not options.language and not options.recipe:
        raise ValueError(
            f"{where} holds a language model but not its configuration and tokenizer; give "
            "--language FOLDER (a Hugging Face folder with both)"
        )
    name = options.language
    if not name:
        name = recipes.recipe("stage2", options.recipe).language.name
    folder = find_folder("language model", name, weights=False)
    prefix = next(p for p in LANGUAGES if any(n.startswith(p) for n in weights))
    tensors = {n.removeprefix(prefix): Lazy.of(t) for n, t in weights.items()}
    frozen = Frozen(read_config(folder), tensors, folder)
    check_language(frozen, f"{where}: {prefix.rstrip('.')}")
    return frozen, tables


def _own_encoder(parts: Parts) -> dict[str, Tensor]:
    """The image encoder by LAVIS's names; empty where the checkpoint does not hold it."""
    if parts.encoder is None:
        return {}
    blocks = parts.encoder.config["num_hidden_layers"]
    clip = parts.encoder.config.get("model_type") == "clip_vision_model"
    table = huggingface_to_openai(blocks - 1) if clip else huggingface_to_eva(blocks)
    tensors = apply_table(table, parts.encoder.tensors)
    return {VISION + name: tensor.read() for name, tensor in tensors.items()}
