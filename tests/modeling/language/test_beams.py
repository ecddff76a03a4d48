"""Beams that share their prompt: the ids of transformers' own `generate`, with fewer positions."""

import pytest
import torch

from modeling.language import beams
from tests.modeling.families import FAMILIES, model

SEARCHES = {
    "captions": {"num_beams": 4, "max_new_tokens": 9, "min_new_tokens": 3, "length_penalty": 1.0},
    "answers": {"num_beams": 5, "max_new_tokens": 6, "length_penalty": -1.0},
    "repetition": {"num_beams": 3, "max_new_tokens": 6, "repetition_penalty": 1.5},
    "greedy": {"num_beams": 1, "max_new_tokens": 6},
}
ITEMS, SIZE = 3, 7


def prompts(language) -> dict[str, torch.Tensor]:
    """Prompts of which one is padded: a decoder's on the left."""
    generator = torch.Generator().manual_seed(7)
    width = language.get_input_embeddings().embedding_dim
    mask = torch.ones(ITEMS, SIZE, dtype=torch.long)
    mask[1, 4:] = 0
    if not language.config.is_encoder_decoder:
        mask = mask.flip(1)
    embedded = torch.randn(ITEMS, SIZE, width, generator=generator)
    return {"inputs_embeds": embedded, "attention_mask": mask}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_ids_are_those_of_generate(name):
    language = model(FAMILIES[name])
    given, found = prompts(language), []
    for search in SEARCHES.values():
        settings = {**search, "do_sample": False}
        expected = language.generate(**given, **settings)
        assert torch.equal(beams.generate(language, settings, **given), expected)
        found += expected.tolist()
    assert len({tuple(row) for row in found}) > ITEMS


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("opt", "layers.1.self_attn.k_proj"),
        ("qwen3", "layers.1.self_attn.k_proj"),
        ("t5", "decoder.block.1.layer.1.EncDecAttention.k"),
        ("bart", "decoder.layers.1.encoder_attn.k_proj"),
    ],
)
@torch.no_grad()
def test_keys_of_a_prompt_are_made_once(name, part):
    language = model(FAMILIES[name])
    given, counts = prompts(language), []
    [keys] = [module for path, module in language.named_modules() if path.endswith(part)]
    keys.register_forward_hook(lambda _, __, made: counts.append(made.shape[0] * made.shape[1]))
    settings = {"num_beams": 4, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    language.generate(**given, **settings)
    plain = sum(counts)
    counts.clear()
    beams.generate(language, settings, **given)
    saved = ITEMS * SIZE * 3
    if not language.config.is_encoder_decoder:
        saved -= ITEMS * 4  # every beam reads the last position itself
    assert plain - sum(counts) == saved


@torch.no_grad()
def test_a_cache_of_a_sliding_window_is_left_to_transformers():
    language = model(FAMILIES["mistral"], sliding_window=4)
    given = prompts(language)
    assert beams._shared(language, 3, 5, given) == {}
    settings = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    expected = language.generate(**given, **settings)
    assert torch.equal(beams.generate(language, settings, **given), expected)
