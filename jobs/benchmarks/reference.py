"""Stage 1 as the reference computes it (LAVIS, blip2_qformer.py), from Hugging Face's modules.

There are four Q-Former passes: queries on the image, text alone, the 3B pairs of image-text
matching, and the language-modelling pass on the first one's cached keys and values. Each pass
projects the image anew, text keeps the length it was padded to, and logits over the whole
vocabulary are made at every position. The training benchmark and the tests compare
`modeling.blip2.Stage1` with it.

Shapes: see `modeling`; L includes padding, R = 3B.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, Blip2Config, Blip2ForImageTextRetrieval
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from modeling.blip2 import Stage1, Stage1Config
from modeling.names import huggingface_names
from modeling.qformer import QFormerConfig

SMOOTHING = 0.1
Cache = list[tuple[Tensor, Tensor]]  # each layer's keys and values of the queries, (B, Q, D)


class Reference(nn.Module):
    """The reference's forward pass on image tokens."""

    def __init__(self, theirs: Blip2ForImageTextRetrieval, dec: int) -> None:
        super().__init__()
        config: Any = theirs.config.qformer_config
        self.theirs, self.dec = theirs, dec
        self.queries: int = theirs.query_tokens.shape[1]
        self.heads: int = config.num_attention_heads
        self.drop: float = config.attention_probs_dropout_prob
        bert = BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.head = BertLMPredictionHead(bert)
        self.head.decoder.weight = theirs.embeddings.word_embeddings.weight
        self.head.decoder.bias = self.head.bias
        self.temp = nn.Parameter(torch.tensor(0.07))

    def forward(self, tokens: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """ITC, ITM, ITG and their sum ``loss`` of one batch on one rank.

        Args:
            tokens: image tokens (B, P, D) of the frozen encoder.
            ids: text tokens (B, L), padded on the right to the length that is computed.
            mask: (B, L), 1 for tokens, 0 for padding.
        """
        image = self.theirs.vision_model.post_layernorm(tokens)
        i2t, t2i, cache = self._contrast(image, ids, mask)
        labels = torch.arange(len(ids), device=ids.device)
        both = [F.cross_entropy(s, labels, label_smoothing=SMOOTHING) for s in (i2t, t2i)]
        itc = (both[0] + both[1]) / 2
        itm = self._match(image, ids, mask, i2t, t2i)
        itg = self._generate(cache, ids, mask)
        return {"itc": itc, "itm": itm, "itg": itg, "loss": itc + itm + itg}

    def _contrast(self, image: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Cache]:
        theirs = self.theirs
        seen = mask.new_ones(len(ids), 1, 1, self.queries)
        with self._remembered() as cache:
            query_out = self._bert(seen, image, None, queries=True)
        image_feats = F.normalize(theirs.vision_projection(query_out), dim=-1)
        cls = self._bert(mask[:, None, None], None, ids, queries=False)[:, 0]
        text_feats = F.normalize(theirs.text_projection(cls), dim=-1)
        # The other side carries no gradient, as gathered.
        i2t = image_feats[:, None] @ text_feats.detach()[None, :, :, None]
        t2i = text_feats[:, None, None] @ image_feats.detach().transpose(1, 2)[None]
        i2t, t2i = i2t.squeeze(-1).amax(-1), t2i.squeeze(2).amax(-1)
        return i2t / self.temp, t2i / self.temp, cache

    def _match(self, image: Tensor, ids: Tensor, mask: Tensor, i2t: Tensor, t2i: Tensor) -> Tensor:
        size = len(ids)
        with torch.no_grad():
            weights = [s.float().clone().fill_diagonal_(-10000).softmax(1) for s in (t2i, i2t)]
        images, texts = (torch.cat([torch.multinomial(row, 1) for row in w]) for w in weights)
        all_ids, all_masks = torch.cat((ids, ids, ids[texts])), torch.cat((mask, mask, mask[texts]))
        seen = F.pad(all_masks, (self.queries, 0), value=1)[:, None, None]
        all_images = torch.cat((image, image[images], image))
        joint = self._bert(seen, all_images, all_ids, queries=True)[:, : self.queries]
        matched = torch.arange(3 * size, device=ids.device) < size
        return F.cross_entropy(self.theirs.itm_head(joint).mean(1), matched.long())

    def _generate(self, cache: Cache, ids: Tensor, mask: Tensor) -> Tensor:
        spoken = ids.clone()
        spoken[:, 0] = self.dec
        hidden = self._decode(cache, spoken, mask)
        target = spoken.masked_fill(mask == 0, -100)[:, 1:]
        logits = self.head(hidden)[:, :-1].transpose(1, 2)
        return F.cross_entropy(logits, target, label_smoothing=SMOOTHING)

    def _bert(self, seen: Tensor, image: Tensor | None, ids: Tensor | None, queries: bool) -> Any:
        """Last hidden state under a mask (B, 1, 1 or rows, columns) of zeros and ones."""
        theirs, qformer = self.theirs, self.theirs.qformer
        query = theirs.query_tokens.expand(len(seen), -1, -1) if queries else None
        text = None if ids is None else theirs.embeddings(input_ids=ids)
        x = torch.cat([part for part in (query, text) if part is not None], 1)
        return qformer.encoder(
            qformer.dropout(qformer.layernorm(x)),
            attention_mask=_additive(seen, x.dtype),
            encoder_hidden_states=image,
            query_length=self.queries if queries else 0,
        ).last_hidden_state

    def _decode(self, cache: Cache, ids: Tensor, mask: Tensor) -> Tensor:
        """Text behind cached queries, under the multi-modal causal mask: (B, L, D)."""
        qformer, length = self.theirs.qformer, ids.shape[1]
        triangle = mask.new_ones(length, length).tril() * mask[:, None]
        x = qformer.dropout(qformer.layernorm(self.theirs.embeddings(input_ids=ids)))
        seen = _additive(F.pad(triangle, (self.queries, 0), value=1)[:, None], x.dtype)
        for layer, past in zip(qformer.encoder.layer, cache, strict=True):
            inner = layer.attention.attention
            key, value = (
                self._split(torch.cat((before, part(x)), 1))
                for before, part in zip(past, (inner.key, inner.value), strict=True)
            )
            query = self._split(inner.query(x))
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + seen
            drawn = F.dropout(scores.softmax(-1), self.drop, self.training)
            mixed = (drawn @ value).transpose(1, 2).flatten(2)
            x = layer.feed_forward_chunk(layer.attention.output(mixed, x))
        return x

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @contextmanager
    def _remembered(self) -> Iterator[Cache]:
        """Inside, the self-attentions' keys and values of a pass are kept."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        handles = []
        for layer in self.theirs.qformer.encoder.layer:
            inner = layer.attention.attention
            for part, kept in ((inner.key, keys), (inner.value, values)):
                handles.append(
                    part.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
                )
        cache: Cache = []
        try:
            yield cache
        finally:
            for handle in handles:
                handle.remove()
        cache += zip(keys, values, strict=True)


def retrieval_model(config: Stage1Config) -> Blip2ForImageTextRetrieval:
    """Hugging Face's retrieval model with stage 1's sizes.

    Only the norm behind its vision tower is used, not the tower.
    """
    theirs = Blip2Config(
        vision_config=huggingface_vision(config.qformer.encoder_width),
        qformer_config=huggingface_qformer(config.qformer),
        num_query_tokens=config.qformer.queries,
        image_text_hidden_size=config.embed,
    )
    return Blip2ForImageTextRetrieval(theirs)


def huggingface_qformer(config: QFormerConfig) -> dict[str, Any]:
    """Our Q-Former's sizes under Hugging Face's names."""
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.max_positions,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_drop,
        "cross_attention_frequency": config.cross_every,
        "encoder_hidden_size": config.encoder_width,
        "use_qformer_text_input": config.text,
    }


def huggingface_vision(width: int) -> dict[str, Any]:
    """Configuration of the smallest vision tower with a norm of this width behind it."""
    return {
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 0,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
        "layer_norm_eps": 1e-5,
    }


def give_weights(ours: Stage1, reference: Reference) -> None:
    """Copies stage 1's weights into the reference."""
    pairs = their_parameters(ours, reference)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            pairs[name].copy_(parameter.reshape(pairs[name].shape))


def their_parameters(ours: Stage1, reference: Reference) -> dict[str, nn.Parameter]:
    """The reference's parameter for each of ours, by our names."""
    theirs = dict(reference.theirs.named_parameters())
    state = dict(ours.named_parameters())
    pairs = {name: theirs[other] for name, other in huggingface_names(state).items()}
    transform = reference.head.transform
    pairs |= {f"lm_head.dense.{n}": p for n, p in transform.dense.named_parameters()}
    pairs |= {f"lm_head.norm.{n}": p for n, p in transform.LayerNorm.named_parameters()}
    pairs |= {"lm_head.bias": reference.head.bias, "temperature": reference.temp}
    assert set(pairs) == set(state)
    return pairs


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return (1 - seen.to(dtype)) * torch.finfo(dtype).min
