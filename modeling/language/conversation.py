"""Conversations about an image as token ids: turns, layouts, segments, and which ids are learned.

A conversation is a list of turns. A layout is data: the system message, the roles, the separators
and the stop with which a language model was trained. `segments` writes turns in a layout; `encode`
makes ids of segments, each tokenised on its own. So the ids that are learned are known while the
row is built, and no text is tokenised twice to find them.

The layouts are those of LLaVA (arXiv 2304.08485, section 4; `plain`, `v0`, `v1`, `llava_v1`), of
InstructBLIP (arXiv 2305.06500; `instruct`), and any chat template of a tokenizer
(`modeling.language.chat_template`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from modeling.language.pieces import begin_ids, piece_ids

IMAGE = "<image>"  # stands for the image in the text of a turn; it is never tokenised

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: author of the message.
        text: the message; `<image>` in the first message of the user is the place of the image.
    """

    role: Role
    text: str


@dataclass(frozen=True)
class Layout:
    """The written form of a conversation.

    Attributes:
        name: name of the layout.
        system: text in front of the first turn, with its separator.
        user: text in front of each message of the user: the name of the role.
        assistant: text from the end of the user's message up to the answer.
        blank: text between that and the answer; it belongs to the answer's first token.
        stop: text that ends an answer; None: the tokenizer's end token. It is learned.
        between: text between the stop and the next message of the user.
        image_line: text between an image and the user's words, where the image stands first.
        begin: token in front of the row: `bos`, the tokenizer's begin token; `eos`, its end token,
            behind the image (InstructBLIP's Vicuna); `none`, where the layout's text holds it.
        asks: whether the user's words are written; `plain` drops them.
        folds: whether earlier turns are written as lines of the last question, so that the last
            answer alone is learned.
        glued: segments that continue the text before them without a blank, also where the
            tokenizer puts one in front of every text: `none`, each begins a word; `questions`,
            those behind an answer whose stop is text; `all` but the first (chat templates).
    """

    name: str
    system: str = ""
    user: str = ""
    assistant: str = ""
    blank: str = " "
    stop: str | None = None
    between: str = ""
    image_line: str = "\n"
    begin: Literal["bos", "eos", "none"] = "bos"
    asks: bool = True
    folds: bool = False
    glued: Literal["none", "questions", "all"] = "none"


def _system(who: str) -> str:
    """The system message of Vicuna; v0 calls the user a human."""
    return (
        f"A chat between a curious {who} and an artificial intelligence assistant. The assistant "
        f"gives helpful, detailed, and polite answers to the {who}'s questions."
    )


def _vicuna(name: str, system: str) -> Layout:
    """The layout of Vicuna 1.1 with a system message."""
    return Layout(name, system=f"{system} ", user="USER: ", assistant=" ASSISTANT:")


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("plain", blank="", stop="\n", asks=False, image_line=""),
        Layout(
            "v0",
            system=f"{_system('human')}###",
            user="Human: ",
            assistant="###Assistant:",
            stop="###",
            glued="questions",
        ),
        _vicuna("v1", _system("user")),
        _vicuna("llava_v1", _system("human")),
        Layout("tinyworld", user="Question: ", assistant=" Answer:"),  # this project's, for its zoo
        Layout("instruct", begin="eos", folds=True, image_line=""),
    )
}


