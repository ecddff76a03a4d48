"""Which models' logits are the output matrix times the last hidden states: by following tensors."""

import pytest
import torch

from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.language.head import first_block, plain_body
from tests.modeling.families import FAMILIES, WIDTH, model, tokenizer

PLAIN = ["opt", "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma3", "phi", "t5", "mt5"]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_head_is_seen(name):
    theirs = model(FAMILIES[name])
    body = plain_body(theirs)
    assert body is theirs.get_decoder()


@pytest.mark.parametrize("name", ["gemma2", "cohere", "bart"])
def test_logits_that_are_bounded_scaled_or_shifted_are_the_models_own(name):
    assert plain_body(model(FAMILIES[name])) is None


def test_what_decides_is_what_a_model_does_not_its_name():
    assert plain_body(model(FAMILIES["gemma2"], final_logit_softcapping=None)) is not None
    assert plain_body(model(FAMILIES["gemma3"], final_logit_softcapping=4.0)) is None
    assert plain_body(model(FAMILIES["t5"], scale_decoder_outputs=True)) is not None


def test_a_change_in_place_is_seen():
    theirs = model(FAMILIES["llama"])

    class Louder(type(theirs)):
        def forward(self, *args, **kwargs):
            made = super().forward(*args, **kwargs)
            made.logits.mul_(2)
            return made

    theirs.__class__ = Louder
    assert plain_body(theirs) is None


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_only_the_first_block_is_run_and_all_are_there_again(name):
    theirs = model(FAMILIES[name])
    before = list(theirs.named_modules())
    blocks = theirs.encoder.block if name == "t5" else theirs.model.layers
    ran: list[int] = []
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    plain_body(theirs)
    assert ran == [0] and list(theirs.named_modules()) == before
    with pytest.raises(KeyError), first_block(theirs):
        raise KeyError
    assert list(theirs.named_modules()) == before


@pytest.mark.parametrize("name", PLAIN)
def test_the_short_way_has_the_loss_of_the_models_own_logits(name):
    family, texts = FAMILIES[name], ["a red dog", "no"]
    kind = EncoderDecoderLM if family.kind in ("t5", "mt5") else DecoderLM
    prompts = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    ours = kind(model(family), tokenizer(family))
    short = ours.loss(prompts, texts, prompt_texts=["What?", "Why is it?"])
    ours._body = None
    whole = ours.loss(prompts, texts, prompt_texts=["What?", "Why is it?"])
    assert torch.allclose(short, whole, rtol=1e-5)


def test_a_model_on_the_meta_device_is_looked_at_too():
    with torch.device("meta"):
        theirs = model(FAMILIES["t5"])
    assert plain_body(theirs) is not None
