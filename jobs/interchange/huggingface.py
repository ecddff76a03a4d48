"""Hugging Face folders of BLIP-2 and InstructBLIP, read and written.

Parts of a checkpoint that Hugging Face has no place for lie beside the model, in files that
``from_pretrained`` does not read:

    isthmus.json          recipe, and the record that the conversion back to LAVIS needs
    isthmus.safetensors   temperature and language-model head of stage 1
    isthmus/              original small files of the frozen models (configurations, tokenizers)
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.storage.local import sync_path
from jobs import recipes
from jobs.interchange.huggingface_config import model_of, read_config
from jobs.interchange.huggingface_folder import prepare_folder
from jobs.interchange.image_token import add_rows, strip_rows
from jobs.interchange.infer_config import settle
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
from jobs.models import image_processors
from jobs.models.tensors import (
    Lazy,
    Tensors,
    copy_small,
    open_folder,
    open_safetensors,
    published,
    read_json,
    shapes,
    write_folder,
    write_json,
)
from jobs.models.trained import Recipe
from jobs.recipes.schema import Stage1Recipe
from modeling.blip2 import Stage1Config, Stage2Config
from modeling.names import compare_shapes, huggingface_names

NOTE, MORE, FILES = "isthmus.json", "isthmus.safetensors", "isthmus"
# Tables of positions 0, 1, 2, ... that older versions of transformers saved.
COUNTERS = ("embeddings.position_ids", "qformer.embeddings.position_ids")
TOWER, LANGUAGE, NORM = "vision_model.", "language_model.", "vision_model.post_layernorm."


@dataclass(frozen=True)
class _Opened:
    """A Hugging Face folder whose tensors are still in their files.

    Attributes:
        folder: the folder.
        config: its ``config.json``.
        tensors: its weights, without the counters.
        counters: the tables of positions among its weights.
        note: content of ``isthmus.json``; empty where there is none.
        more: tensors of ``isthmus.safetensors``; empty where there is none.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Tensors
    counters: Tensors
    note: dict[str, Any]
    more: Tensors

    @property
    def where(self) -> str:
        """The folder's name in messages."""
        return f"Hugging Face folder {self.folder}"


def is_huggingface(path: Path) -> bool:
    """Whether a path is a Hugging Face folder rather than a checkpoint of ours."""
    return (path / "config.json").is_file() and not (path / "state.json").is_file()


def read_trained(folder: Path) -> tuple[Stage1Config | Stage2Config, dict[str, Tensor]]:
    """Read the trained weights of a BLIP-2 or InstructBLIP folder under our names, and their
    configuration. The frozen models beside them are not looked at.

    Raises:
        ValueError: There is no such folder, it holds another model, or a trained weight is
            missing, unknown or misshapen.
    """
    return _trained(_open(folder), {})


def read_huggingface(folder: Path, options: Options | None = None) -> Parts:
    """Read a BLIP-2 or InstructBLIP folder; the weights of its frozen models stay in their files.

    Raises:
        ValueError: There is no such folder, it holds another model, or a weight is missing,
            unknown or misshapen.
    """
    options = options or Options()
    opened = _open(folder)
    config, tensors, note, where = opened.config, opened.tensors, opened.note, opened.where
    model, trainable = _trained(opened, settle(run_fields(options.config)[1], "--config"))
    encoder = _encoder(config, tensors, folder, where)
    language = None
    if isinstance(model, Stage2Config):
        language = _language(config, tensors, folder, note.get("rows", 0), where)
    else:
        _check_no_more(tensors, where)
    tokenizer = _tokenizer(folder, isinstance(model, Stage1Config))
    recipe = build_recipe(model, options, encoder, language, tokenizer is not None)
    processor = image_processors.read_huggingface(folder)
    if processor is not None:
        pixels = processor.checked().at(recipe.encoder.image_size)
        recipe = replace(recipe, encoder=replace(recipe.encoder, pixels=pixels))
    if note.get("recipe"):
        recipe = _noted_recipe(note["recipe"], recipe, f"sidecar {folder / NOTE}")
    return Parts(
        recipe,
        trainable,
        encoder,
        language,
        tokenizer,
        note.get("lavis"),
        folder,
        {name: list(lazy.shape) for name, lazy in opened.counters.items()},
        notes=_notes(recipe),
    )