@dataclass(frozen=True)
class Segment:
    """A piece of a row that is tokenised on its own.

    Attributes:
        text: text of the segment; empty for an image or a single token.
        target: whether its tokens are learned.
        image: whether it is the image's place.
        token: the tokenizer's begin or end token, in the place of a text.
        glued: whether it continues the text before it without a blank.
        round: index of the question and answer that it belongs to, by which long rows are cut.
    """

    text: str
    target: bool = False
    image: bool = False
    token: Literal["begin", "end"] | None = None
    glued: bool = False
    round: int = 0


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids.

    Attributes:
        ids: token ids; images have none.
        target: whether each id is learned.
        image_at: number of ids in front of each image.
        dropped: questions with answers that were cut from the end, because the row was too long.
    """

    ids: list[int]
    target: list[bool]
    image_at: list[int]
    dropped: int = 0


def read_turns(items: Sequence[Mapping[str, Any]], sample: str) -> list[Turn]:
    """Turns of a conversation in LLaVA's JSON: a list of `{"from": "human" | "gpt", "value"}`.

    Args:
        items: value of the sample's field `conversations`.
        sample: id of the sample, for the message.

    Raises:
        ValueError: a turn is not of this form, or the conversation fails `check_turns`.
    """
    roles: dict[Any, Role] = {"human": "user", "gpt": "assistant"}
    turns = []
    for index, item in enumerate(items):
        if item.get("from") not in roles or not isinstance(item.get("value"), str):
            raise ValueError(
                f"sample {sample}: turn {index} needs 'from' (human or gpt) and 'value' (a text), "
                f"but is {str(dict(item))[:80]}"
            )
        turns.append(Turn(roles[item["from"]], item["value"]))
    check_turns(turns, sample)
    return turns


def check_turns(turns: Sequence[Turn], sample: str, reply: bool = False) -> None:
    """Check that a conversation can be written.

    Args:
        turns: the conversation.
        sample: id of the sample, for the message; empty: it has none.
        reply: whether the answer to the last turn is wanted, which is then the user's; else the
            last turn is an answer.

    Raises:
        ValueError: there are no turns, the first is not the user's, roles do not alternate, the
            last is of the wrong role, or there is an image elsewhere than once in the first turn.
    """
    where = f"sample {sample}: " if sample else ""
    if not turns:
        raise ValueError(f"{where}the conversation has no turns; give one at least")
    for index, turn in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if turn.role != expected:
            raise ValueError(
                f"{where}turn {index} of the conversation is the {turn.role}'s, but must be the "
                f"{expected}'s: the user begins, and the two alternate"
            )
        images = turn.text.count(IMAGE)
        if images > (index == 0):
            raise ValueError(
                f"{where}turn {index} of the conversation has {images} {IMAGE}: one is allowed in "
                "the first turn, and none elsewhere"
            )
    last: Role = "user" if reply else "assistant"
    if turns[-1].role != last:
        raise ValueError(
            f"{where}the conversation ends with the {turns[-1].role}'s turn, but must end with "
            f"the {last}'s"
        )


def instruction(turns: Sequence[Turn]) -> str:
    """The words up to the last answer as one text, a line a turn, without the image's place.

    InstructBLIP gives it to the Q-Former and to the language model.
    """
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    return "\n".join(turn.text.replace(IMAGE, "").strip() for turn in asked)


def segments(
    layout: Layout,
    turns: Sequence[Turn],
    image_first: bool = True,
    reply: bool = False,
    sample: str = "",
) -> list[Segment]:
    """A conversation written in a layout.

    Args:
        layout: the written form.
        turns: the conversation; an `<image>` in its first turn is the place of the image, and
            without one the row is text alone.
        image_first: whether the image is moved in front of the user's words, as LLaVA's code
            does; else it stays where it is.
        reply: whether the answer to the last turn is to be generated: the row ends where it begins.
        sample: id of the sample, for messages.

    Raises:
        ValueError: the conversation fails `check_turns`.
    """
    check_turns(turns, sample, reply)
    if layout.folds or not layout.asks:
        turns = _folded(turns)
        image_first = True
    first = turns[0].text
    if image_first and IMAGE in first:
        words = first.replace(IMAGE, "").strip() if layout.asks else ""
        turns = [replace(turns[0], text=IMAGE + layout.image_line + words), *turns[1:]]
    row = [Segment("", token="begin")] if layout.begin == "bos" else []
    if layout.begin == "eos":  # behind the image
        images = [Segment("", image=True)] * (IMAGE in first)
        row = [*images, Segment("", token="end")]
        turns = [replace(turns[0], text=turns[0].text.replace(IMAGE, "")), *turns[1:]]
    for index in range(0, len(turns), 2):
        before = layout.user if index else layout.system + layout.user
        row += _given(layout, before + turns[index].text.strip() + layout.assistant, index // 2)
        if index + 1 < len(turns):
            row += _answer(layout, turns[index + 1].text.strip(), index // 2)
    return row


def encode(
    row: Sequence[Segment], tokenizer: Any, limit: int = 0, image_tokens: int = 0
) -> Encoded:
    """The ids of a row, each segment tokenised on its own.

    Args:
        row: the segments, from `segments`.
        tokenizer: the language model's tokenizer, from transformers.
        limit: positions that the row may take; questions with their answers are cut from its end
            until it fits. A first question and answer that do not fit are cut on the right, at the
            limit. 0: none.
        image_tokens: positions that an image takes.

    Raises:
        ValueError: the tokenizer has no end token where the layout needs one, or the limit leaves
            no place for the image.
    """
    pieces = [_ids(segment, tokenizer) for segment in row]
    length = [0] * (1 + max((one.round for one in row), default=0))
    for one, piece in zip(row, pieces, strict=True):
        length[one.round] += image_tokens if one.image else len(piece)
    kept = len(length)
    while limit and kept > 1 and sum(length[:kept]) > limit:
        kept -= 1
    ids: list[int] = []
    target: list[bool] = []
    image_at: list[int] = []
    for one, piece in zip(row, pieces, strict=True):
        if one.round < kept:
            image_at += [len(ids)] * one.image
            ids += piece
            target += [one.target] * len(piece)
    if limit:
        room = limit - image_tokens * len(image_at)
        if any(at >= room for at in image_at):
            raise ValueError(
                f"{limit} positions leave no text behind an image of {image_tokens}: raise the "
                "limit of the text's length"
            )
        ids, target = ids[:room], target[:room]
    return Encoded(ids, target, image_at, len(length) - kept)


def _ids(segment: Segment, tokenizer: Any) -> list[int]:
    """Ids of one segment."""
    if segment.token == "begin":
        return begin_ids(tokenizer)
    if segment.token == "end":
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end-of-sequence token, so no answer can end: set eos_token "
                "in tokenizer_config.json"
            )
        return [tokenizer.eos_token_id]
    return piece_ids(tokenizer, segment.text, segment.glued)


def _folded(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation as one question and, where there is one, its answer."""
    image = IMAGE if IMAGE in turns[0].text else ""
    asked = Turn("user", image + instruction(turns))
    return [asked, turns[-1]] if turns[-1].role == "assistant" else [asked]


def _given(layout: Layout, text: str, round: int) -> list[Segment]:
    """A question with its roles, which is not learned, and the image inside it."""
    before, image, after = text.partition(IMAGE)
    glued = layout.glued == "all" or (layout.glued == "questions" and round > 0)
    found = []
    if round and layout.between:
        before = layout.between + before
    if before:
        found.append(Segment(before, glued=glued and round > 0, round=round))
    if image:
        found.append(Segment("", image=True, round=round))
    if after:
        found.append(Segment(after, glued=layout.glued == "all", round=round))
    return found


def _answer(layout: Layout, text: str, round: int) -> list[Segment]:
    """An answer and its stop. A stop that is text is a part of the answer's segment."""
    written = layout.blank + text + (layout.stop or "")
    glued = layout.glued == "all"
    found = [Segment(written, target=True, glued=glued, round=round)] if written.strip(" ") else []
    end = Segment("", target=True, token="end", round=round)
    return [*found, end] if layout.stop is None else found
