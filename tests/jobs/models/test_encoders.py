"""Image encoders from all the files that people have them in, and from what is wrong with those."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2VisionConfig,
    Blip2VisionModel,
    OPTConfig,
)

from jobs.models.encoders import load_encoder
from jobs.models.sizes import with_model_sizes
from jobs.recipes import recipe
from jobs.recipes.schema import EncoderChoice
from modeling.vision.encoders import EvaConfig, build_eva_encoder
from tests.tiny_training import tiny_clip, tiny_opt

SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
VISION = {**SIZES, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def choose(path: Path, size: int = 32, dtype: str = "fp32", **more) -> EncoderChoice:
    return EncoderChoice(str(path), size, dtype, **more)


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> tuple[Path, Blip2VisionModel]:
    """A vision-only BLIP-2 folder and its model."""
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    model = Blip2VisionModel(Blip2VisionConfig(**VISION)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        for layer in model.encoder.layers:
            layer.self_attn.qkv.bias[24:48] = 0
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def blip2(tower, tmp_path_factory) -> Path:
    """A whole BLIP-2 with that tower, in several shards."""
    folder = tmp_path_factory.mktemp("blip2")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = OPTConfig(**small, ffn_dim=16, word_embed_proj_dim=16, vocab_size=40)
    qformer = {**small, "intermediate_size": 16, "encoder_hidden_size": 24, "vocab_size": 40}
    config = Blip2Config(
        vision_config=VISION, qformer_config=qformer, text_config=text.to_dict(), num_query_tokens=2
    )
    model = Blip2ForConditionalGeneration(config)
    model.vision_model.load_state_dict(tower[1].state_dict())
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture(scope="module")
def pth(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A small `eva_vit_g.pth`: fp16, one block more than is used, a final norm and a head."""
    torch.manual_seed(1)
    vit = build_eva_encoder(EvaConfig(width=24, blocks=3, heads=2, mlp=40, patch=8), 32).vit
    state = {key: torch.randn_like(value).half() for key, value in vit.state_dict().items()}
    state |= {"norm.weight": torch.ones(24), "norm.bias": torch.ones(24)}
    state |= {"head.weight": torch.ones(7, 24), "head.bias": torch.ones(7)}
    path = tmp_path_factory.mktemp("pth") / "eva_vit_g.pth"
    torch.save(state, path)
    return path, state


def test_blip2_whole_and_tower_alone(tower, blip2, tmp_path):
    """All of its blocks are used: the last was removed when the folder was made."""
    folder, model = tower
    with torch.no_grad():
        expected = model(IMAGES, output_hidden_states=True).hidden_states[-1]
        for place in (folder, blip2):
            encoder = load_encoder(choose(place))
            assert len(encoder.vit.blocks) == 3
            assert torch.allclose(encoder(IMAGES), expected, atol=1e-4)
    prefixed = tmp_path / "prefixed"
    model.config.save_pretrained(prefixed)
    state = load_file(folder / "model.safetensors")
    whole = {f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in state.items()}
    save_file(whole, prefixed / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_encoder(choose(prefixed))(IMAGES), encoder(IMAGES))


def test_the_references_file(pth):
    path, state = pth
    encoder = load_encoder(choose(path, heads=2))
    assert len(encoder.vit.blocks) == 2 and encoder.width == 24
    assert torch.equal(encoder.vit.blocks[1].attn.q_bias, state["blocks.1.attn.q_bias"].float())
    assert load_encoder(choose(path, 48, heads=2)).num_tokens == 37
    made = recipe("stage1", "vit-g")
    fitted = with_model_sizes(_with_encoder(made, choose(path, heads=2)))
    assert fitted.model.qformer.encoder_width == 24


def _with_encoder(made, choice):
    from dataclasses import replace

    return replace(made, encoder=choice, tokenizer="nobody/nothing")


def test_any_timm_vit_by_name():
    name = EncoderChoice("timm:vit_tiny_patch16_224", 32)
    sized = with_model_sizes(_with_encoder(recipe("stage1", "vit-g"), name))
    assert sized.model.qformer.encoder_width == 192
    with torch.device("meta"):
        assert len(load_encoder(name, weights=False).vit.blocks) == 11


def test_frozen_or_trained(pth):
    path, state = pth
    frozen = load_encoder(choose(path, dtype="bf16", heads=2))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    more = {"heads": 2, "train": True, "drop_path": 0.2, "checkpoint_blocks": True}
    trained = load_encoder(choose(path, dtype="bf16", **more))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in trained.parameters())
    assert trained.vit.grad_checkpointing
    assert trained.vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert torch.equal(trained.vit.cls_token, state["cls_token"].float())
    trained.train()
    assert trained.vit.blocks[0].training


class Opens:
    """What unpickling must not do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    made, path = tmp_path / "made", tmp_path / "bad.pth"
    torch.save({"cls_token": Opens(made)}, path)
    with pytest.raises(ValueError, match=r"bad\.pth' holds objects other than tensors"):
        load_encoder(choose(path))
    path.write_bytes(pickle.dumps(Opens(made)))
    with pytest.raises(ValueError, match=r"bad\.pth'"):
        load_encoder(choose(path))
    assert not made.exists()


def test_files_that_do_not_fit_are_told_in_one_line(pth, tower, tmp_path):
    path, state = pth

    def message(choice: EncoderChoice) -> str:
        with pytest.raises(ValueError) as raised:
            load_encoder(choice)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:-500])
    assert "cut short" in message(choose(cut, heads=2))
    assert "no such file" in message(choose(tmp_path / "none.pth"))
    assert "must be a multiple of the patch size 8: take 32 or 40" in message(
        choose(path, 36, heads=2)
    )
    assert "encoder.heads = 5" in message(choose(path, heads=5))
    nested = tmp_path / "nested.pth"
    torch.save({"model": state}, nested)
    assert "no plain state dict" in message(choose(nested))
    for name, change in (
        ("missing", {"blocks.1.norm2.weight": None}),
        ("extra", {"blocks.0.attn.k_norm": torch.ones(3)}),
        ("wrong shape", {"blocks.1.norm2.weight": torch.ones(5)}),
    ):
        changed = {k: v for k, v in (state | change).items() if v is not None}
        torch.save(changed, tmp_path / "changed.pth")
        said = message(choose(tmp_path / "changed.pth", heads=2))
        assert next(iter(change)) in said, name
    assert "'opt' model; give a CLIP or BLIP-2 folder" in message(choose(tiny_opt(tmp_path / "o")))
    damaged = tmp_path / "damaged"
    tower[1].save_pretrained(damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors cannot be read" in message(choose(damaged))
    clip = tiny_clip(tmp_path / "clip")
    assert "image_size = 60 must be a multiple of the patch size 16" in message(choose(clip, 60))
