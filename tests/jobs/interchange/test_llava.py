"""LLaVA's folders: Hugging Face's and the authors', both ways, also loaded by transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from jobs.convert import main
from jobs.interchange.llava import formats
from jobs.interchange.llava.authors import add_base
from jobs.interchange.llava.bridges import open_weights, read_bridge
from jobs.predict import load
from modeling.language.adapters import GenerationSettings
from modeling.language.conversation import LAYOUTS, Turn, encode, segments
from tests.modeling.language.pieces_tokenizer import IDS, tokenizer

KINDS = ("linear", "mlp2x_gelu")


def their_folder(folder, kind, dtype=torch.float16):
    """A folder as transformers saves it, in fp16."""
    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        image_size=32, patch_size=16, hidden_act="quick_gelu",
    )  # fmt: skip
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = LlamaConfig(
        vocab_size=len(IDS) + 1, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=len(IDS), image_seq_length=4,
        projector_hidden_act="linear" if kind == "linear" else "gelu",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).to(dtype)
    if kind == "linear":
        second = model.model.multi_modal_projector.linear_2
        with torch.no_grad():
            second.weight.copy_(torch.eye(24))
            second.bias.zero_()
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    LlavaProcessor(
        pictures, words, patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_folder_comes_back_byte_for_byte(kind, tmp_path):
    folder = their_folder(tmp_path / "hf", kind)
    main(["--from", "hf", "--to", "native", str(folder), str(tmp_path / "native")])
    main(["--from", "native", "--to", "hf", str(tmp_path / "native"), str(tmp_path / "back")])
    assert files(tmp_path / "back") == files(folder)
    recipe = json.loads((tmp_path / "native" / "recipe.json").read_text())
    assert recipe["model"] == {"bridge": kind, "encoder_width": 16, "llm_width": 24}
    assert recipe["encoder"]["features"] == {"layer": -2, "norm": "no", "tokens": "patches"}
    assert len(load_file(tmp_path / "native" / "trainable.safetensors")) == 2 * len(kind.split("_"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_folder_both_ways_and_as_hugging_face_s(kind, tmp_path):
    """Ours, the authors' and Hugging Face's hold the same model; the deltas add up to it."""
    folder = their_folder(tmp_path / "hf", kind, torch.float32)
    clip = tmp_path / "native" / "encoder"
    main(["--from", "hf", "--to", "native", str(folder), str(tmp_path / "native")])
    main(["--from", "native", "--to", "llava", str(tmp_path / "native"), str(tmp_path / "theirs")])
    names = set(open_weights(tmp_path / "theirs"))
    assert ("model.mm_projector.weight" in names) == (kind == "linear")
    assert ("model.mm_projector.2.bias" in names) == (kind != "linear")
    found = read_bridge(str(tmp_path / "theirs"))
    assert found.config.bridge == kind
    alone = read_bridge(str(tmp_path / "theirs" / "mm_projector.bin"))
    assert all(torch.equal(alone.bridge[name], t) for name, t in found.bridge.items())
    main(
        ["--from", "llava", "--to", "hf", str(tmp_path / "theirs"), str(tmp_path / "again"),
         "--encoder", str(clip)]
    )  # fmt: skip
    assert weights(tmp_path / "again") == weights(folder)
    # A new folder: transformers loads it and says what the first one says.
    picture, ids = torch.randn(1, 3, 32, 32), torch.tensor([[1, *[len(IDS)] * 4, 300, 301]])
    models = [LlavaForConditionalGeneration.from_pretrained(tmp_path / n) for n in ("hf", "again")]
    with torch.no_grad():
        logits = [m(input_ids=ids, pixel_values=picture).logits for m in models]
    assert torch.equal(*logits)
    processor = LlavaProcessor.from_pretrained(tmp_path / "again")
    assert (processor.patch_size, processor.num_additional_image_tokens) == (16, 1)


def test_a_delta_and_its_base_are_the_model(tmp_path):
    """As the first releases came: every weight but the bridge is a difference to LLaMA."""
    folder = their_folder(tmp_path / "hf", "linear", torch.float32)
    main(["--from", "hf", "--to", "native", str(folder), str(tmp_path / "native")])
    main(["--from", "native", "--to", "llava", str(tmp_path / "native"), str(tmp_path / "delta")])
    whole = load_file(tmp_path / "delta" / "model.safetensors")
    torch.manual_seed(5)
    config = LlamaConfig.from_pretrained(tmp_path / "native" / "language")
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    differences = {n: t - base.state_dict().get(n, torch.zeros(())) for n, t in whole.items()}
    save_file(differences, tmp_path / "delta" / "model.safetensors", {"format": "pt"})
    out = str(tmp_path / "sum")
    main(
        ["--from", "llava", "--to", "native", str(tmp_path / "delta"), out, "--base",
         str(tmp_path / "base"), "--encoder", str(tmp_path / "native" / "encoder")]
    )  # fmt: skip
    made = load_file(tmp_path / "sum" / "language" / "model.safetensors")
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=0)
    bridge = load_file(tmp_path / "sum" / "trainable.safetensors")
    assert torch.equal(bridge["bridge.linear_1.weight"], whole["model.mm_projector.weight"])
    assert load(out).generate([Image.new("RGB", (32, 32))], ["What is it?"])


def weights(folder):
    return {
        name: t.numpy().tobytes() for name, t in load_file(folder / "model.safetensors").items()
    }


def test_a_model_of_ours_gets_a_row_for_the_image_and_loses_it_again(tmp_path):
    folder = their_folder(tmp_path / "hf", "linear", torch.float32)
    main(["--from", "hf", "--to", "native", str(folder), str(tmp_path / "native")])
    # A language model without the row, as Vicuna is.
    torch.manual_seed(2)
    plain = tmp_path / "native" / "language"
    shutil.rmtree(plain)
    config = LlamaConfig(
        vocab_size=len(IDS), hidden_size=24, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(plain)
    tokenizer().save_pretrained(plain)
    shutil.rmtree(tmp_path / "native" / "huggingface")
    main(["--from", "native", "--to", "hf", str(tmp_path / "native"), str(tmp_path / "new")])
    made = load_file(tmp_path / "new" / "model.safetensors")
    assert len(made["language_model.model.embed_tokens.weight"]) == len(IDS) + 1
    parts = formats.read("hf", tmp_path / "new")
    before = load_file(plain / "model.safetensors")
    assert {n: lazy.shape for n, lazy in parts.language.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in before.items()
    }
    assert all(torch.equal(parts.language.tensors[n].read(), t) for n, t in before.items())
    said = LlavaForConditionalGeneration.from_pretrained(tmp_path / "new")
    assert said.config.image_token_index == len(IDS)


def test_deltas_are_added_to_their_base(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    longer = LlamaConfig(**{**config.to_dict(), "vocab_size": 32})
    LlamaForCausalLM(longer).save_pretrained(tmp_path / "delta")
    base_tensors, delta = open_weights(tmp_path / "base"), open_weights(tmp_path / "delta")
    total = add_base(delta, base_tensors, "here")
    name = "model.embed_tokens.weight"
    first, added = base_tensors[name].read(), delta[name].read()
    assert torch.equal(total[name].read()[:30], added[:30] + first)
    assert torch.equal(total[name].read()[30:], added[30:])
    with pytest.raises(ValueError, match="is in one of them alone"):
        add_base({n: t for n, t in delta.items() if n != name}, base_tensors, "here")
    wrong = dict(base_tensors) | {"model.norm.weight": delta[name]}
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape"):
        add_base(delta, wrong, "here")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("vision_feature_layer", [-2, -5], "one layer counted from the end"),
        ("multimodal_projector_bias", False, "biases"),
        ("projector_hidden_act", "silu", "gelu and linear are known"),
    ],
)
def test_what_ours_has_no_place_for_is_refused(tmp_path, field, value, said):
    folder = their_folder(tmp_path / "hf", "mlp2x_gelu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError, match=said):
        main(["--from", "hf", "--to", "native", str(folder), str(tmp_path / "native")])


@pytest.mark.parametrize("kind", KINDS)
def test_the_python_door_says_what_transformers_says(kind, tmp_path):
    """Greedy and beam texts from pixels on, for a folder of Hugging Face's and for ours of it."""
    folder = their_folder(tmp_path / "hf", kind, torch.float32)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    main(["--from", "hf", "--to", "native", str(folder), str(tmp_path / "native")])
    writers = [load(folder, dtype="fp32"), load(tmp_path / "native", dtype="fp32")]
    processor = LlavaProcessor.from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    shown = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    words = tokenizer()
    turns = [Turn("user", "<image>\nWhat is it?")]
    row = encode(segments(LAYOUTS["v1"], turns, reply=True), words)
    at = row.image_at[0]
    ids = torch.tensor([[*row.ids[:at], *[len(IDS)] * 4, *row.ids[at:]]])
    for beams in (1, 3):
        how = {"num_beams": beams, "max_new_tokens": 10, "do_sample": False, "eos_token_id": 2}
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=shown, **how
        )
        said = words.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
        settings = GenerationSettings(beams=beams, max_new_tokens=10)
        for writer in writers:
            assert writer.generate([picture], ["What is it?"], settings) == [said]
    # Ranking: the log-probability of an answer with its stop.
    (ranked,) = writers[1].rank([picture], ["What is it?"], ["red", "the big star"])
    for text, found in zip(["red", "the big star"], ranked.scores(), strict=True):
        whole = encode(segments(LAYOUTS["v1"], [*turns, Turn("assistant", text)]), words)
        line = torch.tensor([[*whole.ids[:at], *[len(IDS)] * 4, *whole.ids[at:]]])
        logits = model(input_ids=line, pixel_values=shown).logits[0].log_softmax(-1)
        count = sum(whole.target)
        expected = sum(logits[i - 1, line[0, i]] for i in range(-count, 0))
        assert found == pytest.approx(expected.item(), abs=1e-4)
