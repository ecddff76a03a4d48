"""CapFilt recipes: models, drawing of captions, filters (BLIP-2 paper, section 3.4)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from modeling.captioning.sampling import SamplingConfig
from modeling.precision import Dtype
from pipeline.capfilt.filters import FilterConfig


@dataclass(frozen=True)
class CapFiltRecipe:
    """Everything that decides the bytes of the output, besides the input.

    Attributes:
        captioner: folder of a ``BlipForConditionalGeneration`` (absolute, or relative to the
            clone), or a hub id, which each machine fetches once into its cache.
        ranker: folder or id of a ``CLIPModel``, likewise.
        keep: number of captions kept, of the synthetic ones and the web caption together.
        seed: seed of all captions, together with each sample's uid.
        shard_size: samples per shard where the source is a list; tars are shards already.
        batch_size: images that the models see at once; another number may change last bits.
        dtype: number format of both models' weights; ``auto`` is bf16 where the device multiplies
            it in hardware, else fp32.
        sampling: drawing of the captions.
        filters: inputs that are dropped before any model runs.
    """

    captioner: str
    ranker: str
    keep: int = 2
    seed: int = 0
    shard_size: int = 1_000
    batch_size: int = 32
    dtype: Dtype = "auto"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self) -> None:
        for name in ("keep", "shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")


def blip_large() -> CapFiltRecipe:
    """The paper's recipe: ten captions of BLIP-large, ranked by CLIP ViT-L/14, the best two kept.

    The paper does not state top-p; 0.95 is from public copies of the authors' script.
    """
    return CapFiltRecipe(
        captioner="Salesforce/blip-image-captioning-large",
        ranker="openai/clip-vit-large-patch14",
        sampling=SamplingConfig(top_p=0.95),
        batch_size=64,
    )


def tinyworld() -> CapFiltRecipe:
    """The small models of ``modeling/zoo``, in fp32: their layers gain nothing from bf16."""
    return replace(
        blip_large(),
        captioner="modeling/zoo/captioner",
        ranker="modeling/zoo/clip",
        sampling=SamplingConfig(),
        shard_size=256,
        batch_size=32,
        dtype="fp32",
    )


RECIPES: dict[str, Callable[[], CapFiltRecipe]] = {"tinyworld": tinyworld, "blip-large": blip_large}
