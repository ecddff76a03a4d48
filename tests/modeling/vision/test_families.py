"""Towers of other families beside their own libraries' modules, small and random."""

import pytest
import timm
import torch
import transformers as hf

from modeling.vision.encoders import (
    EvaConfig,
    build_clip_encoder,
    build_eva_encoder,
    build_timm_encoder,
)
from modeling.vision.families import build_huggingface_encoder, build_naflex
from modeling.vision.features import LAST_NORMED, PAPER, SECOND_LAST, FeatureConfig, of_timm
from modeling.vision.names import tower_names
from tests.modeling import tiny

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
MLP = {**SIZES, "intermediate_size": 40}
DINOV3 = {**MLP, "image_size": 32, "patch_size": 8, "num_register_tokens": 2}
HF = {
    "siglip": lambda: hf.SiglipVisionModel(
        hf.SiglipVisionConfig(**MLP, image_size=32, patch_size=8)
    ),
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES, image_size=32, patch_size=8)),
    "dinov2-giant": lambda: hf.Dinov2Model(
        hf.Dinov2Config(**SIZES, image_size=32, patch_size=8, use_swiglu_ffn=True, mlp_ratio=4)
    ),
    "dinov2-registers": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**SIZES, image_size=32, patch_size=8, num_register_tokens=2)
    ),
    "dinov3": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**DINOV3)),
    "dinov3-plus": lambda: hf.DINOv3ViTModel(
        hf.DINOv3ViTConfig(**DINOV3, use_gated_mlp=True, hidden_act="silu")
    ),
}


def sharpen(model):
    """Weights large enough that every part has a say in the tokens."""
    tiny.sharpen(model)
    return model


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", HF)
@pytest.mark.parametrize(("layer", "norm"), [(-1, "yes"), (-1, "no"), (-2, "no"), (-3, "no")])
def test_tokens_are_those_of_the_librarys_own_module(family, layer, norm):
    torch.manual_seed(0)
    model = sharpen(HF[family]()).eval()
    features = FeatureConfig(layer, norm, "all")
    ours = build_huggingface_encoder(model.config, 32, model.state_dict(), features=features).eval()
    with torch.no_grad():
        out = model(IMAGES, output_hidden_states=True)
        theirs = out.last_hidden_state if norm == "yes" else out.hidden_states[layer]
        assert torch.allclose(ours(IMAGES), theirs, atol=1e-5)
    assert theirs.std() > 0.1


def test_the_first_tokens_are_chosen_and_registers_left_out():
    torch.manual_seed(0)
    model = HF["dinov3"]()
    kept = {}
    for tokens in ("all", "class", "patches"):
        features = FeatureConfig(-1, "yes", tokens)
        encoder = build_huggingface_encoder(
            model.config, 32, model.state_dict(), features=features
        ).eval()
        with torch.no_grad():
            kept[tokens] = encoder(IMAGES)
        assert encoder.num_tokens == kept[tokens].shape[1]
    assert {name: t.shape[1] for name, t in kept.items()} == {
        "all": 1 + 2 + 16,
        "class": 1 + 16,
        "patches": 16,
    }
    whole = kept["all"]
    assert torch.equal(kept["patches"], whole[:, 3:])
    assert torch.equal(kept["class"], torch.cat((whole[:, :1], whole[:, 3:]), 1))


@pytest.mark.parametrize("size", [32, 48])
def test_siglip2_naflex_at_a_fixed_size_from_hugging_face(size):
    """Beside the model on the patches that its own processor makes of a square image."""
    torch.manual_seed(0)
    config = hf.Siglip2VisionConfig(**MLP, num_patches=16, patch_size=8)
    model = sharpen(hf.Siglip2VisionModel(config)).eval()
    images = torch.randn(2, 3, size, size)
    side = size // 8
    cut = images.reshape(2, 3, side, 8, side, 8).permute(0, 2, 4, 3, 5, 1)
    ours = build_huggingface_encoder(config, size, model.state_dict(), features=SECOND_LAST).eval()
    with torch.no_grad():
        theirs = model(
            cut.reshape(2, side * side, -1),
            pixel_attention_mask=torch.ones(2, side * side, dtype=torch.long),
            spatial_shapes=torch.tensor([[side, side]] * 2),
            output_hidden_states=True,
        )
        assert torch.allclose(ours(images), theirs.hidden_states[-2], atol=1e-5)


