"""The layout of a tokenizer's own chat template, read from what transformers writes with it."""

import re
from typing import Any

from modeling.language.conversation import Layout

# Private-use characters: they stand for the messages while a template is read.
_ASKED, _ANSWERED, _AGAIN, _LAST = "\ue000", "\ue001", "\ue002", "\ue003"


def chat_template_layout(tokenizer: Any) -> Layout:
    """The layout of conversations under a tokenizer's chat template.

    A model that can reason before it answers gets the form in which it does not, in every turn.

    Raises:
        ValueError: the tokenizer has no chat template, or one that refuses a conversation of two
            questions or does not show each message exactly once.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the language model's tokenizer has no chat template: give another layout, or a folder "
            "of the instruction-tuned model (with chat_template.jinja)"
        )
    asked = _rendered(tokenizer, [_ASKED], ask=True)
    answered = _rendered(tokenizer, [_ASKED, _ANSWERED, _AGAIN, _LAST], ask=False)
    parts = re.split(f"[{_ASKED}{_ANSWERED}{_AGAIN}{_LAST}]", answered)
    if asked.count(_ASKED) != 1 or len(parts) != 5:
        raise ValueError(
            "the tokenizer's chat template does not show each message exactly once, so that no "
            "layout can be read from it: give another layout"
        )
    system, _, again, before, after = parts
    assistant = asked.split(_ASKED)[1]
    stop = _first_special(tokenizer, after)
    return Layout(
        name="chat",
        system=system,
        assistant=assistant,
        blank=before.removeprefix(assistant) if before.startswith(assistant) else "",
        stop=stop,
        between=again.removeprefix(stop or ""),
        begin="none",
        glued="all",
    )


def _first_special(tokenizer: Any, text: str) -> str | None:
    """The special token that a text begins with; None: it begins with none."""
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    found = [token for token in special if text.startswith(token)]
    return max(found, key=len, default=None)


def _rendered(tokenizer: Any, texts: list[str], ask: bool) -> str:
    """Messages as text, the user's and the assistant's in turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    try:
        written: str = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=ask, enable_thinking=False
        )
    except Exception as refused:  # templates raise errors of their own, of any kind
        raise ValueError(
            f"the tokenizer's chat template refuses a conversation ({refused}): give another layout"
        ) from refused
    return written
