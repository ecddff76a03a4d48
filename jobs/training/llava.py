"""LLaVA's training: its models, the weights that it starts from, its objective.

models = load_models(plan.recipe)
module = new_module(plan.recipe, models)
train(plan, module, partial(conversations, models))
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cluster import checkpoint
from cluster.ranks.dist import derive_seed, this_process
from cluster.ranks.sharding import shard_frozen
from jobs import recipes
from jobs.interchange.llava.bridges import read_bridge
from jobs.models.digests import weights_digest
from jobs.models.encoder_settings import pixels_of
from jobs.models.encoders import load_encoder
from jobs.models.llava import load_decoder, load_words, max_positions
from jobs.recipes.schema import Digests, LlavaRecipe
from jobs.training.objective import Losses, Micro, Objective
from jobs.training.plan import Plan
from modeling import gather
from modeling.language.conversation import LAYOUTS, encode, read_turns, segments
from modeling.llava import NO_IMAGE, Decoder, Llava, LlavaConfig, Rows, make_rows
from modeling.vision.encoders import ImageEncoder, freeze
from pipeline.loading.batch import Batch
from pipeline.pixels import normalise


@dataclass(frozen=True)
class Models:
    """The models that LLaVA joins, on the CPU.

    Attributes:
        encoder: image encoder, frozen.
        language: decoder language model, from transformers; frozen in stage 1.
        tokenizer: its tokenizer.
    """

    encoder: ImageEncoder
    language: Any
    tokenizer: Any

    def digests(self) -> Digests:
        """What a bridge between them is made for."""
        return Digests(weights_digest(self.encoder), weights_digest(self.language))


def load_models(recipe: LlavaRecipe) -> Models:
    """The models of a recipe.

    Raises:
        ValueError: one of them is missing, damaged, or of another kind.
    """
    encoder, tokenizer = load_encoder(recipe.encoder), load_words(recipe.language)
    _check_lengths(recipe, encoder)
    if recipe.stage == 1:
        return Models(encoder, freeze(load_decoder(recipe.language, trained=False)), tokenizer)
    language = load_decoder(recipe.language, trained=True)
    if recipe.run.zero.stage == 0 or recipe.run.zero.precision == "fp32":
        language.float()
    return Models(encoder, language, tokenizer)


def _check_lengths(recipe: LlavaRecipe, encoder: ImageEncoder) -> None:
    """Refuse sequences that hold no text, or are longer than the language model's positions."""
    longest, positions = recipe.language.max_text, max_positions(recipe.language)
    if not encoder.num_tokens < longest <= positions:
        raise ValueError(
            f"--language.max-text {longest}: an image takes {encoder.num_tokens} positions, and "
            f"{recipe.language.name} has {positions} positions: give a number between them"
        )


def settle(plan: Plan[LlavaRecipe], models: Models) -> Plan[LlavaRecipe]:
    """The plan of a run with these models.

    Raises:
        ValueError: the run that it resumes was started with other weights of them.
    """
    recipe = replace(plan.recipe, made_for=models.digests())
    if plan.found is not None:
        then = recipes.from_dict(Digests, plan.found.recipe["made_for"])
        _check_models(recipe, then, f"--out {plan.writer.url}")
    return replace(plan, recipe=recipe)


def new_module(recipe: LlavaRecipe, models: Models) -> Llava:
    """All that trains: a new bridge and, in stage 2, the language model."""
    torch.manual_seed(derive_seed("init", recipe.run.seed))
    module = Llava(recipe.model, models.language if recipe.stage == 2 else None)
    if module.language is not None and recipe.checkpoint_blocks:
        # Reentrant: in the other way a block's weights, which ZeRO-3 has gathered, would be saved.
        module.language.activation_checkpointing_enable({"use_reentrant": True})
    return module


