"""The options of a CapFilt run, and how a command line becomes them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from cluster.ray.session import RayConfig
from jobs import recipes
from jobs.recipes.capfilt import CapFiltRecipe
from pipeline.capfilt.output import JsonLayout


@dataclass(frozen=True)
class CapFiltArgs:
    """Input, output and recipe of a run, and the Ray that it runs on.

    Attributes:
        input: folder of tars, folder with captions.jsonl, or one .jsonl, .tar or .json of captions.
        output: folder or s3:// URL for shards, records and the gallery.
        recipe: name of a CapFilt recipe; ``--config.*`` changes its fields.
        images: image folder of a .jsonl or .json; default: the folder that the list is in.
        source: the source's name in records and uids; default: the input's name. The names coco,
            vg, cc3m, cc12m, sbu and laion also say whether people wrote the captions.
        json_layout: content of the tars' json members: ``full`` is the whole record, ``lavis`` the
            plain list of captions that the authors' reader of their filtered LAION takes.
        gallery: number of images in gallery.html; 0 writes none. The page appears after the first
            shard and is complete at the end.
        dry_run: print the options as they were understood, and stop.
        ray: the cluster or local Ray, and its model workers.
        config: fields of the recipe; each default is the named recipe's value.
    """

    input: str
    output: str
    recipe: str = "tinyworld"
    images: str | None = None
    source: str | None = None
    json_layout: JsonLayout = "full"
    gallery: int = 60
    dry_run: bool = False
    # The options keep their short names (--workers), and stand in a group of their own.
    ray: Annotated[RayConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RayConfig)
    config: CapFiltRecipe = field(default_factory=lambda: recipes.recipe("capfilt", "tinyworld"))


def parse(arguments: Sequence[str], description: str | None = None) -> CapFiltArgs:
    """The options of a command line, the named recipe's values being the defaults.

    Raises:
        ValueError: no recipe of this name.
        SystemExit: an option is missing, unknown or of another type; or help was asked for.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--recipe", default="tinyworld")
    name = early.parse_known_args(arguments)[0].recipe
    missing: Any = tyro.MISSING
    config = recipes.recipe("capfilt", name)
    default = CapFiltArgs(input=missing, output=missing, recipe=name, config=config)
    return tyro.cli(CapFiltArgs, args=arguments, default=default, description=description)
