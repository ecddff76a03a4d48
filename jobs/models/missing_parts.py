"""Checks that a model's folder is complete. One sentence names the missing part and its origin.

Users give folders that hold only a part of a model: weights without a tokenizer, a tokenizer
without its configuration, a LoRA adapter without its base model, a hub id in place of a folder.
"""

import json
from pathlib import Path

from cluster import checkpoint

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
ADAPTER = "adapter_config.json"
# Patterns of files each of which alone is a whole tokenizer, except for its special tokens.
_WORDS = ("tokenizer.json", "*.model", "*.tiktoken", "tekken.json")


def is_hub_id(name: str) -> bool:
    """Whether a name could be a hub id: ``owner/name``."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def check_model(what: str, folder: Path) -> None:
    """Check that a folder holds a whole model: configuration and weights.

    Args:
        what: the model's part in the job (``encoder``), for the message.

    Raises:
        ValueError: A part is missing; the message names it and where it comes from.
    """
    lacking = _of_model(folder)
    if lacking:
        raise ValueError(f"{what} {folder} {lacking}")


def check_tokenizer(what: str, folder: Path) -> None:
    """Check that a folder holds a whole tokenizer.

    Args:
        what: the tokenizer's part in the job, for the message.

    Raises:
        ValueError: A part is missing; the message names it and where it comes from.
    """
    if any(any(folder.glob(pattern)) for pattern in _WORDS):
        return
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return
    if not (folder / "vocab.txt").is_file():
        raise ValueError(
            f"{what}: {folder} has no tokenizer files (tokenizer.json); save the processor there "
            "too: AutoProcessor.from_pretrained(MODEL).save_pretrained(FOLDER), or AutoTokenizer "
            "for a language model alone"
        )
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "config.json")):
        raise ValueError(
            f"{what}: {folder} has vocab.txt, but neither tokenizer.json nor "
            "tokenizer_config.json, which say how text is cut and whether it is lower-cased; copy "
            "them from where vocab.txt comes from, or make them (for BERT: "
            "BertTokenizer.from_pretrained(FOLDER).save_pretrained(NEW))"
        )


def find_checkpoint(path: str | Path) -> checkpoint.Checkpoint:
    """The checkpoint of ours behind a path or ``s3://`` URL.

    Raises:
        ValueError: There is none; the message says what is there instead, and what to do with it.
    """
    try:
        return checkpoint.find(path)
    except ValueError as none:
        reason = why_no_checkpoint(path)
        if not reason:
            raise
        raise ValueError(f"checkpoint {path}: no checkpoint there: it {reason}") from none


def why_no_checkpoint(path: str | Path) -> str:
    """The reason why a path holds no trained model, as the end of a sentence.

    Returns:
        "" where the path looks like a run of ours.
    """
    folder = Path(path)
    inside = not folder.exists() and checkpoint.FOLDER in folder.parts  # a step that is gone
    if inside or str(path).startswith("s3:/") or (folder / checkpoint.STATE).is_file():
        return ""
    if not folder.exists():
        hub = f"; if it is a hub id, fetch it first: hf download {path} --local-dir FOLDER"
        return "is no folder here" + (hub if is_hub_id(str(path)) else "; check the path")
    if folder.is_file():
        return _of_file(folder)
    if (folder / checkpoint.TRAINABLE).is_file() or (folder / checkpoint.RECIPE).is_file():
        return (
            f"has no {checkpoint.STATE}, which says what the checkpoint's files must be; copy the "
            "step's folder again, with all of its files"
        )
    if any(folder.glob("*.json")) or any(folder.glob("*.safetensors")):
        whole = (
            "is a Hugging Face folder and no run of ours; jobs/convert.py takes one as --from hf"
        )
        return _of_model(folder) or whole
    return ""


def _of_file(path: Path) -> str:
    if path.suffix in (".pth", ".pt"):
        return (
            "is a file of torch; convert it first: python jobs/convert.py --from lavis --to native "
            "FILE OUT --recipe NAME"
        )
    return "is a single file; give the folder it lies in, with its configuration and tokenizer"


def _of_model(folder: Path) -> str:
    """The part that a Hugging Face folder lacks, as the end of a sentence; "" where it has
    configuration and weights.
    """
    weights = [pattern for pattern in WEIGHTS if any(folder.glob(pattern))]
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        return (
            f"is a PEFT adapter ({ADAPTER}): it holds what was added to {_base(folder)}, not "
            "that model; merge the two first (peft: PeftModel.from_pretrained(BASE, ADAPTER)"
            ".merge_and_unload().save_pretrained(FOLDER)), save the tokenizer there too, and give "
            "that folder"
        )
    if not (folder / "config.json").is_file():
        held = "weights" if weights else "a tokenizer" if any(folder.glob("token*")) else ""
        return (
            f"has no config.json{f', only {held}' if held else ''}; give the folder that "
            "save_pretrained wrote, or copy config.json from where the weights come from"
        )
    if not weights and not any(folder.glob("*.gguf")):
        return (
            "has a config.json but no weights (model.safetensors, or its shards and their index); "
            "fetch the whole folder"
        )
    if not weights:
        return (
            "has its weights in GGUF only; write them out as safetensors first "
            "(docs/language-models.md)"
        )
    return ""


def _base(folder: Path) -> str:
    """The name of the model that an adapter belongs to."""
    try:
        named = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        return str(named["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its base model"
