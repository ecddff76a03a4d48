"""Texts that are drawn by nucleus sampling, repeatable for each row of a call.

    settings = SampledSettings(max_new_tokens=30, keys=("cat.jpg 0", "cat.jpg 1"))
    language.generate(prompts_BQD, ["a photo of", "a photo of"], settings)

The random numbers of a row come from a hash of the seed and of the row's key
(`modeling.captioning.sampling`), so neighbours, order and workers cannot change them.

Shapes: see `modeling`; R rows, V vocabulary, T tokens so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from modeling.captioning.sampling import nucleus, uniforms
from modeling.language.adapters import GenerationSettings


@dataclass(frozen=True)
class SampledSettings(GenerationSettings):
    """Settings of nucleus sampling; lengths and penalties are those of a search.

    Attributes:
        beams: 1; a drawn text has no beams.
        top_p: probability mass of the nucleus.
        temperature: divisor of the logits.
        seed: part of every row's random numbers.
        keys: name of each row; empty: the rows' numbers in the call.
    """

    beams: int = 1
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beams != 1:
            raise ValueError(f"beams = {self.beams}: a text that is drawn has no beams; give 1.")
        if not 0 < self.top_p <= 1 or self.temperature <= 0:
            raise ValueError(
                f"top_p = {self.top_p} must be in (0, 1], and temperature = {self.temperature} "
                "above 0; a search with beams = 1 takes the likeliest tokens."
            )

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        drawing = LogitsProcessorList([_Drawing(self)])
        return super().arguments() | {"logits_processor": drawing}

    def of_rows(self, rows: Sequence[int]) -> "SampledSettings":
        """The settings of some rows of a call, each with its own key."""
        return self.of_keys(tuple(self.keys[r] if self.keys else str(r) for r in rows))

    def of_keys(self, keys: tuple[str, ...]) -> "SampledSettings":
        """The same settings for rows of these names."""
        return replace(self, keys=keys)


class _Drawing(LogitsProcessor):
    """A draw of the next token of each row: greedy search then takes what was drawn."""

    def __init__(self, settings: SampledSettings) -> None:
        self._settings = settings
        self._step = 0
        self._uniform_RT: Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        uniform_R = self._uniforms(len(scores))[:, self._step].to(scores.device)
        self._step += 1
        drawn_R = nucleus(
            scores.float() / self._settings.temperature, uniform_R, self._settings.top_p
        )
        only_RV = torch.full_like(scores, -torch.inf)
        return only_RV.scatter_(1, drawn_R[:, None], 0.0)

    def _uniforms(self, rows: int) -> Tensor:
        """Random numbers (R, T), made at the first step."""
        if self._uniform_RT is None:
            settings = self._settings
            keys = settings.keys or tuple(map(str, range(rows)))
            if len(keys) != rows:
                raise ValueError(f"{len(keys)} keys for {rows} texts: give one each, or none.")
            drawn = [uniforms(settings.seed, key, 0, settings.max_new_tokens) for key in keys]
            self._uniform_RT = torch.stack(drawn)
        return self._uniform_RT
