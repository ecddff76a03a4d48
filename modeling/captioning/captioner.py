"""CapFilt's captioner: BLIP with a decode loop of its own; ten captions an image (section 3.4).

It is fast because little is computed twice: the keys and values of an image's patches are projected
once for an image, not for each caption or step, and never copied for the captions; the prompt runs
once for an image; the text's own keys and values are cached. On a GPU a step is replayed as a CUDA
graph, since its kernels are too small for Python to start them in time.

It is repeatable by the random numbers of ``modeling.captioning.sampling``.

Shapes: see `modeling`; B images, N captions of an image, L new tokens, T tokens so far, P patches,
R queries of one attention. Side S of an image is in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from modeling.captioning.cuda_graphs import Steps
from modeling.captioning.sampling import SamplingConfig, nucleus, uniforms
from modeling.linear import faster_products, linear

REVISION = 2  # to be raised with any change here that may change a bit; outputs name it


class _Cache:
    """Keys and values of one layer: the image's, shared by its captions, and the text's own.

    The text's have room for the longest caption from the start, so that a step copies only its own.
    """

    def __init__(self, cross: tuple[Tensor, Tensor], captions: int, longest: int) -> None:
        self.cross_k_BHPD, self.cross_v_BHPD = cross
        batch, heads, _, width = self.cross_k_BHPD.shape
        self.own = self.cross_k_BHPD.new_empty(2, batch, captions, heads, longest, width)

    def refill(self, cross: tuple[Tensor, Tensor]) -> None:
        """Replace the images' keys and values by another batch's, in the same memory."""
        self.cross_k_BHPD.copy_(cross[0])
        self.cross_v_BHPD.copy_(cross[1])

    def extend(self, k_BNHLD: Tensor, v_BNHLD: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """All keys and values of the text so far.

        The prompt's are given once for an image and stored for all of its captions.
        """
        end = position + k_BNHLD.shape[3]
        for index, new in enumerate((k_BNHLD, v_BNHLD)):
            self.own[index, :, :, :, position:end] = new
        seen = self.own[:, :, : k_BNHLD.shape[1], :, :end]
        return seen[0], seen[1]


class Captioner:
    """Draws N captions an image from a ``BlipForConditionalGeneration``.

    Args:
        model: Hugging Face's module; it is put into eval mode, and its matrix products are made by
            the faster library.
        tokenizer: the model's BERT-style tokenizer.
        sampling: settings of the drawing.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
        seed: part of every caption's key.
        steps: way in which a step of the decoder runs; by default replayed on a GPU, plain
            elsewhere.

    Raises:
        ValueError: the longest caption has no room behind the prompt, or in the model's positions.
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
        steps: Steps | None = None,
    ) -> None:
        self.model, self.tokenizer, self.sampling, self.seed = (
            faster_products(model.eval()),
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
        self.steps = steps or Steps.on(self.device)
        self._caches: list[_Cache] = []  # of the last batch, where steps are replayed
        self.mean = torch.tensor(mean, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(3, 1, 1)

    def __call__(self, images_B3SS: Tensor, uids: Sequence[str]) -> list[list[str]]:
        """N captions for each image, without the prompt.

        Args:
            images_B3SS: uint8 images at the captioner's size.
            uids: id of each image; an empty one marks padding, which gets empty captions.
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
        """Token ids (B, N, T), prompt included, padded behind the end token."""
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
            logits_BNV = self.steps(
                length, lambda ids, at=length: self._advance(ids, at, caches), next_BN[:, :, None]
            )
        return torch.cat(ids, dim=2)

    def _uniforms(self, uid: str) -> Tensor:
        steps = self.sampling.max_length - len(self.prompt)
        rows = [uniforms(self.seed, uid, n, steps) for n in range(self.sampling.captions)]
        return torch.stack(rows)

    def _shape(self, logits_BNV: Tensor, ids_BNT: Tensor) -> Tensor:
        """Logits after repetition penalty, minimum length and temperature, as in Hugging Face.

        They are changed in place: they are many, and few of them belong to tokens so far.
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
        """Caches with every layer's keys and values of the images, computed once for an image."""
        pixels = (images_B3SS.to(self.device).float() / 255.0 - self.mean) / self.std
        patches_BPD = self._see(pixels)
        if len(pixels) != self._kept_for():
            self.steps.clear()
            self._caches = []
        caches = []
        for layer, weights in enumerate(self.cross):
            key_BPD, value_BPD = linear(patches_BPD, *weights).chunk(2, dim=-1)
            cross = self._heads(key_BPD), self._heads(value_BPD)
            if self._caches:
                self._caches[layer].refill(cross)
            else:
                caches.append(_Cache(cross, self.sampling.captions, self.sampling.max_length))
        if self.steps.replays and not self._caches:
            self._caches = caches
        return caches or self._caches

    def _kept_for(self) -> int:
        """Batch size of the kept caches; 0 without any."""
        return len(self._caches[0].cross_k_BHPD) if self._caches else 0

    def _see(self, pixels_B3SS: Tensor) -> Tensor:
        """The vision tower's output (B, P, D), with fused attention, which Hugging Face's lacks."""
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
        """Heads (..., H, L, K) of hidden states (..., L, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def _advance(self, ids_BNL: Tensor, position: int, caches: list[_Cache]) -> Tensor:
        """Run new tokens through the decoder; float32 logits (B, N, V) behind the last of them."""
        bert = self.model.text_decoder.bert
        positions = torch.arange(position, position + ids_BNL.shape[2], device=self.device)
        words = bert.embeddings.word_embeddings(ids_BNL)
        x_BNLD = bert.embeddings.LayerNorm(words + bert.embeddings.position_embeddings(positions))
        for layer, cache, own in zip(bert.encoder.layer, caches, self.own, strict=True):
            x_BNLD = self._self_attend(layer.attention, own, x_BNLD, cache, position)
            x_BNLD = self._cross_attend(layer.crossattention, x_BNLD, cache)
            x_BNLD = layer.output(layer.intermediate(x_BNLD), x_BNLD)
        return self.model.text_decoder.cls(x_BNLD[:, :, -1]).float()

    def _self_attend(
        self, block: Any, own: tuple[Tensor, Tensor], x_BNLD: Tensor, cache: _Cache, position: int
    ) -> Tensor:
        q, k, v = (self._heads(part) for part in linear(x_BNLD, *own).chunk(3, dim=-1))
        q, k, v = (part.flatten(0, 1) for part in (q, *cache.extend(k, v, position)))
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
