"""A LAVIS stage-1 file of odd sizes: its losses and gradient norms, from the file's own tensors.

The other side is the reference's algorithm in plain torch under LAVIS's names: nothing of ours, and
nothing of Hugging Face's, is in it. One rank: on several the reference's ITG is another mean.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.interchange import formats

WIDTH, LAYERS, HEADS, FFN, QUERIES, TOWER, VOCAB, PLACES, EMBED = 24, 3, 2, 40, 5, 36, 61, 20, 12
BERT, HEAD = "Qformer.bert", "Qformer.cls.predictions"
CONFIG = {
    "num_attention_heads": HEADS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def lavis_state() -> dict[str, Tensor]:
    """Random weights under LAVIS's names, large enough that every term counts."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}

    def linear(name: str, out: int, given: int) -> None:
        state[f"{name}.weight"] = 0.2 * torch.randn(out, given)
        state[f"{name}.bias"] = 0.1 * torch.randn(out)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width)
        state[f"{name}.bias"] = 0.1 * torch.randn(width)

    norm("ln_vision", TOWER)
    state["query_tokens"] = 0.3 * torch.randn(1, QUERIES, WIDTH)
    state[f"{BERT}.embeddings.word_embeddings.weight"] = 0.3 * torch.randn(VOCAB, WIDTH)
    state[f"{BERT}.embeddings.position_embeddings.weight"] = 0.3 * torch.randn(PLACES, WIDTH)
    state[f"{BERT}.embeddings.position_ids"] = torch.arange(PLACES)[None]
    norm(f"{BERT}.embeddings.LayerNorm", WIDTH)
    for i in range(LAYERS):
        layer = f"{BERT}.encoder.layer.{i}"
        sources = {"attention": WIDTH} | ({"crossattention": TOWER} if i % 2 == 0 else {})
        for block, source in sources.items():
            linear(f"{layer}.{block}.self.query", WIDTH, WIDTH)
            linear(f"{layer}.{block}.self.key", WIDTH, source)
            linear(f"{layer}.{block}.self.value", WIDTH, source)
            linear(f"{layer}.{block}.output.dense", WIDTH, WIDTH)
            norm(f"{layer}.{block}.output.LayerNorm", WIDTH)
        for suffix in ("", "_query"):
            linear(f"{layer}.intermediate{suffix}.dense", FFN, WIDTH)
            linear(f"{layer}.output{suffix}.dense", WIDTH, FFN)
            norm(f"{layer}.output{suffix}.LayerNorm", WIDTH)
    linear(f"{HEAD}.transform.dense", WIDTH, WIDTH)
    norm(f"{HEAD}.transform.LayerNorm", WIDTH)
    state[f"{HEAD}.bias"] = 0.1 * torch.randn(VOCAB)
    state[f"{HEAD}.decoder.weight"] = state[f"{BERT}.embeddings.word_embeddings.weight"]
    state[f"{HEAD}.decoder.bias"] = state[f"{HEAD}.bias"]
    for name, out in (("vision_proj", EMBED), ("text_proj", EMBED), ("itm_head", 2)):
        linear(name, out, WIDTH)
    state["temp"] = torch.tensor(0.07)
    return state


