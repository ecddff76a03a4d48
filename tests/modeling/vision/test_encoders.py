"""Encoders against Hugging Face's CLIP, position embeddings, and what frozen means."""

import pytest
import timm
import torch
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from modeling.names import blip2_vision_to_eva
from modeling.vision.encoders import (
    EvaConfig,
    ImageEncoder,
    build_clip_encoder,
    build_eva_encoder,
    build_timm_encoder,
    eva_config,
    freeze,
    load_vit,
    resize_positions,
)
from tests.modeling.tiny import sharpen

EVA = EvaConfig(width=24, blocks=3, heads=2, mlp=57, patch=8)


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
    with pytest.raises(ValueError, match=r"heads = 5 does not divide the encoder's width 24"):
        EvaConfig(width=24, heads=5)


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


def tiny_encoder(family: str, drop_path: float = 0.0) -> ImageEncoder:
    torch.manual_seed(0)
    if family == "eva":
        encoder = build_eva_encoder(EVA, 32, drop_path=drop_path)
    else:
        encoder = build_clip_encoder(clip_config(), 32, drop_path=drop_path)
    sharpen(encoder)
    return encoder


@pytest.mark.parametrize("size", [32, 48])
def test_tokens_equal_hugging_faces_blip2(size):
    config = Blip2VisionConfig(
        hidden_size=EVA.width,
        intermediate_size=EVA.mlp,
        num_hidden_layers=EVA.blocks,
        num_attention_heads=EVA.heads,
        image_size=32,
        patch_size=EVA.patch,
    )
    torch.manual_seed(0)
    theirs = Blip2VisionModel(config).eval()
    sharpen(theirs)
    with torch.no_grad():
        for layer in theirs.encoder.layers:
            layer.self_attn.qkv.bias[EVA.width : 2 * EVA.width] = 0  # keys have none
    state = blip2_vision_to_eva(theirs.state_dict(), EVA.blocks)
    ours = build_eva_encoder(EVA, size, state).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        states = theirs(images, output_hidden_states=True, interpolate_pos_encoding=size != 32)
        assert torch.allclose(ours(images), states.hidden_states[-1], atol=1e-5)


def test_the_papers_vit_g_is_timms():
    """Names, shapes, eps and activation of `eva_giant_patch14_clip_224`, at three resolutions."""
    with torch.device("meta"):
        named = build_timm_encoder("eva_giant_patch14_clip_224")
        plain = build_eva_encoder(EvaConfig(), 224)
        counts = {
            size: (encoder.num_tokens, sum(p.numel() for p in encoder.parameters()))
            for size in (224, 364, 490)
            for encoder in [build_eva_encoder(EvaConfig(), size)]
        }
    shapes = [{k: v.shape for k, v in e.state_dict().items()} for e in (named, plain)]
    assert shapes[0] == shapes[1]
    assert repr(named.vit.blocks[0]) == repr(plain.vit.blocks[0])
    block = plain.vit.blocks[0]
    assert block.norm1.eps == 1e-6 and repr(block.mlp.act) == "GELU(approximate='none')"
    assert "q_bias" in dict(block.attn.named_parameters())
    assert "k_bias" not in dict(block.attn.named_parameters())
    assert isinstance(plain.vit.norm, torch.nn.Identity)
    assert counts[224] == (257, 985_894_528)
    assert counts[364] == (677, 985_894_528 + 420 * 1408)
    assert counts[490] == (1226, 985_894_528 + 969 * 1408)


