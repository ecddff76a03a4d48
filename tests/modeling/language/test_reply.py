"""Answers to conversations in a layout: where the image stands, and where an answer stops."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modeling.language.adapters import DecoderLM, GenerationSettings
from modeling.language.conversation import LAYOUTS, Turn, encode, segments
from modeling.language.reply import _Stops, reply, spliced
from tests.modeling.language.pieces_tokenizer import IDS, tokenizer

WIDTH = 16
GREEDY = GenerationSettings(beams=1, max_new_tokens=12)


@pytest.fixture(scope="module")
def language() -> DecoderLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(IDS), hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.6)
    return DecoderLM(model, tokenizer())


def row(question: str, layout: str = "v1", image: str = "<image>"):
    return encode(segments(LAYOUTS[layout], [Turn("user", image + question)], reply=True),
                  tokenizer())  # fmt: skip


def visual(count: int) -> torch.Tensor:
    return torch.randn(count, 3, WIDTH, generator=torch.Generator().manual_seed(count))


def test_the_image_stands_in_its_place_and_padding_does_not_matter(language: DecoderLM):
    rows = [row("Is it big?"), row("What colour is the star?")]
    inputs_BSD, mask_BS = spliced(language, visual(2), rows)
    at = rows[0].image_at[0]
    assert torch.equal(inputs_BSD[0, at : at + 3], visual(2)[0])
    assert torch.equal(inputs_BSD[0, :at], language.embed(torch.tensor(rows[0].ids[:at])))
    assert mask_BS.sum(1).tolist() == [len(one.ids) + 3 for one in rows]
    together = reply(language, visual(2), rows, LAYOUTS["v1"], GREEDY)
    alone = [
        reply(language, visual(2)[i : i + 1], rows[i : i + 1], LAYOUTS["v1"], GREEDY)[0]
        for i in range(2)
    ]
    assert together == alone and together[0] != together[1]


def test_an_answer_stops_at_the_end_token_or_at_the_layout_s_text(language: DecoderLM):
    asked = [row("Is it big?")]
    [free] = reply(language, visual(1), asked, LAYOUTS["v1"], GREEDY)
    word = free[len(free) // 3 :][:2]
    stopped = replace(LAYOUTS["v1"], stop=word)
    steps = []
    forward = language.model.forward
    language.model.forward = lambda *a, **k: steps.append(1) or forward(*a, **k)
    try:
        assert reply(language, visual(1), asked, stopped, GREEDY) == [
            free.partition(word)[0].strip()
        ]
    finally:
        language.model.forward = forward
    assert len(steps) < GREEDY.max_new_tokens


def test_a_stop_is_found_in_the_last_tokens_also_where_it_is_several():
    stops = _Stops(tokenizer(), "###")
    rows = [["▁red", "###"], ["▁red", "##"], ["##", "#"]]
    ids = torch.tensor([[IDS[piece] for piece in row] for row in rows])
    assert stops(ids, None).tolist() == [True, False, True]


def test_a_conversation_that_is_too_long_and_a_missing_image_are_refused(language: DecoderLM):
    with pytest.raises(ValueError, match="the language model has place for 28 before an answer"):
        reply(language, visual(1), [row("a")], LAYOUTS["v1"], GenerationSettings(1, 100))
    with pytest.raises(ValueError, match="0 visual prompts for 1 conversations with 1 places"):
        spliced(language, None, [row("a")])
    with pytest.raises(ValueError, match="1 visual prompts for 1 conversations with 0 places"):
        spliced(language, visual(1), [row("a", image="")])
