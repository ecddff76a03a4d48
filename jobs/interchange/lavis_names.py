"""LAVIS's names of the parameters that BLIP-2 trains, translated both ways; no file is read here.

A LAVIS checkpoint stores some values twice. The output matrix and bias of its language-model head
repeat the word embeddings and `cls.predictions.bias`, and `position_ids` counts from 0. Such copies
must equal their originals. They are left out when a file is read, and made again when one is
written.
"""

import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from modeling.names import all_names, layer_part

PROJECTIONS = ("opt_proj", "t5_proj", "llm_proj")
FROZEN = ("visual_encoder.", "opt_model.", "t5_model.", "llm_model.")
POSITION_IDS = "Qformer.bert.embeddings.position_ids"
COPIES = {  # copy: its original
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}
_LAYER = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.")
_SELF = re.compile(r"attention\.(query|key|value)$")


def stage_of(names: Mapping[str, object], where: str) -> str:
    """`stage1` or `stage2`, recognised by the heads that only one of them has.

    Raises:
        ValueError: The file has the heads of neither stage, or of both.
    """
    first = any(name == "temp" or name.startswith(("vision_proj.", "itm_head.")) for name in names)
    second = [name for name in PROJECTIONS if any(key.startswith(f"{name}.") for key in names)]
    if first == bool(second) or len(second) > 1:
        found = [*(["vision_proj, itm_head or temp"] if first else []), *second]
        raise ValueError(
            f"{where} has {' and '.join(found) or 'no head of either stage'}: a BLIP-2 checkpoint "
            f"of LAVIS has vision_proj, itm_head and temp (stage 1) or one of {PROJECTIONS} "
            "(stage 2)"
        )
    return "stage1" if first else "stage2"


def lavis_names(names: Mapping[str, object]) -> dict[str, str]:
    """Our names by LAVIS's, for all weights that a checkpoint with these names can hold."""
    rows = Counter(match[1] for name in names if (match := _LAYER.match(name)))
    layers = sum(count > 4 for count in rows.values())  # not those of a single mistyped key
    projection = next(
        (name for name in PROJECTIONS if any(key.startswith(f"{name}.") for key in names)),
        PROJECTIONS[0],
    )
    return {to_lavis(name, projection): name for name in all_names(layers)}


def to_lavis(name: str, projection: str = "opt_proj") -> str:
    """LAVIS's name of one of our stage-1 or stage-2 parameters.

    Args:
        projection: Name of stage 2's `language_proj`: `opt_proj`, `t5_proj` or `llm_proj`.
    """
    whole = {
        "qformer.query_tokens": "query_tokens",
        "temperature": "temp",
        "lm_head.bias": "Qformer.cls.predictions.bias",
    }
    if name in whole:
        return whole[name]
    prefixes = {
        "qformer.norm.": "Qformer.bert.embeddings.LayerNorm.",
        "qformer.word_embeddings.": "Qformer.bert.embeddings.word_embeddings.",
        "qformer.position_embeddings.": "Qformer.bert.embeddings.position_embeddings.",
        "lm_head.dense.": "Qformer.cls.predictions.transform.dense.",
        "lm_head.norm.": "Qformer.cls.predictions.transform.LayerNorm.",
        "language_proj.": f"{projection}.",
    }
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    if not name.startswith("qformer.layers."):
        return name
    _, _, index, block, part, kind = name.split(".")
    place = _SELF.sub(r"self.\1", layer_part(block, part))
    return f"Qformer.bert.encoder.layer.{index}.{place}.{kind}"


def check_copies(state: Mapping[str, Tensor], where: str) -> None:
    """Check that the copies in a checkpoint equal their originals.

    Raises:
        ValueError: A copy differs from its original; the message names both.
    """
    for copy, original in COPIES.items():
        if copy not in state or original not in state:
            continue
        same = state[copy].shape == state[original].shape
        if not (same and torch.equal(state[copy], state[original])):
            raise ValueError(
                f"{where}: {copy} differs from {original}, to which it is tied in BLIP-2; "
                "there is one place for both: set them equal"
            )
    ids = state.get(POSITION_IDS)
    if ids is not None and not torch.equal(ids.flatten().long(), torch.arange(ids.numel())):
        raise ValueError(
            f"{where}: {POSITION_IDS} does not count from 0 to {ids.numel() - 1}; "
            "BLIP-2 has no other positions"
        )


def without_copies(names: Mapping[str, object]) -> list[str]:
    """The names of trained weights: neither copies nor parts of a frozen model."""
    return [
        name
        for name in names
        if name not in COPIES and name != POSITION_IDS and not name.startswith(FROZEN)
    ]


def with_copies(state: Mapping[str, Tensor], positions: int) -> dict[str, Tensor]:
    """Weights by LAVIS's names, with the copies that LAVIS writes.

    Args:
        positions: Length of `position_ids`.
    """
    result = dict(state)
    for copy, original in COPIES.items():
        if "Qformer.cls.predictions.bias" in state and original in state:
            result[copy] = state[original]
    result[POSITION_IDS] = torch.arange(positions)[None]
    return result
