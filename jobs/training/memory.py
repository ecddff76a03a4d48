"""Bytes that a rank of a training run holds, by ZeRO stage and number format; estimated."""

from dataclasses import dataclass, replace

from jobs.models.files import dtype_of
from jobs.recipes.schema import LlavaRecipe, SpeakingRecipe, Stage1Recipe, Stage2Recipe, TrainRecipe
from jobs.training.hardware import GIB
from jobs.training.sketch import (
    Sketch,
    frozen_models,
    image_tokens,
    language_trains,
    text_lengths,
    trainable,
)
from modeling import flops, losses
from modeling.flops import Stack

LIBRARIES = 0.95 * GIB  # of a process that has imported torch, DeepSpeed and transformers


@dataclass(frozen=True)
class Memory:
    """Bytes a rank, by what holds them; activations are an estimate.

    Attributes:
        exchange: gradients and weights on their way between ranks, and what micro-batches share.
        lasting: the part of ``gradients`` and ``exchange`` that is not freed between steps.
        saving: of the main memory of rank 0, while a checkpoint is written.
    """

    weights: float
    gradients: float
    optimizer: float
    frozen: float
    activations: float
    exchange: float
    lasting: float
    saving: float

    @property
    def states(self) -> float:
        """What stays from step to step."""
        return self.weights + self.optimizer + self.frozen

    @property
    def total(self) -> float:
        """Most of the device's memory that a step holds."""
        return self.states + self.gradients + self.activations + self.exchange

    @property
    def on_cpu(self) -> float:
        """Most that rank 0's process holds where the device's memory is the main memory: in a step,
        or in the save at the end (one that is still being written during a step comes on top).
        """
        return LIBRARIES + max(self.total, self.states + self.lasting + self.saving)


def plan_memory(recipe: TrainRecipe, sketched: Sketch, world: int, micro: int) -> Memory:
    """What a rank holds during a step, by ZeRO stage and precision."""
    zero, count = recipe.run.zero, sum(trainable(recipe, sketched).values())
    share = [world if zero.stage >= stage else 1 for stage in (1, 2, 3)]
    cast = zero.precision == "bf16" and zero.stage > 0
    # With bf16 weights the fp32 masters belong to the optimizer's state, beside two moments.
    states = 12 if cast or zero.stage else 8
    frozen = frozen_models(recipe, sketched)
    held = 1.0 * frozen.get("encoder", 0) * _width(recipe.encoder.dtype)
    if isinstance(recipe, SpeakingRecipe) and "language model" in frozen:
        # Sharded, one block at a time is whole: some four percent of the model.
        part = min(1.0, 1 / world + 0.04) if recipe.language.shard else 1.0
        held += frozen["language model"] * _width(recipe.language.dtype) * part
    accumulation = recipe.run.global_batch // (world * micro)
    # One bucket of fp32 gradients; ZeRO-3 also gathers the weights, and keeps both.
    exchange = {0: 0.0, 3: 4.0 + (2 if cast else 4)}.get(zero.stage, 4.0) * min(zero.bucket, count)
    gradients = 4.0 * count / share[1]
    lasting = gradients + exchange if zero.stage == 3 else 0.0
    if (
        isinstance(recipe, Stage1Recipe) and accumulation > 1
    ):  # all micro-batches see each other's images
        tokens = image_tokens(sketched) * recipe.model.qformer.encoder_width
        exchange += accumulation * micro * tokens * _width(recipe.encoder.dtype)
    return Memory(
        weights=(2 if cast else 4) * count / share[2],
        gradients=gradients,
        optimizer=states * count / share[0],
        frozen=held,
        activations=micro * _activations(recipe, sketched) + _head(recipe, sketched),
        exchange=exchange,
        lasting=lasting,
        saving=20 * count,  # the copy, and what the larger of its two files is written from
    )


