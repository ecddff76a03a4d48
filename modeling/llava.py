"""LLaVA: a bridge from the image encoder's grid to a language model (arXiv:2304.08485, section 4).

    model = Llava(LlavaConfig("linear", 1024, 4096))                # stage 1 trains the bridge
    model = Llava(LlavaConfig("linear", 1024, 4096), language)      # stage 2 the language model too
    total, count = model(tokens_NPD, rows)                  # stage 1: also Decoder.of(frozen)

The bridge turns each token of the encoder's grid into a word of the language model's embedding;
there is no Q-Former and no resampling. Image encoder and, in stage 1, the language model are frozen
and outside the module.

Shapes: see `modeling`; N images of a batch, T target tokens of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling import losses
from modeling.language.head import plain_body

Kind = Literal["linear", "mlp2x_gelu"]
NO_IMAGE = -1


@dataclass(frozen=True)
class LlavaConfig:
    """Sizes of the bridge; the defaults are the paper's with ViT-L/14 and a LLaMA of 7B.

    Attributes:
        bridge: `linear`, one map with a bias (LLaVA); `mlp2x_gelu`, two with a GELU between them
            (LLaVA-1.5).
        encoder_width: width of the image encoder's tokens.
        llm_width: width of the language model's embeddings.
    """

    bridge: Kind = "linear"
    encoder_width: int = 1024
    llm_width: int = 4096


class Bridge(nn.Module):
    """The map from tokens of the image encoder to words of the language model."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.encoder_width, config.llm_width)
        self.linear_2 = None
        if config.bridge == "mlp2x_gelu":
            self.linear_2 = nn.Linear(config.llm_width, config.llm_width)

    def forward(self, tokens_NPD: Tensor) -> Tensor:
        """Visual prompts (N, P, llm_width)."""
        mapped_NPD = self.linear_1(tokens_NPD.to(self.linear_1.weight.dtype))
        return mapped_NPD if self.linear_2 is None else self.linear_2(F.gelu(mapped_NPD))


@dataclass(frozen=True)
class Rows:
    """Texts of a batch with the places of their images, as tensors on the CPU.

    Attributes:
        ids_BL: token ids, padded on the right with any id.
        target_BL: whether each id is learned; False for padding.
        length_B: token ids of each row without padding.
        image_B: number of ids in front of the row's image; `NO_IMAGE` for text alone.
    """

    ids_BL: Tensor
    target_BL: Tensor
    length_B: Tensor
    image_B: Tensor

    def pictured(self) -> Tensor:
        """Numbers of the rows that have an image, int64 (N)."""
        return (self.image_B != NO_IMAGE).nonzero()[:, 0]

    def targets(self) -> int:
        """Number of ids that are learned."""
        return int(self.target_BL.sum())


def make_rows(
    ids: Sequence[Sequence[int]], target: Sequence[Sequence[bool]], image_at: Sequence[int]
) -> Rows:
    """Rows out of lists of ids, flags and places of images, as `Rows` has them."""
    longest = max(map(len, ids))
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    learned = torch.zeros(len(ids), longest, dtype=torch.bool)
    for row, (own, flags) in enumerate(zip(ids, target, strict=True)):
        padded[row, : len(own)] = torch.tensor(own, dtype=torch.long)
        learned[row, : len(own)] = torch.tensor(flags, dtype=torch.bool)
    lengths = torch.tensor([len(own) for own in ids])
    return Rows(padded, learned, lengths, torch.tensor(list(image_at), dtype=torch.long))


@dataclass(frozen=True)
class Joined:
    """A batch's sequences as indices; S is the length of the longest one.

    Attributes:
        source_BS: row of cat(texts' embeddings (B·L, D), visual prompts (N·P, D)) that stands at
            each place; padding repeats row 0.
        mask_BS: 1 for tokens, 0 for padding, which is on the right.
        before_T: places, in (B·S), of the hidden states that the targets are predicted from.
        target_T: their ids.
    """

    source_BS: Tensor
    mask_BS: Tensor
    before_T: Tensor
    target_T: Tensor


def join(rows: Rows, prompts: int) -> Joined:
    """Put images between texts; everything is known on the CPU, so that no device is waited for.

    Args:
        rows: the texts.
        prompts: tokens P of an image.
    """
    batch, length = rows.ids_BL.shape
    has_B = (rows.image_B != NO_IMAGE).long()
    total_B = rows.length_B + has_B * prompts
    place_1S = torch.arange(int(total_B.max()))[None]
    image_B1 = rows.image_B[:, None]
    has_B1 = has_B[:, None].bool()
    inside_BS = has_B1 & (place_1S >= image_B1) & (place_1S < image_B1 + prompts)
    behind_BS = has_B1 & (place_1S >= image_B1 + prompts)
    text_BS = place_1S - behind_BS * prompts
    number_B1 = (has_B.cumsum(0) - 1)[:, None]
    from_image_BS = batch * length + number_B1 * prompts + place_1S - image_B1
    from_text_BS = torch.arange(batch)[:, None] * length + text_BS
    mask_BS = place_1S < total_B[:, None]
    source_BS = torch.where(inside_BS, from_image_BS, from_text_BS).masked_fill(~mask_BS, 0)
    text_BS = text_BS.clamp(0, length - 1)
    learned_BS = rows.target_BL.gather(1, text_BS) & ~inside_BS & mask_BS
    learned_BS[:, 0] = False  # nothing is in front of it
    at_T = learned_BS.flatten().nonzero()[:, 0]
    target_T = rows.ids_BL.gather(1, text_BS).flatten()[at_T]
    return Joined(source_BS, mask_BS.long(), at_T - 1, target_T)


