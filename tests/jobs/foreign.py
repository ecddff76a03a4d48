"""Small random checkpoints of other people: Hugging Face folders, and LAVIS files made of them.

The LAVIS names are written out by hand here, so that they test the tables of `modeling` instead of
repeating them.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from tests.modeling.language import pieces_tokenizer
from tests.tiny_models import bert_tokenizer

ZOO = Path(__file__).parents[2] / "modeling" / "zoo"
IMAGE, QUERIES, WIDTH, EMBED, LAYERS, HEADS = 28, 3, 32, 16, 4, 4
TOWER = 24
VISION = {
    "hidden_size": TOWER, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": IMAGE, "patch_size": 14,
}  # fmt: skip
QFORMER = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": 48, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def randomise(model: torch.nn.Module, seed: int = 0) -> Any:
    """Weights large enough that every part matters; Hugging Face starts some of them at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.25 * noise)
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.qkv.bias[TOWER : 2 * TOWER] = 0  # EVA's keys have no bias
    return model.eval()


def vicuna_tokenizer(instruct: bool) -> Any:
    """A toy tokenizer as Vicuna's is, or as InstructBLIP makes of it: `</s>` begins a text."""
    words = pieces_tokenizer.tokenizer()
    if instruct:
        words.add_special_tokens({"pad_token": "[PAD]", "bos_token": "</s>", "unk_token": "</s>"})
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="</s> $A", special_tokens=[("</s>", words.eos_token_id)]
        )
    return words


def text_config(family: str, spare: int, instruct: bool = False) -> tuple[Any, Any]:
    """A small OPT, T5 or LLaMA, with `spare` rows beyond the words of its tokenizer."""
    if family == "llama":
        tokenizer = vicuna_tokenizer(instruct)
    else:
        tokenizer = AutoTokenizer.from_pretrained(ZOO / family)
    tokens = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer) + spare}
    if family == "opt":
        end = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
        fields = {
            "hidden_size": 20, "word_embed_proj_dim": 20, "ffn_dim": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 96, "bos_token_id": 2,
            "eos_token_id": end, "dropout": 0.0,
        }  # fmt: skip
    elif family == "llama":
        fields = {
            "hidden_size": 20, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 160,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        }  # fmt: skip
    else:
        fields = {
            "d_model": 20, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0,
            "eos_token_id": 1, "decoder_start_token_id": 0,
        }  # fmt: skip
    return AutoConfig.for_model(family, **fields, **tokens), tokenizer


def generation_model(family: str, instruct: bool = False, spare: int = 1) -> tuple[Any, Any]:
    """`Blip2ForConditionalGeneration` or InstructBLIP's, and the processor that goes with it."""
    text, tokenizer = text_config(family, spare, instruct)
    pictures = BlipImageProcessor(size={"height": IMAGE, "width": IMAGE})
    reader = AutoTokenizer.from_pretrained(ZOO / "bert")
    kinds: Any = (Blip2Config, Blip2ForConditionalGeneration)
    if instruct:
        kinds = (InstructBlipConfig, InstructBlipForConditionalGeneration)
        processor: Any = InstructBlipProcessor(pictures, tokenizer, reader, QUERIES)
    else:
        processor = Blip2Processor(pictures, tokenizer, num_query_tokens=QUERIES)
    config = kinds[0](
        vision_config=VISION,
        qformer_config=QFORMER | ({"vocab_size": len(reader) + 1} if instruct else {}),
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return randomise(kinds[1](config)), processor


def retrieval_model() -> tuple[Any, Any]:
    """`Blip2ForImageTextRetrieval` over the zoo's BERT words, and its processor."""
    reader = AutoTokenizer.from_pretrained(ZOO / "bert")
    reader.add_tokens(["[DEC]"], special_tokens=True)
    words = QFORMER | {"vocab_size": len(reader), "use_qformer_text_input": True}
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=words,
        num_query_tokens=QUERIES,
        image_text_hidden_size=EMBED,
    )
    pictures = BlipImageProcessor(size={"height": IMAGE, "width": IMAGE})
    return randomise(Blip2ForImageTextRetrieval(config)), Blip2Processor(pictures, reader)


def save(folder: Path, model: Any, processor: Any, shard: str = "5GB") -> Path:
    """What `save_pretrained` writes."""
    model.save_pretrained(folder, max_shard_size=shard)
    processor.save_pretrained(folder)
    return folder


