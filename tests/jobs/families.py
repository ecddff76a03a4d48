"""Twelve image encoders and eight families of language models: small, random, of the real classes,
with their own libraries' image processors beside them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import transformers as hf
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor

from jobs.recipes.schema import EncoderChoice
from pipeline.pixels import CLIP_MEAN, CLIP_STD

ZOO = Path(__file__).parents[2] / "modeling" / "zoo"
WIDTH, SIZE = 32, 48
OPENCLIP = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def spread(model):
    """Weights large enough that every part has a say in the result."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


# ------------------------------------------------------------------------------- encoders


@dataclass
class Encoder:
    """An encoder's folder, and what its library makes of images.

    Attributes:
        choice: the recipe's, nothing settled.
        pixels: a Pillow image -> float32 3SS by the library's own processor.
        tokens: pixels B3SS -> B P D by the library's own module, at the family's default.
    """

    choice: EncoderChoice
    pixels: Callable[[Image.Image], Tensor]
    tokens: Callable[[Tensor], Tensor]


def _vision(**more) -> dict:
    return {
        **{"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"image_size": SIZE, **more},
    }


def _square(pixels: int) -> dict:
    return {"height": pixels, "width": pixels}


def _processed(processor) -> Callable[[Image.Image], Tensor]:
    return lambda image: processor(images=image, return_tensors="pt").pixel_values[0]


def _save(folder: Path, model, processor) -> EncoderChoice:
    spread(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return EncoderChoice(str(folder), SIZE, "fp32")


def _state(model, layer: int) -> Callable[[Tensor], Tensor]:
    """Hidden states of a Hugging Face tower; layer 0 is its normed output."""

    def tokens(pixels_B3SS: Tensor) -> Tensor:
        out = model(pixels_B3SS, output_hidden_states=True)
        return out.hidden_states[layer] if layer else out.last_hidden_state

    return tokens


def clip(folder: Path) -> Encoder:
    """A CLIP with OpenCLIP's constants: normalised by its file, squashed as the reference does."""
    config = hf.CLIPVisionConfig(**_vision(intermediate_size=40, patch_size=8))
    model = hf.CLIPVisionModel(config)
    own = hf.CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=_square(SIZE), resample=3, **OPENCLIP
    )
    choice = _save(folder, model, own)
    reference = hf.BlipImageProcessor(size=_square(SIZE), **OPENCLIP)
    return Encoder(choice, _processed(reference), _state(model, -2))


def blip2(folder: Path) -> Encoder:
    config = hf.Blip2VisionConfig(**_vision(intermediate_size=40, patch_size=8, qkv_bias=True))
    model = hf.Blip2VisionModel(config)
    spread(model)
    with torch.no_grad():  # the published towers have no key bias
        for layer in model.encoder.layers:
            layer.self_attn.qkv.bias[WIDTH : 2 * WIDTH] = 0
    own = hf.BlipImageProcessor(size=_square(SIZE), image_mean=CLIP_MEAN, image_std=CLIP_STD)
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return Encoder(EncoderChoice(str(folder), SIZE, "fp32"), _processed(own), _state(model, -1))


def siglip(folder: Path) -> Encoder:
    config = hf.SiglipVisionConfig(**_vision(intermediate_size=40, patch_size=8))
    model, own = hf.SiglipVisionModel(config), hf.SiglipImageProcessor(size=_square(SIZE))
    return Encoder(_save(folder, model, own), _processed(own), _state(model, -2))


def siglip2_naflex(folder: Path) -> Encoder:
    """At its one square size: the processor is given squares, the model its patches."""
    sizes = _vision(intermediate_size=40, patch_size=8, num_patches=(SIZE // 8) ** 2)
    model = hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**sizes))
    side = SIZE // 8
    own = hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=side * side)
    choice = _save(folder, model, own)

    def pixels(image: Image.Image) -> Tensor:
        cut_PI = own(images=image, return_tensors="pt").pixel_values[0]
        return cut_PI.view(side, side, 8, 8, 3).permute(4, 0, 2, 1, 3).reshape(3, SIZE, SIZE)

    def tokens(pixels_B3SS: Tensor) -> Tensor:
        count = len(pixels_B3SS)
        grid = pixels_B3SS.reshape(count, 3, side, 8, side, 8).permute(0, 2, 4, 3, 5, 1)
        return model(
            grid.reshape(count, side * side, -1),
            pixel_attention_mask=torch.ones(count, side * side, dtype=torch.long),
            spatial_shapes=torch.tensor([[side, side]] * count),
            output_hidden_states=True,
        ).hidden_states[-2]

    return Encoder(choice, pixels, tokens)


def dinov2(folder: Path) -> Encoder:
    """Its processor resizes the short side to more than the centre that is kept: 256 and 224."""
    model = hf.Dinov2Model(hf.Dinov2Config(**_vision(patch_size=8)))
    own = hf.BitImageProcessor(
        size={"shortest_edge": 55}, crop_size=_square(SIZE), resample=3, **IMAGENET
    )
    choice = _save(folder, model, own)
    return Encoder(choice, _processed(own), _state(model, 0))


