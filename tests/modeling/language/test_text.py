"""Each language model's own text: begin, end, padding, length, lines, chat templates."""

import pytest
import torch
import torch.nn.functional as F

from modeling.language.adapters import DecoderLM, EncoderDecoderLM, GenerationSettings
from modeling.language.text import check_words
from tests.modeling.families import (
    CHATML,
    FAMILIES,
    INSTRUCT,
    ROWS,
    THINKING,
    WIDTH,
    ids,
    model,
    tokenizer,
)

DECODERS = [name for name in FAMILIES if name not in ("t5", "mt5", "bart")]
# What the tokenizer of each puts in front of a text, and what ends one.
BEGIN = {
    "opt": "</s>", "llama": "<s>", "mistral": "<s>", "gemma2": "<bos>", "gemma3": "<bos>",
    "cohere": "<BOS>", "bart": "<s>",
}  # fmt: skip
END = {
    "gpt2": "<|endoftext|>", "phi": "<|endoftext|>", "llama": "</s>", "mistral": "</s>",
    "qwen2": "<|im_end|>", "qwen3": "<|im_end|>", "gemma2": "<eos>", "gemma3": "<eos>",
    "cohere": "<END>", "t5": "</s>", "mt5": "</s>", "bart": "</s>",
}  # fmt: skip
GREEDY = GenerationSettings(beams=1, max_new_tokens=4)


def language(name: str, chat: str | None = None, **options):
    family = FAMILIES[name]
    adapter = DecoderLM if name in DECODERS else EncoderDecoderLM
    template = {"template": "chat"} if chat else {}
    return adapter(model(family), tokenizer(family, chat), **template, **options)


def visual(size: int = 2) -> torch.Tensor:
    return torch.randn(size, 3, WIDTH, generator=torch.Generator().manual_seed(size))


def token(name: str, table: dict[str, str]) -> list[int]:
    return [FAMILIES[name].id(table[name])] if name in table else []


def loss_by_hand(theirs, prompts, rows) -> float:
    """Mean loss of single rows, each [text before][queries][given][learned], without padding."""
    embed, total, count = theirs.get_input_embeddings(), 0.0, 0
    for visual_QD, (before, given, learned) in zip(prompts, rows, strict=True):
        parts = [embed(torch.tensor([part], dtype=torch.long)) for part in (before, given, learned)]
        inputs = torch.cat((parts[0], visual_QD[None], *parts[1:]), 1)
        logits = theirs(inputs_embeds=inputs).logits[0, -len(learned) - 1 : -1]
        total += F.cross_entropy(logits.float(), torch.tensor(learned), reduction="sum").item()
        count += len(learned)
    return total / count


# ------------------------------------------------------------------------------ begin and end


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "opt"])
def test_a_decoder_is_given_its_begin_and_learns_the_text_and_its_own_end(name):
    ours = language(name)
    begin, end = token(name, BEGIN), token(name, END)
    rows = [([], begin, ids("a red dog") + end), ([], begin, ids("a cat") + end)]
    with torch.no_grad():
        expected = loss_by_hand(ours.model, visual(), rows)
        assert ours.loss(visual(), ["a red dog", " a cat "]).item() == pytest.approx(expected, 1e-5)
    assert ours.count_targets(["a red dog", "a cat"]) == 9 + 5 + 2


@pytest.mark.parametrize("name", DECODERS)
def test_behind_a_prompt_the_answer_is_learned_and_the_prompt_is_not(name):
    ours = language(name)
    end = token(name, END) or ids("\n")
    given = token(name, BEGIN) + ids("What is it?")
    rows = [([], given, ids(" a dog") + end), ([], given, ids(" no") + end)]
    with torch.no_grad():
        expected = loss_by_hand(ours.model, visual(), rows)
        loss = ours.loss(visual(), ["a dog", "no"], prompt_texts=["What is it?"] * 2)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_opt_keeps_the_rules_of_the_reference_and_others_can_be_given_them():
    """The begin-of-sequence token is learned too, and the text ends with its line."""
    for name, rules in (("opt", "auto"), ("llama", "reference")):
        ours = language(name, rules=rules)
        rows = [([], [], token(name, BEGIN) + ids("a dog\n"))]
        with torch.no_grad():
            expected = loss_by_hand(ours.model, visual(1), rows)
            assert ours.loss(visual(1), ["a dog"]).item() == pytest.approx(expected, rel=1e-5)
        assert ours.form.stops == ids("\n")