def write_huggingface(parts: Parts, out: Path, options: Options | None = None) -> list[str]:
    """Write a folder that transformers' models and processors load without further work.

    Stage 1 becomes ``Blip2ForImageTextRetrieval``, stage 2 ``Blip2ForConditionalGeneration``, and
    one whose Q-Former reads text ``InstructBlipForConditionalGeneration``. A folder that came from
    Hugging Face gets its own configuration and files back, byte for byte.

    Returns:
        Notes for the user, one line each.

    Raises:
        ValueError: ``out`` exists already, a frozen model cannot be found, or Hugging Face's
            BLIP-2 has no place for it.
    """
    options = options or Options()
    with published(out) as aside:
        aside.mkdir()
        rows = 0
        language = parts.language
        if parts.huggingface is not None:
            copy_small(parts.huggingface, aside, skip=(NOTE, FILES))
            config = read_json(aside / "config.json", "config")
            rows = _rows(config, language)
        else:
            config, rows = prepare_folder(parts, options, aside)
        if rows:
            assert language is not None
            language = add_rows(language, rows)
        write_folder(aside, _named(parts, config, language), out.name)
        _write_sidecar(parts, aside, rows)
    return []


# ------------------------------------------------------------------------------------ reading


def _open(folder: Path) -> _Opened:
    config, tensors = read_config(folder), open_folder(folder)
    counters = {name: tensors.pop(name) for name in COUNTERS if name in tensors}
    note = read_json(folder / NOTE, "sidecar") if (folder / NOTE).is_file() else {}
    more = open_safetensors(folder / MORE) if note and (folder / MORE).is_file() else {}
    opened = _Opened(folder, config, tensors, counters, note, more)
    for name, lazy in counters.items():
        ids = lazy.read().flatten()
        if not torch.equal(ids, torch.arange(ids.numel())):
            raise ValueError(
                f"{opened.where}: {name} does not count from 0; BLIP-2 has no other positions"
            )
    return opened


def _trained(
    opened: _Opened, given: dict[str, Any]
) -> tuple[Stage1Config | Stage2Config, dict[str, Tensor]]:
    """The configuration, and the trained weights under our names, checked against it.

    Args:
        given: fields of the configuration that the user states.
    """
    tensors, more, where = opened.tensors, opened.more, opened.where
    model = model_of(opened.config, tensors, more, given, where)
    instruct = opened.config["model_type"] == "instructblip"
    expected = module_shapes(model)
    names = huggingface_names(expected, instruct)
    frozen = (TOWER, LANGUAGE)
    found = {
        name: lazy.shape
        for name, lazy in tensors.items()
        if name.startswith(NORM) or not name.startswith(frozen)
    }
    compare_shapes({names[n]: shape for n, shape in expected.items() if n in names}, found, where)
    check_dtypes({name: tensors[name] for name in found}, where)
    trainable = {ours: tensors[theirs].read() for ours, theirs in names.items()}
    if isinstance(model, Stage1Config):
        homeless = {name: shape for name, shape in expected.items() if name not in names}
        if more:
            compare_shapes(homeless, shapes(more), f"{where}: {MORE}")
            trainable |= {name: lazy.read() for name, lazy in more.items()}
        else:
            trainable["temperature"] = torch.tensor([model.temperature])
    return model, trainable


def _encoder(config: dict[str, Any], tensors: Tensors, folder: Path, where: str) -> Frozen:
    from transformers import Blip2VisionConfig

    own = {n: v for n, v in (config.get("vision_config") or {}).items() if n != "model_type"}
    resolved = Blip2VisionConfig(**own).to_dict()
    resolved |= {"model_type": "blip_2_vision_model", "architectures": ["Blip2VisionModel"]}
    files = folder / FILES / "encoder"
    if (files / "config.json").is_file():
        resolved = read_json(files / "config.json", "config")
    weights = {n.removeprefix(TOWER): t for n, t in tensors.items() if n.startswith(TOWER)}
    frozen = Frozen(resolved, weights, files if files.is_dir() else None)
    check_tower(frozen, f"{where}: vision_model")
    return frozen


