"""Answers as lemmas, for OK-VQA: its references were reduced to them, "racing" to "race"."""

import importlib.util
from collections.abc import Callable

_MODEL = "en_core_web_sm"
NOT_LEMMATISED = (
    "answers are not lemmatised, and the references of this benchmark are lemmas, so that some "
    f"right answers score 0; run `pip install spacy` and `python -m spacy download {_MODEL}`"
)


def load_lemmatiser() -> tuple[Callable[[str], str] | None, str]:
    """The function that replaces nouns and verbs by their lemmas, as LAVIS does for OK-VQA.

    Returns:
        The function, and a note that names the versions; or None, and a note that says what to
        install, where spaCy or its English model is missing.
    """
    if importlib.util.find_spec("spacy") is None:
        return None, NOT_LEMMATISED
    import spacy

    if not spacy.util.is_package(_MODEL):
        return None, NOT_LEMMATISED
    language = spacy.load(_MODEL)

    def lemmatise(answer: str) -> str:
        tokens = language(answer)
        return " ".join(t.lemma_ if t.pos_ in ("NOUN", "VERB") else t.text for t in tokens)

    version = language.meta.get("version", "?")
    return lemmatise, f"answers are lemmatised by spaCy {spacy.__version__}, {_MODEL} {version}"