def lavis_qformer(state: dict[str, Tensor], text: bool) -> dict[str, Tensor]:
    """The Q-Former of a Hugging Face retrieval (or generation) model under LAVIS's names."""
    out = {"query_tokens": state["query_tokens"]}
    for kind in ("weight", "bias"):
        out[f"ln_vision.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        out[f"Qformer.bert.embeddings.LayerNorm.{kind}"] = state[f"qformer.layernorm.{kind}"]
    out["Qformer.bert.embeddings.position_ids"] = torch.arange(16)[None]
    if text:
        words, places = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
        out[f"Qformer.bert.{words}"], out[f"Qformer.bert.{places}"] = state[words], state[places]
    for i in range(LAYERS):
        ours, theirs = f"qformer.encoder.layer.{i}", f"Qformer.bert.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            for block in ("attention", "crossattention") if i % 2 == 0 else ("attention",):
                for part in ("query", "key", "value"):
                    out[f"{theirs}.{block}.self.{part}.{kind}"] = state[
                        f"{ours}.{block}.attention.{part}.{kind}"
                    ]
                for part in ("dense", "LayerNorm"):
                    name = f"{block}.output.{part}.{kind}"
                    out[f"{theirs}.{name}"] = state[f"{ours}.{name}"]
            for suffix in ("", "_query") if text else ("_query",):
                for form in ("intermediate{}.dense", "output{}.dense", "output{}.LayerNorm"):
                    name = f"{form.format(suffix)}.{kind}"
                    out[f"{theirs}.{name}"] = state[f"{ours}.{name}"]
    return out


def lavis_stage1(state: dict[str, Tensor], seed: int = 3) -> dict[str, Tensor]:
    """A stage-1 checkpoint of LAVIS from a Hugging Face retrieval model's weights."""
    generator = torch.Generator().manual_seed(seed)
    out = lavis_qformer(state, text=True)
    for kind in ("weight", "bias"):
        out[f"vision_proj.{kind}"] = state[f"vision_projection.{kind}"]
        out[f"text_proj.{kind}"] = state[f"text_projection.{kind}"]
        out[f"itm_head.{kind}"] = state[f"itm_head.{kind}"]
    words = out["Qformer.bert.embeddings.word_embeddings.weight"]
    head = "Qformer.cls.predictions"
    out[f"{head}.bias"] = torch.randn(len(words), generator=generator)
    for name in ("dense", "LayerNorm"):
        shape = (WIDTH, WIDTH) if name == "dense" else (WIDTH,)
        out[f"{head}.transform.{name}.weight"] = torch.randn(shape, generator=generator)
        out[f"{head}.transform.{name}.bias"] = torch.randn(WIDTH, generator=generator)
    out[f"{head}.decoder.weight"], out[f"{head}.decoder.bias"] = words, out[f"{head}.bias"]
    out["temp"] = torch.tensor(0.0456)
    return {name: tensor.clone() for name, tensor in out.items()}


def lavis_stage2(state: dict[str, Tensor], projection: str) -> dict[str, Tensor]:
    """A stage-2 checkpoint of LAVIS from a Hugging Face generation model's weights."""
    out = lavis_qformer(state, text=False)
    for kind in ("weight", "bias"):
        out[f"{projection}.{kind}"] = state[f"language_projection.{kind}"]
    return {name: tensor.clone() for name, tensor in out.items()}


def lavis_eva(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower of a Hugging Face model under LAVIS's EVA names."""
    source, out = "vision_model.embeddings.", {}
    out["cls_token"] = state[f"{source}class_embedding"]
    out["pos_embed"] = state[f"{source}position_embedding"]
    for kind in ("weight", "bias"):
        out[f"patch_embed.proj.{kind}"] = state[f"{source}patch_embedding.{kind}"]
    for i in range(VISION["num_hidden_layers"]):
        theirs = f"vision_model.encoder.layers.{i}"
        bias = state[f"{theirs}.self_attn.qkv.bias"]
        out[f"blocks.{i}.attn.q_bias"], out[f"blocks.{i}.attn.v_bias"] = bias[:TOWER], bias[-TOWER:]
        out[f"blocks.{i}.attn.qkv.weight"] = state[f"{theirs}.self_attn.qkv.weight"]
        for kind in ("weight", "bias"):
            out[f"blocks.{i}.attn.proj.{kind}"] = state[f"{theirs}.self_attn.projection.{kind}"]
            for name in ("mlp.fc1", "mlp.fc2"):
                out[f"blocks.{i}.{name}.{kind}"] = state[f"{theirs}.{name}.{kind}"]
            for number in (1, 2):
                out[f"blocks.{i}.norm{number}.{kind}"] = state[
                    f"{theirs}.layer_norm{number}.{kind}"
                ]
    return {f"visual_encoder.{name}": tensor.clone() for name, tensor in out.items()}


def lavis_clip(blocks: int = 2, seed: int = 7) -> dict[str, Tensor]:
    """A random CLIP tower under OpenAI's names, as LAVIS has ViT-L: its last block left out."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (TOWER,), "positional_embedding": (5, TOWER),
        "conv1.weight": (TOWER, 3, 14, 14), "ln_pre.weight": (TOWER,), "ln_pre.bias": (TOWER,),
    }  # fmt: skip
    for i in range(blocks):
        block = f"transformer.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * TOWER, TOWER)}
        shapes |= {f"{block}.attn.in_proj_bias": (3 * TOWER,)}
        linear = {
            "attn.out_proj": (TOWER, TOWER),
            "mlp.c_fc": (48, TOWER),
            "mlp.c_proj": (TOWER, 48),
        }
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.weight": (TOWER,), f"{block}.{name}.bias": (TOWER,)}
    return {
        f"visual_encoder.{name}": 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def save_lavis(path: Path, state: dict[str, Tensor]) -> Path:
    """A LAVIS file with the other entries that its runner saves."""
    config = {"model": {"arch": "blip2"}, "run": {"lr": 1e-4}}
    torch.save({"model": state, "optimizer": {}, "config": config, "epoch": 9}, path)
    return path


def bert_folder(folder: Path) -> BertTokenizer:
    """A BERT tokenizer folder."""
    shutil.copytree(ZOO / "bert", folder)
    return bert_tokenizer(folder)
