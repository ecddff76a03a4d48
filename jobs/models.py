"""Frozen models and trained checkpoints from their folders: where files become modules."""

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from cluster import checkpoint
from jobs import recipes
from jobs.recipes.train import EncoderChoice, Stage1Recipe, Stage2Recipe
from modeling.blip2 import Stage1, Stage2, WithEncoder, stage2_from_stage1
from modeling.language import DecoderLM, EncoderDecoderLM
from modeling.vision import (
    EvaConfig,
    ImageEncoder,
    build_clip_encoder,
    build_eva_encoder,
    build_timm_encoder,
    eva_config,
    freeze,
)
from modeling.weights import blip2_vision_to_eva, from_bert

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DEC = "[DEC]"
Recipe = TypeVar("Recipe", Stage1Recipe, Stage2Recipe)
Language = DecoderLM | EncoderDecoderLM

# Tokenizing is a small part of a step: its threads are not worth the warning after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class Trained:
    """A checkpoint brought back to life on one device, everything in eval mode.

    Attributes:
        recipe: the resolved recipe it was trained with.
        encoder: the image encoder; a finetuned one with the checkpoint's weights.
        module: ``Stage1`` or ``Stage2`` with the checkpoint's weights.
        tokenizer: BERT's with ``[DEC]`` where the Q-Former reads text (stage 1, VQA), else None.
        language: the frozen language model (stage 2), else None.
    """

    recipe: Any
    step: int
    encoder: ImageEncoder
    module: Stage1 | Stage2
    tokenizer: Any = None
    language: Language | None = None


def load_encoder(choice: EncoderChoice, weights: bool = True) -> ImageEncoder:
    """An image encoder, frozen in ``choice.dtype``, or trainable in fp32 with ``choice.train``.

    ``choice.name`` is ``timm:NAME``, a Hugging Face folder or hub id of CLIP or BLIP-2 (the whole
    model or its vision tower), or the reference's ``eva_vit_g.pth``.

    Args:
        weights: False makes the tower only, on torch's current device, for weights that come from
            a checkpoint (or for counting them).

    Raises:
        ValueError: no such file, folder or model, another architecture, damaged or misshapen
            weights, or an image size that the encoder cannot take.
    """
    name = choice.name
    if name.startswith("timm:"):
        encoder = _timm_encoder(choice, weights)
    elif name.endswith((".pth", ".pt")):
        state = _read_pth(name)
        sizes = eva_config(state, choice.heads)
        encoder = build_eva_encoder(sizes, state=state if weights else None, **_options(choice))
    else:
        encoder = _huggingface_encoder(choice, weights)
    if not choice.train:
        return freeze(encoder, DTYPES[choice.dtype])
    encoder.checkpoint_blocks(choice.checkpoint_blocks)
    return encoder


def _options(choice: EncoderChoice) -> dict[str, Any]:
    """What every builder of an encoder takes."""
    return {
        "image_size": choice.image_size,
        "drop_path": choice.drop_path if choice.train else 0.0,
        "dtype": torch.float32 if choice.train else DTYPES[choice.dtype],
    }


def _timm_encoder(choice: EncoderChoice, weights: bool) -> ImageEncoder:
    name = choice.name.removeprefix("timm:")
    if not weights:
        return build_timm_encoder(name, **_options(choice))
    import timm

    with torch.device("meta"):  # name and image size are checked before anything is fetched
        build_timm_encoder(name, **_options(choice))
    with _readable("encoder", choice.name):
        state = timm.create_model(name, pretrained=True).state_dict()
    return build_timm_encoder(name, state=state, **_options(choice))