def dinov3(folder: Path) -> Encoder:
    sizes = _vision(intermediate_size=40, patch_size=8, num_register_tokens=2)
    model = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**sizes))
    own = hf.DINOv3ViTImageProcessor(size=_square(SIZE))
    choice = _save(folder, model, own)

    def tokens(pixels_B3SS: Tensor) -> Tensor:
        whole = model(pixels_B3SS).last_hidden_state
        return torch.cat((whole[:, :1], whole[:, 3:]), 1)

    return Encoder(choice, _processed(own), tokens)


def _timm(name: str, layer: int, reference: bool = False) -> Callable[[Path], Encoder]:
    """A timm model in the folder that timm saves for the hub, with its own ``pretrained_cfg``."""

    def make(folder: Path) -> Encoder:
        sizes = {"embed_dim": WIDTH, "depth": 3, "num_heads": 2}
        patch = timm.create_model(name, **sizes).patch_embed.patch_size[0]
        size = patch * 4
        sizes |= {"img_size": size}
        model = spread(timm.create_model(name, **sizes))
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size)}
        save_for_hf(model, folder, model_args=sizes, safe_serialization=True)
        config = timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
        pixels = timm.data.create_transform(**config)
        if reference:
            fields = {"image_mean": config["mean"], "image_std": config["std"]}
            pixels = _processed(hf.BlipImageProcessor(size=_square(size), **fields))

        def tokens(pixels_B3SS: Tensor) -> Tensor:
            (found,) = model.forward_intermediates(
                pixels_B3SS, indices=[3 + layer], norm=layer == -1, output_fmt="NLC",
                return_prefix_tokens=True, intermediates_only=True,
            )  # fmt: skip
            if not model.num_prefix_tokens:
                return found
            return torch.cat((found[1][:, :1], found[0]), 1)

        return Encoder(EncoderChoice(str(folder), size, "fp32"), pixels, tokens)

    return make


ENCODERS: dict[str, Callable[[Path], Encoder]] = {
    "clip": clip,
    "blip2": blip2,
    "eva-clip": _timm("eva_giant_patch14_clip_224", -2, reference=True),
    "siglip": siglip,
    "siglip2": _timm("vit_base_patch16_siglip_256.v2_webli", -2),
    "siglip2-naflex": siglip2_naflex,
    "dinov2": dinov2,
    "dinov2-registers": _timm("vit_small_patch14_reg4_dinov2.lvd142m", -1),
    "dinov3": dinov3,
    "dinov3-timm": _timm("vit_small_plus_patch16_dinov3.lvd1689m", -1),
    "pe-core": _timm("vit_pe_core_tiny_patch16_384.fb", -2),
    "eva02": _timm("eva02_tiny_patch14_224.mim_in22k", -2),
}

# ------------------------------------------------------------------------ language models

_DECODER = {
    **{"hidden_size": WIDTH, "intermediate_size": 40, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "max_position_embeddings": 128},
}
_GROUPED = {**_DECODER, "num_key_value_heads": 1, "head_dim": 16}


def _ids(tokenizer) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }


DECODERS = {
    "opt": lambda ids: hf.OPTForCausalLM(
        hf.OPTConfig(**{**_DECODER, "ffn_dim": 40, "word_embed_proj_dim": WIDTH, **ids})
    ),
    "gpt2": lambda ids: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, n_positions=128, **ids)
    ),
    "llama": lambda ids: hf.LlamaForCausalLM(hf.LlamaConfig(**{**_GROUPED, **ids})),
    "qwen3": lambda ids: hf.Qwen3ForCausalLM(hf.Qwen3Config(**{**_GROUPED, **ids})),
    "gemma3": lambda ids: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**{**_GROUPED, "query_pre_attn_scalar": 16, **ids})
    ),
    "phi": lambda ids: hf.PhiForCausalLM(hf.PhiConfig(**{**_DECODER, **ids})),
}
PAIRS = {
    "t5": lambda ids: hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=WIDTH, d_kv=16, d_ff=40, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            decoder_start_token_id=ids["pad_token_id"], **ids,
        )
    ),
    "bart": lambda ids: hf.BartForConditionalGeneration(
        hf.BartConfig(
            d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=40, decoder_ffn_dim=40,
            max_position_embeddings=128, decoder_start_token_id=ids["eos_token_id"], **ids,
        )
    ),
}  # fmt: skip
LANGUAGES = [*DECODERS, *PAIRS]


def language(name: str):
    """A random model of a family, in eval mode, and a tokenizer for it."""
    tokenizer = hf.AutoTokenizer.from_pretrained(ZOO / ("t5" if name in PAIRS else "opt"))
    return spread((DECODERS | PAIRS)[name](_ids(tokenizer))), tokenizer
