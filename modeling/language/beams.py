"""Beam search by transformers' `generate` in which all beams of an item share its prompt.

`generate` repeats every prompt for each beam before the model reads it, and copies all keys and
values whenever beams change places. Here the prompt is read once (by a first call that generates
one token), and its keys and values are laid out for all beams. When beams change places, which they
do within an item only, just the keys and values of generated tokens are moved. The texts are those
of `generate` alone.

Shapes: see `modeling`; S prompt (queries and text), I items x beams, T tokens of prompt and text.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput


def generate(model: Any, settings: dict[str, Any], **given: Any) -> Tensor:
    """Token ids (B, L) that `model.generate` gives.

    Args:
        model: A language model from transformers.
        settings: Arguments of `generate` that describe the search: `num_beams`, `max_new_tokens`,
            ...
        given: `inputs_embeds`, `attention_mask` and further arguments of `generate`.
    """
    if settings["num_beams"] > 1 and not hasattr(model, "_reorder_cache"):
        given |= _shared(model, settings["num_beams"], settings["max_new_tokens"], given)
    made: Tensor = model.generate(**given, **settings)
    return made


def _shared(model: Any, beams: int, room: int, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` that replace the prompts by their keys and values.

    They are empty for a model whose cache is not one of plain keys and values in every layer, such
    as a recurrent one; it then reads its prompt for each beam.
    """
    pair = model.config.is_encoder_decoder
    read: dict[str, Any] = {}
    if pair:
        encoded_BSD = model.get_encoder()(
            inputs_embeds=given["inputs_embeds"], attention_mask=given["attention_mask"]
        ).last_hidden_state
        read = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded_BSD)}
    first = {"num_beams": 1, "max_new_tokens": 1, "do_sample": False}
    once = {name: value for name, value in given.items() if not (pair and name == "inputs_embeds")}
    made = model.generate(**once, **read, **first, return_dict_in_generate=True)
    past = made.past_key_values
    if pair:
        if not isinstance(past, EncoderDecoderCache) or not _plain(past.cross_attention_cache):
            return {}
        across = _laid_out(past.cross_attention_cache, beams, cut=0, room=0)
        return read | {"past_key_values": EncoderDecoderCache(DynamicCache(), across)}
    # `generate` must be left a position to read: the prompt's last one.
    return {"past_key_values": _laid_out(past, beams, cut=1, room=room + 1)} if _plain(past) else {}


def _plain(past: Any) -> bool:
    """Whether a cache is one of plain keys and values in every layer."""
    layers = past.layers if isinstance(past, DynamicCache) else []
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _laid_out(past: DynamicCache, beams: int, cut: int, room: int) -> DynamicCache:
    """The cache of prompts for all their beams.

    Args:
        past: Keys and values of the prompts.
        beams: Beams of a prompt.
        cut: Last positions to leave out.
        room: Positions that will be added.
    """
    laid = DynamicCache()
    laid.layers = [_BeamLayer(layer, beams, cut, room) for layer in past.layers]
    return laid


class _BeamLayer(DynamicLayer):
    """Keys and values (I, H, T, K) of one layer, in memory that is allocated once.

    Attributes:
        keys: Keys of the positions so far.
        values: Values of the positions so far.
    """

    def __init__(self, prompts: Any, beams: int, cut: int, room: int) -> None:
        super().__init__()
        self.dtype, self.device = prompts.keys.dtype, prompts.keys.device
        self.is_initialized = True
        self._shared: int = prompts.keys.shape[2] - cut
        self._key_IHTK, self._value_IHTK = (
            _spread(part[:, :, : self._shared], beams, room)
            for part in (prompts.keys, prompts.values)
        )
        self._show(self._shared)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Add positions; returns the keys and values of all."""
        begin, length = self._length, self._length + key_states.shape[2]
        self._key_IHTK[:, :, begin:length] = key_states
        self._value_IHTK[:, :, begin:length] = value_states
        self._show(length)
        assert self.keys is not None and self.values is not None  # `_show` has set them
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the keys and values of generated tokens to the beams that continue them."""
        if self._length == self._shared:
            return
        for part_IHTK in (self._key_IHTK, self._value_IHTK):
            own_IHTK = part_IHTK[:, :, self._shared : self._length]
            own_IHTK.copy_(own_IHTK.index_select(0, beam_idx.to(own_IHTK.device)))

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self._length = length
        shown = self._key_IHTK[:, :, :length], self._value_IHTK[:, :, :length]
        self.keys, self.values = shown
        return shown


def _spread(part_BHSK: Tensor, beams: int, room: int) -> Tensor:
    """Keys or values of prompts for each of their beams, with room for more positions."""
    items, heads, size, width = part_BHSK.shape
    made = part_BHSK.new_empty(items, beams, heads, size + room, width)
    made[:, :, :, :size] = part_BHSK[:, None]
    return made.flatten(0, 1)