def _language(
    config: dict[str, Any], tensors: Tensors, folder: Path, rows: int, where: str
) -> Frozen:
    own = {"model_type": "opt"} | (config.get("text_config") or {})
    weights = {n.removeprefix(LANGUAGE): t for n, t in tensors.items() if n.startswith(LANGUAGE)}
    frozen = Frozen(own, weights, folder)
    check_language(frozen, f"{where}: language_model")
    files = folder / FILES / "language"
    if rows:
        frozen = strip_rows(frozen, rows)
    if (files / "config.json").is_file():
        frozen = replace(frozen, config=read_json(files / "config.json", "config"), files=files)
    return frozen


def _tokenizer(folder: Path, stage1: bool) -> Path | None:
    """The folder of the Q-Former's tokenizer; None where there is none."""
    for place in (folder / FILES / "tokenizer", folder / "qformer_tokenizer"):
        if place.is_dir():
            return place
    return folder if stage1 and (folder / "tokenizer_config.json").is_file() else None


def _notes(recipe: Recipe) -> tuple[str, ...]:
    """A note for the user where the folder lacks the Q-Former's tokenizer."""
    if not recipe.model.qformer.text or recipe.tokenizer.startswith("./"):
        return ()
    return (
        f"the Q-Former's tokenizer is not in the folder: {recipe.tokenizer} is taken for it; "
        "--tokenizer FOLDER names another",
    )


def _noted_recipe(noted: dict[str, Any], plain: Recipe, where: str) -> Recipe:
    """The sidecar's recipe with the frozen models that are in the folder, as ``plain`` names
    them.
    """
    recipe: Recipe = recipes.from_dict(type(plain), noted, where)
    # An encoder that was finetuned comes back as a frozen one.
    recipe = replace(recipe, encoder=replace(plain.encoder, dtype=recipe.encoder.dtype))
    if plain.tokenizer.startswith("./"):
        recipe = replace(recipe, tokenizer=plain.tokenizer)
    if isinstance(recipe, Stage1Recipe):
        return recipe
    return replace(recipe, language=replace(recipe.language, name="./language"))


def _check_no_more(tensors: Tensors, where: str) -> None:
    lost = [name for name in tensors if name.startswith(LANGUAGE)]
    if lost:
        raise ValueError(f"{where} has unknown {lost[0]}: a retrieval model has no language model")


# ------------------------------------------------------------------------------------ writing


def _named(parts: Parts, config: dict[str, Any], language: Frozen | None) -> Tensors:
    """All weights by Hugging Face's names."""
    instruct = config["model_type"] == "instructblip"
    names = huggingface_names(parts.trainable, instruct)
    result = {theirs: Lazy.of(parts.trainable[ours]) for ours, theirs in names.items()}
    encoder = parts.encoder
    assert encoder is not None
    for name, lazy in encoder.tensors.items():
        if not name.startswith("post_layernorm.") and name != "embeddings.position_ids":
            result[TOWER + name] = lazy
    for name, shape in parts.counters.items():
        result[name] = Lazy.of(torch.arange(torch.Size(shape).numel()).reshape(shape))
    if language is not None:
        result |= {LANGUAGE + name: lazy for name, lazy in language.tensors.items()}
    return result


def _rows(config: dict[str, Any], language: Frozen | None) -> int:
    """How many more words the configuration has than the language model."""
    if language is None:
        return 0
    theirs = config.get("text_config", {}).get("vocab_size")
    own = language.config.get("vocab_size")
    return theirs - own if theirs is not None and own is not None else 0


def _write_sidecar(parts: Parts, folder: Path, rows: int) -> None:
    names = huggingface_names(parts.trainable)
    more = {name: t.contiguous() for name, t in parts.trainable.items() if name not in names}
    if more:
        save_file(more, folder / MORE, metadata={"format": "pt"})
        sync_path(folder / MORE)
    note = {"format": 1, "recipe": asdict(parts.recipe), "rows": rows, "lavis": parts.lavis}
    write_json(folder / NOTE, note)
    for name, frozen in (("encoder", parts.encoder), ("language", parts.language)):
        if frozen is None:
            continue
        place = folder / FILES / name
        if frozen.files is not None and frozen.files != parts.huggingface:
            copy_small(frozen.files, place)
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "config.json", frozen.config)
    if parts.tokenizer is not None and parts.huggingface is None:
        copy_small(parts.tokenizer, folder / FILES / "tokenizer")