@dataclass(frozen=True)
class Decoder:
    """A decoder language model as the loss needs it.

    Attributes:
        model: the model, from transformers.
        body: its part in front of the output matrix; None where its logits are more than one matrix
            times hidden states (`modeling.language.head`).
    """

    model: Any
    body: Any | None

    @staticmethod
    def of(model: Any) -> "Decoder":
        """The same for a model whose weights are whole."""
        return Decoder(model, plain_body(model))

    def losses(self, inputs_BSD: Tensor, joined: Joined) -> tuple[Tensor, Tensor]:
        """Summed loss over the targets, and their number, as fp32 scalars.

        Logits are made at the targets alone.
        """
        device = inputs_BSD.device
        before_T, target_T = (_moved(index, device) for index in (joined.before_T, joined.target_T))
        count = torch.full((), len(joined.target_T), dtype=torch.float32, device=device)
        if self.body is None:
            mask_BS = _moved(joined.mask_BS, device)
            logits_BSV = self.model(inputs_embeds=inputs_BSD, attention_mask=mask_BS).logits
            logits_TV = logits_BSV.flatten(0, 1).index_select(0, before_T)
            return losses.token_loss(logits_TV, target_T), count
        # Padding comes last, where no target sees it: no mask, and the fastest attention.
        hidden_BSD = self.body(inputs_embeds=inputs_BSD, use_cache=False).last_hidden_state
        hidden_TD = hidden_BSD.flatten(0, 1).index_select(0, before_T)
        head = self.model.get_output_embeddings()
        return losses.head_loss(hidden_TD, head.weight, head.bias, target_T), count


class Llava(nn.Module):
    """All that trains: the bridge and, in stage 2, the language model."""

    def __init__(self, config: LlavaConfig, language: Any | None = None) -> None:
        """Args:
        config: Sizes of the bridge.
        language: A decoder language model from transformers that trains too; None: it is frozen,
            and given to each call.
        """
        super().__init__()
        self.config = config
        self.bridge = Bridge(config)
        self.language = language
        self._decoder = None if language is None else Decoder.of(language)
        self._exact = [] if language is None else _exact_buffers(language)

    def forward(
        self, tokens_NPD: Tensor | None, rows: Rows, frozen: Decoder | None = None
    ) -> tuple[Tensor, Tensor]:
        """Summed loss over the targets, and their number, as fp32 scalars.

        Args:
            tokens_NPD: the encoder's grids of the rows with an image, in their order; None where
                no row has one.
            rows: the texts.
            frozen: the frozen language model, in stage 1.

        Raises:
            ValueError: not as many images as rows with a place for one.
        """
        decoder = self._decoder or frozen
        if decoder is None:
            raise ValueError("stage 1 of LLaVA is given its frozen language model with each batch")
        if tokens_NPD is not None:
            return decoder.losses(*embed(decoder.model, self.bridge(tokens_NPD), rows))
        # Under ZeRO-3 all ranks gather a weight together, so each of them must run the bridge.
        weight = self.bridge.linear_1.weight
        zeros_1PD = torch.zeros(1, 1, self.config.encoder_width, device=weight.device)
        nothing = 0 * self.bridge(zeros_1PD).sum()
        inputs_BSD, joined = embed(decoder.model, None, rows)
        return decoder.losses(inputs_BSD + nothing.to(inputs_BSD.dtype), joined)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Llava":
        """Moves and casts the module, but for the language model's fp32 buffers, which only move.

        DeepSpeed casts a whole module to bf16; rotary frequencies would lose the positions' bits.
        """
        super()._apply(fn, recurse)
        for part, name, exact in self._exact:
            now = getattr(part, name)
            if now.dtype != exact.dtype and now.device.type != "meta":
                setattr(part, name, exact.to(now.device))
        return self


def embed(model: Any, seen_NPD: Tensor | None, rows: Rows) -> tuple[Tensor, Joined]:
    """Embeddings (B, S, D) of texts with the images in their places, and what is learned of them.

    Args:
        model: the language model, whose words the texts are made of.
        seen_NPD: visual prompts of the rows with an image, in their order; None: no row has one.
        rows: the texts.

    Raises:
        ValueError: not as many images as rows with a place for one.
    """
    images, wanted = 0 if seen_NPD is None else len(seen_NPD), rows.pictured().numel()
    if images != wanted:
        raise ValueError(f"{images} images for {wanted} rows with an image: give one each.")
    words = model.get_input_embeddings()
    device = words.weight.device
    table_RD = words(_moved(rows.ids_BL, device)).flatten(0, 1)
    joined = join(rows, 0 if seen_NPD is None else seen_NPD.shape[1])
    if seen_NPD is not None:
        table_RD = torch.cat((table_RD, seen_NPD.flatten(0, 1).to(table_RD.dtype)))
    inputs_RD = table_RD.index_select(0, _moved(joined.source_BS.flatten(), device))
    return inputs_RD.view(*joined.source_BS.shape, -1), joined


def _exact_buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Copies of a model's fp32 buffers with their places."""
    return [
        (part, name, buffer.clone())
        for part in model.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if buffer.dtype == torch.float32
    ]


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
