"""The answer of a decoder to a conversation that is written in a layout.

Shapes: see `modeling`; D width of the language model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from modeling.language.adapters import DecoderLM, GenerationSettings, pad_left
from modeling.language.conversation import Encoded, Layout


@torch.no_grad()
def reply(
    language: DecoderLM,
    prompts_BQD: Tensor | None,
    rows: Sequence[Encoded],
    layout: Layout,
    settings: GenerationSettings,
) -> list[str]:
    """The answers to conversations, without their stops.

    Args:
        language: the language model.
        prompts_BQD: soft visual prompts, one for each conversation; they stand where it has its
            image. None where no conversation has one.
        rows: conversations as ids, from `conversation.encode`, each up to where the answer begins.
        layout: layout that they are written in; it says where an answer stops.
        settings: beams, lengths, penalties.

    Raises:
        ValueError: a conversation and the new tokens are longer than the model's positions, or a
            conversation has a place for an image and there is none, or the other way round.
    """
    inputs_BSD, mask_BS = spliced(language, prompts_BQD, rows)
    longest = inputs_BSD.shape[1]
    if language.max_positions is not None:
        room = language.max_positions - settings.max_new_tokens
        if longest > room:
            raise ValueError(
                f"the conversation has {longest} positions, and the language model has place for "
                f"{room} before an answer of {settings.max_new_tokens} tokens: begin a new one"
            )
    inputs_BSD, mask_BS = pad_left(inputs_BSD, mask_BS)
    stops, more = list(language.form.stops), {}
    if layout.stop is None:
        stops = list(dict.fromkeys([language.tokenizer.eos_token_id, *stops]))
    else:
        more["stopping_criteria"] = [_Stops(language.tokenizer, layout.stop)]
    ids_BL = language.model.generate(
        inputs_embeds=inputs_BSD,
        attention_mask=mask_BS,
        eos_token_id=stops,
        pad_token_id=language.form.pad,
        **settings.arguments(),
        **more,
    )
    if layout.stop is not None:
        ids_BL = _cut(language.tokenizer, ids_BL, layout.stop, language.form.pad)
    texts = language.tokenizer.batch_decode(ids_BL, skip_special_tokens=True)
    if layout.stop is not None:
        texts = [text.partition(layout.stop)[0] for text in texts]
    return [text.strip() for text in texts]


def spliced(
    language: DecoderLM, prompts_BQD: Tensor | None, rows: Sequence[Encoded]
) -> tuple[Tensor, Tensor]:
    """Embeddings (B, S, D) of rows with their visual prompts, padded on the right, and the mask.

    Raises:
        ValueError: images and their places do not go together.
    """
    places = [len(row.image_at) for row in rows]
    images = 0 if prompts_BQD is None else len(prompts_BQD)
    if places != [int(prompts_BQD is not None)] * len(rows) or images not in (0, len(rows)):
        raise ValueError(
            f"{images} visual prompts for {len(rows)} conversations with {sum(places)} places for "
            "an image: one each is needed, or none at all"
        )
    parts = []
    for index, row in enumerate(rows):
        ids_L = torch.tensor(row.ids, dtype=torch.long, device=language.device)
        text_LD = language.embed(ids_L)
        if prompts_BQD is not None:
            at, visual_QD = row.image_at[0], prompts_BQD[index].to(text_LD.dtype)
            text_LD = torch.cat((text_LD[:at], visual_QD, text_LD[at:]))
        parts.append(text_LD)
    inputs_BSD = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    lengths_B = torch.tensor([len(part) for part in parts], device=language.device)
    places_S = torch.arange(inputs_BSD.shape[1], device=language.device)
    return inputs_BSD, (places_S < lengths_B[:, None]).long()


class _Stops(StoppingCriteria):
    """Ends a row when its last tokens spell the layout's stop."""

    def __init__(self, tokenizer: Any, stop: str) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens = len(stop.encode()) + 1  # of a byte each at least, and one that goes on

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, -self.tokens :])
        return torch.tensor([self.stop in text for text in texts], device=input_ids.device)


def _cut(tokenizer: Any, ids_BL: Tensor, stop: str, pad: int) -> Tensor:
    """Ids up to a stop that is a special token, which decoding would drop."""
    token = tokenizer.convert_tokens_to_ids(stop)
    if token is None or token not in tokenizer.all_special_ids:
        return ids_BL
    ended_BL = (ids_BL == token).cumsum(1) > 0
    return ids_BL.masked_fill(ended_BL, pad)