def start_from(module: Llava, recipe: LlavaRecipe, init: str) -> None:
    """Give a new run the weights of another: its bridge, and its language model where it trained.

    Args:
        init: a run or checkpoint of ours, or a file or folder of LLaVA's authors or of Hugging
            Face's LLaVA, of which the bridge is taken.

    Raises:
        ValueError: no bridge there, or one of another kind, encoder or language model.
    """
    found = read_bridge(init)
    if found.made_for is not None:
        _check_models(recipe, found.made_for, f"--init {found.where}")
    elif this_process().rank == 0:
        print(f"{found.where} does not say which models its bridge belongs to", flush=True)
    if found.config != recipe.model:
        raise ValueError(
            f"--init {found.where}: its bridge is {_words(found.config)}, the recipe's "
            f"{_words(recipe.model)}; give --model.bridge {found.config.bridge}, and the "
            "encoder and language model that it belongs to"
        )
    weights = found.bridge
    if recipe.stage == 2:
        if found.language and module.language is not None:
            module.language.float()  # the checkpoint's are fp32, and must not be rounded
        own = {name: p.detach() for name, p in module.named_parameters()}
        kept = {name: p for name, p in own.items() if name.startswith("language.")}
        weights = weights | kept | found.language
    elif found.language:
        raise ValueError(
            f"--init {found.where}: a run of stage 2, whose language model has trained; stage 1 "
            "starts from nothing or from a bridge alone"
        )
    checkpoint.load_weights(module, weights, f"--init {found.where}")
    if this_process().rank == 0:
        print(f"starting from {found.where}", flush=True)


def _check_models(recipe: LlavaRecipe, then: Digests, where: str) -> None:
    """Refuse a bridge that was trained between other models."""
    for name, chosen in (("encoder", recipe.encoder.name), ("language", recipe.language.name)):
        before, now = getattr(then, name), getattr(recipe.made_for, name)
        if before and before != now:
            raise ValueError(
                f"{where}: its bridge was trained with other weights of the {name} model than "
                f"those of --{name}.name {chosen} (digest {before[:12]}, not {now[:12]}); give "
                "that model"
            )


def _words(sizes: LlavaConfig) -> str:
    return f"{sizes.bridge} of {sizes.encoder_width} x {sizes.llm_width}"


# ---------------------------------------------------------------------------- the objective


def conversations(
    models: Models, recipe: LlavaRecipe, module: nn.Module, device: torch.device
) -> Objective:
    """The answers of conversations about images; every learned token weighs alike.

    Losses are ``loss``, and ``cut``: questions with their answers, a sample, that were cut from the
    end of a conversation because it was longer than ``language.max_text``.
    """
    encoder, frozen = models.encoder.to(device), None
    pixels = pixels_of(recipe.encoder)
    if recipe.stage == 1:
        frozen = Decoder.of(models.language)
        if recipe.language.shard:
            shard_frozen(models.language, device)
        else:
            models.language.to(device)

    def seen(batch: Batch, rows: Rows) -> Tensor | None:
        """The encoder's grids of the samples that have an image."""
        pictured = rows.pictured()
        if not pictured.numel():
            return None
        images = batch.images_B3HW[pictured].to(device, non_blocking=True).contiguous()
        with torch.no_grad():
            return encoder(normalise(images, pixels))

    def losses(engine: Any, micros: Sequence[Micro]) -> Iterator[Losses]:
        texts = [_rows(micro.batch.tokens) for micro in micros]
        count = sum(rows.targets() for rows in texts) / len(texts) if len(texts) > 1 else None
        for micro, rows in zip(micros, texts, strict=True):
            tokens = seen(micro.batch, rows)
            micro.seed()
            total, own = engine(tokens, rows, frozen)
            if count is not None:
                own = torch.full_like(own, count)
            cut = micro.batch.tokens["dropped"].float().mean().to(device)
            yield {"loss": gather.world_mean(total, own), "cut": cut}

    read = partial(
        tokenise, tokenizer=models.tokenizer, recipe=recipe, image_tokens=encoder.num_tokens
    )
    return Objective(module, losses, read)


def tokenise(
    texts: list[str], tokenizer: Any, recipe: LlavaRecipe, image_tokens: int
) -> dict[str, Tensor]:
    """Conversations, as JSON, as the tensors of ``Rows`` and the number of turns cut of each."""
    layout, front = LAYOUTS[recipe.layout], recipe.image_place == "front"
    made = []
    for text in texts:
        turns = read_turns(json.loads(text), text[:80])
        row = segments(layout, turns, image_first=front)
        made.append(encode(row, tokenizer, recipe.language.max_text, image_tokens))
    places = [(*one.image_at, NO_IMAGE)[0] for one in made]
    rows = make_rows([one.ids for one in made], [one.target for one in made], places)
    dropped = torch.tensor([one.dropped for one in made])
    return {**vars(rows), "dropped": dropped}


def _rows(tokens: dict[str, Tensor]) -> Rows:
    return Rows(**{name: tensor for name, tensor in tokens.items() if name != "dropped"})
