"""A record becomes an instruction and an answer: templates, options, OCR words, turns, draws."""

import pytest

from evaluation.benchmarks import prompts
from evaluation.benchmarks.records import Question
from pipeline.instructions import templates
from pipeline.instructions.config import InstructionConfig
from pipeline.instructions.phrasing import TEMPLATES, Phrasing, drawn, held_out
from pipeline.loading.samples import uniform

QUESTION = {"question": "What color is it? ", "captions": [{"text": "red"}]}
TURNS = [
    {"from": "human", "value": "<image>\nIs it red?"},
    {"from": "gpt", "value": "Yes.\nIt is."},
    {"from": "human", "value": "What else?"},
    {"from": "gpt", "value": "Nothing."},
]


def phrase(task, record, shares=0.0, text="red", **more):
    """The instruction and answer; ``shares``: the number drawn, one for all choices or by name."""
    draw = shares.get if isinstance(shares, dict) else lambda _: shares
    return Phrasing(task, **more)(record, lambda: text, draw)


def test_the_templates_are_as_many_as_the_paper_prints_and_none_ends_with_a_blank():
    assert {task: len(found) for task, found in TEMPLATES.items()} == {
        "caption": 13, "vqa": 10, "vqg": 6,
    }  # fmt: skip
    for task, found in TEMPLATES.items():
        assert len(set(found)) == len(found)
        assert all(one == one.strip() and one.count("{}") == (task != "caption") for one in found)


def test_captions_questions_and_generated_questions():
    assert phrase("caption", {}, text="a red star") == ("A short image caption:", "a red star")
    assert phrase("vqa", QUESTION, 0.45) == ("Question: What color is it? Short answer:", "red")
    asked, answer = phrase("vqg", QUESTION)
    assert asked == "Given the image, generate a question whose answer is: red. Question:"
    assert answer == "What color is it?"


def test_ocr_words_stand_in_front_and_are_thirty_at_most():
    words = [f"w{number}" for number in range(40)]
    asked, _ = phrase("caption", {"ocr_tokens": words})
    assert asked == f"OCR tokens: {', '.join(words[:30])}. A short image caption:"


def test_training_asks_as_the_evaluation_does():
    """The wording of choices and OCR words is that of the benchmarks' prompts."""
    choices, words = ("red", "blue"), ("taxi", "stop")
    one = Question(1, 1, "What color?", candidates=choices, context=", ".join(words))
    record = {"question": one.text, "options": list(choices), "choice": "red"}
    assert phrase("vqa", record, 0.45)[0] == prompts.icon_prompt(one)
    record = {"question": one.text, "ocr_tokens": list(words)}
    assert phrase("vqa", record, 0.45)[0] == prompts.text_prompt(one)
    assert templates.CAPTION[1] == prompts.CAPTION


def test_a_question_with_options_and_free_answers_is_asked_in_either_way():
    record = {**QUESTION, "options": ["blue", "red"], "choice": "red"}
    told = phrase("vqa", record, {"template": 0.0, "form": 0.4}, text="reddish")
    assert told == ("What color is it? Options: (a) blue (b) red.", "red")
    told = phrase("vqa", record, {"template": 0.0, "form": 0.6}, text="reddish")
    assert told == ("What color is it?", "reddish")
    only = {**record, "captions": []}
    assert phrase("vqa", only, {"template": 0.0, "form": 0.6})[1] == "red"


def test_a_turn_of_a_conversation_is_answered_behind_the_earlier_ones():
    record = {"conversations": TURNS}
    assert phrase("conversation", record, 0.0) == ("Is it red?", "Yes.\nIt is.")
    told = phrase("conversation", record, 0.5)
    assert told == ("Is it red?\nYes.\nIt is.\nWhat else?", "Nothing.")


def test_what_cannot_be_learned_is_refused():
    for task, record in (("vqa", {}), ("vqg", {"question": " "}), ("conversation", {})):
        with pytest.raises(ValueError, match="it has no"):
            phrase(task, record)


@pytest.mark.parametrize("task", TEMPLATES)
def test_templates_that_are_left_out_are_never_drawn_and_all_others_are(task):
    seen = set()
    for visit in range(400):
        share = uniform("template", 0, "a", visit)
        record = {"question": "<Q>"}
        seen.add(phrase(task, record, share, text="<A>", leave_out=3)[0])
    place = {"caption": "", "vqa": "<Q>", "vqg": "<A>"}[task]
    assert seen == {templates.fill(one, place) for one in drawn(task, 3)}
    assert set(drawn(task, 3)).isdisjoint(held_out(task, 3)) and len(held_out(task, 3)) == 3
    assert held_out(task, 0) == ()


def test_braces_in_a_question_stay():
    assert phrase("vqa", {"question": "What is {} or {x}?"})[0] == "What is {} or {x}?"


@pytest.mark.parametrize("given", [{"leave_out": 6}, {"weight_factors": (("coco", 0.0),)}])
def test_settings_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match=r"instructions\."):
        InstructionConfig(**given)
