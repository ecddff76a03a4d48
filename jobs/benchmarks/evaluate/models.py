"""Checkpoints, images and texts of ``benchmark.py evaluate``.

A checkpoint is a folder of ours with random weights, whose frozen models lie beside it in Hugging
Face's format, so that the benchmark loads it as any other one. The image encoder is an EVA tower,
the only one that Hugging Face's BLIP-2 has a place for.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2VisionConfig,
    Blip2VisionModel,
    OPTConfig,
)

from cluster import checkpoint
from jobs import recipes
from jobs.benchmarks.train_contenders import (
    flan_t5,
    opt_base,
    opt_tiny,
    t5_base,
    t5_tiny,
    tokenizer,
)
from jobs.models.sizes import with_model_sizes
from jobs.models.trained import new_module
from jobs.recipes.schema import EncoderChoice
from modeling.qformer import QFormerConfig
from modeling.vision.encoders import EvaConfig

ZOO = Path(__file__).parents[3] / "modeling" / "zoo"
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")


@dataclass(frozen=True)
class Size:
    """The models of one size.

    Attributes:
        encoder: sizes of the image encoder.
        image: side in pixels of the images that it is shown.
        qformer: sizes of the Q-Former that the recipe does not have; None: the recipe's own.
        languages: configurations of an OPT and a T5; None: the zoo's models, with their weights.
    """

    encoder: EvaConfig
    image: int
    qformer: QFormerConfig | None
    languages: dict[str, Any] | None


def _small_opt() -> OPTConfig:
    return OPTConfig(
        vocab_size=2560, hidden_size=512, word_embed_proj_dim=512, ffn_dim=2048,
        num_hidden_layers=6, num_attention_heads=8,
    )  # fmt: skip


def size(name: str) -> Size:
    """The models of a size: ``tiny`` (for tests), ``tinyworld``, ``small`` or ``base``."""
    if name == "tiny":
        qformer = QFormerConfig(width=32, layers=2, heads=4, ffn=64, queries=4)
        languages = {"opt": opt_tiny(), "t5": t5_tiny()}
        return Size(EvaConfig(width=48, blocks=2, heads=4, mlp=96), 28, qformer, languages)
    if name == "tinyworld":
        return Size(EvaConfig(width=128, blocks=4, heads=4, mlp=512, patch=8), 64, None, None)
    if name == "small":
        t5 = flan_t5(d_model=512, d_ff=1024, num_layers=6, num_heads=8, vocab_size=2560)
        qformer = QFormerConfig(width=384, layers=6, heads=6, ffn=1536)
        tower = EvaConfig(width=384, blocks=8, heads=6, mlp=1536)
        return Size(tower, 140, qformer, {"opt": _small_opt(), "t5": t5})
    tower = EvaConfig(width=768, blocks=12, heads=12, mlp=3072, patch=16)
    return Size(tower, 224, QFormerConfig(), {"opt": opt_base(), "t5": t5_base()})


def save_writer(name: str, family: str, folder: Path) -> Path:
    """A stage-2 checkpoint of a size with an OPT or a T5; returns its folder."""
    models = size(name)
    recipe = recipes.recipe("stage2", f"tinyworld-{family}")
    if models.languages is not None:
        language = _save_language(models.languages[family], family, folder / "language")
        recipe = replace(recipe, language=replace(recipe.language, name=str(language)))
    qformer = models.qformer and replace(models.qformer, text=False)
    return _save(replace(recipe, encoder=_save_encoder(models, folder)), qformer, folder)


def save_embedder(name: str, folder: Path) -> Path:
    """A stage-1 checkpoint of a size, with the zoo's BERT tokenizer; returns its folder."""
    models = size(name)
    recipe = recipes.recipe("stage1", "tinyworld")
    return _save(replace(recipe, encoder=_save_encoder(models, folder)), models.qformer, folder)


def _save(recipe: Any, qformer: QFormerConfig | None, folder: Path) -> Path:
    if qformer is not None:
        recipe = replace(recipe, model=replace(recipe.model, qformer=qformer))
    recipe = with_model_sizes(recipe)
    torch.manual_seed(0)
    module = _spread(new_module(recipe.model))
    weights = {name: tensor.detach() for name, tensor in module.named_parameters()}
    out = folder / "checkpoint"
    out.mkdir()
    checkpoint.fill(out, {checkpoint.TRAINABLE: weights}, asdict(recipe), {"step": 0, "updates": 0})
    return out


def _save_encoder(models: Size, folder: Path) -> EncoderChoice:
    sizes = models.encoder
    config = Blip2VisionConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp,
        patch_size=sizes.patch,
        image_size=models.image,
    )
    torch.manual_seed(1)
    tower = _spread(Blip2VisionModel(config))
    for layer in tower.encoder.layers:
        nn.init.zeros_(layer.self_attn.qkv.bias[sizes.width : 2 * sizes.width])  # EVA's have none
    tower.save_pretrained(folder / "encoder")
    return EncoderChoice(str(folder / "encoder"), image_size=models.image)


def _save_language(config: Any, family: str, folder: Path) -> Path:
    torch.manual_seed(2)
    kind: Any = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    model = _spread(kind.from_config(config))
    model.save_pretrained(folder)
    tokenizer(config.vocab_size, family).save_pretrained(folder)
    return folder


@torch.no_grad()
def _spread(module: Any) -> Any:
    """The module with weights so large that another image or prompt makes another text."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return module.eval()


# ------------------------------------------------------------------------- images and texts


def save_images(count: int, folder: Path, side: int = 160) -> list[Path]:
    """JPEG files of coloured noise in large patches."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    files = []
    for number in range(count):
        patches = torch.randint(0, 256, (5, 5, 3), dtype=torch.uint8, generator=generator)
        file = folder / f"{number:06}.jpg"
        Image.fromarray(patches.numpy()).resize((side, side)).save(file)
        files.append(file)
    return files


def questions(name: str, count: int) -> list[str]:
    """Questions of 4 to 12 words that the size's tokenizers know."""
    draw = random.Random(4)
    if name == "tinyworld":
        asked = ("What color is the {}?", "Is there a {} {}?", "How many shapes are there?",
                 "What is to the left of the {} {}?", "Is the {} {} above the {} {}?")  # fmt: skip
        return [_filled(draw, draw.choice(asked)) for _ in range(count)]
    return [_words(draw, draw.randint(4, 12)) for _ in range(count)]


def captions(count: int) -> list[str]:
    """Captions in the words of the zoo's BERT tokenizer, of 6 to 22 words."""
    draw = random.Random(5)
    return [
        " and ".join(_filled(draw, "a large {} {}") for _ in range(draw.randint(1, 4)))
        for _ in range(count)
    ]


def _filled(draw: random.Random, text: str) -> str:
    if text.count("{}") == 1:
        return text.format(draw.choice(SHAPES))
    pairs: Sequence[tuple[str, str]] = [(draw.choice(COLOURS), draw.choice(SHAPES)) for _ in "12"]
    return text.format(*(word for pair in pairs for word in pair))


def _words(draw: random.Random, count: int) -> str:
    return " ".join(f"w{draw.randrange(150)}" for _ in range(count))
