"""The predictor of a LLaVA checkpoint: a ``Writer`` whose prompts are questions in its layout.

    model = load("runs/llava2")
    model.generate(["a.jpg"], ["What is unusual about this?"])
    model.chat("a.jpg").ask("What is this?")
    model.converse(model.encode(["a.jpg"]), [turns])

Shape suffixes: B images, P tokens of the encoder's grid, D width of the language model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jobs.models.llava import TrainedLlava
from jobs.models.trained import Trained
from jobs.prediction.presets import CHAT
from jobs.prediction.writer import Writer
from modeling.language.adapters import GenerationSettings
from modeling.language.conversation import LAYOUTS, Turn
from modeling.language.talking import TalkingLM

BRIEF = "Describe the image concisely."
"""One of the paper's eleven requests for a brief description (LLaVA, table 11)."""
SHORT_ANSWER = "Answer the question using a single word or phrase."
"""LLaVA-1.5's request behind a question whose answer is short."""


class LlavaWriter(Writer):
    """A LLaVA checkpoint. An image is encoded once, for any number of questions.

    Args:
        trained: the checkpoint.
        device: device of its modules.
        batch_size: number of images or texts in one forward pass.
    """

    lacks = "this is a checkpoint of LLaVA, which has no text encoder; give one of stage 1"

    def __init__(self, trained: TrainedLlava, device: str = "cpu", batch_size: int = 64) -> None:
        recipe = trained.recipe
        layout = LAYOUTS[recipe.layout]
        language: Any = TalkingLM(trained.language, trained.tokenizer, layout)
        language.to(device)
        module: Any = trained.module
        whole: Trained[Any] = Trained(recipe, trained.step, trained.encoder, module, None, language)
        super().__init__(whole, device, batch_size)

    @torch.inference_mode()
    def encode(self, images: Sequence[Any]) -> Tensor:
        """Visual prompts ``B P D`` of images, on the CPU."""
        module: Any = self.trained.module
        return self._batched(images, lambda batch: module.bridge(self._tokens(batch)).cpu())

    def converse(
        self,
        encoded: Tensor | None,
        talks: Sequence[Sequence[Turn]],
        settings: GenerationSettings = CHAT,
    ) -> list[str]:
        """Answers to the last turns of conversations about encoded images, in one batch.

        Args:
            encoded: result of ``encode``, a row a conversation; None: no images.
            talks: the conversations; the last turn of each is the user's.
        """
        language: Any = self._language
        visual = None if encoded is None else encoded.to(self.device)
        return language.converse(visual, talks, settings)

    @property
    def kind(self) -> str:
        """``stage2``: it does what a checkpoint of stage 2 does."""
        return "stage2"

    @property
    def caption_prompt(self) -> str:
        """The request for a caption; a bridge alone writes one without being asked."""
        return "" if self.trained.recipe.layout == "plain" else BRIEF

    def vqa_prompt(self, question: str) -> str:
        """The question, with the request for a short answer on a line of its own."""
        return f"{question.strip()}\n{SHORT_ANSWER}"

    @property
    def reads_text(self) -> bool:
        """Whether visual prompts depend on the text: never."""
        return False

    def _question(self, question: str) -> str:
        return question
