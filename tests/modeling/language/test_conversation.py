"""Conversations as token ids: each layout's golden ids and targets, cuts, and what is refused."""

import pytest

from modeling.language.chat_template import chat_template_layout
from modeling.language.conversation import (
    LAYOUTS,
    Turn,
    check_turns,
    encode,
    instruction,
    read_turns,
    segments,
)
from modeling.language.pieces import begin_ids, piece_ids
from tests.modeling.families import CHATML, FAMILIES, INSTRUCT
from tests.modeling.families import tokenizer as byte_tokenizer
from tests.modeling.language.pieces_tokenizer import IDS, KINDS, tokenizer

TURNS = [
    Turn("user", "<image>\nWhat colour is the star?"),
    Turn("assistant", "red"),
    Turn("user", "Is it big?"),
    Turn("assistant", "yes"),
]
SYSTEM = (
    "▁A ▁chat ▁between ▁a ▁curious ▁{} ▁and ▁an ▁artificial ▁intelligence ▁assistant . ▁The "
    "▁assistant ▁gives ▁helpful , ▁detailed , ▁and ▁polite ▁answers ▁to ▁the ▁{} ' s ▁questions ."
)
# A star stands in front of what is learned, @ in the image's place.
STAR, BIG = "▁ <0x0A> What ▁colour ▁is ▁the ▁star ?", "▁Is ▁it ▁big ?"
USER = "▁USER :"
V1 = (
    f"<s> {SYSTEM} {USER} ▁ @ {STAR} ▁ASSISTANT : *▁red *</s> {USER} {BIG} ▁ASSISTANT : *▁yes *</s>"
)
GOLDEN = {
    "plain": "<s> @ *▁yes *<0x0A>",
    "v0": f"<s> {SYSTEM.format('human', 'human')} ### Human : ▁ @ {STAR} ### Assistant : *▁red "
    f"*### Human : {BIG} ### Assistant : *▁yes *###",
    "v1": V1.format("user", "user"),
    "llava_v1": V1.format("human", "human"),
    "instruct": "@ </s> ▁What ▁colour ▁is ▁the ▁star ? <0x0A> red <0x0A> Is ▁it ▁big ? *▁yes *</s>",
}


def golden(line: str) -> tuple[list[int], list[bool], list[int]]:
    """Ids, targets and image places of a line of pieces."""
    pieces = line.split()
    image_at = [pieces.index("@")] if "@" in pieces else []
    pieces = [piece for piece in pieces if piece != "@"]
    ids = [IDS[piece.removeprefix("*")] for piece in pieces]
    return ids, [piece.startswith("*") for piece in pieces], image_at


def questions(*texts: str) -> list[Turn]:
    """The user's and the assistant's texts in turn."""
    return [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


# ------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_the_golden_ids_under_every_kind_of_tokenizer(name, kind):
    row = encode(segments(LAYOUTS[name], TURNS), tokenizer(kind))
    assert (row.ids, row.target, row.image_at) == golden(GOLDEN[name])
    assert row.dropped == 0


@pytest.mark.parametrize("name", ["v0", "v1"])
def test_ids_are_those_of_the_whole_texts_around_the_image_under_the_old_tokenizer(name):
    words = tokenizer("always")
    layout = LAYOUTS[name]
    text = layout.system
    for index, turn in enumerate(TURNS):
        last = index % 2
        opening = layout.user if not last else layout.assistant + layout.blank
        text += opening + turn.text + ((layout.stop or "</s>") if last else "")
    row = encode(segments(layout, TURNS), words)
    before, after = (words(part, add_special_tokens=False)["input_ids"] for part in
                     text.split("<image>"))  # fmt: skip
    assert row.ids == [IDS["<s>"], *before, *after]
    assert row.image_at == [1 + len(before)]


def test_the_targets_are_the_answers_and_their_stops_and_nothing_else():
    words = tokenizer()
    for name, learned in (
        ("v0", ["red###", "yes###"]),
        ("v1", ["red</s>", "yes</s>"]),
        ("plain", ["yes\n"]),
        ("instruct", ["yes</s>"]),
    ):
        row = encode(segments(LAYOUTS[name], TURNS), words)
        runs, run = [], []
        for token, target in zip([*row.ids, -1], [*row.target, False], strict=True):
            if target:
                run.append(token)
            elif run:
                runs.append(words.decode(run))
                run = []
        assert runs == learned


def test_a_row_for_generation_ends_where_the_answer_begins():
    words = tokenizer()
    for name in ("v0", "v1", "llava_v1", "instruct"):
        whole = encode(segments(LAYOUTS[name], TURNS), words)
        asked = encode(segments(LAYOUTS[name], TURNS[:3], reply=True), words)
        last = len(asked.ids)
        assert asked.ids == whole.ids[:last]
        assert whole.target[last:] == [True, True] and not whole.target[last - 1]


def test_the_image_is_moved_to_the_front_or_stays_where_the_file_has_it():
    words = tokenizer()
    turns = questions("Is it big?\n<image>", "yes")
    front = segments(LAYOUTS["v1"], turns)
    assert front == segments(LAYOUTS["v1"], questions("<image>\nIs it big?", "yes"))
    kept = encode(segments(LAYOUTS["v1"], turns, image_first=False), words)
    system = SYSTEM.format("user", "user")
    line = f"<s> {system} {USER} {BIG} <0x0A> @ ▁ASSISTANT : *▁yes *</s>"
    assert (kept.ids, kept.target, kept.image_at) == golden(line)


def test_a_conversation_without_an_image_has_no_place_for_one():
    row = encode(segments(LAYOUTS["v1"], questions("Is it big?", "yes")), tokenizer())
    system = SYSTEM.format("user", "user")
    line = f"<s> {system} {USER} {BIG} ▁ASSISTANT : *▁yes *</s>"
    assert (row.ids, row.target, row.image_at) == golden(line)


def test_the_instruction_is_every_line_before_the_last_answer():
    expected = "What colour is the star?\nred\nIs it big?"
    assert instruction(TURNS) == instruction(TURNS[:3]) == expected


# ------------------------------------------------------------------------------ chat templates


@pytest.mark.parametrize("template", [CHATML, INSTRUCT])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_chat_template_s_layout_writes_the_ids_of_the_template_itself(family, template):
    special = ("<|im_start|>", "<|im_end|>") if family == "llama" else ("<s>", "</s>")
    words = byte_tokenizer(FAMILIES[family], template, more=special)
    layout = chat_template_layout(words)
    turns = questions("What is it?", "a star", "Is it red?", "no")
    row = encode(segments(layout, turns), words)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    whole = words.apply_chat_template(messages, return_dict=False)
    # The template's line behind the last stop is not part of a row.
    assert whole[: len(row.ids)] == row.ids
    assert words.decode(whole[len(row.ids) :]).strip() == ""
    learned = words.decode([i for i, target in zip(row.ids, row.target, strict=True) if target])
    assert (
        learned
        == {CHATML: "a star<|im_end|>no<|im_end|>", INSTRUCT: " a star</s> no</s>"}[template]
    )
    asked = words.apply_chat_template(messages[:3], return_dict=False, add_generation_prompt=True)
    assert encode(segments(layout, turns[:3], reply=True), words).ids == asked


@pytest.mark.parametrize("kind", ["first", "prepend"])
def test_a_chat_template_of_a_tokenizer_with_blanks_is_written_without_further_ones(kind):
    words = tokenizer(kind)
    words.chat_template = INSTRUCT.replace("[INST]", "USER:").replace("[/INST]", "ASSISTANT:")
    row = encode(segments(chat_template_layout(words), TURNS), words)
    pieces = words.convert_ids_to_tokens(row.ids)
    assert pieces[row.image_at[0] :][:2] == ["<0x0A>", "What"]
    assert [p for p, t in zip(pieces, row.target, strict=True) if t] == [
        "▁red", "</s>", "▁yes", "</s>"
    ]  # fmt: skip


def test_a_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="has no chat template"):
        chat_template_layout(tokenizer())