@pytest.mark.parametrize("size", [256, 384])
def test_naflex_at_a_fixed_size_from_timm(size):
    torch.manual_seed(0)
    model = timm.create_model("naflexvit_base_patch16_siglip", depth=2, embed_dim=48, num_heads=4)
    sharpen(model).eval()
    images = torch.randn(1, 3, size, size)
    ours = build_naflex(
        "tiny", model, size, model.state_dict(),
        drop_path=0.0, dtype=torch.float32, features=LAST_NORMED,
    ).eval()  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(ours(images), model.forward_features(images), atol=1e-5)


TIMM = [
    "vit_base_patch16_siglip_224",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_dinov3",
    "vit_small_plus_patch16_dinov3",
    "vit_pe_core_tiny_patch16_384",
    "vit_pe_spatial_tiny_patch16_512",
    "eva02_tiny_patch14_224",
    "eva_giant_patch14_clip_224",
    "vit_large_patch14_clip_quickgelu_224",
]


@pytest.mark.parametrize("name", TIMM)
def test_timm_towers_by_name(name, monkeypatch):
    """The family's default of three blocks, beside timm's own intermediate outputs."""
    create = timm.create_model
    small = {"embed_dim": 48, "num_heads": 4}

    def cut(name, depth=3, **options):
        return create(name, **{"depth": depth, "img_size": 64 - 64 % patch, **small, **options})

    patch = 14 if "14" in name else 16
    monkeypatch.setattr(timm, "create_model", cut)
    torch.manual_seed(0)
    whole = sharpen(cut(name)).eval()
    features = of_timm(name)
    ours = build_timm_encoder(name, None, whole.state_dict(), features=features).eval()
    size = ours.image_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        (found,) = whole.forward_intermediates(
            images, indices=[3 + features.layer], norm=features.norm == "yes",
            output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True,
        )  # fmt: skip
        if whole.num_prefix_tokens:
            patches, special = found
            found = torch.cat((special[:, :1], patches), 1)
        assert torch.allclose(ours(images), found, atol=1e-5)
    assert len(ours.vit.blocks) == 3 + 1 + features.layer


