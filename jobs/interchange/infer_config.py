"""A model's configuration from the shapes of its weights and from other projects' config files.

Shapes show everything except the number of heads and the dropout. Each size is read from all
weights that show it, and the most frequent value counts, so that a single misshapen weight is
recognised by comparison with the others.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from transformers import BertConfig

from modeling.blip2 import Stage1Config, Stage2Config
from modeling.qformer import QFormerConfig

HEAD_WIDTH = 64
Shapes = Mapping[str, tuple[int, ...]]

# Our names of the fields in configuration files of BERT, LAVIS and Hugging Face.
SYNONYMS = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
    "num_query_tokens": "queries",
    "num_query_token": "queries",
    "query_length": "queries",
    "cross_attention_frequency": "cross_every",
    "cross_attention_freq": "cross_every",
    "encoder_hidden_size": "encoder_width",
    "vision_width": "encoder_width",
    "vocab_size": "vocab",
    "max_position_embeddings": "max_positions",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "eps",
    "initializer_range": "init_std",
    "use_qformer_text_input": "text",
    "qformer_text_input": "text",
    "embed_dim": "embed",
    "image_text_hidden_size": "embed",
    "temp": "temperature",
}
# Fields with the only values that a Q-Former can have; IGNORED: fields without a meaning for it.
ONLY = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "model_type": ("bert", "blip_2_qformer", "instructblip_qformer"),
    "add_cross_attention": (True, False),
}
IGNORED = (frozenset(BertConfig().to_dict()) - SYNONYMS.keys() - ONLY.keys()) | {
    *("torch_dtype", "gradient_checkpointing", "_name_or_path", "name", "kind"),
}
NESTED = ("qformer", "qformer_config", "model")
_QFORMER = {field.name for field in fields(QFormerConfig)}
_STAGE1 = {field.name for field in fields(Stage1Config)} - {"qformer"}
_STAGE2 = {field.name for field in fields(Stage2Config)} - {"qformer"}


def infer_stage1(shapes: Shapes, given: Mapping[str, Any], where: str) -> Stage1Config:
    """Stage 1's configuration from the shapes of its weights.

    Args:
        shapes: Shapes by our parameter names.
        given: Fields of a configuration, ours or BERT's (`settle`), for values that shapes do not
            show.
        where: The file, for messages.

    Raises:
        ValueError: A field is unknown or contradicts the file, or the number of heads is unknown.
    """
    own, seen = settle(given, where), _qformer_sizes(shapes, where)
    stage = {name: own.pop(name) for name in _STAGE1 & own.keys()}
    _refuse(own, _STAGE2, "stage 1", where)
    qformer = _qformer(seen, own, where)
    measured = {
        "embed": _vote(shapes, (f"{m}.{k}" for m in ("vision_proj", "text_proj") for k in _KINDS)),
        "itg": any(name.startswith("lm_head.") for name in shapes),
    }
    _agree(measured, stage, where)
    stage.setdefault("dec_token_id", qformer.vocab - 1)  # [DEC] is the last token added
    return Stage1Config(
        qformer, **{**stage, **{k: v for k, v in measured.items() if v is not None}}
    )


def infer_stage2(shapes: Shapes, given: Mapping[str, Any], where: str) -> Stage2Config:
    """Stage 2's configuration from the shapes of its weights; like `infer_stage1`."""
    own, seen = settle(given, where), _qformer_sizes(shapes, where)
    stage = {name: own.pop(name) for name in _STAGE2 & own.keys()}
    # A stage-1 configuration describes the same Q-Former; its fields for stage 1 are left out.
    own = {name: value for name, value in own.items() if name not in _STAGE1}
    qformer = _qformer(seen, own, where)
    measured = {"llm_width": _vote(shapes, (f"language_proj.{kind}" for kind in _KINDS))}
    _agree(measured, stage, where)
    return Stage2Config(qformer, **(stage | measured))


