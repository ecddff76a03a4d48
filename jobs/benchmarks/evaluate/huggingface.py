"""The peer: a stage-2 checkpoint of ours as Hugging Face's BLIP-2, asked as its users ask it.

``jobs/convert.py``'s writer makes the folder, and Hugging Face's classes load it. Their BLIP-2 has
no place for a CLIP tower: for such a checkpoint the folder holds a stand-in, which Hugging Face's
own CLIP, from the folder that our recipe names, replaces after loading.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from jobs import interchange
from jobs.interchange.parts import Frozen
from jobs.models.encoder_settings import features_of
from jobs.models.files import dtype_of, find_folder, read_config
from jobs.models.tensors import Lazy
from jobs.recipes.schema import EncoderChoice
from modeling.language.adapters import GenerationSettings
from modeling.precision import Dtype
from modeling.vision.features import PAPER


class Peer:
    """Hugging Face's BLIP-2 and processor, in fp32.

    Attributes:
        model: model.
        processor: processor.
    """

    def __init__(self, checkpoint: Path, folder: Path, device: str = "cpu") -> None:
        """Args:
            checkpoint: stage-2 checkpoint of ours.
            folder: folder that the exported checkpoint is written to; must not exist.
            device: torch's name of the device.

        Raises:
            ValueError: Hugging Face has no place for a part of the checkpoint.
        """
        parts: Any = interchange.read("native", checkpoint)
        choice, clip = parts.recipe.encoder, False
        if parts.encoder is None and "clip" in _type_of(choice):
            if features_of(choice) != PAPER:
                raise ValueError(f"encoder {choice.name!r}: Hugging Face takes the paper's layer")
            parts, clip = replace(parts, encoder=_stand_in(choice)), True
        interchange.write(parts, "hf", folder)
        model: Any = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.vision_model.post_layernorm.eps = 1e-5  # see jobs/interchange/huggingface_folder.py
        if clip:
            model.vision_model = ClipTower(choice.name, model.vision_model.post_layernorm)
        _round(model.vision_model, choice.dtype)
        _round(model.language_model, parts.recipe.language.dtype)
        self.model, self.device = model.eval().to(device), device
        self.processor: Any = Blip2Processor.from_pretrained(folder)
        self._pair: bool = model.config.text_config.is_encoder_decoder
        if not self._pair:
            self.processor.tokenizer.padding_side = "left"

    def one_by_one(
        self, files: Sequence[Path], prompts: Sequence[str], settings: GenerationSettings
    ) -> list[str]:
        """A text for each image and prompt, with a call of ``generate`` for each."""
        return [
            self._generate([file], [prompt], settings)[0]
            for file, prompt in zip(files, prompts, strict=True)
        ]

    def batched(
        self,
        files: Sequence[Path],
        prompts: Sequence[str],
        settings: GenerationSettings,
        batch: int,
    ) -> list[str]:
        """The same in batches, in the order that is given."""
        texts: list[str] = []
        for first in range(0, len(files), batch):
            part = slice(first, first + batch)
            texts += self._generate(files[part], prompts[part], settings)
        return texts

    @torch.inference_mode()
    def _generate(
        self, files: Sequence[Path], prompts: Sequence[str], settings: GenerationSettings
    ) -> list[str]:
        images = [Image.open(file).convert("RGB") for file in files]
        inputs = self.processor(
            images=images, text=list(prompts), padding=True, return_tensors="pt"
        ).to(self.device)
        ids = self.model.generate(**inputs, **settings.arguments())
        new = ids if self._pair else ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [text.strip().partition("\n")[0].strip() for text in texts]


@torch.no_grad()
def _round(frozen: nn.Module, dtype: Dtype) -> None:
    """Round a frozen model's weights to the number format that our recipe loads it in."""
    for name, parameter in frozen.named_parameters():
        if not name.startswith("post_layernorm."):  # trained, in fp32
            parameter.copy_(parameter.to(dtype_of(dtype)))


class ClipTower(nn.Module):
    """Hugging Face's CLIP in the place of BLIP-2's vision model: the paper's layer, normed."""

    def __init__(self, name: str, norm: nn.Module) -> None:
        super().__init__()
        folder = find_folder("encoder", name)
        self.clip: Any = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32)
        self.post_layernorm = norm

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Normed output of the block before the last."""
        states = self.clip(pixel_values, output_hidden_states=True).hidden_states
        normed = self.post_layernorm(states[-2])
        return BaseModelOutputWithPooling(last_hidden_state=normed, pooler_output=normed[:, 0])


def _type_of(choice: EncoderChoice) -> str:
    if choice.name.startswith("timm:") or choice.name.endswith((".pth", ".pt")):
        return ""
    return str(read_config(find_folder("encoder", choice.name)).get("model_type", ""))


def _stand_in(choice: EncoderChoice) -> Frozen:
    """An EVA tower of one block, with the CLIP's width and image size."""
    config = read_config(find_folder("encoder", choice.name))
    clip = config.get("vision_config", config)
    sizes = Blip2VisionConfig(
        hidden_size=clip["hidden_size"],
        num_hidden_layers=1,
        num_attention_heads=clip["num_attention_heads"],
        intermediate_size=clip["intermediate_size"],
        patch_size=clip["patch_size"],
        image_size=choice.image_size,
    )
    state = Blip2VisionModel(sizes).state_dict()
    kept = {name: Lazy.of(tensor) for name, tensor in state.items()}
    return Frozen(sizes.to_dict() | {"model_type": "blip_2_vision_model"}, kept)
