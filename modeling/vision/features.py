"""The choice of an image encoder's tokens that the Q-Former sees: block, norm, special tokens.

For CLIP and EVA-CLIP this is the paper's choice (section 4.1): the output of the block before the
last, without the final norm, class token first. For other families it is a choice of this project,
made from what published vision-language models use and not measured here (docs/encoders.md).
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class FeatureConfig:
    """Choice of an encoder's tokens.

    Attributes:
        layer: block whose output is taken, counted from the end: -1 the last, -2 the one before
            it (the paper's); 0 takes the default of the encoder's family. Later blocks are not
            built.
        norm: whether the encoder's final norm is applied to the output; ``auto`` takes the family's
            default.
        tokens: tokens that are kept: ``all`` keeps class token, registers and patches, ``class``
            class token and patches, ``patches`` patches alone; ``auto`` takes the family's default.
    """

    layer: int = 0
    norm: Literal["auto", "yes", "no"] = "auto"
    tokens: Literal["auto", "all", "class", "patches"] = "auto"

    def __post_init__(self) -> None:
        if self.layer > 0:
            raise ValueError(
                f"encoder.features.layer = {self.layer}: blocks are counted from the end; give -1 "
                "for the last block's output, -2 for the one before it, 0 for the family's default"
            )

    def settle(self, family: "FeatureConfig") -> "FeatureConfig":
        """This choice, with a family's defaults for what it leaves open."""
        return replace(
            self,
            layer=self.layer or family.layer,
            norm=family.norm if self.norm == "auto" else self.norm,
            tokens=family.tokens if self.tokens == "auto" else self.tokens,
        )


PAPER = FeatureConfig(-2, "no", "all")
"""CLIP, EVA-CLIP and BLIP-2 towers (BLIP-2, section 4.1)."""
SECOND_LAST = FeatureConfig(-2, "no", "class")
"""SigLIP, SigLIP-2, EVA-02, PE-core and supervised towers: the paper's rule without registers."""
LAST_NORMED = FeatureConfig(-1, "yes", "class")
"""DINOv2 and DINOv3: the normed patch tokens that their own training makes features of."""
LAST = FeatureConfig(-1, "no", "class")
"""PE-lang and PE-spatial, tuned so that the last block's output is the feature; no final norm."""


def of_timm(name: str) -> FeatureConfig:
    """The default of a timm model, by its name."""
    if "dinov2" in name or "dinov3" in name:
        return LAST_NORMED
    if "_pe_lang_" in name or "_pe_spatial_" in name:
        return LAST
    plain = not any(part in name for part in ("siglip", "eva02", "_pe_core_"))
    return PAPER if plain and "clip" in name else SECOND_LAST


def of_huggingface(model_type: str) -> FeatureConfig:
    """The default of a Hugging Face vision tower, by its ``model_type``."""
    if model_type.startswith("dinov"):
        return LAST_NORMED
    return SECOND_LAST if model_type.startswith("siglip") else PAPER
