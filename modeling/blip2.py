"""BLIP-2's two pre-training stages (paper, section 3): Q-Former, heads and losses put together.

The frozen image encoder and the frozen language model are not in here: image tokens come in, losses
(stage 1) or visual prompts (stage 2) go out. `WithEncoder` adds an image encoder that trains too.

Shapes: see `modeling`; R rows of image-text pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling import contrast, gather, losses
from modeling.contrast import Features, World
from modeling.layers import Bounded, VisionNorm
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
    """Sizes of stage 1, representation learning; the defaults are the paper's.

    Attributes:
        qformer: sizes of the Q-Former.
        embed: width of the embedding that images and texts share.
        label_smoothing: smoothing of the targets of ITC and of ITG.
        temperature: initial divisor of the similarities; it is learned.
        dec_token_id: id of [DEC], which takes the place of [CLS] in front of generated text.
        itg: whether the generative loss is computed; False: retrieval finetuning (table 6).
    """

    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    embed: int = 256
    label_smoothing: float = 0.1
    temperature: float = 0.07
    dec_token_id: int = 30522
    itg: bool = True

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
    """Representation learning: ITC, ITM and ITG of image tokens and texts (section 3.2)."""

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
        self, *batch: Tensor | None, compute: Literal["losses", "features"] = "losses", **more: Any
    ) -> Any:
        """Calls `losses` or `features` with all other arguments.

        An engine (DeepSpeed's) gathers weights and counts steps only around `forward`, so both
        methods are called through here while training; elsewhere call them by name.
        """
        methods: dict[str, Callable[..., Any]] = {"losses": self.losses, "features": self.features}
        return methods[compute](*batch, **more)

    def losses(
        self,
        tokens_BPD: Tensor,
        text_ids_BL: Tensor,
        text_mask_BL: Tensor,
        image_ids_B: Tensor | None = None,
        draws_B2: Tensor | None = None,
        *,
        world: World | None = None,
        start: int = 0,
    ) -> dict[str, Tensor]:
        """ITC, ITM and ITG of a batch. Collective: every rank brings the same batch size.

        Args:
            tokens_BPD: Output of the frozen encoder.
            text_ids_BL: [CLS] … [SEP], padded on the right.
            text_mask_BL: 1 for tokens, 0 for padding.
            image_ids_B: Int ids when several samples show the same image; None: all are different.
            draws_B2: Uniform numbers in [0, 1) that choose each sample's hard negatives, which
                then do not depend on the number of ranks; None draws them here.
            world: Features of all samples of the step, where this batch is one of several
                micro-batches; the texts are then padded by `contrast.pad_texts`. None: the batches
                of all ranks are the whole step.
            start: Index of this batch's first sample among this rank's samples of the step.

        Returns:
            fp32 scalars `itc`, `itm`, `itg` and their sum `loss`. Averaged over ranks and
            micro-batches they are the joined batch's. For this, every token weighs alike in ITG;
            the reference averages over each rank's tokens first, and agrees on one rank only.

        Raises:
            ValueError: Unequal batches over ranks, or one pair in all.
        """
        ids_BL, mask_BL = text_ids_BL, text_mask_BL
        if world is None:
            ((ids_BL, mask_BL),) = contrast.pad_texts([(ids_BL, mask_BL)])
        seen = self._encode(tokens_BPD, ids_BL, mask_BL)
        world = world or World(seen.features(tokens_BPD, ids_BL, mask_BL, image_ids_B))
        same_BW = world.same(start, ids_BL.shape[0])
        image_logits_BW, text_logits_BW = self._logits(seen.image_BQE, seen.text_BE, world)
        targets_BW = losses.itc_targets(same_BW, self.config.label_smoothing)
        result = {"itc": losses.itc_loss(image_logits_BW, text_logits_BW, targets_BW)}
        uniform_B2 = (None, None) if draws_B2 is None else draws_B2.unbind(1)
        negative_image_B = losses.hard_negatives(text_logits_BW, same_BW, uniform_B2[0])
        negative_text_B = losses.hard_negatives(image_logits_BW, same_BW, uniform_B2[1])
        asked = gather.ask(negative_image_B, world.size, start)
        if self.config.itg:  # here: it keeps the device busy until the host knows who sends what
            result["itg"] = self._itg(seen.cache, ids_BL, mask_BL, world)
        image = seen.image
        pairs = concatenate(image, self._negatives(image, world, asked), image)
        result["itm"] = self._itm(pairs, ids_BL, mask_BL, world, negative_text_B)
        result["loss"] = torch.stack(list(result.values())).sum()
        return result

    def features(
        self,
        tokens_BPD: Tensor,
        text_ids_BL: Tensor,
        text_mask_BL: Tensor,
        image_ids_B: Tensor | None = None,
    ) -> Features:
        """Detached features of a micro-batch, of which `World` is made; arguments as for `losses`.

        Under the same seed they are the features that `losses` computes: dropout is drawn in the
        same order.
        """
        seen = self._encode(tokens_BPD, text_ids_BL, text_mask_BL)
        return seen.features(tokens_BPD.detach(), text_ids_BL, text_mask_BL, image_ids_B)

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
        """Keys and values of images for `match_logits`.

        `qformer.select` picks some of them, so that an image is projected once for many texts.
        """
        return self.qformer.project(tokens_BPD, self.ln_vision)

    def match_logits(
        self, image: list[KeyValue], text_ids_RL: Tensor, text_mask_RL: Tensor
    ) -> Tensor:
        """Two-class logits (R, 2), fp32, averaged over the queries; class 1 is "match"."""
        query_RQD = self.qformer.encode_pair(image, text_ids_RL, text_mask_RL)
        return self.itm_head(query_RQD).float().mean(1)

    def _encode(self, tokens_BPD: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> "_Encoded":
        image = self.project_image(tokens_BPD)
        query_BQD, cache = self.qformer.encode_image(image)
        image_BQE = self._image_feats(query_BQD)
        return _Encoded(image, cache, image_BQE, self.text_embeds(ids_BL, mask_BL))

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
        """ITM over 3B pairs: (text, image), (text, negative image), (negative text, image).

        Args:
            pairs: Keys and values of these pairs' images.
            negative_text_B: World index of each image's negative text.
        """
        ids_RL = torch.cat((ids_BL, ids_BL, world.ids_WL[negative_text_B]))
        mask_RL = torch.cat((mask_BL, mask_BL, world.mask_WL[negative_text_B]))
        return losses.itm_loss(self.match_logits(pairs, ids_RL, mask_RL), positives=ids_BL.shape[0])

    def _negatives(
        self, image: list[KeyValue], world: World, asked: gather.Asked
    ) -> list[KeyValue]:
        """Keys and values of the negative images; those of this batch are projected already."""
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
class _Encoded:
    """A batch after the Q-Former's first two passes, with gradients.

    Attributes:
        image: keys and values of the image tokens for each layer with cross-attention.
        cache: self-attention keys and values of the queries for each layer.
        image_BQE: features of the queries.
        text_BE: features of the texts.
    """

    image: list[KeyValue]
    cache: list[KeyValue]
    image_BQE: Tensor
    text_BE: Tensor

    def features(
        self, tokens_BPD: Tensor, ids_BL: Tensor, mask_BL: Tensor, image_ids_B: Tensor | None
    ) -> Features:
        """The same as values for other samples to be compared with; the tokens as given."""
        return Features(
            tokens_SPD=tokens_BPD,
            ids_SL=ids_BL,
            mask_SL=mask_BL,
            image_ids_S=image_ids_B,
            image_SQE=self.image_BQE.detach(),
            text_SE=self.text_BE.detach(),
        )


@dataclass(frozen=True)
class Stage2Config:
    """Sizes of stage 2, generative learning; the defaults are the paper's with OPT-2.7B.

    Attributes:
        qformer: sizes of the Q-Former.
        llm_width: width of the language model's embeddings.
    """

    qformer: QFormerConfig = field(default_factory=lambda: QFormerConfig(text=False))
    llm_width: int = 2560


class Stage2(nn.Module):
    """Generative learning: image tokens become soft visual prompts of a language model (3.3)."""

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
    """Sizes of the stage 2 that continues a stage 1.

    Args:
        stage1: Sizes of stage 1.
        llm_width: Width of the language model's embeddings.
        text: Whether the Q-Former reads text in stage 2; else it has no text parameters.
    """
    return Stage2Config(replace(stage1.qformer, text=text), llm_width)


def stage2_from_stage1(state: dict[str, Tensor], text: bool = False) -> dict[str, Tensor]:
    """Stage 2's weights out of stage 1's state dict: all but `language_proj`.

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
    """A stage together with an image encoder that trains with it (finetuning, tables 7-9).

    Its parameters are named `encoder.vit.*` and `stage.*`.
    """

    def __init__(self, encoder: ImageEncoder, stage: Stage1 | Stage2) -> None:
        super().__init__()
        self.encoder = encoder
        self.stage = stage

    def forward(self, images_B3HW: Tensor, *text: Tensor | None, **more: Any) -> Any:
        """Encodes the images and calls the stage with their tokens and all other arguments."""
        return self.stage(self.encoder(images_B3HW), *text, **more)


def stage_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A stage's weights under its own names, out of a checkpoint with or without an encoder."""
    prefix = "stage."
    if not any(name.startswith(prefix) for name in state):
        return state
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