@pytest.mark.parametrize("name", ["t5", "mt5", "bart"])
def test_an_encoder_decoders_loss_is_that_of_the_tokenizers_own_rows(name):
    family = FAMILIES[name]
    ours, words = language(name), tokenizer(family)
    asked, told = ["What is it?", "And that?"], ["a dog", "a red cat"]
    with torch.no_grad():
        total, count = 0.0, 0
        for i in range(2):
            given = ours.model.get_input_embeddings()(torch.tensor([words(asked[i])["input_ids"]]))
            labels = torch.tensor([words(told[i])["input_ids"]])
            inputs = torch.cat((visual()[i : i + 1], given), 1)
            loss = ours.model(inputs_embeds=inputs, labels=labels).loss
            total, count = total + loss.item() * labels.numel(), count + labels.numel()
        found = ours.loss(visual(), told, prompt_texts=asked)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_barts_prefix_begins_as_its_texts_do():
    ours, family = language("bart"), FAMILIES["bart"]
    begin, end = token("bart", BEGIN), token("bart", END)
    given, learned = ours._rows(["abcd"], torch.tensor([0.0]).double(), None)
    assert given == [begin + ids("a") + end] and learned == [begin + ids("bcd") + end]
    assert family.special[0] == "<s>"


def test_generation_ends_at_any_of_the_ends_that_the_model_is_said_to_have():
    family = FAMILIES["qwen2"]
    theirs = model(family)
    theirs.generation_config.eos_token_id = [family.id("<|endoftext|>"), family.id("<|im_end|>")]
    ours = DecoderLM(theirs, tokenizer(family))
    assert ours.form.end == family.id("<|im_end|>")
    assert ours.form.stops == [family.id("<|im_end|>"), family.id("<|endoftext|>")]


def test_a_tokenizer_without_an_end_is_refused_and_told_the_remedy():
    family = FAMILIES["gpt2"]
    theirs, words = model(family, eos_token_id=None), tokenizer(family)
    theirs.generation_config.eos_token_id = None
    words.eos_token = None
    with pytest.raises(ValueError, match=r"no end-of-sequence token.* --language.text-rules ref"):
        DecoderLM(theirs, words)
    assert DecoderLM(theirs, words, rules="reference").form.stops == ids("\n")


# ------------------------------------------------------------------------------ padding, length


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi"])
def test_where_no_padding_token_is_named_the_end_is_taken_and_still_learned(name):
    assert tokenizer(FAMILIES[name]).pad_token_id is None
    ours, texts = language(name), ["a", "a longer text"]
    assert ours.form.pad == ours.form.end
    with torch.no_grad():
        together, count = ours.token_losses(visual(), texts)
        single = [ours.token_losses(visual()[i : i + 1], [texts[i]]) for i in range(2)]
    assert together.item() == pytest.approx(sum(loss.item() for loss, _ in single), rel=1e-5)
    assert count == sum(n for _, n in single) == 1 + 1 + 13 + 1


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2", "bart"])
def test_a_padded_batch_says_what_single_rows_say(name):
    ours, asked = language(name), ["What is it?", "Why"]
    together = ours.generate(visual(), asked, GREEDY)
    single = [ours.generate(visual()[i : i + 1], asked[i : i + 1], GREEDY)[0] for i in range(2)]
    assert together == single


@pytest.mark.parametrize("named", [-1, ROWS, None])
def test_a_padding_id_that_the_embedding_does_not_have_is_not_taken(named):
    theirs = model(FAMILIES["llama"])
    theirs.config.pad_token_id = theirs.generation_config.pad_token_id = named
    ours = DecoderLM(theirs, tokenizer(FAMILIES["llama"]))
    assert ours.form.pad == FAMILIES["llama"].id("</s>")


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_more_positions_than_the_model_has_are_refused(name):
    with pytest.raises(ValueError, match=r"7\d positions .* has 64"):
        language(name, max_text=99).loss(visual(1), ["a" * 69], prompt_texts=[""])
    with pytest.raises(ValueError, match="has 64"):
        language(name).generate(visual(1), ["a"], GenerationSettings(max_new_tokens=65))


# ------------------------------------------------------------------------------ words


def test_a_tokenizer_with_more_words_than_the_embedding_is_refused():
    family = FAMILIES["llama"]
    with pytest.raises(ValueError, match=r"tokenizer has 259 words, but .* embedding has 258 rows"):
        DecoderLM(model(family, vocab_size=258), tokenizer(family))
    assert DecoderLM(model(family, vocab_size=259), tokenizer(family)).form.begin == [257]


