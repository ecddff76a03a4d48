"""What the training jobs do with models before the loop starts: initialise, and show images."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cluster import checkpoint
from cluster.ranks.dist import derive_seed, place
from cluster.ranks.sharding import shard_frozen
from jobs.interchange.trained_weights import TrainedWeights, trained_weights
from jobs.models.bert import start_from_bert
from jobs.models.encoder_settings import pixels_of
from jobs.models.encoders import load_encoder
from jobs.models.languages import load_language
from jobs.training.objective import Losses, Micro
from modeling.blip2 import Stage1, Stage2, WithEncoder, stage2_from_stage1
from pipeline.loading.loader import Batch


def new_stage(recipe: Any, fresh: bool) -> Any:
    """The recipe's stage with random weights, and BERT's where the recipe names one.

    Args:
        fresh: False where a checkpoint will fill it anyway: no BERT is read then.
    """
    torch.manual_seed(derive_seed("init", recipe.run.seed))
    stage = Stage1(recipe.model) if recipe.kind == "stage1" else Stage2(recipe.model)
    if recipe.bert and fresh:
        start_from_bert(stage, recipe.bert)
    return stage


def start_from(stage: Stage1 | Stage2, path: str, kind: Literal["stage1", "stage2"]) -> None:
    """Give a stage the weights that another run of the same stage pre-trained.

    What the finetune has no use for is left (the LM head without ITG), and what only it has stays
    as it is (a Q-Former's text parts, when it is to read questions). Nothing else may differ.

    Args:
        path: a run or checkpoint of ours, a LAVIS ``.pth``, or a Hugging Face folder.

    Raises:
        ValueError: no such checkpoint, one of another kind or of other sizes.
    """
    found = trained_weights(path, kind, stage.config.qformer.heads)
    weights = found.weights
    if found.recipe.get("encoder", {}).get("train"):
        raise ValueError(
            f"--init {path}: its image encoder was finetuned, and this run would start from "
            "another one; give the pre-training run it came from"
        )
    own = {name: parameter.detach() for name, parameter in stage.named_parameters()}
    if kind == "stage1" and not stage.config.itg:  # type: ignore[union-attr]
        weights = {k: v for k, v in weights.items() if not k.startswith("lm_head.")}
    if kind == "stage2" and stage.config.qformer.text:
        weights = {k: v for k, v in own.items() if _of_text(k)} | weights
    checkpoint.load_weights(stage, weights, f"--init {found.where}")
    say_start(found)


def start_from_stage1(module: Stage2, path: str) -> None:
    """Give stage 2 the Q-Former of a stage-1 checkpoint: every key of it, and no other.

    Args:
        path: a checkpoint or run of ours, a LAVIS ``.pth``, or a Hugging Face retrieval folder.

    Raises:
        ValueError: No stage-1 checkpoint is there, or it has other sizes.
    """
    found = trained_weights(path, "stage1", module.config.qformer.heads)
    taken = stage2_from_stage1(found.weights, module.config.qformer.text)
    own = dict(module.named_parameters())
    fresh = {name: p.detach() for name, p in own.items() if name.startswith("language_proj.")}
    checkpoint.load_weights(module, {**taken, **fresh}, f"--init {found.where}")
    say_start(found)


def say_start(found: TrainedWeights) -> None:
    """Tell once where the weights come from."""
    if place().rank == 0:
        print(f"starting from {found.where}", flush=True)


def with_encoder(recipe: Any, stage: Stage1 | Stage2, fresh: bool) -> nn.Module:
    """All that trains: the stage, together with its image encoder where that is finetuned."""
    if not recipe.encoder.train:
        return stage
    return WithEncoder(load_encoder(recipe.encoder, weights=fresh), stage)


def image_input(recipe: Any, device: torch.device) -> Callable[[Batch], Tensor]:
    """What the engine is given of a batch's images: the frozen encoder's tokens, computed outside
    the engine, or the images themselves where the encoder trains inside it.
    """
    pixels = pixels_of(recipe.encoder)
    if recipe.encoder.train:
        return lambda batch: batch.pixels_B3HW(device, pixels)
    encoder: Any = load_encoder(recipe.encoder).to(device)
    if recipe.encoder.compile:
        encoder = torch.compile(encoder)

    def tokens(batch: Batch) -> Tensor:
        with torch.no_grad():
            return encoder(batch.pixels_B3HW(device, pixels))

    return tokens


def language_losses(
    recipe: Any,
    device: torch.device,
    shown: Callable[[Batch], tuple[Tensor, ...]],
    asked: Callable[[Batch], list[str] | None],
) -> Callable[[Any, Sequence[Micro]], Iterator[Losses]]:
    """The language-modelling loss of texts given their images' soft prompts, as the training loop
    takes it; the frozen language model stays outside the engine.

    Every token weighs alike, whatever micro-batch and rank it is in.

    Args:
        shown: What the engine is given of a batch.
        asked: Text in front of each of its texts, itself not learned; None for none.
    """
    language = load_language(recipe.language)
    if recipe.language.shard:
        shard_frozen(language.model, device)
    else:
        language.to(device)

    def losses(engine: Any, micros: Sequence[Micro]) -> Iterator[Losses]:
        rows = [(m.batch.texts, m.batch.draws_B2[:, 0], asked(m.batch)) for m in micros]
        count = None
        if len(micros) > 1:
            count = sum(language.count_targets(*row) for row in rows) / len(micros)
        for micro, row in zip(micros, rows, strict=True):
            given = shown(micro.batch)
            micro.seed()
            yield {"loss": language.loss(engine(*given), *row, count=count)}

    return losses


def _of_text(name: str) -> bool:
    return ".text_ffn." in name or name.startswith(
        ("qformer.word_embeddings.", "qformer.position_embeddings.")
    )
