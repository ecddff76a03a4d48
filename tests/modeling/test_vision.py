"""Encoders against Hugging Face's CLIP, position embeddings, and what frozen means."""

import pytest
import timm
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from modeling.vision import build_clip_encoder, build_timm_encoder, freeze, resize_positions
from tests.modeling.tiny import sharpen


def clip_config(act: str = "quick_gelu") -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        hidden_act=act,
    )


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("size", [32, 48, 16])
def test_tokens_equal_clips_second_last_layer(act, size):
    torch.manual_seed(0)
    theirs = CLIPVisionModel(clip_config(act)).eval()
    sharpen(theirs)
    ours = build_clip_encoder(theirs.config, size, theirs.state_dict()).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        states = theirs(images, output_hidden_states=True, interpolate_pos_encoding=size != 32)
        tokens = ours(images)
    assert tokens.shape == (2, ours.num_tokens, ours.width) == (2, (size // 8) ** 2 + 1, 24)
    assert torch.allclose(tokens, states.hidden_states[-2], atol=1e-5)
    assert len(ours.vit.blocks) == 2


def test_state_of_the_whole_clip_is_taken_too():
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=clip_config().to_dict())).eval()
    ours = build_clip_encoder(whole.config.vision_config, 32, whole.state_dict()).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = whole.vision_model(images, output_hidden_states=True).hidden_states[-2]
        assert torch.allclose(ours(images), expected, atol=1e-5)


def test_missing_weight_is_named():
    state = CLIPVisionModel(clip_config()).state_dict()
    name = next(key for key in state if key.endswith("layers.1.mlp.fc1.weight"))
    del state[name]
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.fc1\.weight"):
        build_clip_encoder(clip_config(), 32, state)


def test_bad_image_size_and_unknown_names_are_told():
    with pytest.raises(ValueError, match="take 32 or 40"):
        build_clip_encoder(clip_config(), 37)
    with pytest.raises(ValueError, match="not a timm model"):
        build_timm_encoder("vit_giant_of_nowhere")
    with pytest.raises(ValueError, match="ResNet"):
        build_timm_encoder("resnet18")


def test_timm_vit_by_name_drops_last_block_and_norm():
    torch.manual_seed(0)
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=12, img_size=32).eval()
    ours = build_timm_encoder("vit_tiny_patch16_224", 32, whole.state_dict()).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = whole.forward_intermediates(
            images,
            indices=[10],
            return_prefix_tokens=True,
            intermediates_only=True,
            output_fmt="NLC",
        )[0]
        patches, prefix = expected
        assert torch.allclose(ours(images), torch.cat((prefix, patches), 1), atol=1e-5)


def test_positions_keep_the_class_token_and_their_dtype():
    positions = torch.randn(1, 17, 8).bfloat16()
    resized = resize_positions(positions, 36)
    assert resized.shape == (1, 37, 8) and resized.dtype == torch.bfloat16
    assert torch.equal(resized[:, 0], positions[:, 0])
    assert resize_positions(positions, 16) is positions


def test_frozen_means_frozen():
    encoder = freeze(build_clip_encoder(clip_config(), 32), torch.bfloat16)
    holder = torch.nn.ModuleList([encoder, torch.nn.Linear(1, 1)])
    holder.train()
    encoder.train()
    encoder.vit.blocks.train()
    assert holder[1].training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    tokens = encoder(torch.randn(1, 3, 32, 32))
    assert tokens.dtype == torch.bfloat16 and not tokens.requires_grad
