"""The Q-Former (paper, section 3.1): learned queries and text in BERT's layers, and its passes.

Queries and text share self-attention; the queries also attend to the image. Queries come first in
every sequence. `modeling.names` maps the weights' names to LAVIS's and Hugging Face's.

Shapes: see `modeling`; R image-text pairs.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling import losses
from modeling.blocks import KeyValue, Layer, QFormerConfig, init_bert, real_text
from modeling.dropout import Dropout
from modeling.linear import Linear, linear
from modeling.masks import contrastive_mask, generation_mask, matching_mask

__all__ = ["KeyValue", "LMHead", "QFormer", "QFormerConfig", "concatenate", "init_bert", "select"]


class QFormer(nn.Module):
    """Learned queries that read an image, alone or together with text.

    An image is projected to keys and values once (`project`), and every pass reads those.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.empty(1, config.queries, config.width))
        if config.text:
            self.word_embeddings = nn.Embedding(config.vocab, config.width)
            self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList([Layer(config, index) for index in range(config.layers)])
        self.apply(partial(init_bert, std=config.init_std))
        nn.init.normal_(self.query_tokens, std=config.init_std)

    def project(self, image_BPD: Tensor, norm: nn.LayerNorm | None = None) -> list[KeyValue]:
        """Keys and values of images for each layer with cross-attention, shared by all passes.

        Args:
            image_BPD: Image tokens.
            norm: A LayerNorm to apply to them first. Its weight and bias are multiplied into the
                projections, so that their gradients follow from the projections' and not from the
                tokens': where the tokens have no gradient, a third of the work is saved.
        """
        if norm is None:
            return [layer.cross_attn.project(image_BPD) for layer in self._cross_layers()]
        image_BPD = F.layer_norm(image_BPD.float(), norm.normalized_shape, eps=norm.eps)
        image_BPD = image_BPD.to(self.query_tokens.dtype)
        return [layer.cross_attn.project(image_BPD, norm) for layer in self._cross_layers()]

    def encode_image(self, image: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        """Queries alone (ITC, stage 2).

        Returns:
            The queries' output (B, Q, D), and their self-attention keys and values for each layer.
        """
        x_BQD = self._embed_queries(image[0][0].shape[0])
        cache = []
        for layer, layer_image in zip(self.layers, self._per_layer(image), strict=True):
            x_BQD, own = layer(x_BQD, self.config.queries, image=layer_image)
            cache.append(own)
        return x_BQD, cache

    def encode_text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Text alone (ITC): the output (B, D) at the first token, [CLS]."""
        mask, text = contrastive_mask(mask_BL, 0), real_text(mask_BL, 0)
        x_BLD = self._embed(self._embed_text(ids_BL))
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            x_BLD, _ = layer(x_BLD, 0, mask=mask, keep=1 if last else None, text=text)
        return x_BLD[:, 0]

    def encode_pair(self, image: list[KeyValue], ids_RL: Tensor, mask_RL: Tensor) -> Tensor:
        """Queries and text that see each other (ITM, instructions): queries' output (R, Q, D)."""
        queries = self.config.queries
        mask, text = matching_mask(mask_RL, queries), real_text(mask_RL, queries)
        text_RLD = self._embed_text(ids_RL)
        query_RQD = self.query_tokens.expand(ids_RL.shape[0], -1, -1)
        x_RSD = self._embed(torch.cat((query_RQD, text_RLD), 1))
        for index, (layer, layer_image) in enumerate(
            zip(self.layers, self._per_layer(image), strict=True)
        ):
            last = index == len(self.layers) - 1
            keep = queries if last else None
            x_RSD, _ = layer(x_RSD, queries, mask=mask, image=layer_image, keep=keep, text=text)
        return x_RSD

    def decode(self, cache: list[KeyValue], ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Text that sees the queries and the text before it (ITG): the text's output (B, L, D).

        Under the causal mask the queries do not see the text, so their keys and values are those
        of `encode_image` (`cache`).
        """
        queries = self.config.queries
        mask = generation_mask(mask_BL, queries)[:, :, queries:]
        text = real_text(mask_BL, 0)
        x_BLD = self._embed(self._embed_text(ids_BL))
        for layer, past in zip(self.layers, cache, strict=True):
            x_BLD, _ = layer(x_BLD, 0, mask=mask, past=past, text=text)
        return x_BLD

    def _embed_queries(self, batch: int) -> Tensor:
        return self._embed(self.query_tokens.expand(batch, -1, -1))

    def _embed_text(self, ids_BL: Tensor) -> Tensor:
        length = ids_BL.shape[1]
        if length > self.config.max_positions:
            raise ValueError(
                f"text has {length} tokens but qformer.max_positions = "
                f"{self.config.max_positions}: truncate the text."
            )
        # Positions start at 0 even behind queries, which have none.
        positions_L = torch.arange(length, device=ids_BL.device)
        return self.word_embeddings(ids_BL) + self.position_embeddings(positions_L)

    def _embed(self, x_BSD: Tensor) -> Tensor:
        return self.dropout(self.norm(x_BSD))

    def _cross_layers(self) -> Iterator[Layer]:
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if layer.has_cross:
                yield layer

    def _per_layer(self, image: Sequence[KeyValue]) -> list[KeyValue | None]:
        remaining = iter(image)
        return [next(remaining) if layer.has_cross else None for layer in self.layers]


class LMHead(nn.Module):
    """BERT's prediction head.

    Its output matrix is the word embedding, an argument of `forward`, so that it exists once.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.apply(partial(init_bert, std=config.init_std))

    def forward(
        self,
        x_ND: Tensor,
        embeddings_VD: Tensor,
        targets_N: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        """Logits (N, V), or the summed loss on targets.

        For the loss not all logits are in memory at once (`losses.head_loss`).
        """
        hidden_ND = self.norm(F.gelu(self.dense(x_ND)))
        if targets_N is None:
            return linear(hidden_ND, embeddings_VD, self.bias)
        return losses.head_loss(hidden_ND, embeddings_VD, self.bias, targets_N, smoothing=smoothing)


def select(image: list[KeyValue], index_R: Tensor) -> list[KeyValue]:
    """Keys and values of some of the images, for pairs that share or exchange images.

    Args:
        image: Keys and values of images, for each layer with cross-attention.
        index_R: Index of each pair's image.
    """
    joined = [
        layer if len(layer) == 2 else (torch.cat(layer[::2]), torch.cat(layer[1::2]))
        for layer in image
    ]
    return [(key.index_select(0, index_R), value.index_select(0, index_R)) for key, value in joined]


def concatenate(*images: list[KeyValue]) -> list[KeyValue]:
    """Joins batches of images' keys and values, without copying them."""
    return [tuple(chain.from_iterable(layer)) for layer in zip(*images, strict=True)]
