"""Token ids of pieces of text that stand inside a row, for tokenizers that put a blank in front.

SentencePiece's tokenizers (LLaMA, T5) write a blank in front of every text that they are given.
Behind a special token, old versions of transformers wrote one too and new ones do not. A piece that
is tokenised alone has the same ids under all versions.
"""

from typing import Any

_BLANKS = ("\u2581", "\u0120")  # the blank in the vocabularies of SentencePiece and of byte BPE
_ANCHORS = ("\n", ".", "a")  # texts that a piece can be written behind


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text alone, without begin and end tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return ids


def begin_ids(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer writes in front of a text.

    A LLaMA tokenizer of transformers 5 that was built without `add_bos_token` writes none, although
    the model was trained with one: tokenizers that put a blank in front of a text get their begin
    token all the same, unless their folder says `"add_bos_token": false` (Yi).
    """
    plain, whole = text_ids(tokenizer, "a"), tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if start and whole[start : start + len(plain)] == plain:
            written: list[int] = whole[:start]
            return written
    begin = tokenizer.bos_token_id
    named = begin is not None and begin != tokenizer.eos_token_id
    meant = tokenizer.init_kwargs.get("add_bos_token") is False
    forgotten = named and not meant and whole == plain and writes_blank(tokenizer)
    return [begin] if forgotten else []


def writes_blank(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a blank in front of a text that has none."""
    ids = text_ids(tokenizer, "a")
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith(_BLANKS)


def piece_ids(tokenizer: Any, text: str, glued: bool = False) -> list[int]:
    """Ids of a piece of text that stands inside a row.

    Args:
        tokenizer: the tokenizer.
        text: the piece. A blank at its begin stands for the one that such tokenizers write.
        glued: whether the piece continues the text before it, so that it has no blank of its own.

    Raises:
        ValueError: a glued piece has no ids of its own under this tokenizer.
    """
    if not writes_blank(tokenizer):
        return text_ids(tokenizer, text)
    if not glued:
        return text_ids(tokenizer, text.removeprefix(" "))
    for anchor in _ANCHORS:
        before, both = text_ids(tokenizer, anchor), text_ids(tokenizer, anchor + text)
        if both[: len(before)] == before:
            return both[len(before) :]
    raise ValueError(
        f"the tokenizer merges {text[:40]!r} with any text before it, so that it has no ids of its "
        "own; take a layout whose answers end with the end token, such as v1"
    )