def test_huggingfaces_image_token_needs_no_row():
    words = tokenizer(FAMILIES["llama"], more=("<image>",))
    check_words(words, 259, "language model")
    with pytest.raises(ValueError, match="tokenizer has 260 words"):
        check_words(words, 258, "language model")


# ------------------------------------------------------------------------------ lines


def say(ours: DecoderLM, text: str, monkeypatch) -> None:
    said = torch.tensor([[*ids(text), ours.form.end]])
    monkeypatch.setattr(ours.model, "generate", lambda **_: said)


def test_an_answer_keeps_its_lines_where_the_model_ends_it_itself(monkeypatch):
    ours = language("llama")
    say(ours, "\nA dog.\nAnd a cat. ", monkeypatch)
    assert ours.generate(visual(1), ["What?"], GREEDY) == ["A dog.\nAnd a cat."]
    one_line = GenerationSettings(beams=1, one_line=True)
    assert ours.generate(visual(1), ["What?"], one_line) == ["A dog."]


def test_opts_text_is_a_line(monkeypatch):
    ours = language("opt")
    say(ours, "a dog\nQuestion:", monkeypatch)
    assert ours.generate(visual(1), ["What?"], GREEDY) == ["a dog"]


# ------------------------------------------------------------------------------ chat templates


@pytest.mark.parametrize(
    ("name", "chat", "around", "joint", "end"),
    [
        ("qwen2", CHATML, ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"), "",
         "<|im_end|>"),
        ("qwen3", THINKING, ("<|im_start|>user\n",
         "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"), "", "<|im_end|>"),
        ("mistral", INSTRUCT, ("<s>[INST] ", " [/INST]"), " ", "</s>"),
    ],
)  # fmt: skip
def test_the_image_stands_in_the_users_message_of_a_chat(name, chat, around, joint, end):
    before, after = around
    family = FAMILIES[name]
    ours, words = language(name, chat), tokenizer(family, chat)

    def written(text: str) -> list[int]:
        return words(text, add_special_tokens=False)["input_ids"]

    assert ours.form.end == ours.form.stops[0] == family.id(end)
    rows = [
        (written(before), written("\nWhat is it?" + after), [*ids(joint + "a dog"), ours.form.end]),
        (written(before), written("\nWhy" + after), [*ids(joint + "no"), ours.form.end]),
    ]
    with torch.no_grad():
        expected = loss_by_hand(ours.model, visual(), rows)
        loss = ours.loss(visual(), ["a dog", "no"], prompt_texts=["What is it?", "Why"])
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    # A caption without a prompt: the message is the image alone.
    rows = [(written(before), written(after), [*ids(joint + "a dog"), ours.form.end])]
    with torch.no_grad():
        expected = loss_by_hand(ours.model, visual(1), rows)
        assert ours.loss(visual(1), ["a dog"]).item() == pytest.approx(expected, rel=1e-5)


def test_a_chat_without_an_image_is_the_template_with_the_text():
    ours = language("qwen2", CHATML)
    turns = [{"role": "user", "content": "What is it?"}]
    expected = ours.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert ours._given(["What is it?"], pictured=False) == [expected]


def test_a_padded_chat_says_what_single_rows_say():
    ours, asked = language("qwen2", CHATML), ["What is it?", "Why"]
    together = ours.generate(visual(), asked, GREEDY)
    assert together == [
        ours.generate(visual()[i : i + 1], asked[i : i + 1], GREEDY)[0] for i in range(2)
    ]
    assert together != language("qwen2").generate(visual(), asked, GREEDY)


@pytest.mark.parametrize(
    ("name", "chat", "match"),
    [
        ("llama", None, "has no chat template; give plain, or a folder of the instruction-tuned"),
        ("t5", CHATML, "is an encoder-decoder, which has no turns"),
        ("llama", "{{ raise_exception('system first') }}", "refuses a single turn .system first."),
        ("llama", "{{ messages[0].role }}", "does not show a message exactly once"),
        ("llama", "{% if %}", "refuses a single turn"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_told(name, chat, match):
    family = FAMILIES[name]
    adapter = DecoderLM if name in DECODERS else EncoderDecoderLM
    with pytest.raises(ValueError, match=rf"--language.prompt-template chat: .*{match}"):
        adapter(model(family), tokenizer(family, chat), template="chat")
