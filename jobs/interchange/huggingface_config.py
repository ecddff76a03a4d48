"""Our configuration of a model from the ``config.json`` of a Hugging Face BLIP-2 folder."""

from pathlib import Path
from typing import Any

from jobs.interchange.infer_config import settle
from jobs.models.missing_parts import why_no_checkpoint
from jobs.models.tensors import Tensors, read_json
from modeling.blip2 import Stage1Config, Stage2Config
from modeling.qformer import QFormerConfig

MODELS = {
    "Blip2ForImageTextRetrieval": "stage1",
    "Blip2ForConditionalGeneration": "stage2",
    "Blip2Model": "stage2",
    "InstructBlipForConditionalGeneration": "stage2",
}
KINDS = ("blip-2", "instructblip")
_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
}
"""Values of the fields that some versions of transformers leave out of a config."""


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a BLIP-2 or InstructBLIP folder.

    Raises:
        ValueError: There is none, or it is the configuration of another model.
    """
    if not (folder / "config.json").is_file():
        reason = why_no_checkpoint(folder) or (
            "has no config.json; give the folder that save_pretrained wrote (a run of ours is "
            "--from native)"
        )
        raise ValueError(f"Hugging Face folder {folder} {reason}")
    config = read_json(folder / "config.json", "config")
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(
            f"{folder} is a folder of a {kind!r} model (config.json, model_type); "
            f"give one of {' or '.join(KINDS)}"
        )
    name = (config.get("architectures") or [None])[0]
    if name is not None and name not in MODELS:
        raise ValueError(
            f"{folder} is a {name} (config.json, architectures); give one of {', '.join(MODELS)}"
        )
    return config


def model_of(
    config: dict[str, Any], tensors: Tensors, more: Tensors, given: dict[str, Any], where: str
) -> Stage1Config | Stage2Config:
    """Our configuration of a Hugging Face model.

    Args:
        config: the folder's ``config.json``.
        tensors: the folder's weights.
        more: tensors of ``isthmus.safetensors``; without them there is no language-model head.
        given: fields that the user states; they must agree with the folder's.
        where: the folder, for messages.

    Raises:
        ValueError: Our Q-Former cannot have a field's value, or ``given`` contradicts it.
    """
    instruct = config["model_type"] == "instructblip"
    name = (config.get("architectures") or [None])[0]
    stage1 = MODELS[name] == "stage1" if name else "itm_head.weight" in tensors
    fields = settle(_with_defaults(config), f"{where}: qformer_config")
    fields["queries"] = config.get("num_query_tokens", 32)
    fields["text"] = instruct or stage1 or bool(fields.get("text"))
    if stage1:
        fields |= {"embed": config.get("image_text_hidden_size", 256)}
    for field, value in given.items():
        if field in fields and fields[field] != value:
            raise ValueError(
                f"--config says {field} = {value!r}, but {where} has {fields[field]!r}; "
                "leave it out: a Hugging Face folder says everything itself"
            )
    embed = fields.pop("embed", None)
    if fields["attention_dropout"] == fields["dropout"]:
        fields["attention_dropout"] = None
    qformer = QFormerConfig(**fields)
    if not stage1:
        width = tensors["language_projection.bias"].shape if _has_projection(tensors) else (0,)
        return Stage2Config(qformer, llm_width=width[0])
    dec = given.get("dec_token_id", qformer.vocab - 1)
    return Stage1Config(qformer, embed, dec_token_id=dec, itg="lm_head.bias" in more)


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of the Q-Former that are needed here; older files hold generation's fields too."""
    own = config.get("qformer_config") or {}
    kept = {name: own.get(name, default) for name, default in _DEFAULTS.items()}
    vision = (config.get("vision_config") or {}).get("hidden_size", 1408)
    text = own.get("use_qformer_text_input", False)
    return kept | {"encoder_hidden_size": vision, "use_qformer_text_input": text}


def _has_projection(tensors: Tensors) -> bool:
    bias = tensors.get("language_projection.bias")
    return bias is not None and len(bias.shape) == 1