@pytest.mark.parametrize("road", ["hugging face", "timm"])
def test_a_size_of_its_own_that_patches_do_not_divide(road):
    """SigLIP's 384 px are 27 patches of 14 and a rest of 6 px, which its library does not see."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 38, 38)
    if road == "timm":
        sizes = {"img_size": 38, "embed_dim": 48, "num_heads": 4, "depth": 3}
        name = "vit_so400m_patch14_siglip_384"
        whole = sharpen(timm.create_model(name, **sizes)).eval()
        made = {"features": SECOND_LAST, "sizes": sizes}
        ours = build_timm_encoder(name, None, whole.state_dict(), **made).eval()
        theirs = whole.forward_intermediates(
            images, indices=[1], output_fmt="NLC", intermediates_only=True
        )[0]
    else:
        config = hf.SiglipVisionConfig(**MLP, image_size=38, patch_size=14)
        whole = sharpen(hf.SiglipVisionModel(config)).eval()
        ours = build_huggingface_encoder(config, 38, whole.state_dict(), features=SECOND_LAST)
        theirs = whole(images, output_hidden_states=True).hidden_states[-2]
    assert ours.num_tokens == 4
    assert torch.allclose(ours.eval()(images), theirs, atol=1e-5)


def test_other_blocks_of_clip_and_eva_on_request():
    torch.manual_seed(0)
    config = hf.CLIPVisionConfig(**MLP, image_size=32, patch_size=8)
    model = sharpen(hf.CLIPVisionModel(config)).eval()
    state = model.state_dict()
    last = FeatureConfig(-1, "yes", "patches")
    with torch.no_grad():
        hidden = model(IMAGES, output_hidden_states=True).hidden_states
        norm = model.get_submodule(
            next(n for n, _ in model.named_modules() if n.endswith("post_layernorm"))
        )
        ours = build_clip_encoder(config, 32, state, features=last).eval()
        assert torch.allclose(ours(IMAGES), norm(hidden[-1])[:, 1:], atol=1e-5)
        third = build_clip_encoder(config, 32, state, features=FeatureConfig(-3, "no", "all"))
        assert torch.allclose(third.eval()(IMAGES), hidden[-3], atol=1e-5)
    eva = EvaConfig(width=24, blocks=3, heads=2, mlp=40, patch=8)
    weights = build_eva_encoder(eva, 32).vit.state_dict()
    earlier = build_eva_encoder(eva, 32, weights, features=FeatureConfig(-3, "no", "all"))
    assert len(earlier.vit.blocks) == 2  # of a model of four, of which three are here
    with pytest.raises(ValueError, match="end with the block before the last"):
        build_eva_encoder(eva, 32, features=FeatureConfig(-1, "no", "all"))


def test_the_defaults_of_the_families():
    assert of_timm("eva_giant_patch14_clip_224") == PAPER
    assert of_timm("vit_large_patch14_clip_quickgelu_224.openai") == PAPER
    assert of_timm("vit_so400m_patch14_siglip_384.webli") == SECOND_LAST
    assert of_timm("vit_base_patch14_reg4_dinov2.lvd142m") == LAST_NORMED
    assert of_timm("vit_7b_patch16_dinov3") == LAST_NORMED
    assert of_timm("vit_pe_lang_large_patch14_448") == FeatureConfig(-1, "no", "class")
    assert of_timm("vit_pe_core_base_patch16_224") == SECOND_LAST
    assert FeatureConfig(-3).settle(LAST_NORMED) == FeatureConfig(-3, "yes", "class")


OLD_AND_NEW = {
    "embeddings.patch_embeddings.projection.weight": "embeddings.patch_embeddings.weight",
    "embeddings.cls_token": "embeddings.cls_token",
    "encoder.layer.0.attention.attention.query.weight": "model.layer.0.attention.q_proj.weight",
    "encoder.layer.0.attention.attention.key.weight": "layer.0.attention.k_proj.weight",
    "encoder.layer.0.attention.attention.value.bias": "encoder.layer.0.attention.v_proj.bias",
    "encoder.layer.0.attention.output.dense.bias": "encoder.layers.0.self_attn.out_proj.bias",
    "encoder.layer.0.layer_scale1.lambda1": "model.layer.0.layer_scale1.lambda1",
    "encoder.layer.0.mlp.weights_out.bias": "encoder.layer.0.mlp.down_proj.bias",
    "layernorm.bias": "norm.bias",
}


def test_weights_saved_under_older_names_are_the_same():
    """Released folders have the names of the versions that wrote them."""
    values = {name: torch.randn(4) for name in OLD_AND_NEW}
    old = {f"dinov2.{name}": tensor for name, tensor in values.items()}
    new = {OLD_AND_NEW[name]: tensor for name, tensor in values.items()}
    both = torch.randn(6, 2)
    old["dinov2.encoder.layer.0.mlp.weights_in.weight"] = both
    new["encoder.layer.0.mlp.gate_proj.weight"] = both[:3]
    new["encoder.layer.0.mlp.up_proj.weight"] = both[3:]
    for unused in ("embeddings.mask_token", "head.probe", "classifier.weight"):
        old[unused] = new[unused] = torch.ones(1)
    ours, theirs = tower_names(new), tower_names(old)
    assert ours.keys() == theirs.keys() and len(ours) == len(OLD_AND_NEW) + 2
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(ours["blocks.0.gate.weight"], both[:3])


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"3 blocks; give -3 to -1"):
        model = HF["siglip"]()
        build_huggingface_encoder(model.config, 32, features=FeatureConfig(-4, "no", "all"))
    with pytest.raises(ValueError, match="must be a multiple of the patch size 8"):
        build_huggingface_encoder(model.config, 30, features=PAPER)
    with pytest.raises(ValueError, match=r"no norm after its last block: give --encoder\.features"):
        build_timm_encoder("vit_pe_lang_large_patch14_448", features=LAST_NORMED)
    with pytest.raises(ValueError, match="have 0 patch embeddings"):
        build_huggingface_encoder(model.config, 32, {"text": torch.ones(1)}, features=PAPER)
    with pytest.raises(ValueError, match=r"weights lack 'blocks\.2\.k\.bias'"):
        state = model.state_dict()
        del state["encoder.layers.2.self_attn.k_proj.bias"]
        build_huggingface_encoder(model.config, 32, state, features=PAPER)
    with pytest.raises(ValueError, match="counted from the end"):
        FeatureConfig(3)
    with pytest.raises(ValueError, match="special tokens"):
        build_timm_encoder("naflexvit_base_patch16_radio_v3", features=PAPER)
