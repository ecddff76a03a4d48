"""Checkpoints of both stages with small random frozen models, in the files of real ones."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from cluster import checkpoint
from jobs import recipes
from jobs.models.sizes import with_model_sizes
from jobs.recipes.schema import EncoderChoice
from modeling.blip2 import Stage1, Stage2
from tests.tiny_models import save_clip

ZOO = Path(__file__).parents[2] / "modeling" / "zoo"
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]


def save_language(folder: Path, family: str) -> Path:
    """A random T5 or OPT under the zoo's tokenizer, its weights spread so that texts vary."""
    tokenizer = AutoTokenizer.from_pretrained(ZOO / family)
    torch.manual_seed(2)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    vocab = len(tokenizer)
    if family == "t5":
        config = T5Config(
            vocab_size=vocab, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            decoder_start_token_id=tokenizer.pad_token_id, **ids,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    else:
        config = OPTConfig(
            vocab_size=vocab, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, **ids,
        )  # fmt: skip
        model = OPTForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_stage1(root: Path) -> Path:
    """A stage-1 run with one checkpoint."""
    encoder = EncoderChoice(str(save_clip(root / "clip")), image_size=32)
    base = replace(recipes.recipe("stage1", "tinyworld"), encoder=encoder)
    recipe = with_model_sizes(replace(base, model=_small(base.model)))
    torch.manual_seed(3)
    return _publish(root / "stage1", Stage1(recipe.model), recipe)


def save_stage2(root: Path, family: str) -> Path:
    """A stage-2 run with one checkpoint."""
    encoder = EncoderChoice(str(save_clip(root / "clip")), image_size=32)
    base = recipes.recipe("stage2", f"tinyworld-{family}")
    language = replace(base.language, name=str(save_language(root / family, family)))
    base = replace(base, encoder=encoder, language=language, model=_small(base.model))
    recipe = with_model_sizes(base)
    torch.manual_seed(4)
    return _publish(root / f"stage2-{family}", Stage2(recipe.model), recipe)


def _small(model):
    return replace(
        model, qformer=replace(model.qformer, width=32, layers=2, heads=4, ffn=64, queries=4)
    )


def _publish(run: Path, module, recipe) -> Path:
    weights = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    with torch.no_grad():
        weights = {k: v + 0.1 * torch.randn_like(v) for k, v in weights.items()}
    final = run / checkpoint.FOLDER / "step_00000003"
    files = {checkpoint.TRAINABLE: weights, checkpoint.OPTIMIZER: {}}
    final.mkdir(parents=True)
    checkpoint.fill(final, files, asdict(recipe), {"step": 3, "updates": 3})
    return run


def save_benchmark(root: Path, split: str = "test") -> Path:
    """Six one-colour images with captions, VQAv2 and GQA questions in the documented folders."""
    images, annotations = root / "images" / split, root / "annotations"
    images.mkdir(parents=True)
    annotations.mkdir()
    coco: dict = {"images": [], "annotations": []}
    questions, notes, gqa = [], [], {}
    for n, colour in enumerate(COLOURS):
        name = f"{n:06}.jpg"
        Image.new("RGB", (40, 30), colour).save(images / name)
        coco["images"].append({"id": n, "file_name": name})
        for text in (f"a {colour} square.", f"one {colour} square on a plain ground"):
            coco["annotations"].append({"image_id": n, "caption": text})
        for kind, answer in (("colour", colour), ("count", "1")):
            key = 10 * n + len(kind)
            questions.append({"question_id": key, "image_id": n, "question": f"What {kind}?"})
            answers = [{"answer": answer, "answer_id": i} for i in range(9)] + [{"answer": "x"}]
            note = {"question_id": key, "question_type": kind, "answer_type": "other"}
            notes.append(note | {"answers": answers})
        gqa[f"g{n}"] = {"imageId": f"{n:08}", "question": "Is it a square?", "answer": "yes"}
    for file, content in (
        (f"captions_{split}.json", coco),
        (f"vqa_{split}_questions.json", {"questions": questions}),
        (f"vqa_{split}_annotations.json", {"annotations": notes}),
        (f"gqa_{split}_questions.json", gqa),
    ):
        (annotations / file).write_text(json.dumps(content))
    return root
