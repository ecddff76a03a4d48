"""The form of a language model's texts: begin and end tokens, padding, chat template.

There are three sets of rules. `reference` is that of BLIP-2's released code for OPT and FlanT5: a
decoder's text ends with the end of the line, and a begin-of-sequence token is a target too, unless
a prompt holds it. `own` is the tokenizer's: its begin token is given, its end token is a target.
`instruct` is that of InstructBLIP's released code: a decoder (Vicuna) begins with its end token,
and an answer that is cut loses its end; a T5 is written as under `reference`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from modeling.language.pieces import begin_ids

Rules = Literal["auto", "reference", "own", "instruct"]
Template = Literal["plain", "chat"]

# The models of the paper, and those with the same code and the same text.
_REFERENCE = frozenset({"opt", "t5", "mt5", "umt5"})
# Private-use characters: they stand for the image and the answer while a template is read.
_IMAGE, _ANSWER = "\ue000", "\ue001"
IMAGE_TOKEN = "<image>"  # Hugging Face's processors add it; it never reaches a model of ours


@dataclass(frozen=True)
class Chat:
    """The parts of a chat template, around a user's text and an answer.

    Attributes:
        head: token ids up to the user's text: begin of text, system message, the user's name. The
            visual prompt stands behind them.
        tail: text from the end of the user's text to the begin of the answer.
        joint: text between the tail and the answer, which a few templates write.
        end: token id that ends an answer; None where the template writes none.
    """

    head: list[int]
    tail: str
    joint: str
    end: int | None


@dataclass(frozen=True)
class TextForm:
    """Token ids around the texts of one language model.

    Attributes:
        reference: whether the rules of BLIP-2's released code hold instead of the tokenizer's.
        begin: ids that the tokenizer puts in front of a text; empty under `reference`, where the
            tokenizer is asked each time; the end token under `instruct`.
        end: id that ends a target.
        stops: ids at which generation ends.
        pad: id of padding. Padding is masked by its position, never by its id, so that any id of
            the embedding will do.
        chat: chat template, where prompts are written with it; else None.
        cuts_end: whether a target that is too long loses its end too, so that no model learns to
            end in the middle of a text (InstructBLIP's Vicuna).
    """

    reference: bool
    begin: list[int]
    end: int
    stops: list[int]
    pad: int
    chat: Chat | None = None
    cuts_end: bool = False


def settle_rules(rules: Rules, model_type: str) -> Rules:
    """The rules that are meant: `auto` becomes those of the kind of model, others are kept."""
    if rules != "auto":
        return rules
    return "reference" if model_type in _REFERENCE else "own"


def text_form(tokenizer: Any, model: Any, rules: Rules, template: Template) -> TextForm:
    """The form of a model's texts.

    Args:
        tokenizer: the model's tokenizer, from transformers.
        model: the language model, for its token ids and the length of its embedding.
        rules: choice of the rules.
        template: whether prompts are written with the tokenizer's chat template.

    Raises:
        ValueError: the tokenizer has words that the model has no embedding for, no end token where
            one is needed, or no chat template where one is asked for.
    """
    config, pair = model.config, model.config.is_encoder_decoder
    rows = model.get_input_embeddings().num_embeddings
    check_words(tokenizer, rows, "language model")
    chat = _chat(tokenizer, pair) if template == "chat" else None
    settled = settle_rules(rules, config.model_type)
    instruct = chat is None and settled == "instruct" and not pair
    reference = chat is None and (settled == "reference" or (settled == "instruct" and pair))
    eos = _ids_of(tokenizer.eos_token_id)
    known = [*eos, *_ids_of(_generation(model, "eos_token_id")), *_ids_of(config.eos_token_id)]
    known = [token for token in dict.fromkeys(known) if token < rows]
    if reference and not pair:
        line = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
        known = [line]
    if chat is not None and chat.end is not None:
        known = [chat.end, *(token for token in known if token != chat.end)]
    if not known:
        raise ValueError(
            "the tokenizer has no end-of-sequence token, so no text can end: set eos_token in "
            "tokenizer_config.json, or give --language.text-rules reference, which ends a text "
            "with its line"
        )
    begin = [] if reference or chat is not None else begin_ids(tokenizer)
    if instruct:  # whatever begin token the tokenizer names
        begin = known[:1]
    return TextForm(
        reference=reference,
        begin=begin,
        end=known[0],
        stops=known,
        pad=_pad(tokenizer, model, rows, known),
        chat=chat,
        cuts_end=instruct,
    )


def check_words(tokenizer: Any, rows: int, what: str) -> None:
    """Check that each token of a tokenizer has a row in an embedding; spare rows are usual.

    Args:
        tokenizer: the tokenizer.
        rows: rows of the embedding.
        what: name of the model, for the message.

    Raises:
        ValueError: a token has no row.
    """
    if len(tokenizer) <= rows:
        return
    last = max(index for word, index in tokenizer.get_vocab().items() if word != IMAGE_TOKEN)
    if last >= rows:
        raise ValueError(
            f"{what}: the tokenizer has {len(tokenizer):,} words, but the model's embedding has "
            f"{rows:,} rows; give the tokenizer that the model was trained with"
        )


def _pad(tokenizer: Any, model: Any, rows: int, ends: list[int]) -> int:
    """The padding id: the tokenizer's, else the model's, else an end token, which always exists."""
    named = (tokenizer.pad_token_id, _generation(model, "pad_token_id"), model.config.pad_token_id)
    for token in (*named, *ends):
        if isinstance(token, int) and 0 <= token < rows:
            return token
    return 0


def _generation(model: Any, name: str) -> Any:
    return getattr(getattr(model, "generation_config", None), name, None)


def _ids_of(token: int | Iterable[int] | None) -> list[int]:
    """Token ids of a field that holds one, several or none."""
    if token is None:
        return []
    return [token] if isinstance(token, int) else list(token)


def _chat(tokenizer: Any, pair: bool) -> Chat:
    """The parts of a tokenizer's chat template.

    Raises:
        ValueError: there is none, it cannot be used with a single turn, or the model is an
            encoder-decoder.
    """
    if pair:
        raise ValueError(
            "--language.prompt-template chat: the language model is an encoder-decoder, which has "
            "no turns; give --language.prompt-template plain"
        )
    if not tokenizer.chat_template:
        raise ValueError(
            "--language.prompt-template chat: the language model's tokenizer has no chat template; "
            "give plain, or a folder of the instruction-tuned model (with chat_template.jinja)"
        )
    asked = _rendered(tokenizer, [{"role": "user", "content": _IMAGE}], True)
    turns = [{"role": "user", "content": _IMAGE}, {"role": "assistant", "content": _ANSWER}]
    answered = _rendered(tokenizer, turns, False)
    if asked.count(_IMAGE) != 1 or answered.count(_ANSWER) != 1:
        raise ValueError(
            "--language.prompt-template chat: the tokenizer's chat template does not show a "
            "message exactly once, so the image has no place in it; give plain"
        )
    head, tail = asked.split(_IMAGE)
    before, after = answered.split(_ANSWER)
    joint = before.removeprefix(asked) if before.startswith(asked) else ""
    ids = tokenizer(head, add_special_tokens=False)["input_ids"] if head else []
    closing = tokenizer(after, add_special_tokens=False)["input_ids"] if after.strip() else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    end = closing[0] if closing and closing[0] in special else None
    return Chat(ids, tail, joint, end)


def _rendered(tokenizer: Any, turns: list[dict[str, str]], ask: bool) -> str:
    """Turns as text; models that reason before they answer are told not to."""
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=ask, enable_thinking=False
        )
    except Exception as refused:  # templates raise errors of their own, of any kind
        raise ValueError(
            "--language.prompt-template chat: the tokenizer's chat template refuses a single turn "
            f"({refused}); give plain"
        ) from refused
