"""Frozen language models: of the recipe's family, in one copy a node, from every kind of file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from jobs.models.languages import load_language, stored_as
from jobs.models.sizes import with_model_sizes
from jobs.recipes import recipe
from jobs.recipes.schema import LanguageChoice
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from tests.tiny_training import ZOO, _with_tokenizer, tiny_opt, tiny_t5

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_of_the_other_family_is_refused_before_anything_is_loaded(tmp_path: Path):
    t5 = tiny_t5(tmp_path / "t5")
    opt = tiny_opt(tmp_path / "opt")
    with pytest.raises(
        ValueError, match=r"--language.name .* is a t5 model .* recipe is for a dec"
    ):
        load_language(LanguageChoice(str(t5), "decoder"))
    with pytest.raises(ValueError, match=r"is a opt model \(decoder\), this recipe is for a enc"):
        load_language(LanguageChoice(str(opt), "encoder-decoder"))
    from dataclasses import replace

    base = recipe("stage2", "vit-g-opt-2.7b")
    wrong = replace(base, language=replace(base.language, name=str(t5)))
    with pytest.raises(ValueError, match="take a recipe for a encoder-decoder"):
        with_model_sizes(wrong)
    assert isinstance(load_language(LanguageChoice(str(t5))), EncoderDecoderLM)
    assert isinstance(load_language(LanguageChoice(str(opt), "decoder", "fp16")), DecoderLM)
    with pytest.raises(ValueError, match="T5 overflows in fp16"):
        load_language(LanguageChoice(str(t5), dtype="fp16"))


def test_any_causal_model_of_transformers_will_do(tmp_path: Path):
    torch.manual_seed(0)
    words = len(AutoTokenizer.from_pretrained(ZOO / "opt"))
    ends = {"bos_token_id": 2, "eos_token_id": 2}
    config = GPT2Config(vocab_size=words, n_embd=24, n_layer=2, n_head=2, n_positions=64, **ends)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    _with_tokenizer(tmp_path / "gpt2", ZOO / "opt")
    language = load_language(LanguageChoice(str(tmp_path / "gpt2"), "decoder", "fp32"))
    prompts = torch.randn(2, 3, language.width, requires_grad=True)
    language.loss(prompts, ["a red square", "a dog"]).backward()
    assert language.width == 24 and prompts.grad.abs().sum() > 0


def test_weights_of_another_type_are_rewritten_once(tmp_path: Path, cache: Path):
    folder = tiny_t5(tmp_path / "t5")  # fp32
    assert stored_as(folder, torch.float32, least=0) == folder
    assert stored_as(folder, torch.bfloat16) == folder  # too small to be worth it
    made = stored_as(folder, torch.bfloat16, least=0)
    assert made.is_relative_to(cache) and stored_as(folder, torch.bfloat16, least=0) == made
    with (
        safe_open(folder / "model.safetensors", "pt") as old,
        safe_open(made / "model.safetensors", "pt") as new,
    ):
        assert list(old.keys()) == list(new.keys())
        for name in old.keys():  # noqa: SIM118
            assert torch.equal(old.get_tensor(name).bfloat16(), new.get_tensor(name))
    assert stored_as(made, torch.bfloat16, least=0) == made
    os.utime(folder / "model.safetensors", ns=(1, 1))  # another file: another copy
    assert stored_as(folder, torch.bfloat16, least=0) != made


def test_torchs_own_files_are_read_as_tensors_and_nothing_else(tmp_path: Path, cache: Path):
    """OPT is on the hub as pytorch_model.bin only."""
    folder = tiny_opt(tmp_path / "opt")
    expected = load_language(LanguageChoice(str(folder), dtype="fp32"))
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = load_language(LanguageChoice(str(folder), dtype="fp32"))
    text = ["a red square"]
    assert torch.equal(found.loss(None, text), expected.loss(None, text))
    made = stored_as(folder, torch.bfloat16, least=0)
    assert made != folder and (made / "model.safetensors").is_file()
    bf16 = AutoModelForCausalLM.from_pretrained(made, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(bf16[name], state[name].bfloat16()) for name in state)

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"x": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' holds objects other than tensors"):
        load_language(LanguageChoice(str(folder)))
    assert not (tmp_path / "executed").exists()


def test_processes_of_a_node_share_one_copy(tmp_path: Path):
    """Two processes hold a 270 MB model: neither has its weights for itself."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tiny_t5(tmp_path / "t5")
    small = json.loads((folder / "config.json").read_text())
    config = T5Config.from_dict({**small, "d_model": 1024, "d_ff": 4096, "num_layers": 8})
    model = T5ForConditionalGeneration(config).bfloat16()
    total = sum(p.numel() for p in model.parameters()) * 2
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    _with_tokenizer(folder, ZOO / "t5")
    del model
    assert total > 200e6
    script = (
        "import sys, torch; from jobs.models.languages import load_language\n"
        "from jobs.recipes.schema import LanguageChoice\n"
        "def own(): return int([l for l in open('/proc/self/status') if 'RssAnon' in l][0]"
        ".split()[1]) * 1024\n"
        "load_language(LanguageChoice(sys.argv[2], dtype='bf16')); before = own()\n"
        "model = load_language(LanguageChoice(sys.argv[1], dtype='bf16')).model\n"
        "assert sum(p.sum().isfinite() for p in model.parameters())\n"
        "print(own() - before)\n"
    )
    other = tiny_opt(tmp_path / "opt")  # imports and caches are paid for before the measurement
    done = [
        subprocess.run(
            [sys.executable, "-c", script, str(folder), str(other)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert all(int(process.stdout.split()[-1]) < 0.2 * total for process in done)


def test_where_nothing_is_found_the_message_says_what_to_give(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"language model 'nobody/nothing' cannot be loaded"):
        load_language(LanguageChoice("nobody/nothing"))
    with pytest.raises(ValueError, match="no such folder, and it is no hub id"):
        load_language(LanguageChoice("/nowhere/at/all"))
