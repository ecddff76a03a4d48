"""LLaVA checkpoints of three formats, read into one common form and written from it.

``native`` is a checkpoint folder of ours, ``hf`` a folder of Hugging Face's LLaVA, ``llava`` one of
the authors' code. Nothing in a file is ever executed.
"""

from pathlib import Path

from jobs.interchange.llava.authors import read_authors, write_authors
from jobs.interchange.llava.huggingface import is_llava, read_folder, write_llava_folder
from jobs.interchange.llava.native import read_checkpoint, write_checkpoint
from jobs.interchange.llava.parts import LlavaParts
from jobs.models.missing_parts import find_checkpoint
from jobs.models.tensors import check_new


def concerns(kind: str, path: str | Path) -> bool:
    """Whether a checkpoint is LLaVA's.

    Args:
        kind: its format.

    Raises:
        ValueError: there is none.
    """
    if kind == "native":
        return find_checkpoint(path).recipe.get("kind") == "llava"
    folder = Path(path)
    whole = kind == "hf" and (folder / "config.json").is_file()
    return kind == "llava" or (whole and is_llava(folder))


def read(kind: str, path: Path, encoder: str = "", base: str = "") -> LlavaParts:
    """Read a checkpoint of LLaVA.

    Args:
        kind: ``native``, ``hf`` or ``llava``.
        encoder: image encoder of a folder of the authors' code, in place of the one it names.
        base: LLaMA to which such a folder's weights are differences.

    Raises:
        ValueError: the checkpoint is damaged, or of another kind.
    """
    if kind == "native":
        return read_checkpoint(path)
    return read_folder(path) if kind == "hf" else read_authors(path, encoder, base)


def write(parts: LlavaParts, kind: str, out: Path) -> None:
    """Write a checkpoint of LLaVA; ``out`` appears when it is complete, or not at all.

    Raises:
        ValueError: ``out`` exists already, or there is no such format.
    """
    check_new(out)
    writers = {"native": write_checkpoint, "hf": write_llava_folder, "llava": write_authors}
    if kind not in writers:
        raise ValueError(f"--to {kind}: this is a checkpoint of LLaVA; give {', '.join(writers)}")
    writers[kind](parts, out)
