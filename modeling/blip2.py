"""BLIP-2's two pre-training stages (paper, section 3) composed from the Q-Former, the losses and
the collectives.

Legend: B local batch, W world batch, P image tokens, Q queries, L text tokens, D width, E shared
    embedding, R rows of pairs.
The frozen image encoder and language model are not in here: tokens come in, prompts go out. Only
`WithEncoder` holds an encoder, one that trains.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling import contrast, gather, losses
from modeling.contrast import Features, World
from modeling.qformer import (
    KeyValue,
    LMHead,
    QFormer,
    QFormerConfig,
    concatenate,
    init_bert,
    select,
)
from modeling.vision.encoders import ImageEncoder

TEMPERATURE_BOUNDS = (0.001, 0.5)


@dataclass(frozen=True)
class Stage1Config:
    """Representation learning; the defaults are the paper's and the reference's."""

    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    embed: int = 256
    label_smoothing: float = 0.1
    temperature: float = 0.07
    dec_token_id: int = 30522  # [DEC] takes the place of [CLS] in front of generated text
    itg: bool = True  # False: retrieval finetuning without the generative loss (table 6)

    def __post_init__(self) -> None:
        low, high = TEMPERATURE_BOUNDS
        if not low <= self.temperature <= high:
            raise ValueError(f"temperature = {self.temperature} must lie in [{low}, {high}].")
        if not self.qformer.text:
            raise ValueError("qformer.text = False: stage 1 reads text, set it to True.")
        if not 0 <= self.dec_token_id < self.qformer.vocab:
            raise ValueError(
                f"dec_token_id = {self.dec_token_id} is outside qformer.vocab = "
                f"{self.qformer.vocab}: add [DEC] to the tokenizer and set vocab to its length."
            )


class Stage1(nn.Module):
    """ITC + ITM + ITG on frozen image tokens and text (section 3.2)."""

    def __init__(self, config: Stage1Config) -> None:
        super().__init__()
        self.config = config
        width = config.qformer.width
        self.ln_vision = VisionNorm(config.qformer.encoder_width)
        self.qformer = QFormer(config.qformer)
        self.vision_proj = nn.Linear(width, config.embed)
        self.text_proj = nn.Linear(width, config.embed)
        self.itm_head = nn.Linear(width, 2)
        for head in (self.vision_proj, self.text_proj, self.itm_head):
            init_bert(head, config.qformer.init_std)
        if config.itg:
            self.lm_head = LMHead(config.qformer)
        # One element, not a scalar: DeepSpeed cannot partition a parameter without dimensions.
        self.temperature = nn.Parameter(torch.full((1,), config.temperature))

    def forward(
        self,
        tokens_BPD: Tensor,
        text_ids_BL: Tensor,
        text_mask_BL: Tensor,
        image_ids_B: Tensor | None = None,
        draws_B2: Tensor | None = None,
        *,
        world: World | None = None,
        start: int = 0,
        only_features: bool = False,
    ) -> dict[str, Tensor] | Features:
        """The losses of a batch; a collective call, every rank brings the same batch size.

        Args:
            tokens_BPD: Output of the frozen encoder.
            text_ids_BL: [CLS] … [SEP], padded on the right.
            text_mask_BL: 1 for tokens, 0 for padding.
            image_ids_B: Int ids when several samples show the same image; None: all are different.
            draws_B2: Uniform numbers in [0, 1) that choose each sample's hard negatives, which
                then do not depend on the number of ranks; None draws them here.
            world: Where this is one of several micro-batches of a step, what all of them are
                compared with; the texts are then padded by `contrast.pad_texts`.
            start: This micro-batch's first sample among this rank's.
            only_features: Compute what `world` is made of, and no loss. Under the same seed, these
                are the features that the losses see: dropout is drawn in the same order.

        Returns:
            fp32 scalars `itc`, `itm`, `itg` and their sum `loss`. Averaged over ranks and
            micro-batches they are the joined batch's. So every token weighs alike in ITG; the
            reference averages over each rank's tokens first, and agrees on one rank only.

        Raises:
            ValueError: Unequal batches over ranks, or one pair in all.
        """
        ids_BL, mask_BL = text_ids_BL, text_mask_BL
        if world is None and not only_features:
            ((ids_BL, mask_BL),) = contrast.pad_texts([(ids_BL, mask_BL)])
        image = self.project_image(tokens_BPD)
        query_BQD, cache = self.qformer.encode_image(image)
        feats_BQE, text_BE = self._image_feats(query_BQD), self.text_embeds(ids_BL, mask_BL)
        if only_features:
            tokens_BPD = tokens_BPD.detach()
        own = Features(
            tokens_BPD, ids_BL, mask_BL, image_ids_B, feats_BQE.detach(), text_BE.detach()
        )
        if only_features:
            return own
        world = world or World(own)
        same_BW = world.same(start, ids_BL.shape[0])
        image_logits_BW, text_logits_BW = self._logits(feats_BQE, text_BE, world)
        targets_BW = losses.itc_targets(same_BW, self.config.label_smoothing)
        result = {"itc": losses.itc_loss(image_logits_BW, text_logits_BW, targets_BW)}
        uniform_B2 = (None, None) if draws_B2 is None else draws_B2.unbind(1)
        negative_image_B = losses.hard_negatives(text_logits_BW, same_BW, uniform_B2[0])
        negative_text_B = losses.hard_negatives(image_logits_BW, same_BW, uniform_B2[1])
        asked = gather.ask(negative_image_B, world.size, start)
        if self.config.itg:  # here: it keeps the device busy until the host knows who sends what
            result["itg"] = self._itg(cache, ids_BL, mask_BL, world)
        pairs = concatenate(image, self._negatives(image, world, asked), image)
        result["itm"] = self._itm(pairs, ids_BL, mask_BL, world, negative_text_B)
        result["loss"] = torch.stack(list(result.values())).sum()
        return result

    def image_embeds(self, tokens_BPD: Tensor) -> Tensor:
        """L2-normalised features (B, Q, E) of every query."""
        query_BQD, _ = self.qformer.encode_image(self.project_image(tokens_BPD))
        return self._image_feats(query_BQD)

    def text_embeds(self, text_ids_BL: Tensor, text_mask_BL: Tensor) -> Tensor:
        """L2-normalised features (B, E) of the texts."""
        cls_BD = self.qformer.encode_text(text_ids_BL, text_mask_BL)
        return F.normalize(self.text_proj(cls_BD).float(), dim=-1)

    def match(self, tokens_BPD: Tensor, text_ids_BL: Tensor, text_mask_BL: Tensor) -> Tensor:
        """ITM score (B): the logit of "match" minus that of "no match", fp32."""
        logits_BC = self.match_logits(self.project_image(tokens_BPD), text_ids_BL, text_mask_BL)
        return logits_BC[:, 1] - logits_BC[:, 0]

    def project_image(self, tokens_BPD: Tensor) -> list[KeyValue]:
        """Keys and values of images, for `match_logits` with many texts an image (`qformer.select`
        picks rows).
        """
        return self.qformer.project(tokens_BPD, self.ln_vision)

    def match_logits(
        self, image: list[KeyValue], text_ids_RL: Tensor, text_mask_RL: Tensor
    ) -> Tensor:
        """Two-class logits (R, 2), fp32, averaged over the queries; class 1 is "match"."""
        query_RQD = self.qformer.encode_pair(image, text_ids_RL, text_mask_RL)
        return self.itm_head(query_RQD).float().mean(1)

    def _image_feats(self, query_BQD: Tensor) -> Tensor:
        return F.normalize(self.vision_proj(query_BQD).float(), dim=-1)

    def _logits(self, image_BQE: Tensor, text_BE: Tensor, world: World) -> tuple[Tensor, Tensor]:
        """Local images to all texts and local texts to all images, over the temperature."""
        temperature = Bounded.apply(self.temperature.float(), *TEMPERATURE_BOUNDS)
        image_BW = losses.image_to_text_similarity(image_BQE, world.text_WE)
        text_BW = losses.text_to_image_similarity(text_BE, world.image_WQE)
        return image_BW / temperature, text_BW / temperature

    def _itm(
        self,
        pairs: list[KeyValue],
        ids_BL: Tensor,
        mask_BL: Tensor,
        world: World,
        negative_text_B: Tensor,
    ) -> Tensor:
        """3B rows in one batch: (text, image), (text, negative image), (negative text, image).

        Args:
            pairs: Keys and values of the images of these rows.
            negative_text_B: World index of each image's negative text.
        """
        ids_RL = torch.cat((ids_BL, ids_BL, world.ids_WL[negative_text_B]))
        mask_RL = torch.cat((mask_BL, mask_BL, world.mask_WL[negative_text_B]))
        return losses.itm_loss(self.match_logits(pairs, ids_RL, mask_RL), positives=ids_BL.shape[0])

    def _negatives(
        self, image: list[KeyValue], world: World, asked: gather.Asked
    ) -> list[KeyValue]:
        """Keys and values of the chosen images; those of this batch are projected already."""
        if asked.counts is not None:
            lacked_RPD = asked.bring(world.own.tokens_SPD)
            # Also where there are none: under ZeRO-3 all ranks must gather the same weights.
            image = concatenate(image, self.project_image(lacked_RPD))
        return select(image, asked.row_B)

    def _itg(self, cache: list[KeyValue], ids_BL: Tensor, mask_BL: Tensor, world: World) -> Tensor:
        """Language modelling from [DEC]; positions without a real next token do not count."""
        given_BL = ids_BL[:, :-1].clone()  # the last position has no next token
        given_BL[:, :1] = self.config.dec_token_id
        x_BLD = self.qformer.decode(cache, given_BL, mask_BL[:, :-1])
        # All positions, so that nobody need wait for the device to learn which are real.
        real_BL = mask_BL[:, 1:].bool()
        targets_BL = ids_BL[:, 1:].masked_fill(~real_BL, losses.IGNORED)
        total = self.lm_head(
            x_BLD.flatten(0, 1),
            self.qformer.word_embeddings.weight,
            targets_BL.flatten(),
            self.config.label_smoothing,
        )
        return gather.world_mean(total, world.text_targets(ids_BL.shape[0]))


@dataclass(frozen=True)
class Stage2Config:
    """Generative learning: the Q-Former's outputs become a language model's visual prompts."""

    qformer: QFormerConfig = field(default_factory=lambda: QFormerConfig(text=False))
    llm_width: int = 2560


class Stage2(nn.Module):
    """Image tokens to soft visual prompts (section 3.3)."""

    def __init__(self, config: Stage2Config) -> None:
        super().__init__()
        self.config = config
        self.ln_vision = VisionNorm(config.qformer.encoder_width)
        self.qformer = QFormer(config.qformer)
        self.language_proj = nn.Linear(config.qformer.width, config.llm_width)
        init_bert(self.language_proj, config.qformer.init_std)

    def forward(
        self,
        tokens_BPD: Tensor,
        text_ids_BL: Tensor | None = None,
        text_mask_BL: Tensor | None = None,
    ) -> Tensor:
        """Soft visual prompts (B, Q, llm_width).

        Args:
            tokens_BPD: Output of the image encoder.
            text_ids_BL: A question or instruction that the Q-Former reads too (needs
                `qformer.text`).
            text_mask_BL: 1 for its tokens, 0 for padding.
        """
        image = self.qformer.project(tokens_BPD, self.ln_vision)
        if text_ids_BL is None:
            query_BQD, _ = self.qformer.encode_image(image)
        else:
            if not self.config.qformer.text or text_mask_BL is None:
                raise ValueError("text for the Q-Former needs qformer.text = True and a text mask.")
            query_BQD = self.qformer.encode_pair(image, text_ids_BL, text_mask_BL)
        return self.language_proj(query_BQD)


def stage2_config(stage1: Stage1Config, llm_width: int, text: bool = False) -> Stage2Config:
    """The stage 2 that continues a stage 1, without text parameters unless the Q-Former is to read
    text.
    """
    return Stage2Config(replace(stage1.qformer, text=text), llm_width)


def stage2_from_stage1(state: dict[str, Tensor], text: bool = False) -> dict[str, Tensor]:
    """What stage 2 takes over from stage 1's state: everything of stage 2 but `language_proj`.

    Args:
        state: Stage 1's state dict.
        text: Whether stage 2's Q-Former reads text (`qformer.text`).

    Raises:
        ValueError: The state is not stage 1's.
    """
    if "ln_vision.weight" not in state or "qformer.query_tokens" not in state:
        raise ValueError(
            "checkpoint has no ln_vision.weight or qformer.query_tokens: "
            "it is not a stage-1 checkpoint."
        )
    text_only = ("qformer.word_embeddings.", "qformer.position_embeddings.")
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(("ln_vision.", "qformer."))
        and (text or not (name.startswith(text_only) or ".text_ffn." in name))
    }


class WithEncoder(nn.Module):
    """A stage together with the image encoder that trains with it (finetuning, tables 7-9).

    Its parameters are named `encoder.vit.*` and `stage.*`.
    """

    def __init__(self, encoder: ImageEncoder, stage: Stage1 | Stage2) -> None:
        super().__init__()
        self.encoder = encoder
        self.stage = stage

    def forward(self, images_B3HW: Tensor, *text: Tensor | None, **more: Any) -> Any:
        """What the stage makes of the images' tokens; all else is passed on to it."""
        return self.stage(self.encoder(images_B3HW), *text, **more)


def stage_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stage's part of a checkpoint, under the stage's own names, whether or not an encoder
    was trained with it.
    """
    prefix = "stage."
    if not any(name.startswith(prefix) for name in state):
        return state
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class VisionNorm(nn.LayerNorm):
    """LayerNorm on the encoder's output, eps 1e-5, computed in fp32, returned in the dtype of its
    weight.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, tokens_BPD: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        normed = F.layer_norm(tokens_BPD.float(), self.normalized_shape, weight, bias, self.eps)
        return normed.to(self.weight.dtype)


class Bounded(torch.autograd.Function):
    """Clamps to [low, high]; outside, only a gradient that leads back passes, so that no step is
    lost there.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, low: float, high: float
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (low, high)  # type: ignore[attr-defined]
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outward = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))
        return grad.masked_fill(outward, 0), None, None
