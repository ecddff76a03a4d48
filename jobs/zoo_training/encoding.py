"""From examples of text to padded tensors and losses, for the small T5 and OPT."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from jobs.zoo_training.corpus import Example

IGNORE = -100
Row = tuple[list[tuple[int, ...]], list[int]]  # input places (ids to be summed), labels


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


class Encoder:
    """Turns examples into rows for one model; remembers the pieces it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.seen: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.seen:
            self.seen[text] = _ids(self.tokenizer, text)
        return self.seen[text]

    def context(self, one: Example) -> list[tuple[int, ...]]:
        """The places of the context: one id each, or the ids of a bundle."""
        if one.context.bundles:
            return [
                tuple(token for word in bundle for token in self.ids(" " + word))
                for bundle in one.context.bundles
            ]
        return [(token,) for token in _ids(self.tokenizer, one.context.text)]

    def t5(self, one: Example) -> Row:
        """Context, prompt and ``</s>`` for the encoder; the target and ``</s>`` as labels."""
        prompt, target = one.turns[0]
        end = self.tokenizer.eos_token_id
        source = [*self.context(one), *((token,) for token in self.ids(prompt)), (end,)]
        return source, [*self.ids(target), end]

    def opt(self, one: Example) -> Row:
        r"""Running text, each turn ended by "\n". Contexts and questions are not targets.

        ``</s>`` stands first, as OPT's tokenizer puts it, or behind the context, where it comes
        to stand when stage 2 puts queries before a tokenized prompt.
        """
        start = self.tokenizer.bos_token_id
        places = self.context(one)
        behind = not places or bool(one.context.bundles) or self.rng.random() < 0.5
        labels = [IGNORE] * (len(places) + 1)
        if behind:
            places, labels[-1] = [*places, (start,)], start  # stage 2's loss has it as a target
        else:
            places = [(start,), *places]
        for index, (prompt, target) in enumerate(one.turns):
            space = "" if behind or index else " "
            asked = prompt.startswith("Question")
            before = self.ids(space + prompt) if prompt else []
            after = self.ids((" " if prompt else space) + target + "\n")
            places += [(token,) for token in (*before, *after)]
            labels += [IGNORE] * len(before) if asked else before
            labels += after
        return places, labels


def batches(rows: Sequence[Row], size: int, rng: random.Random) -> Iterator[list[Row]]:
    """Batches of similar length, in random order: sorted within stretches of twenty batches."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), size * 20):
        stretch = sorted(order[start : start + size * 20], key=lambda i: len(rows[i][0]))
        batches += [stretch[at : at + size] for at in range(0, len(stretch), size)]
    rng.shuffle(batches)
    for batch in batches:
        yield [rows[i] for i in batch]


def _embed(table: nn.Embedding, batch: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, D) of the places, the sum of its words each, and the mask (B, L)."""
    longest = max(len(row[0]) for row in batch)
    lengths = torch.tensor([len(row[0]) for row in batch])
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    flat: list[int] = []
    offsets: list[int] = []
    for places, _ in batch:
        for place in (*places, *[(pad,)] * (longest - len(places))):
            offsets.append(len(flat))
            flat.extend(place)
    vectors = F.embedding_bag(torch.tensor(flat), table.weight, torch.tensor(offsets), mode="sum")
    return vectors.view(len(batch), longest, -1), mask


def _labels(batch: Sequence[Row]) -> Tensor:
    longest = max(len(row[1]) for row in batch)
    return torch.tensor([row[1] + [IGNORE] * (longest - len(row[1])) for row in batch])


def _mean_loss(logits: Tensor, labels: Tensor, power: float) -> Tensor:
    """Cross-entropy, each example's sum over its count of targets to the power; then the mean."""
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
    )
    counts = (labels != IGNORE).sum(1).clamp(min=1)
    return (losses.sum(1) / counts**power).mean()


def t5_loss(model: Any, batch: Sequence[Row], power: float = 1.0) -> Tensor:
    vectors, mask = _embed(model.get_input_embeddings(), batch, 0)
    labels = _labels(batch)
    decoder = model.prepare_decoder_input_ids_from_labels(labels)  # shifts right
    out = model(inputs_embeds=vectors, attention_mask=mask, decoder_input_ids=decoder)
    return _mean_loss(out.logits, labels, power)


def opt_loss(model: Any, batch: Sequence[Row], power: float = 1.0) -> Tensor:
    vectors, mask = _embed(model.get_input_embeddings(), batch, 1)
    logits = model(inputs_embeds=vectors, attention_mask=mask).logits
    return _mean_loss(logits[:, :-1], _labels(batch)[:, 1:], power)