def _huggingface_encoder(choice: EncoderChoice, weights: bool) -> ImageEncoder:
    folder = _folder("encoder", choice.name, ("*.json", "*.safetensors"))
    with _readable("encoder", choice.name):
        config = AutoConfig.from_pretrained(folder)
    vision = getattr(config, "vision_config", config)
    if vision.model_type == "clip_vision_model":
        state = read_state(folder) if weights else None
        return build_clip_encoder(vision, state=state, **_options(choice))
    if vision.model_type != "blip_2_vision_model":
        raise ValueError(
            f"encoder {choice.name!r} is a {config.model_type!r} model; give a CLIP or BLIP-2 "
            "folder, eva_vit_g.pth, or timm:NAME"
        )
    if vision.hidden_act != "gelu":
        raise ValueError(
            f"encoder {choice.name!r}: vision_config.hidden_act = {vision.hidden_act!r}; "
            "a BLIP-2 tower with 'gelu' is needed"
        )
    sizes = EvaConfig(
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        vision.intermediate_size,
        vision.patch_size,
        vision.layer_norm_eps,
    )
    state = blip2_vision_to_eva(_read_tower(folder), sizes.blocks) if weights else None
    return build_eva_encoder(sizes, state=state, **_options(choice))


def _read_tower(folder: Path) -> dict[str, Tensor]:
    """The vision tower of a BLIP-2 folder, without reading its language model."""
    prefix = "vision_model."
    state: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                wanted = [key for key in file.keys() if _of_tower(key)]  # noqa: SIM118
                state |= {key.removeprefix(prefix): file.get_tensor(key) for key in wanted}
        except (OSError, SafetensorError) as broken:
            raise ValueError(f"weights {path} cannot be read: {broken}") from broken
    return state


def _of_tower(key: str) -> bool:
    """In a whole BLIP-2 the tower's names have a prefix, in a tower alone they have none."""
    return key.startswith(("vision_model.", "embeddings.", "encoder.layers.", "post_layernorm."))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    return [
        folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))
    ]


