"""Typed recipes: one function each, found by kind and name."""

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from importlib import import_module
from typing import Any

_MODULES = {
    "capfilt": ("RECIPES", "jobs.recipes.capfilt"),
    "stage1": ("STAGE1", "jobs.recipes.tinyworld", "jobs.recipes.pretrain"),
    "stage2": (
        "STAGE2",
        "jobs.recipes.tinyworld",
        "jobs.recipes.pretrain",
        "jobs.recipes.instruct",
    ),
    "finetune_caption": ("CAPTION", "jobs.recipes.finetune"),
    "finetune_retrieval": ("RETRIEVAL", "jobs.recipes.finetune"),
    "finetune_vqa": ("VQA", "jobs.recipes.finetune"),
    "llava_stage1": ("STAGE1", "jobs.recipes.llava"),
    "llava_stage2": ("STAGE2", "jobs.recipes.llava"),
    "instruct": ("INSTRUCT", "jobs.recipes.instruct"),
}


def names(kind: str) -> list[str]:
    """Names of all recipes of a kind: of the job in ``jobs/KIND.py``."""
    return sorted(_table(kind))


def recipe(kind: str, name: str) -> Any:
    """Build the recipe ``name`` of ``kind``.

    Raises:
        ValueError: no such kind or name; the message lists those there are.
    """
    table = _table(kind)
    if name not in table:
        raise ValueError(
            f"--recipe {name!r}: no {kind} recipe of that name; choose one of {', '.join(table)}"
        )
    return table[name]()


def as_json(recipe: Any) -> dict[str, Any]:
    """A recipe as JSON will give it back: the inverse of ``from_dict``."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def from_dict(cls: type, data: dict[str, Any], where: str = "recipe") -> Any:
    """Rebuild a frozen dataclass from what ``dataclasses.asdict`` and JSON made of it.

    A field that an older version did not write gets the value that version worked with, where
    ``cls.BEFORE`` names one, else its default.

    Raises:
        ValueError: a field that ``cls`` does not have; the message names it.
    """
    hints = typing.get_type_hints(cls)
    data = getattr(cls, "BEFORE", {}) | data
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(
            f"{where}: unknown field {', '.join(unknown)} for {cls.__name__}; "
            "it was written by another version of this project"
        )
    return cls(**{key: _value(hints[key], item, f"{where}.{key}") for key, item in data.items()})


def _table(kind: str) -> dict[str, Callable[[], Any]]:
    if kind not in _MODULES:
        raise ValueError(f"kind {kind!r}: no such kind of recipe; choose one of {list(_MODULES)}")
    table, *modules = _MODULES[kind]
    return {name: made for m in modules for name, made in getattr(import_module(m), table).items()}


def _value(hint: Any, item: Any, where: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and item is not None:
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(item, dict):
        return from_dict(typing.cast(type, hint), item, where)
    if isinstance(item, list) and typing.get_origin(hint) is tuple:
        return tuple(_value(typing.get_args(hint)[0], part, where) for part in item)
    return item
