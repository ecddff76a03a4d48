"""CapFilt's two models: a BLIP captioner with its own decode loop, and a CLIP scorer.

Paper, section 3.4: ten captions an image by nucleus sampling, ranked by CLIP similarity.

What makes it fast is what is *not* recomputed: the keys and values of an image's patches are
projected once per image, not per caption or per step, and never copied for the captions; the
prompt runs once per image; the text's own keys and values are cached.

What makes it repeatable is that a caption is a function of (seed, uid, caption index, model):
every draw uses a uniform that a hash of these gives, so neighbours, order, workers and retries
cannot change it.

Shapes: B images, N captions an image, L new tokens, T tokens so far, P patches, H heads,
D width, V vocabulary, E embedding, S texts, R rows (any number of distributions).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, scaled_dot_product_attention

_CANDIDATES = (32, 1024)  # nuclei of trained captioners are small; only wider ones sort more
_TEXTS = 128  # texts embedded at once by the scorer
REVISION = 1  # raise it with any change here that may change a bit: outputs name it


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How captions are drawn. Lengths count tokens and include the prompt, as in BLIP.

    ``top_p`` 0.9 is the library's default (the authors' CapFilt script has 0.95);
    ``temperature`` 0 is greedy.
    """

    captions: int = 10
    prompt: str = "a picture of "
    top_p: float = 0.9
    temperature: float = 1.0
    min_length: int = 5
    max_length: int = 30
    repetition_penalty: float = 1.1

    def __post_init__(self) -> None:
        if self.captions < 1:
            raise ValueError(f"captions={self.captions}: at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]")
        if self.temperature < 0 or self.repetition_penalty <= 0:
            raise ValueError("temperature must be >= 0 and repetition_penalty > 0")
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(f"min_length={self.min_length} must be in 0..{self.max_length}")


def uniforms(seed: int, uid: str, caption: int, steps: int) -> Tensor:
    """Float64 uniforms in [0, 1), one per step, of one caption: SHAKE-128 of (seed, uid, index).

    An extendable hash gives the same first values whatever ``steps`` is, on every machine.
    """
    stream = hashlib.shake_128(f"{seed}\0{uid}\0{caption}".encode()).digest(8 * steps)
    words = [int.from_bytes(stream[i : i + 8], "little") >> 11 for i in range(0, 8 * steps, 8)]
    return torch.tensor(words, dtype=torch.float64) * 2.0**-53


def nucleus(logits_RV: Tensor, uniform_R: Tensor, top_p: float) -> Tensor:
    """One token per row from the smallest set of likeliest tokens with mass >= ``top_p``.

    Tokens are ordered by probability, equal ones by id, and the token is where the cumulated
    probability passes ``uniform`` x the set's mass (inverse CDF): one uniform decides.

    Args:
        logits_RV: float32.
        uniform_R: in [0, 1).

    Returns:
        int64 ids, shape R.
    """
    probs_RV = logits_RV.softmax(-1)
    vocabulary = probs_RV.shape[-1]
    chosen_R = torch.empty_like(uniform_R, dtype=torch.int64)
    open_R = torch.arange(len(probs_RV), device=probs_RV.device)
    for width in (*(w for w in _CANDIDATES if w < vocabulary), vocabulary):
        rows_RV = probs_RV if len(open_R) == len(probs_RV) else probs_RV[open_R]
        ids_RK = rows_RV.topk(width, dim=-1).indices.sort(dim=-1).values
        probs_RK = rows_RV.gather(1, ids_RK)
        drawn_R, closed_R = _inverse_cdf(probs_RK, ids_RK, uniform_R[open_R], top_p)
        chosen_R[open_R] = drawn_R
        open_R = open_R[~closed_R]
        if not len(open_R):
            break
    return chosen_R


