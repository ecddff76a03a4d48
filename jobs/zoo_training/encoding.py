"""Examples of text as padded tensors, and their losses, for the small T5, OPT and LLaMA.

Shapes: see `modeling`.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from jobs.zoo_training.corpus import QUESTION_STARTS, Example

IGNORE = -100
Encoded = tuple[list[tuple[int, ...]], list[int]]
"""One example: for each input position the ids whose embeddings are summed, and the labels."""


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def decoder_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that ends a decoder's turn: OPT's, whose begin and end tokens are one, a line's."""
    same = tokenizer.bos_token in (None, tokenizer.eos_token)
    return "\n" if same else str(tokenizer.eos_token)


class ExampleEncoder:
    """Encodes examples for one model; remembers the texts that it has tokenised."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.seen: dict[str, list[int]] = {}
        self.end = decoder_end(tokenizer)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        if text not in self.seen:
            self.seen[text] = _ids(self.tokenizer, text)
        return self.seen[text]

    def context(self, one: Example) -> list[tuple[int, ...]]:
        """Positions of the context: one id each, or the ids of a bundle."""
        if one.context.bundles:
            return [
                tuple(token for word in bundle for token in self.ids(" " + word))
                for bundle in one.context.bundles
            ]
        return [(token,) for token in _ids(self.tokenizer, one.context.text)]

    def t5(self, one: Example) -> Encoded:
        """Context, prompt and ``</s>`` for the encoder; the target and ``</s>`` as labels."""
        prompt, target = one.turns[0]
        end = self.tokenizer.eos_token_id
        source = [*self.context(one), *((token,) for token in self.ids(prompt)), (end,)]
        return source, [*self.ids(target), end]

    def decoder(self, one: Example) -> Encoded:
        r"""Running text, each turn ended by "\n" (OPT) or ``</s>``.

        Contexts and questions are not targets.

        The begin token stands first, as the tokenizer puts it, or behind the context: there it
        stands when stage 2 puts queries in front of a tokenised prompt.
        """
        start = self.tokenizer.bos_token_id
        inputs = self.context(one)
        behind = not inputs or bool(one.context.bundles) or self.rng.random() < 0.5
        labels = [IGNORE] * (len(inputs) + 1)
        if behind:
            inputs = [*inputs, (start,)]
            if self.end == "\n":
                labels[-1] = start  # under the rules of BLIP-2's code it is a target too
        else:
            inputs = [(start,), *inputs]
        for index, (prompt, target) in enumerate(one.turns):
            space = "" if behind or index else " "
            asked = prompt.startswith(QUESTION_STARTS)
            before = self.ids(space + prompt) if prompt else []
            after = self.ids((" " if prompt else space) + target + self.end)
            inputs += [(token,) for token in (*before, *after)]
            labels += [IGNORE] * len(before) if asked else before
            labels += after
        return inputs, labels


def batches(examples: Sequence[Encoded], size: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Batches of examples of similar length, in random order.

    Examples are sorted by length within stretches of twenty batches.
    """
    order = list(range(len(examples)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), size * 20):
        stretch = sorted(order[start : start + size * 20], key=lambda i: len(examples[i][0]))
        batches += [stretch[at : at + size] for at in range(0, len(stretch), size)]
    rng.shuffle(batches)
    for batch in batches:
        yield [examples[i] for i in batch]


def _embed(table: nn.Embedding, batch: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, D) of the positions, each the sum of its ids', and the mask (B, L)."""
    longest = max(len(inputs) for inputs, _ in batch)
    lengths = torch.tensor([len(inputs) for inputs, _ in batch])
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    flat: list[int] = []
    offsets: list[int] = []
    for inputs, _ in batch:
        for position in (*inputs, *[(pad,)] * (longest - len(inputs))):
            offsets.append(len(flat))
            flat.extend(position)
    vectors = F.embedding_bag(torch.tensor(flat), table.weight, torch.tensor(offsets), mode="sum")
    return vectors.view(len(batch), longest, -1), mask


def _labels(batch: Sequence[Encoded]) -> Tensor:
    longest = max(len(labels) for _, labels in batch)
    return torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels in batch])


def _mean_loss(logits: Tensor, labels: Tensor, power: float) -> Tensor:
    """Mean over examples of the cross-entropy's sum, divided by the number of targets ** power."""
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
    )
    counts = (labels != IGNORE).sum(1).clamp(min=1)
    return (losses.sum(1) / counts**power).mean()


def t5_loss(model: Any, batch: Sequence[Encoded], power: float = 1.0) -> Tensor:
    """Loss of a T5 on a batch; `power` 1 weighs examples alike, 0 weighs targets alike."""
    vectors, mask = _embed(model.get_input_embeddings(), batch, 0)
    labels = _labels(batch)
    decoder = model.prepare_decoder_input_ids_from_labels(labels)  # shifts right
    out = model(inputs_embeds=vectors, attention_mask=mask, decoder_input_ids=decoder)
    return _mean_loss(out.logits, labels, power)


def decoder_loss(model: Any, batch: Sequence[Encoded], power: float = 1.0) -> Tensor:
    """Loss of a decoder (OPT, LLaMA) on a batch; `power` as for `t5_loss`."""
    vectors, mask = _embed(model.get_input_embeddings(), batch, 1)
    logits = model(inputs_embeds=vectors, attention_mask=mask).logits
    return _mean_loss(logits[:, :-1], _labels(batch)[:, 1:], power)