def settle(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a configuration under our names.

    Args:
        given: Fields, ours or another project's; those under `qformer`, `qformer_config` or
            `model` are taken as if they stood at the top.
        where: The file, for messages.

    Raises:
        ValueError: No Q-Former has such a field, a field is given twice with different values, or
            BLIP-2 cannot have its value.
    """
    result: dict[str, Any] = {}
    for key, value in _flat(given):
        if key in IGNORED:
            continue
        if key in ONLY:
            if value not in ONLY[key]:
                raise ValueError(f"{where}: config field {key} = {value!r}; BLIP-2 has {ONLY[key]}")
            continue
        name = SYNONYMS.get(key, key)
        if name not in _QFORMER | _STAGE1 | _STAGE2:
            raise ValueError(
                f"{where}: config field {key!r} is not one of a Q-Former's; known are "
                f"{', '.join(sorted(_QFORMER | _STAGE1 | _STAGE2))}, and BERT's names for them"
            )
        if name in result and result[name] != value:
            raise ValueError(
                f"{where}: config field {key} = {value!r}, but {name} = {result[name]!r} is said "
                "there too; give one of them"
            )
        result[name] = value
    return result


_KINDS = ("weight", "bias")


def _flat(given: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in given.items():
        if key in NESTED and isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield key, value


def _qformer_sizes(shapes: Shapes, where: str) -> dict[str, Any]:
    """Fields of `QFormerConfig` that the shapes show; a size that nothing shows is absent."""
    numbers = sorted({int(n.split(".")[2]) for n in shapes if n.startswith("qformer.layers.")})
    layers = [f"qformer.layers.{number}" for number in numbers]
    cross = [i for i, name in zip(numbers, layers, strict=True) if _any(shapes, f"{name}.cross_")]
    norms = [f"{name}.self_attn.norm.weight" for name in layers]
    keys = (f"{name}.cross_attn.{kind}.weight" for name in layers for kind in ("key", "value"))
    tokens = shapes.get("qformer.query_tokens", ())
    if len(tokens) != 3:
        raise ValueError(
            f"{where}: query_tokens has shape {tuple(tokens) or 'nothing: it is missing'}; "
            "a Q-Former's are (1, queries, width)"
        )
    seen: dict[str, int | bool | None] = {
        "queries": tokens[1],
        "width": _vote(shapes, ["qformer.norm.weight", *norms]),
        "layers": len(layers),
        "ffn": _vote(shapes, (f"{name}.query_ffn.up.bias" for name in layers)),
        "cross_every": cross[1] - cross[0] if len(cross) > 1 else max(1, len(layers)),
        "encoder_width": _vote(shapes, keys, axis=1),
        "text": "qformer.word_embeddings.weight" in shapes,
        "vocab": _vote(shapes, ["qformer.word_embeddings.weight", "lm_head.bias"]),
        "max_positions": _vote(shapes, ["qformer.position_embeddings.weight"]),
    }
    return {name: value for name, value in seen.items() if value is not None}


def _qformer(seen: dict[str, Any], given: dict[str, Any], where: str) -> QFormerConfig:
    """The Q-Former's configuration from the sizes seen in shapes and from the fields given."""
    given = dict(given)
    if given.get("vocab") == seen.get("vocab", 0) - 1:
        given["vocab"] = seen["vocab"]  # BERT's own, before [DEC] was added
    if not seen["text"]:  # it has no weights that these two fields could describe
        given = {name: v for name, v in given.items() if name not in ("vocab", "max_positions")}
        given.pop("text", None) if given.get("text") is True else None
    _agree(seen, given, where)
    values = given | seen
    width = values.get("width", 0)
    if "heads" not in values and width % HEAD_WIDTH:
        raise ValueError(
            f"{where}: the number of heads does not show in the weights, and the width {width} is "
            f"no multiple of {HEAD_WIDTH}; give --config FILE.json with num_attention_heads"
        )
    values.setdefault("heads", width // HEAD_WIDTH)
    return QFormerConfig(**values)


def _agree(seen: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    for name, value in given.items():
        if seen.get(name) is not None and seen[name] != value:
            raise ValueError(
                f"{where}: the config says {name} = {value!r}, but the weights have "
                f"{seen[name]!r}; correct the field or leave it out"
            )


def _refuse(given: Mapping[str, Any], others: set[str], stage: str, where: str) -> None:
    wrong = sorted(given.keys() & others)
    if wrong:
        raise ValueError(f"{where}: config field {wrong[0]!r} is not one of {stage}; leave it out")


def _vote(shapes: Shapes, names: Iterable[str], axis: int = 0) -> int | None:
    """The most frequent size of an axis, over those of the named weights that there are."""
    sizes = Counter(shapes[n][axis] for n in names if n in shapes and len(shapes[n]) > axis)
    return sizes.most_common(1)[0][0] if sizes else None


def _any(shapes: Shapes, prefix: str) -> bool:
    return sum(name.startswith(prefix) for name in shapes) > 4