# ---------------------------------------------------------------------------- begin and pieces


def test_the_begin_token_is_given_also_where_the_tokenizer_forgets_it():
    assert begin_ids(tokenizer(begin=True)) == begin_ids(tokenizer(begin=False)) == [IDS["<s>"]]
    assert begin_ids(byte_tokenizer(FAMILIES["phi"])) == []
    meant = tokenizer(begin=False)
    meant.init_kwargs["add_bos_token"] = False
    assert begin_ids(meant) == []
    assert begin_ids(byte_tokenizer(FAMILIES["opt"])) == [FAMILIES["opt"].id("</s>")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_glued_piece_has_no_blank_and_another_one_has_exactly_one(kind):
    words = tokenizer(kind)
    assert piece_ids(words, "Human", glued=True) == [IDS["Human"]]
    assert piece_ids(words, " red") == piece_ids(words, "red") == [IDS["▁red"]]


# ------------------------------------------------------------------------------------- length


def test_a_row_that_is_too_long_loses_whole_questions_from_its_end_and_counts_them():
    words = tokenizer()
    layout = LAYOUTS["v1"]
    whole, first = (segments(layout, turns) for turns in (TURNS, TURNS[:2]))
    size = len(encode(whole, words).ids) + 10
    assert encode(whole, words, limit=size, image_tokens=10).dropped == 0
    cut = encode(whole, words, limit=size - 1, image_tokens=10)
    alone = encode(first, words)
    assert (cut.ids, cut.target, cut.dropped) == (alone.ids, alone.target, 1)


def test_a_first_answer_that_does_not_fit_is_cut_on_the_right_and_keeps_its_targets():
    words = tokenizer()
    row = segments(LAYOUTS["v1"], TURNS[:2])
    whole = encode(row, words)
    cut = encode(row, words, limit=len(whole.ids) + 9, image_tokens=10)
    assert cut.ids == whole.ids[:-1] and sum(cut.target) == 1
    with pytest.raises(ValueError, match="20 positions leave no text behind an image of 10"):
        encode(row, words, limit=20, image_tokens=10)


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "sample 7: the conversation has no turns"),
        ([Turn("assistant", "red")], "sample 7: turn 0 .* is the assistant's, but must be the us"),
        ([Turn("user", "a"), Turn("user", "b")], "sample 7: turn 1 .* is the user's, but must be"),
        (questions("<image><image>", "a"), "sample 7: turn 0 .* has 2 <image>: one is allowed"),
        (questions("a", "b", "<image>", "c"), "sample 7: turn 2 .* has 1 <image>"),
        (questions("a"), "sample 7: the conversation ends with the user's turn"),
    ],
)
def test_a_conversation_that_cannot_be_written_is_refused_with_its_id(turns, message):
    with pytest.raises(ValueError, match=message):
        check_turns(turns, "7")


def test_llava_s_json_becomes_turns_and_a_wrong_turn_is_named():
    items = [{"from": "human", "value": "<image>\nIs it big?"}, {"from": "gpt", "value": "yes"}]
    assert read_turns(items, "7") == questions("<image>\nIs it big?", "yes")
    with pytest.raises(ValueError, match="sample 7: turn 0 of the conversation is the assistant's"):
        read_turns(items[1:], "7")
    with pytest.raises(ValueError, match=r"sample 7: turn 1 needs 'from' \(human or gpt"):
        read_turns([items[0], {"from": "bot", "value": "yes"}], "7")