def test_sizes_of_a_plain_state_dict():
    state = build_eva_encoder(EVA, 32).vit.state_dict()
    assert eva_config(state, heads=2) == EVA
    whole = state | {"norm.weight": torch.ones(24), "head.weight": torch.ones(5, 24)}
    assert eva_config(whole, heads=2).blocks == 2
    assert build_eva_encoder(eva_config(whole, heads=2), 32, whole).num_tokens == 17
    wide = {key: tensor.expand(1, 176) for key, tensor in (("x", torch.ones(1, 1)),)}
    wide = state | {"blocks.0.mlp.fc1.weight": torch.ones(9, 176)} | wide
    assert eva_config(wide).heads == 2  # of width 88
    del state["blocks.0.mlp.fc1.weight"]
    with pytest.raises(ValueError, match=r"lack 'blocks\.0\.mlp\.fc1\.weight'.*eva_vit_g"):
        eva_config(state)


@pytest.mark.parametrize(("blocks", "used"), [(40, 39), (39, 39)])
def test_of_forty_blocks_the_last_is_left_out(blocks, used):
    with torch.device("meta"):
        state = build_eva_encoder(EvaConfig(24, blocks, 2, 8, 8), 32).vit.state_dict()
    assert eva_config(state | {"norm.weight": torch.ones(24)}, heads=2).blocks == used


def test_every_width_of_mlp_is_built():
    """timm multiplies a ratio out again, and must not lose one by rounding down."""
    for mlp in range(1, 300):
        with torch.device("meta"):
            vit = build_eva_encoder(EvaConfig(22, 1, 2, mlp, 8), 8).vit
        assert vit.blocks[0].mlp.fc1.out_features == mlp


def test_loading_takes_a_dtype_and_copies():
    encoder = tiny_encoder("eva")
    state = {key: value.half() for key, value in encoder.vit.state_dict().items()}
    loaded = build_eva_encoder(EVA, 48, state, dtype=torch.bfloat16)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert not any(tensor.is_meta for tensor in tensors)
    exact = resize_positions(state["pos_embed"].float(), 36).bfloat16()
    assert torch.equal(loaded.vit.pos_embed, exact)  # rounded once, at the end
    again = build_eva_encoder(EVA, 32, state)
    with torch.no_grad():
        again.vit.cls_token += 1
    assert again.vit.cls_token.dtype == torch.float32
    assert not torch.equal(again.vit.cls_token, state["cls_token"].float())
    assert torch.equal(state["cls_token"], encoder.vit.cls_token.half())


def test_misfits_are_named():
    vit = build_eva_encoder(EVA, 32).vit
    state = vit.state_dict()
    with pytest.raises(ValueError, match=r"missing \['cls_token'\].*this architecture"):
        load_vit(vit, {k: v for k, v in state.items() if k != "cls_token"})
    with pytest.raises(ValueError, match=r"unexpected \['surprise'\]"):
        load_vit(vit, state | {"surprise": torch.ones(1)})
    with pytest.raises(ValueError, match=r"blocks\.1\.norm1\.bias has shape \(7,\), not \(24,\)"):
        load_vit(vit, state | {"blocks.1.norm1.bias": torch.ones(7)})
    with pytest.raises(ValueError, match="pos_embed has 12 positions"):
        load_vit(vit, state | {"pos_embed": torch.ones(1, 12, 24)})


@pytest.mark.parametrize("family", ["eva", "clip"])
def test_checkpointing_blocks_gives_equal_gradients(family):
    """With drop path too: what is recomputed draws the same."""
    gradients = []
    for enable in (False, True):
        encoder = tiny_encoder(family, drop_path=0.4).train()
        encoder.checkpoint_blocks(enable)
        torch.manual_seed(1)
        encoder(torch.randn(3, 3, 32, 32)).square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
        assert encoder.vit.grad_checkpointing == enable
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("family", ["eva", "clip"])
def test_drop_path_grows_with_depth_and_is_for_training_only(family):
    encoder, images = tiny_encoder(family, drop_path=0.9), torch.randn(4, 3, 32, 32)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.vit.blocks]
    assert rates[0] == 0 and rates == sorted(rates) and rates[-1] == pytest.approx(0.9)
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))
    encoder.train()
    assert not torch.equal(encoder(images), encoder(images))