def _read_pth(name: str) -> dict[str, Tensor]:
    """A plain state dict from a ``.pth`` file, memory-mapped; nothing in it is executed."""
    path = local_path(name)
    if path is None or not path.is_file():
        raise ValueError(f"encoder {name!r}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as refused:
        raise ValueError(
            f"encoder {name!r} holds more than tensors and was not loaded, since that would run "
            "its code; give a plain state dict of tensors"
        ) from refused
    except (OSError, RuntimeError, EOFError) as broken:
        first = str(broken).strip().splitlines()[0]
        raise ValueError(
            f"encoder {name!r} cannot be read ({first}); the file is damaged or cut short: "
            "fetch it again"
        ) from broken
    plain = isinstance(state, Mapping) and all(isinstance(t, Tensor) for t in state.values())
    if not plain:
        raise ValueError(
            f"encoder {name!r} is no plain state dict; save the tower's tensors by name, alone"
        )
    return dict(state)


def load_language(name: str, dtype: str = "bf16", max_text: int = 32) -> Language:
    """A frozen language model and its tokenizer behind the adapter of its family.

    Raises:
        ValueError: no such folder or hub id, or one without a language model.
    """
    folder = _folder("language model", name, ("*.json", "*.safetensors", "*.model", "*.txt"))
    with _readable("language model", name):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        pair = AutoConfig.from_pretrained(folder).is_encoder_decoder
        family: Any = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
        model = family.from_pretrained(folder, dtype=DTYPES[dtype])
    return (EncoderDecoderLM if pair else DecoderLM)(model, tokenizer, max_text)


def load_bert_tokenizer(name: str) -> Any:
    """BERT's tokenizer with ``[DEC]`` added as its last token (id 30522 for bert-base-uncased).

    Raises:
        ValueError: no such folder or hub id.
    """
    folder = _folder("tokenizer", name, ("*.json", "*.txt"))
    with _readable("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([DEC], special_tokens=True)
    return tokenizer


def tokenise(tokenizer: Any, texts: list[str], max_text: int = 32) -> dict[str, Tensor]:
    """``ids`` and ``mask`` (B, L), int64, padded to the batch's longest, at most ``max_text``."""
    rows = tokenizer(texts, padding=True, truncation=True, max_length=max_text, return_tensors="pt")
    return {"ids": rows["input_ids"], "mask": rows["attention_mask"]}


def text_reader(recipe: Stage1Recipe) -> Any:
    """``tokenise`` with the recipe's tokenizer and length, for the loader."""
    return partial(tokenise, load_bert_tokenizer(recipe.tokenizer), max_text=recipe.max_text)


def load_trained(path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """Load a checkpoint (a run's folder for its latest, or a step's) with its frozen models.

    Raises:
        ValueError: no checkpoint there, a damaged one, or frozen models that are gone.
    """
    found = checkpoint.find(Path(path))
    found.verify()
    recipe = read_recipe(found)
    trained = recipe.encoder.train
    encoder = load_encoder(recipe.encoder, weights=not trained)
    module = Stage1(recipe.model) if recipe.kind == "stage1" else Stage2(recipe.model)
    whole: nn.Module = WithEncoder(encoder, module) if trained else module
    checkpoint.load_weights(whole, found.trainable(), f"checkpoint {found.folder}")
    encoder.checkpoint_blocks(False)
    freeze(encoder, DTYPES[recipe.encoder.dtype])
    parts: dict[str, Any] = {"encoder": encoder.to(device), "module": module.to(device).eval()}
    if recipe.model.qformer.text:
        parts["tokenizer"] = load_bert_tokenizer(recipe.tokenizer)
    if recipe.kind == "stage2":
        choice = recipe.language
        parts["language"] = load_language(choice.name, choice.dtype, choice.max_text)
        parts["language"].to(device)
    return Trained(recipe, found.step, **parts)


def read_recipe(found: checkpoint.Checkpoint) -> Any:
    """The typed recipe in a checkpoint.

    Raises:
        ValueError: it is not one of a training stage.
    """
    kinds = {"stage1": Stage1Recipe, "stage2": Stage2Recipe}
    kind = found.recipe.get("kind")
    if kind not in kinds:
        raise ValueError(f"checkpoint {found.folder}: kind {kind!r} is none of {list(kinds)}")
    recipe = recipes.from_dict(kinds[kind], found.recipe, f"checkpoint {found.folder}")
    return _with_own_models(recipe, found.folder)


def _with_own_models(recipe: Any, folder: Path) -> Any:
    """Names that begin with ``./`` mean folders inside the checkpoint (``jobs/convert.py``)."""
    absolute = folder.absolute()

    def place(name: str) -> str:
        return str(absolute / name) if name.startswith("./") else name

    encoder = replace(recipe.encoder, name=place(recipe.encoder.name))
    recipe = replace(recipe, encoder=encoder, tokenizer=place(recipe.tokenizer))
    if recipe.kind == "stage1":
        return recipe
    return replace(recipe, language=replace(recipe.language, name=place(recipe.language.name)))


def fit(recipe: Recipe) -> Recipe:
    """The recipe with the widths and token ids of the frozen models in their folders.

    A model that is not in a local folder is left alone: the recipe's numbers stand.
    """
    width = _encoder_width(recipe.encoder)
    if isinstance(recipe, Stage1Recipe):
        model = recipe.model
        qformer = replace(model.qformer, encoder_width=width or model.qformer.encoder_width)
        if _local(recipe.tokenizer) is not None:
            tokenizer = load_bert_tokenizer(recipe.tokenizer)
            dec = tokenizer.convert_tokens_to_ids(DEC)
            qformer = replace(qformer, vocab=len(tokenizer))
            model = replace(model, dec_token_id=dec)
        return replace(recipe, model=replace(model, qformer=qformer))
    second = recipe.model
    qformer = replace(second.qformer, encoder_width=width or second.qformer.encoder_width)
    if qformer.text and _local(recipe.tokenizer) is not None:
        qformer = replace(qformer, vocab=len(load_bert_tokenizer(recipe.tokenizer)))
    llm_width = _language_width(recipe.language.name) or second.llm_width
    return replace(recipe, model=replace(second, qformer=qformer, llm_width=llm_width))


def start_from_bert(module: Stage1 | Stage2, name: str) -> None:
    """Give a stage-1 Q-Former BERT's weights; what BERT does not have stays random.

    Raises:
        ValueError: BERT's shapes are not the recipe's.
    """
    state = read_state(_folder("BERT", name, ("*.json", "*.safetensors")))
    layers = module.config.qformer.layers
    own = dict(module.named_parameters())
    with torch.no_grad():
        for key, tensor in from_bert(state, layers).items():
            if key not in own:
                continue
            target = own[key][: len(tensor)] if "word_embeddings" in key else own[key]
            if key == "lm_head.bias":
                target = own[key][: len(tensor)]
            if target.shape != tensor.shape:
                raise ValueError(
                    f"bert {name!r}: {key} has shape {tuple(tensor.shape)}, "
                    f"the recipe's Q-Former {tuple(target.shape)}; give a BERT of its size"
                )
            target.copy_(tensor)


def start_from_stage1(module: Stage2, path: str) -> checkpoint.Checkpoint:
    """Give stage 2 the Q-Former of a stage-1 checkpoint: every key of it, and no other.

    Args:
        path: a run or checkpoint of ours, a LAVIS ``.pth``, or a Hugging Face retrieval folder.

    Raises:
        ValueError: no stage-1 checkpoint there, or one of other sizes.
    """
    found, weights = _stage1_weights(Path(path), module.config.qformer.heads)
    taken = stage2_from_stage1(weights, module.config.qformer.text)
    own = dict(module.named_parameters())
    fresh = {name: p.detach() for name, p in own.items() if name.startswith("language_proj.")}
    checkpoint.load_weights(module, {**taken, **fresh}, f"--init {found.folder}")
    return found


def _stage1_weights(path: Path, heads: int) -> tuple[checkpoint.Checkpoint, dict[str, Tensor]]:
    from jobs import interchange  # it needs this module

    if interchange.is_foreign(path):
        weights = interchange.stage1_weights(path, heads)
        return checkpoint.Checkpoint(path, {"kind": "stage1"}, {"step": 0}), weights
    found = checkpoint.find(path)
    if found.recipe.get("kind") != "stage1":
        raise ValueError(
            f"--init {path}: the checkpoint's kind is {found.recipe.get('kind')!r}; "
            "give one of stage 1"
        )
    found.verify()
    return found, found.trainable()


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder's safetensors files.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for name in names:
        try:
            state |= load_file(folder / name)
        except (OSError, SafetensorError) as broken:
            raise ValueError(f"weights {folder / name} cannot be read: {broken}") from broken
    return state


def _encoder_width(choice: EncoderChoice) -> int | None:
    if choice.name.startswith("timm:"):
        return _timm_width(choice.name.removeprefix("timm:"))
    if choice.name.endswith((".pth", ".pt")):
        return eva_config(_read_pth(choice.name), choice.heads).width
    if _local(choice.name) is None and _is_hub_id(choice.name):
        return None
    config = json.loads((_folder("encoder", choice.name, ()) / "config.json").read_text())
    return config.get("vision_config", config).get("hidden_size")


@cache
def _timm_width(name: str) -> int:
    with torch.device("meta"):
        return build_timm_encoder(name).width


def _language_width(name: str) -> int | None:
    folder = _local(name)
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text())
    return config.get("word_embed_proj_dim") or config.get("d_model") or config.get("hidden_size")


def local_path(name: str) -> Path | None:
    """A model's folder or file, seen from the clone or from here; None where there is none."""
    return next((path for path in (ROOT / name, Path(name)) if path.exists()), None)


def _local(name: str) -> Path | None:
    """The folder behind a name, seen from the clone or from here; None where there is none."""
    for folder in (ROOT / name, Path(name)):
        if folder.is_dir():
            return folder
    return None


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _folder(what: str, name: str, patterns: tuple[str, ...]) -> Path:
    """The local folder of a model, fetched from the hub where ``name`` is a hub id."""
    folder = _local(name)
    if folder is not None:
        return folder
    if not _is_hub_id(name):
        raise ValueError(f"{what} {name!r}: no such folder, and it is no hub id (owner/name)")
    from huggingface_hub import snapshot_download

    with _readable(what, name):
        return Path(snapshot_download(name, allow_patterns=list(patterns)))


@contextmanager
def _readable(what: str, name: str) -> Iterator[None]:
    """Turn a library's complaint about a model that cannot be had into one line that names it."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as broken:
        first = str(broken).strip().splitlines()[0] if str(broken).strip() else repr(broken)
        raise ValueError(
            f"{what} {name!r} cannot be loaded ({first}); give a local Hugging Face folder, "
            "or a hub id that can be reached"
        ) from broken
