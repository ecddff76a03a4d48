"""What trains, with the weights that it starts from: random, BERT's, or another run's."""

from typing import Any, TypeVar

import torch
from torch import nn

from cluster import checkpoint
from cluster.ranks.dist import derive_seed, this_process
from jobs.interchange.trained_weights import Kind, TrainedWeights, trained_weights
from jobs.models.bert import start_from_bert
from jobs.models.encoders import load_encoder
from jobs.recipes.schema import Stage1Recipe, Stage2Recipe, TrainRecipe
from jobs.training.command import Given
from jobs.training.plan import Plan
from modeling.blip2 import Stage1, Stage2, WithEncoder, stage2_from_stage1

Stage = TypeVar("Stage", Stage1, Stage2)


def new_stage1(recipe: Stage1Recipe, bert: bool) -> Stage1:
    """Stage 1 with random weights; with BERT's, where ``bert`` and the recipe names one."""
    return _with_bert(recipe, _seeded(recipe, Stage1, recipe.model), bert)


def new_stage2(recipe: Stage2Recipe, bert: bool) -> Stage2:
    """Stage 2 with random weights; with BERT's, where ``bert`` and the recipe names one."""
    return _with_bert(recipe, _seeded(recipe, Stage2, recipe.model), bert)


def require_init(plan: Plan[Any], given: Given[Any], what: str) -> None:
    """Refuse a new finetune that names nothing to start from.

    Args:
        what: the kind of run that ``--init`` must name.

    Raises:
        ValueError: there is no ``--init``.
    """
    if plan.fresh and not given.init:
        raise ValueError(f"--init: none given; {given.job} starts from {what}")


def load_pretrained(stage: Stage1 | Stage2, path: str) -> None:
    """Give a stage the weights that another run of the same stage pre-trained.

    What the finetune has no use for is left (the LM head without ITG), and what only it has stays
    as it is (a Q-Former's text parts, when it is to read questions). Nothing else may differ.

    Args:
        path: a run or checkpoint of ours, a LAVIS ``.pth``, or a Hugging Face folder.

    Raises:
        ValueError: no such checkpoint, one of another kind or of other sizes.
    """
    kind: Kind = "stage1" if isinstance(stage, Stage1) else "stage2"
    _take_pretrained(stage, trained_weights(path, kind, stage.config.qformer.heads), path)


def load_for_instructions(stage: Stage2, init: str) -> None:
    """Give a stage the weights that instruction tuning starts from.

    A stage-2 run has no text branch of the Q-Former; it comes from the stage-1 run behind it. A
    checkpoint that was tuned already has one and needs no other.

    Args:
        init: ``STAGE2,STAGE1``; without text for the Q-Former, or for a tuned checkpoint, the first
            alone.

    Raises:
        ValueError: the text branch would stay random, or a checkpoint cannot be used.
    """
    stage2, _, stage1 = init.partition(",")
    found = trained_weights(stage2, "stage2", stage.config.qformer.heads)
    reads = stage.config.qformer.text
    if reads and not stage1 and not any(map(_of_text, found.weights)):
        raise ValueError(
            f"--init {init}: this stage-2 checkpoint has no text branch of the Q-Former, which "
            f"would stay random; add the stage-1 run that it came from, --init {init},STAGE1, or "
            "give --model.qformer.no-text"
        )
    if reads and stage1:
        load_stage1(stage, stage1)
    _take_pretrained(stage, found, stage2)


def _take_pretrained(stage: Stage1 | Stage2, found: TrainedWeights, path: str) -> None:
    """Copy the weights that a stage takes of another run of its kind."""
    weights = found.weights
    if found.recipe.get("encoder", {}).get("train"):
        raise ValueError(
            f"--init {path}: its image encoder was finetuned, and this run would start from "
            "another one; give the pre-training run it came from"
        )
    if isinstance(stage, Stage1) and not stage.config.itg:
        weights = {k: v for k, v in weights.items() if not k.startswith("lm_head.")}
    if isinstance(stage, Stage2) and stage.config.qformer.text:
        own = {name: parameter.detach() for name, parameter in stage.named_parameters()}
        weights = {k: v for k, v in own.items() if _of_text(k)} | weights
    elif isinstance(stage, Stage2):
        weights = {k: v for k, v in weights.items() if not _of_text(k)}
    checkpoint.load_weights(stage, weights, f"--init {found.where}")
    _tell(found)


def load_stage1(stage: Stage2, path: str) -> None:
    """Give stage 2 the Q-Former of a stage-1 checkpoint: every weight of it, and no other.

    Raises:
        ValueError: no stage-1 checkpoint at ``path``, or one of other sizes.
    """
    found = trained_weights(path, "stage1", stage.config.qformer.heads)
    taken = stage2_from_stage1(found.weights, stage.config.qformer.text)
    own = dict(stage.named_parameters())
    fresh = {name: p.detach() for name, p in own.items() if name.startswith("language_proj.")}
    checkpoint.load_weights(stage, taken | fresh, f"--init {found.where}")
    _tell(found)


def with_encoder(recipe: TrainRecipe, stage: Stage1 | Stage2, fresh: bool) -> nn.Module:
    """All that trains: the stage, together with its image encoder where that is finetuned.

    Args:
        fresh: whether the encoder's own weights are needed; False where a checkpoint fills it.
    """
    if not recipe.encoder.train:
        return stage
    return WithEncoder(load_encoder(recipe.encoder, weights=fresh), stage)


def _seeded(recipe: TrainRecipe, stage: type[Stage], config: Any) -> Stage:
    torch.manual_seed(derive_seed("init", recipe.run.seed))
    return stage(config)


def _with_bert(recipe: TrainRecipe, stage: Stage, bert: bool) -> Stage:
    if bert and recipe.bert:
        start_from_bert(stage, recipe.bert)
    return stage


def _tell(found: TrainedWeights) -> None:
    """Print once where the weights come from."""
    if this_process().rank == 0:
        print(f"starting from {found.where}", flush=True)


def _of_text(name: str) -> bool:
    """Whether a weight belongs to the text side of a Q-Former."""
    return ".text_ffn." in name or name.startswith(
        ("qformer.word_embeddings.", "qformer.position_embeddings.")
    )
