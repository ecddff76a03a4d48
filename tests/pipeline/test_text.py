"""The rules by which every reader takes text and JSON."""

from pathlib import Path

import pytest

from evaluation.benchmarks.fields import read_json
from pipeline.text import (
    MAX_DEPTH,
    TextError,
    check_caption,
    decode_text,
    find_surrogate,
    load_json,
)


def test_text_is_utf8_without_its_byte_order_mark():
    assert decode_text("\ufeffzwölf".encode()) == "zwölf"
    for data in ("zwölf".encode("latin-1"), "a".encode("utf-16"), b"\xed\xa0\x80"):
        with pytest.raises(TextError, match=r"UTF-(8|16)") as refused:
            decode_text(data)
        assert refused.value.reason == "not_utf8"


def test_json_is_read_with_a_byte_order_mark_and_with_missing_numbers():
    assert load_json(b'\xef\xbb\xbf{"a": NaN, "b": [-Infinity, 1]}') == {"a": None, "b": [None, 1]}
    assert load_json(b'{"a": {"b": 1}}', slim=list) == ["a"]
    assert load_json(b'{"a": 1, "a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{nope", "property name"),
        (b"", "Expecting value"),
        (b'{"n": ' + b"7" * 5_000 + b"}", "4300"),
        (b"[" * 100_000, "nests deeper"),
        (b"[" * 101 + b"]" * 101, "nests deeper"),
        (b'{"image": "a.jpg", "image": "b.jpg"}', "two values under 'image'"),
        (b'{"a": "x\0y"}', "control character"),
    ],
)
def test_json_that_cannot_be_used_has_one_kind_of_error(data: bytes, said: str):
    with pytest.raises(TextError, match=said) as refused:
        load_json(data)
    assert refused.value.reason == "bad_json"


def test_json_may_nest_as_deep_as_the_limit():
    deepest = load_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    for _ in range(MAX_DEPTH - 1):
        (deepest,) = deepest
    assert deepest == []


def test_captions_that_are_no_text_have_a_reason():
    assert check_caption("a dog") == ("a dog", "")
    assert check_caption("\ufeffa dog") == ("a dog", "")
    assert check_caption(None) == ("", "no_caption")
    assert check_caption(7) == ("7", "caption_not_text")
    assert check_caption(["a"]) == ('["a"]', "caption_not_text")
    assert check_caption("a\0b") == ("a\0b", "caption_not_text")
    assert check_caption("cut \ud83d") == ("cut ?", "caption_not_utf8")
    assert check_caption("whole \U0001f436") == ("whole \U0001f436", "")


def test_the_entry_with_half_of_a_character_is_named(tmp_path: Path):
    assert find_surrogate({"a": ["x", {"b": "\U0001f436"}]}) == ""
    file = tmp_path / "q.json"
    file.write_bytes(
        b'{"questions": [{"question": "ok \\ud83d\\udc36"}, {"question": "\\uD83D?"}]}'
    )
    with pytest.raises(ValueError, match=r"q\.json: questions\[1\]\.question has half of a char"):
        read_json(file)
    file.write_bytes(b'\xef\xbb\xbf{"questions": [{"question": "\\ud83d\\udc36"}]}')
    assert read_json(file) == {"questions": [{"question": "\U0001f436"}]}
    for content, said in (
        (b"7" * 5_000, "4300"),
        (b"[" * 9_999, "deeper"),
        (b"\xff\xfe[", "UTF-16"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"q\.json is not JSON in UTF-8: .*{said}"):
            read_json(file)
