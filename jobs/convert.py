"""Convert a checkpoint between the formats of LAVIS, LLaVA, Hugging Face and Isthmus, without loss.

    python jobs/convert.py --from hf --to native blip2-opt-2.7b runs/opt
    python jobs/convert.py --from lavis --to native blip2_pretrained.pth runs/stage1 --recipe vit-g
    python jobs/convert.py --from native --to hf runs/mine/checkpoints/step_00250000 mine-hf
    python jobs/convert.py --from native --to lavis runs/mine mine.pth
    python jobs/convert.py --from hf --to native llava-1.5-7b-hf runs/llava
    python jobs/convert.py --from llava --base llama-7b --to native LLaVA-7b-delta-v0 runs/llava

A native folder is a checkpoint of ours at step 0: ``jobs/evaluate.py --checkpoint``,
``jobs/demo.py`` and ``jobs/stage2.py --init`` load it. Weights are streamed, so that a model may be
larger than the memory. OUT appears when it is complete, or not at all.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from typing import Annotated, Literal

import tyro

from jobs import cli
from jobs.interchange import Options, read, write
from jobs.interchange.llava import formats as llava
from jobs.models.tensors import check_new, read_json

Format = Literal["native", "hf", "lavis", "llava"]


@dataclass(frozen=True)
class Arguments:
    """Convert a checkpoint (IN) between the formats of LAVIS, LLaVA, Hugging Face and Isthmus.

    Attributes:
        source: format of IN: native (a folder of ours), hf (Hugging Face), lavis, or llava (a
            folder of LLaVA's authors).
        to: format of OUT.
        path: file or folder to convert: a LAVIS .pth, a Hugging Face folder, or a checkpoint or
            run of ours.
        out: file or folder to write; it must not exist yet.
        recipe: name of the training recipe with the settings that weights do not show (frozen
            models, optimiser).
        encoder: folder, hub id or timm:NAME of the frozen image encoder, where IN does not hold it.
        language: folder or hub id of the frozen language model, where IN does not hold it.
        tokenizer: folder or hub id of BERT's tokenizer, where IN does not hold it.
        config: JSON file with fields of the Q-Former's configuration, under our names or BERT's.
        base: folder of the LLaMA to which the weights of IN are differences (LLaVA's deltas).
        frozen: write the frozen models that IN holds into OUT too, where that is a LAVIS file.
    """

    source: Annotated[Format, tyro.conf.arg(name="from")]
    to: Format
    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    recipe: str = ""
    encoder: str = ""
    language: str = ""
    tokenizer: str = ""
    config: Path | None = None
    base: str = ""
    frozen: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Read one checkpoint, check it, and write it in another format."""
    given = tyro.cli(Arguments, args=arguments, prog="jobs/convert.py")
    convert(given)
    return 0


def convert(given: Arguments) -> None:
    """Convert one checkpoint and print what was written.

    Raises:
        ValueError: The two formats are equal, the input is damaged or incomplete, or OUT exists;
            the message gives the remedy.
    """
    if given.source == given.to:
        raise ValueError(f"--from {given.source} --to {given.to}: nothing to convert; copy it")
    check_new(given.out)
    if llava.concerns(given.source, given.path):
        talks = llava.read(given.source, given.path, given.encoder, given.base)
        llava.write(talks, given.to, given.out)
        print(f"{given.out}: llava, bridge {talks.recipe.model.bridge}")
        return
    if given.source == "llava" or given.to == "llava":
        raise ValueError(f"--to llava: {given.path} is no checkpoint of LLaVA")
    config = read_json(given.config, "--config") if given.config else {}
    options = Options(given.recipe, given.encoder, given.language, given.tokenizer, config)
    parts = read(given.source, given.path, options)
    notes = write(parts, given.to, given.out, options, given.frozen)
    for note in (*parts.notes, *notes):
        print(f"note: {note}")
    count = sum(tensor.numel() for tensor in parts.trainable.values())
    print(f"{given.out}: {parts.recipe.kind}, {count:,} trained weights")


if __name__ == "__main__":
    cli.run(main)
