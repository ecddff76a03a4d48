"""A toy tokenizer of LLaMA's kind: pieces with a blank in front, bytes for what is unknown."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as after
from transformers import PreTrainedTokenizerFast

BLANK = "\u2581"
WORDS = (
    "A", "chat", "between", "a", "curious", "user", "human", "and", "an", "artificial",
    "intelligence", "assistant", "The", "gives", "helpful", "detailed", "polite", "answers", "to",
    "the", "questions", "USER", "ASSISTANT", "Human", "Assistant", "What", "colour", "is", "star",
    "red", "Is", "it", "big", "yes",
)  # fmt: skip
BYTES = [f"<0x{value:02X}>" for value in range(256)]
LETTERS = sorted({letter for word in WORDS for letter in word} | set(".,:#?'s"))
# ``▁USER`` and ``USER`` are two pieces, and so on for every word; ``##`` and ``###`` are pieces.
PIECES = [
    *("<unk>", "<s>", "</s>"), *BYTES, BLANK, *(BLANK + word for word in WORDS),
    *(word for word in WORDS if len(word) > 1), *LETTERS, "##", "###", BLANK + "###",
]  # fmt: skip
IDS = {piece: index for index, piece in enumerate(dict.fromkeys(PIECES))}

KINDS = ("first", "always", "prepend")


def tokenizer(kind: str = "first", begin: bool = True) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers' versions write LLaMA's.

    Args:
        kind: the place of the blank: in front of the ``first`` word of a text (5.x), ``always``
            also behind special tokens, or ``prepend``, in front of each text as it is
            (tokenizer.json files of 4.x).
        begin: whether ``<s>`` is put in front of a text.
    """
    scores = [(piece, -float(len(IDS)) if len(piece) == 1 else -1.0) for piece in IDS]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    if kind == "prepend":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prepend_scheme=kind, split=True)
    core.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    core.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    if begin:
        core.post_processor = after.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", IDS["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
