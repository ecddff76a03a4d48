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
    """Ids in front of a row: those that the tokenizer writes there, else its begin token.

    A LLaMA tokenizer of transformers 5 that was built without `add_bos_token` writes none, although
    the model was trained with one. A begin token that is the end token too (GPT-2's) is not given.
    """
    plain, whole = text_ids(tokenizer, "a"), tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if start and whole[start : start + len(plain)] == plain:
            written: list[int] = whole[:start]
            return written
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [] if begin is None or begin == end else [begin]


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
