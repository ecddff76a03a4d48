"""The part that both predictors share: images become pixels, then the frozen encoder's tokens."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from jobs.models.encoder_settings import pixels_of
from jobs.models.trained import Trained
from jobs.prediction.pictures import Picture, check_pictures, read_picture
from pipeline.transforms import eval_transform


class WrongStage(ValueError, AttributeError):
    """A predictor was asked for what only a checkpoint of the other stage can do."""


class Predictor:
    """A checkpoint with its frozen models, and batches of images through the image encoder.

    Attributes:
        trained: the checkpoint.
        device: the device that holds its modules.
        batch_size: number of images or texts in one forward pass.
    """

    lacks: ClassVar[str] = ""
    """Sentence that answers a call which needs a checkpoint of the other stage."""

    def __init__(self, trained: Trained, device: str = "cpu", batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.trained = trained
        self.device = torch.device(device)
        self.batch_size = batch_size
        choice = trained.recipe.encoder
        self._transform = eval_transform(choice.image_size, pixels_of(choice))

    @property
    def kind(self) -> str:
        """``stage1`` or ``stage2``."""
        return self.trained.recipe.kind

    if not TYPE_CHECKING:  # a type checker should go on finding misspelt names

        def __getattr__(self, name: str) -> Any:
            """Called for a name that is not here: a method of the other stage has its own error."""
            ours = hasattr(type(self), name)  # a property whose own code met an AttributeError
            if not ours and any(hasattr(other, name) for other in Predictor.__subclasses__()):
                raise WrongStage(self.lacks)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _tokens(self, images: Iterable[Picture]) -> Tensor:
        """The encoder's tokens ``B P D`` of one batch of images, on the device."""
        return self._tokens_of(map(read_picture, images))

    def _tokens_of(self, frames: Iterable[Tensor]) -> Tensor:
        """The encoder's tokens ``B P D`` of one batch of uint8 RGB tensors, on the device."""
        pixels_B3HW = torch.stack([self._transform(frame) for frame in frames])
        return self.trained.encoder(pixels_B3HW.to(self.device))

    def _check(self, images: Sequence[Picture]) -> None:
        """Read all images first where there are several batches: one that cannot be read would
        otherwise end the call in a later batch, and the finished batches would be lost.
        """
        if len(images) > self.batch_size:
            check_pictures(images)

    def _batched(self, items: Sequence, compute: Callable[[list], Tensor]) -> Tensor:
        """The results of all batches of the items, in their order.

        Raises:
            ValueError: there are no items.
        """
        if not items:
            raise ValueError("nothing to do: no image or text was given")
        size = self.batch_size
        return torch.cat([compute(list(items[i : i + size])) for i in range(0, len(items), size)])
