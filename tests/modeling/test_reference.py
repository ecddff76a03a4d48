"""Stage 1 beside the reference's algorithm (LAVIS, blip2_qformer.py), rebuilt from Hugging Face's
parts: four Q-Former passes, image keys and values recomputed in each, text padded to the full
length.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, Blip2ForImageTextRetrieval
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from modeling.blip2 import Stage1
from modeling.weights import huggingface_names
from tests.modeling.test_qformer import huggingface_retrieval, ours_from
from tests.modeling.tiny import VOCAB, batch, sharpen

FULL, QUERIES, DEC = 12, 3, VOCAB - 1


def most_likely(weights: Tensor, count: int) -> Tensor:
    return weights.argmax(-1, keepdim=True)


class Reference(nn.Module):
    """The reference's forward pass on image tokens, with its own padding and masks."""

    def __init__(self, theirs: Blip2ForImageTextRetrieval) -> None:
        super().__init__()
        self.theirs = theirs
        self.head = BertLMPredictionHead(
            BertConfig(vocab_size=VOCAB, hidden_size=32, layer_norm_eps=1e-12)
        )
        sharpen(self.head, seed=9)
        self.head.decoder.weight = theirs.embeddings.word_embeddings.weight
        self.head.decoder.bias = self.head.bias
        self.temp = nn.Parameter(torch.tensor(0.07))

    def bert(self, mask: Tensor, image: Tensor | None, ids: Tensor | None, queries: bool) -> Tensor:
        """Last hidden state under a mask (B, 1, rows, columns) of zeros and ones."""
        t, size = self.theirs, mask.shape[0]
        query = t.query_tokens.expand(size, -1, -1) if queries else None
        text = None if ids is None else t.embeddings(input_ids=ids)
        x = torch.cat([part for part in (query, text) if part is not None], 1)
        q = t.qformer
        return q.encoder(
            q.dropout(q.layernorm(x)),
            attention_mask=(1 - mask.float()) * torch.finfo(torch.float32).min,
            encoder_hidden_states=image,
            query_length=QUERIES if queries else 0,
        ).last_hidden_state

    def forward(self, tokens: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        t, size = self.theirs, len(ids)
        image = t.vision_model.post_layernorm(tokens)
        text_rows = mask[:, None, None]
        ones = torch.ones(size, 1, 1, QUERIES, dtype=mask.dtype)
        query_out = self.bert(ones, image, None, queries=True)
        image_feats = F.normalize(t.vision_projection(query_out), dim=-1)
        cls = self.bert(text_rows, None, ids, queries=False)[:, 0]
        text_feats = F.normalize(t.text_projection(cls), dim=-1)
        i2t, t2i = self.similarities(image_feats, text_feats)
        labels = torch.arange(size)
        itc = sum(F.cross_entropy(s, labels, label_smoothing=0.1) for s in (i2t, t2i)) / 2

        with torch.no_grad():
            weights = [s.clone().fill_diagonal_(-10000).softmax(1) for s in (t2i, i2t)]
        images, texts = (torch.cat([torch.multinomial(row, 1) for row in w]) for w in weights)
        all_ids, all_masks = torch.cat((ids, ids, ids[texts])), torch.cat((mask, mask, mask[texts]))
        see = torch.cat((ones.repeat(3, 1, 1, 1), all_masks[:, None, None]), -1)
        all_images = torch.cat((image, image[images], image))
        joint = self.bert(see, all_images, all_ids, queries=True)[:, :QUERIES]
        matched = torch.cat((torch.ones(size), torch.zeros(2 * size))).long()
        itm = F.cross_entropy(t.itm_head(joint).mean(1), matched)

        decoder_ids = ids.clone()
        decoder_ids[:, 0] = DEC
        hidden = self.bert(causal(mask), image, decoder_ids, queries=True)[:, QUERIES:]
        target = decoder_ids.masked_fill(mask == 0, -100)[:, 1:]
        logits = self.head(hidden)[:, :-1]
        itg = F.cross_entropy(logits.transpose(1, 2), target, label_smoothing=0.1)
        return {"itc": itc, "itm": itm, "itg": itg, "loss": itc + itm + itg}

    def similarities(self, image_feats: Tensor, text_feats: Tensor) -> tuple[Tensor, Tensor]:
        """Images to texts and texts to images; the other side carries no gradient, as gathered."""
        i2t = (image_feats[:, None] @ text_feats.detach()[None, :, :, None]).squeeze(-1).amax(-1)
        t2i = (text_feats[:, None, None] @ image_feats.detach().transpose(1, 2)[None]).squeeze(2)
        return i2t / self.temp, t2i.amax(-1) / self.temp


def causal(mask: Tensor) -> Tensor:
    """The multi-modal causal mask (B, 1, Q + L, Q + L): text sees queries and what is before."""
    size, length = mask.shape
    see = torch.zeros(size, 1, QUERIES + length, QUERIES + length, dtype=mask.dtype)
    see[..., :QUERIES] = 1
    triangle = torch.ones(length, length, dtype=mask.dtype).tril()
    see[:, 0, QUERIES:, QUERIES:] = triangle * mask[:, None]
    return see


@pytest.fixture(scope="module")
def both() -> tuple[Reference, Stage1]:
    theirs = huggingface_retrieval()
    reference, ours = Reference(theirs), ours_from(theirs)
    with torch.no_grad():
        ours.lm_head.dense.load_state_dict(reference.head.transform.dense.state_dict())
        ours.lm_head.norm.load_state_dict(reference.head.transform.LayerNorm.state_dict())
        ours.lm_head.bias.copy_(reference.head.bias)
    return reference, ours


@pytest.mark.parametrize("size", [2, 5])
def test_losses_and_gradients_are_the_references(both, size, monkeypatch):
    monkeypatch.setattr(torch, "multinomial", most_likely)
    reference, ours = (model.double() for model in both)
    tokens, ids, mask = batch(size, seed=size)
    tokens = tokens.double()
    for model in (reference, ours):
        model.zero_grad()
    pad = FULL - ids.shape[1]  # the reference pads to the full length
    expected = reference(tokens, F.pad(ids, (0, pad)), F.pad(mask, (0, pad)))
    found = ours(tokens, ids, mask)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name
    expected["loss"].backward()
    found["loss"].backward()
    gradients = theirs_by_our_names(reference, ours)
    for name, parameter in ours.named_parameters():
        scale = gradients[name].norm().clamp(min=1e-6)
        gap = (parameter.grad.reshape(gradients[name].shape) - gradients[name]).norm() / scale
        assert gap < 1e-5, name


def theirs_by_our_names(reference: Reference, ours: Stage1) -> dict[str, Tensor]:
    """The gradient of each of our parameters, from the reference's."""
    theirs = dict(reference.theirs.named_parameters())
    state = dict(ours.named_parameters())
    gradients = {ours: theirs[name].grad for ours, name in huggingface_names(state).items()}
    transform = reference.head.transform
    gradients |= {f"lm_head.dense.{n}": p.grad for n, p in transform.dense.named_parameters()}
    gradients |= {f"lm_head.norm.{n}": p.grad for n, p in transform.LayerNorm.named_parameters()}
    gradients |= {"lm_head.bias": reference.head.bias.grad, "temperature": reference.temp.grad}
    assert set(gradients) == set(state)
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}