def _inverse_cdf(
    probs_RK: Tensor, ids_RK: Tensor, uniform_R: Tensor, top_p: float
) -> tuple[Tensor, Tensor]:
    """Draw among ``ids`` (ascending) by their probabilities; and whether the nucleus certainly
    lies inside them.

    It does when it ends before the least likely candidate's value: whatever was left out is not
    likelier than that one, so neither the order nor the mass of the nucleus could change.
    """
    sorted_RK, order_RK = probs_RK.sort(dim=-1, descending=True, stable=True)
    mass_RK = sorted_RK.double().cumsum(-1)
    kept_RK = (mass_RK - sorted_RK.double()) < top_p
    kept_RK[:, 0] = True
    last_R = kept_RK.sum(-1) - 1
    total_R = mass_RK.gather(1, last_R[:, None])[:, 0]
    target_R = uniform_R.to(mass_RK.dtype) * total_R
    index_R = torch.minimum((mass_RK <= target_R[:, None]).sum(-1), last_R)
    closed_R = sorted_RK.gather(1, last_R[:, None])[:, 0] > sorted_RK[:, -1]
    drawn_R = order_RK.gather(1, index_R[:, None])
    return ids_RK.gather(1, drawn_R)[:, 0], closed_R


class _Cache:
    """Keys and values of one layer: the image's, shared by its captions, and the text's own.

    The text's have room for the longest caption from the start, so that a step copies its own only.
    """

    def __init__(self, cross: tuple[Tensor, Tensor], captions: int, longest: int) -> None:
        self.cross_k_BHPD, self.cross_v_BHPD = cross
        batch, heads, _, width = self.cross_k_BHPD.shape
        self.own = self.cross_k_BHPD.new_empty(2, batch, captions, heads, longest, width)
        self.length = 0

    def extend(self, k_BNHLD: Tensor, v_BNHLD: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far; the prompt's come once and count for all captions."""
        end = self.length + k_BNHLD.shape[3]
        for place, new in enumerate((k_BNHLD, v_BNHLD)):
            self.own[place, :, :, :, self.length : end] = new
        self.length = end
        seen = self.own[:, :, : k_BNHLD.shape[1], :, :end]
        return seen[0], seen[1]


class Captioner:
    """Draws N captions an image from a ``BlipForConditionalGeneration``.

    Args:
        model: the Hugging Face module; moved to eval mode.
        tokenizer: its BERT-style tokenizer.
        sampling: how to draw.
        mean, std: the image processor's, per channel, for pixels in [0, 1].
        seed: part of every caption's key.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampling: SamplingConfig,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        seed: int = 0,
    ) -> None:
        self.model, self.tokenizer, self.sampling, self.seed = (
            model.eval(),
            tokenizer,
            sampling,
            seed,
        )
        text = model.config.text_config
        self.heads = text.num_attention_heads
        self.end, self.pad = text.sep_token_id, text.pad_token_id
        self.prompt = [text.bos_token_id, *tokenizer(sampling.prompt).input_ids[1:-1]]
        if len(self.prompt) >= sampling.max_length:
            raise ValueError(
                f"max_length={sampling.max_length} leaves no room behind the prompt's "
                f"{len(self.prompt)} tokens"
            )
        if sampling.max_length > text.max_position_embeddings:
            raise ValueError(
                f"max_length={sampling.max_length}: the captioner has only "
                f"{text.max_position_embeddings} positions"
            )
        layers = model.text_decoder.bert.encoder.layer
        # One product for queries, keys and values of the text, one for keys and values of images.
        self.own = [_joined(layer.attention.self, "query", "key", "value") for layer in layers]
        self.cross = [_joined(layer.crossattention.self, "key", "value") for layer in layers]
        self.device = model.get_input_embeddings().weight.device
        self.mean = torch.tensor(mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(3, 1, 1)

    def __call__(self, images_B3SS: Tensor, uids: Sequence[str]) -> list[list[str]]:
        """N captions for each image, without the prompt.

        Args:
            images_B3SS: uint8 at the captioner's size.
            uids: one per image; an empty one marks padding, which gets empty captions.
        """
        ids_BNT = self.generate(images_B3SS, uids)[:, :, len(self.prompt) :]
        rows = ids_BNT.flatten(0, 1).tolist()
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        size = self.sampling.captions
        found = [texts[i : i + size] for i in range(0, len(texts), size)]
        return [
            [text.strip() for text in texts] if uid else [""] * size
            for uid, texts in zip(uids, found, strict=True)
        ]

    @torch.inference_mode()
    def generate(self, images_B3SS: Tensor, uids: Sequence[str]) -> Tensor:
        """Token ids BNT, prompt included, padded behind the end token."""
        sampling, start = self.sampling, len(self.prompt)
        uniform_BNT = torch.stack([self._uniforms(uid) for uid in uids]).to(self.device)
        caches = self._image_caches(images_B3SS)
        prompt_L = torch.tensor(self.prompt, device=self.device)
        logits_BNV = self._advance(prompt_L.expand(len(uids), 1, -1), 0, caches)
        logits_BNV = logits_BNV.repeat(1, sampling.captions, 1)
        done_BN = torch.tensor([not uid for uid in uids], device=self.device)
        done_BN = done_BN[:, None].expand(-1, sampling.captions)
        ids = [prompt_L.expand(len(uids), sampling.captions, -1)]
        for length in range(start, sampling.max_length):
            scores_BNV = self._shape(logits_BNV, torch.cat(ids, dim=2))
            next_BN = self._draw(scores_BNV, uniform_BNT[:, :, length - start])
            next_BN = next_BN.masked_fill(done_BN, self.pad)
            ids.append(next_BN[:, :, None])
            done_BN = done_BN | (next_BN == self.end)
            if length + 1 == sampling.max_length or bool(done_BN.all()):
                break
            logits_BNV = self._advance(next_BN[:, :, None], length, caches)
        return torch.cat(ids, dim=2)

    def _uniforms(self, uid: str) -> Tensor:
        steps = self.sampling.max_length - len(self.prompt)
        rows = [uniforms(self.seed, uid, n, steps) for n in range(self.sampling.captions)]
        return torch.stack(rows)

    def _shape(self, logits_BNV: Tensor, ids_BNT: Tensor) -> Tensor:
        """Repetition penalty (prompt included), minimum length, temperature; HF's order.

        The logits are changed in place: they are many, and the words so far are few.
        """
        penalty, temperature = self.sampling.repetition_penalty, self.sampling.temperature
        said_BNT = logits_BNV.gather(2, ids_BNT)
        said_BNT = torch.where(said_BNT < 0, said_BNT * penalty, said_BNT / penalty)
        logits_BNV.scatter_(2, ids_BNT, said_BNT)
        if ids_BNT.shape[2] < self.sampling.min_length:
            logits_BNV[:, :, self.end] = -torch.inf
        return logits_BNV if temperature in (0, 1) else logits_BNV / temperature

    def _draw(self, scores_BNV: Tensor, uniform_BN: Tensor) -> Tensor:
        if self.sampling.temperature == 0:
            return scores_BNV.argmax(-1)
        rows = scores_BNV.flatten(0, 1)
        return nucleus(rows, uniform_BN.flatten(), self.sampling.top_p).view_as(uniform_BN)

    def _image_caches(self, images_B3SS: Tensor) -> list[_Cache]:
        """Vision tower, then every layer's cross-attention keys and values: once per image."""
        pixels = (images_B3SS.to(self.device).float() / 255.0 - self.mean) / self.std
        patches_BPD = self._see(pixels)
        caches = []
        for weights in self.cross:
            key_BPD, value_BPD = linear(patches_BPD, *weights).chunk(2, dim=-1)
            cross = self._heads(key_BPD), self._heads(value_BPD)
            caches.append(_Cache(cross, self.sampling.captions, self.sampling.max_length))
        return caches

    def _see(self, pixels_B3SS: Tensor) -> Tensor:
        """The vision tower's patches BPD, with fused attention (Hugging Face's BLIP has none)."""
        vision = self.model.vision_model
        heads = self.model.config.vision_config.num_attention_heads
        x_BPD = vision.embeddings(pixels_B3SS)
        for layer in vision.encoder.layers:
            joined = layer.self_attn.qkv(layer.layer_norm1(x_BPD)).chunk(3, dim=-1)
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joined)
            mixed_BPD = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x_BPD = x_BPD + layer.self_attn.projection(mixed_BPD)
            x_BPD = x_BPD + layer.mlp(layer.layer_norm2(x_BPD))
        return vision.post_layernorm(x_BPD)

    def _heads(self, x: Tensor) -> Tensor:
        """(..., L, D) -> (..., H, L, D / H)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def _advance(self, ids_BNL: Tensor, position: int, caches: list[_Cache]) -> Tensor:
        """Run new tokens through the decoder; float32 logits BNV behind the last of them."""
        bert = self.model.text_decoder.bert
        places = torch.arange(position, position + ids_BNL.shape[2], device=self.device)
        words = bert.embeddings.word_embeddings(ids_BNL)
        x_BNLD = bert.embeddings.LayerNorm(words + bert.embeddings.position_embeddings(places))
        for layer, cache, own in zip(bert.encoder.layer, caches, self.own, strict=True):
            x_BNLD = self._self_attend(layer.attention, own, x_BNLD, cache)
            x_BNLD = self._cross_attend(layer.crossattention, x_BNLD, cache)
            x_BNLD = layer.output(layer.intermediate(x_BNLD), x_BNLD)
        return self.model.text_decoder.cls(x_BNLD[:, :, -1]).float()

    def _self_attend(
        self, block: Any, own: tuple[Tensor, Tensor], x_BNLD: Tensor, cache: _Cache
    ) -> Tensor:
        q, k, v = (self._heads(part) for part in linear(x_BNLD, *own).chunk(3, dim=-1))
        q, k, v = (part.flatten(0, 1) for part in (q, *cache.extend(k, v)))
        # Only the prompt brings more than one token, and it comes first: plain causal is right.
        mixed = scaled_dot_product_attention(q, k, v, is_causal=x_BNLD.shape[2] > 1)
        return block.output(mixed.transpose(1, 2).flatten(-2).view_as(x_BNLD), x_BNLD)

    def _cross_attend(self, block: Any, x_BNLD: Tensor, cache: _Cache) -> Tensor:
        """All captions of an image are queries of one attention over its patches."""
        q_BHRD = self._heads(block.self.query(x_BNLD.flatten(1, 2)))
        mixed = scaled_dot_product_attention(q_BHRD, cache.cross_k_BHPD, cache.cross_v_BHPD)
        return block.output(mixed.transpose(1, 2).flatten(-2).view_as(x_BNLD), x_BNLD)


def _joined(block: Any, *names: str) -> tuple[Tensor, Tensor]:
    """Weights and biases of several projections as one."""
    parts = [getattr(block, name) for name in names]
    weight, bias = (torch.cat([getattr(p, kind) for p in parts]) for kind in ("weight", "bias"))
    return weight.detach(), bias.detach()


class ClipScorer:
    """Cosine similarity of images and texts by a Hugging Face ``CLIPModel``.

    Args:
        model: moved to eval mode.
        tokenizer: its BPE tokenizer; texts over the model's context are cut.
        mean, std: the image processor's, per channel, for pixels in [0, 1].
    """

    def __init__(
        self, model: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.context = model.config.text_config.max_position_embeddings
        self.device = model.visual_projection.weight.device
        self.mean = torch.tensor(mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(3, 1, 1)

    def __call__(self, images_B3SS: Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Scores of each image's own texts, in their order; equal texts are embedded once."""
        unique = sorted({text for row in texts for text in row})
        if not unique:
            return [[] for _ in texts]
        place = {text: index for index, text in enumerate(unique)}
        images_BE, texts_SE = self.image_embeds(images_B3SS), self.text_embeds(unique)
        scores = []
        for image_E, row in zip(images_BE, texts, strict=True):
            mine_NE = texts_SE[[place[text] for text in row]]
            scores.append((mine_NE * image_E).sum(-1).tolist())
        return scores

    @torch.inference_mode()
    def image_embeds(self, images_B3SS: Tensor) -> Tensor:
        """L2-normalised float32 embeddings BE of uint8 images at the scorer's size."""
        pixels = (images_B3SS.to(self.device).float() / 255.0 - self.mean) / self.std
        pixels = pixels.to(self.model.visual_projection.weight.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return normalize(self.model.visual_projection(pooled).float(), dim=-1)

    @torch.inference_mode()
    def text_embeds(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 embeddings SE.

        Texts run sorted by length, each group only as wide as its longest: under the causal
        mask nothing behind a text's end token reaches it, so the trimming is exact.
        """
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.context).input_ids
        order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
        embeds = []
        for first in range(0, len(order), _TEXTS):
            group = [ids[index] for index in order[first : first + _TEXTS]]
            longest = max(map(len, group))
            end = [row + [row[-1]] * (longest - len(row)) for row in group]
            pooled = self.model.text_model(torch.tensor(end, device=self.device)).pooler_output
            embeds.append(normalize(self.model.text_projection(pooled).float(), dim=-1))
        back = torch.tensor(order, device=self.device).argsort()
        return torch.cat(embeds)[back]