def _head(recipe: TrainRecipe, sketched: Sketch) -> float:
    """Bytes for the words' probabilities and the gradient of their matrix, whatever the batch."""
    logits = 6.0 * losses.CHUNK
    if isinstance(recipe, Stage1Recipe) and recipe.model.itg:
        sizes = recipe.model.qformer
        logits = min(logits, 6.0 * recipe.max_text * sizes.vocab * recipe.run.global_batch)
        logits += 4.0 * sizes.vocab * sizes.width
    if language_trains(recipe) and sketched.language is not None:
        words = flops.language_sizes(sketched.language.config)
        logits += 4.0 * words.vocab * words.head_width
    return logits


def _activations(recipe: TrainRecipe, sketched: Sketch) -> float:
    """Bytes that one sample keeps for the backward pass; attention does not keep its scores."""
    width = 2 if recipe.run.zero.precision == "bf16" else 4
    total = 0.0
    if sketched.encoder is not None:
        sizes = flops.vit_sizes(sketched.encoder.vit)
        one = replace(sizes.stack, blocks=1).saved(sizes.tokens, trained=True)
        if not recipe.encoder.train:
            total += one  # nothing is kept, but one block is being computed
        elif recipe.encoder.checkpoint_blocks:
            total += one + sizes.tokens * sizes.stack.width * sizes.stack.blocks
        else:
            total += sizes.stack.saved(sizes.tokens, trained=True)
    if isinstance(recipe, LlavaRecipe):
        return width * (total + _llava_activations(recipe, sketched))
    total += _qformer_activations(recipe, image_tokens(sketched))
    if isinstance(recipe, Stage2Recipe) and sketched.language is not None:
        given, targets = text_lengths(recipe, sketched)
        language = flops.language_sizes(sketched.language.config)
        if language.encoder is None:
            total += language.decoder.saved(given + targets, trained=False)
        else:
            total += language.encoder.saved(given, trained=False)
            total += 1.5 * language.decoder.saved(targets, trained=False)
    return width * total


def _llava_activations(recipe: LlavaRecipe, sketched: Sketch) -> float:
    """Elements that one sample of full length keeps in the bridge and the language model."""
    sizes, tokens = recipe.model, image_tokens(sketched)
    maps = 3 if sizes.bridge == "mlp2x_gelu" else 1
    kept = tokens * (sizes.encoder_width + maps * sizes.llm_width)
    length = recipe.language.max_text
    kept += 2 * length * sizes.llm_width  # words and images apart, then joined
    if sketched.language is None:
        return kept
    stack = flops.language_sizes(sketched.language.config).decoder
    if recipe.stage == 1:
        return kept + stack.saved(length, trained=False)
    if not recipe.checkpoint_blocks:
        return kept + stack.saved(length, trained=True)
    one = replace(stack, blocks=1).saved(length, trained=True)
    return kept + one + length * stack.width * stack.blocks


def _qformer_activations(recipe: TrainRecipe, tokens: int) -> float:
    """Elements that one sample keeps in the Q-Former and its image keys and values."""
    assert isinstance(recipe, Stage1Recipe | Stage2Recipe)
    sizes = recipe.model.qformer
    stack = Stack(sizes.width, sizes.layers, sizes.ffn, sizes.width, sizes.width)
    image = 2 * -(-sizes.layers // sizes.cross_every) * tokens * sizes.width
    # What ln_vision made of the tokens and, where they have a gradient, its input in fp32.
    seen = (3 if recipe.encoder.train else 1) * tokens * sizes.encoder_width
    queries = sizes.queries
    if isinstance(recipe, Stage2Recipe):
        text = recipe.max_question if sizes.text else 0
        return seen + image + stack.saved(queries + text, trained=True)
    assert isinstance(recipe, Stage1Recipe)
    text = recipe.max_text
    rows = queries + text + 3 * (queries + text) + (text if recipe.model.itg else 0)
    return seen + 2 * image + stack.saved(rows, trained=True)


def _width(dtype: str) -> int:
    return dtype_of(dtype).itemsize
