"""Conversations with a checkpoint: one encoding of the image, and each model its own layout."""

from pathlib import Path

import pytest
from PIL import Image

from jobs import predict
from modeling.language.adapters import GenerationSettings
from modeling.language.chat_template import chat_template_layout
from modeling.language.conversation import Turn, encode, segments
from modeling.language.reply import reply
from tests.jobs import foreign
from tests.modeling.families import INSTRUCT

SHORT = GenerationSettings(beams=2, max_new_tokens=5)
ASKED = ("What colour is the star?", "Is it big?", "What is it?")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.effect_mandelbrot((28, 28), (-2, -2, 2, 2), 50).convert("RGB")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_instructblip_reads_earlier_turns_as_lines_and_encodes_the_image_once(
    family: str, root: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
):
    folder = foreign.save(root / family, *foreign.generation_model(family, instruct=True))
    model = predict.load(folder)
    encoded, encode_once = [], model.encode
    monkeypatch.setattr(model, "encode", lambda images: encoded.append(1) or encode_once(images))
    chat = model.chat(picture)
    said = [chat.ask(question, SHORT) for question in ASKED]
    assert len(encoded) == 1 and len(chat.turns) == 6
    lines = []
    for question, answer in zip(ASKED, said, strict=True):
        lines.append(question)
        assert [answer] == model.generate([picture], ["\n".join(lines)], SHORT)
        lines.append(answer)
    again = model.chat(picture, chat.turns[:4])
    assert again.ask(ASKED[2], SHORT) == said[2]


def test_blip2_is_asked_with_its_own_prompt_for_questions(root: Path, picture: Image.Image):
    model = predict.load(foreign.save(root / "opt", *foreign.generation_model("opt")))
    chat = model.chat(picture)
    first = chat.ask(ASKED[0], SHORT)
    assert [first] == model.answer([picture], [ASKED[0]], SHORT)
    whole = f"Question: what colour is the star? Answer: {first}\nQuestion: is it big? Answer:"
    assert [chat.ask(ASKED[1], SHORT)] == model.generate([picture], [whole], SHORT)


def test_a_chat_template_gets_the_turns_as_its_own(root: Path, picture: Image.Image):
    theirs, processor = foreign.generation_model("opt")
    processor.tokenizer.chat_template = INSTRUCT.removeprefix("<s>")
    folder = foreign.save(root / "template", theirs, processor)
    model = predict.load(folder, prompt_template="chat")
    chat = model.chat(picture)
    first = chat.ask(ASKED[0], SHORT)
    assert first and [first] == model.generate([picture], [ASKED[0]], SHORT)
    second = chat.ask(ASKED[1], SHORT)
    language = model.language
    layout = chat_template_layout(language.tokenizer)
    turns = [Turn("user", f"<image>{ASKED[0]}"), Turn("assistant", first), Turn("user", ASKED[1])]
    row = encode(segments(layout, turns, reply=True), language.tokenizer)
    text = language.tokenizer.decode(row.ids)
    assert text == f"[INST] \n{ASKED[0]} [/INST] {first}</s>[INST] {ASKED[1]} [/INST]"
    visual = model.visual_prompts(model.encode([picture]), [""])
    assert [second] == reply(language, visual, [row], layout, SHORT)


def test_what_is_no_conversation_is_refused_and_the_chat_goes_on(root: Path, picture: Image.Image):
    model = predict.load(foreign.save(root / "wrong", *foreign.generation_model("opt")))
    with pytest.raises(ValueError, match="turn 0 of the conversation is the assistant's"):
        model.chat(picture, [Turn("assistant", "a star")])
    with pytest.raises(ValueError, match="ends with the user's turn"):
        model.chat(picture, [Turn("user", "What is it?")])
    chat = model.chat(picture)
    for wrong in (" ", "<image>What is it?"):
        with pytest.raises(ValueError, match="give a text without <image>"):
            chat.ask(wrong, SHORT)
    assert chat.turns == []
    assert chat.ask("What is it?", SHORT) == model.answer([picture], ["What is it?"], SHORT)[0]
    long = model.chat(picture, [Turn("user", "What is it? " * 12), Turn("assistant", "no")] * 4)
    with pytest.raises(ValueError, match="the language model has 96"):
        long.ask("What is it?", SHORT)
    assert len(long.turns) == 8
