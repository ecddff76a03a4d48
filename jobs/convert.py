"""Convert checkpoints between LAVIS, Hugging Face and our own, without loss in either direction.

    python jobs/convert.py --from hf --to native blip2-opt-2.7b runs/opt
    python jobs/convert.py --from lavis --to native blip2_pretrained.pth runs/stage1 --recipe vit-g
    python jobs/convert.py --from native --to hf runs/mine/checkpoints/step_00250000 mine-hf
    python jobs/convert.py --from native --to lavis runs/mine mine.pth

A native folder is a checkpoint at step 0, which ``jobs/evaluate.py --checkpoint``, ``jobs/demo.py``
and ``jobs/stage2.py --init`` take as it is. Weights are streamed, and OUT appears whole or not at
all.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: import from the clone, not from jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import jobs.cli  # noqa: F401  one line, not a traceback, where packages are missing

from typing import Annotated

import tyro

from jobs import cli
from jobs.interchange import formats
from jobs.models.tensors import read_json


@dataclass(frozen=True)
class Arguments:
    """Launch arguments of a conversion.

    Attributes:
        source: format of IN.
        to: format of OUT.
        path: a LAVIS .pth, a Hugging Face folder, or a checkpoint or run of ours.
        out: what to write; must not exist.
        recipe: recipe that says what the weights do not (frozen models, training settings).
        encoder: frozen image encoder, where IN does not hold it: folder, hub id or timm:NAME.
        language: frozen language model, likewise.
        tokenizer: BERT's tokenizer, where IN does not hold it.
        config: JSON file with fields of the Q-Former's configuration, ours or BERT's.
        frozen: write the frozen models that IN holds into a LAVIS file too.
    """

    source: Annotated[formats.Format, tyro.conf.arg(name="from")]
    to: formats.Format
    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    recipe: str = ""
    encoder: str = ""
    language: str = ""
    tokenizer: str = ""
    config: Path | None = None
    frozen: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Read, check, write."""
    given = tyro.cli(Arguments, args=arguments, prog="jobs/convert.py")
    convert(given)
    return 0


def convert(given: Arguments) -> None:
    """Convert one checkpoint and say what was done.

    Raises:
        ValueError: Equal formats, a bad input, or something at OUT; one message with the remedy.
    """
    if given.source == given.to:
        raise ValueError(f"--from {given.source} --to {given.to}: nothing to convert; copy it")
    formats.check_new(given.out)
    config = read_json(given.config, "--config") if given.config else {}
    options = formats.Options(given.recipe, given.encoder, given.language, given.tokenizer, config)
    parts = formats.read(given.source, given.path, options)
    notes = formats.write(parts, given.to, given.out, options, given.frozen)
    for note in (*parts.notes, *notes):
        print(f"note: {note}")
    count = sum(tensor.numel() for tensor in parts.trainable.values())
    print(f"{given.out}: {parts.recipe.kind}, {count:,} trained weights")


if __name__ == "__main__":
    cli.run(main)