class Plain:
    """The reference's forward pass over a LAVIS state, in double precision."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        ours = {k: v.double() for k, v in state.items() if v.is_floating_point()}
        tied = (f"{HEAD}.decoder.weight", f"{HEAD}.decoder.bias")
        self.w = {k: v.clone().requires_grad_() for k, v in ours.items() if k not in tied}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def attend(self, name: str, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            self.linear(f"{name}.self.{part}", given).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part, given in (("query", x), ("key", source), ("value", source))
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        mixed = (scores if mask is None else scores + mask).softmax(-1) @ v
        out = self.linear(f"{name}.output.dense", mixed.transpose(1, 2).flatten(2))
        return self.norm(f"{name}.output.LayerNorm", out + x)

    def ffn(self, layer: str, suffix: str, x: Tensor) -> Tensor:
        inner = F.gelu(self.linear(f"{layer}.intermediate{suffix}.dense", x))
        out = self.linear(f"{layer}.output{suffix}.dense", inner)
        return self.norm(f"{layer}.output{suffix}.LayerNorm", out + x)

    def bert(self, ids: Tensor | None, queries: bool, image: Tensor | None, seen: Tensor) -> Tensor:
        """Last hidden state; `seen` (B, 1, rows or 1, columns) is 1 where attention may go."""
        size, parts = len(seen), []
        if queries:
            parts.append(self.w["query_tokens"].expand(size, -1, -1))
        if ids is not None:
            words = self.w[f"{BERT}.embeddings.word_embeddings.weight"][ids]
            parts.append(
                words + self.w[f"{BERT}.embeddings.position_embeddings.weight"][: ids.shape[1]]
            )
        x = self.norm(f"{BERT}.embeddings.LayerNorm", torch.cat(parts, 1))
        mask, first = (1 - seen.double()) * -10000.0, QUERIES if queries else 0
        for i in range(LAYERS):
            layer = f"{BERT}.encoder.layer.{i}"
            x = self.attend(f"{layer}.attention", x, x, mask)
            query, text = x[:, :first], x[:, first:]
            if queries and i % 2 == 0:
                query = self.attend(f"{layer}.crossattention", query, image, None)
            done = [self.ffn(layer, "_query", query)] if queries else []
            done += [self.ffn(layer, "", text)] if ids is not None else []
            x = torch.cat(done, 1)
        return x

    def losses(self, tokens: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        size = len(ids)
        image = self.norm("ln_vision", tokens, 1e-5)
        ones = torch.ones(size, 1, 1, QUERIES)
        text_seen = mask[:, None, None]
        image_feats = self.linear("vision_proj", self.bert(None, True, image, ones))
        image_feats = F.normalize(image_feats, dim=-1)
        cls = self.bert(ids, False, None, text_seen)[:, 0]
        text_feats = F.normalize(self.linear("text_proj", cls), dim=-1)
        i2t = torch.einsum("bqe,te->btq", image_feats, text_feats.detach()).amax(-1)
        t2i = torch.einsum("te,bqe->tbq", text_feats, image_feats.detach()).amax(-1)
        i2t, t2i = i2t / self.w["temp"], t2i / self.w["temp"]
        labels = torch.arange(size)
        itc = sum(F.cross_entropy(s, labels, label_smoothing=0.1) for s in (i2t, t2i)) / 2

        hardest = [s.detach().clone().fill_diagonal_(-10000).argmax(1) for s in (t2i, i2t)]
        images, texts = hardest
        all_ids, all_masks = torch.cat((ids, ids, ids[texts])), torch.cat((mask, mask, mask[texts]))
        seen = torch.cat((torch.ones(3 * size, QUERIES), all_masks), 1)[:, None, None]
        all_images = torch.cat((image, image[images], image))
        joint = self.bert(all_ids, True, all_images, seen)[:, :QUERIES]
        matched = torch.cat((torch.ones(size), torch.zeros(2 * size))).long()
        itm = F.cross_entropy(self.linear("itm_head", joint).mean(1), matched)

        spoken = ids.clone()
        spoken[:, 0] = VOCAB - 1
        length = ids.shape[1]
        causal = torch.zeros(size, 1, QUERIES + length, QUERIES + length)
        causal[..., :QUERIES] = 1
        causal[:, 0, QUERIES:, QUERIES:] = torch.ones(length, length).tril() * mask[:, None]
        hidden = self.bert(spoken, True, image, causal)[:, QUERIES:]
        inner = F.gelu(self.linear(f"{HEAD}.transform.dense", hidden))
        words = self.w[f"{BERT}.embeddings.word_embeddings.weight"]
        logits = F.linear(
            self.norm(f"{HEAD}.transform.LayerNorm", inner), words, self.w[f"{HEAD}.bias"]
        )
        target = spoken.masked_fill(mask == 0, -100)[:, 1:]
        itg = F.cross_entropy(logits[:, :-1].transpose(1, 2), target, label_smoothing=0.1)
        return {"itc": itc, "itm": itm, "itg": itg, "loss": itc + itm + itg}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Four pairs: image tokens, ids from 1 to 2 with padding 0, the mask."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(4, 7, TOWER, generator=generator, dtype=torch.double)
    ids = torch.randint(3, VOCAB - 1, (4, 9), generator=generator)
    lengths = torch.tensor([9, 4, 6, 3])
    mask = (torch.arange(9)[None] < lengths[:, None]).long()
    ids[:, 0] = 1
    ids[torch.arange(4), lengths - 1] = 2
    return tokens, ids * mask, mask


def test_losses_and_gradient_norms_are_the_references(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch, "multinomial", lambda w, n: w.argmax(-1, keepdim=True))
    state = lavis_state()
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    options = formats.Options(recipe="vit-g", config=CONFIG)
    parts = formats.read("lavis", tmp_path / "checkpoint.pth", options)
    ours, plain = parts.module().double(), Plain(state)
    found, expected = ours(*batch()), plain.losses(*batch())
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name
    found["loss"].backward()
    expected["loss"].backward()
    norms = [
        torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt().item()
        for gradients in (
            [p.grad for p in ours.parameters()],
            [w.grad for w in plain.w.values()],
        )
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
