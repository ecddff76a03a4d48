"""The tokenizers of TinyWorld's small models: of BERT, T5, OPT and LLaMA, with few words.

Every word of TinyWorld is one token; other words are spelled in characters or bytes, so that real
captions have no unknown tokens. ``jobs/zoo.py`` writes them.
"""

import json
import re
import string
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as TokenizersFile

from pipeline.tinyworld.scene import sample_scene, stream
from pipeline.tinyworld.text import captions, compositional, questions, web_caption

# Words beside TinyWorld's own: those of the paper's prompts and of likely instructions.
_EXTRA = """
Question : Short Answer answer answers Long a photo of an in the on and or is are this that it there
what where which how many color shape object objects picture image background describe yes no one
two three zero 0 1 2 3 4 5 6 7 8 9 A An The This We What Is How Are Where Which Describe Two Three
One red Red white White
"""
# The words of InstructBLIP's templates and of Vicuna's system message, for LLaMA alone: the other
# vocabularies are older than these, and spell them.
_INSTRUCTIONS = """
USER ASSISTANT chat between curious user artificial intelligence assistant gives helpful detailed
polite user s questions Provide Briefly briefly explain Could could you use few words perceive
photo please Please short depiction Using Use using language account illustrate happening
description Write write for what see Can can your presented content shows Q Given Based provided
following with more than respond possible be answered generate whose craft leads reply create
come up one case Taking into account has given considering Considering From from visual
representation Options OCR tokens Context Dialog history USER's user's true false statement
"""
_ACCENTED = "".join(chr(code) for code in range(0xA1, 0x180) if chr(code).isprintable())


def words(scenes: int = 3000) -> list[str]:
    """Every word of TinyWorld's captions, questions, answers and web texts, sorted, cased."""
    found = set(_EXTRA.split())
    for index in range(scenes):
        rng = stream("zoo", "words", index)
        scene = sample_scene(rng)
        texts = [*captions(scene, rng, 3), web_caption(scene, rng)[0]]
        asked = [*questions(scene, rng), *filter(None, [compositional(scene, rng)])]
        texts += [text for question in asked for text in (question.text, question.answer)]
        # A cut-off text ends within a word; file names have numbers.
        whole = [text for text in texts if not text.endswith("...")]
        found.update(word for text in whole for word in re.findall(r"[^\W\d_]+", text))
    return sorted(found)


def write_tokenizers(folder: str | Path) -> None:
    """Write ``folder/{bert,t5,opt,llama}``, each for ``AutoTokenizer.from_pretrained``."""
    known = words()
    for name, tokenizer in (
        ("bert", bert_tokenizer(known)),
        ("t5", t5_tokenizer(known)),
        ("opt", opt_tokenizer(known)),
        ("llama", llama_tokenizer(known)),
    ):
        target = Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(target)
    vocab = bert_tokenizer(known).get_vocab()
    lines = sorted(vocab, key=lambda token: vocab[token])
    (Path(folder) / "bert" / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def bert_tokenizer(known: list[str]) -> PreTrainedTokenizerBase:
    """Lower-case WordPiece, special tokens first; accents are stripped before look-up."""
    letters = string.ascii_lowercase + string.digits + string.punctuation + "·–—’“”…×°€£ßæøđłœþð"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [f"##{letter}" for letter in letters]
    tokens += sorted({word.lower() for word in known if word.isascii()})
    unique = list(dict.fromkeys(tokens))
    return BertTokenizer(
        vocab={token: index for index, token in enumerate(unique)}, model_max_length=512
    )


def t5_tokenizer(known: list[str]) -> PreTrainedTokenizerBase:
    """Cased Unigram: pad 0, ``</s>`` 1, unknown 2, whole words, characters, then bytes."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = ["▁", *(f"▁{word}" for word in known if not word.isdigit())]
    pieces += [f"▁{digit}" for digit in string.digits]
    pieces += [c for c in string.printable.strip() + _ACCENTED if c != "▁"]
    scored = [(piece, -1.0 if len(piece) > 1 else -4.0) for piece in dict.fromkeys(pieces)]
    spelled = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    fast = Tokenizer(models.Unigram(special + scored + spelled, unk_id=2, byte_fallback=True))
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    fast.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    fast.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return TokenizersFile(
        tokenizer_object=fast,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def opt_tokenizer(known: list[str]) -> PreTrainedTokenizerBase:
    """Byte-level BPE as GPT-2's, with OPT's special ids and ``</s>`` put first as OPT's does."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than there is: merging ends when every word is one token
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    spaced = [f" {word}" for word in known]
    fast.train_from_iterator([*spaced, *known], trainer)
    trained = json.loads(fast.to_str())["model"]
    merges: Any = [tuple(pair) for pair in trained["merges"]]  # pairs, whatever the stub says
    return GPT2Tokenizer(
        vocab=trained["vocab"],
        merges=merges,
        bos_token=AddedToken("</s>", special=True, normalized=True),
        eos_token=AddedToken("</s>", special=True, normalized=True),
        unk_token=AddedToken("</s>", special=True, normalized=True),
        pad_token=AddedToken("<pad>", special=True, normalized=True),
        add_bos_token=True,
        model_max_length=256,
    )


def llama_tokenizer(known: list[str]) -> PreTrainedTokenizerBase:
    """LLaMA's BPE: unknown 0, ``<s>`` 1, ``</s>`` 2, 256 bytes, then characters and words.

    Like Vicuna's, it pads with the unknown token; it also knows the words of instructions.
    """
    every = sorted({*known, *_INSTRUCTIONS.split()})
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than there is, as for OPT's
        min_frequency=1,
        initial_alphabet=sorted({*string.printable.strip(), *_ACCENTED, "▁"}),
        show_progress=False,
    )
    fast.train_from_iterator([*(f"▁{word}" for word in every), *every], trainer)
    trained = json.loads(fast.to_str())["model"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = sorted(trained["vocab"], key=lambda token: trained["vocab"][token])
    merges: Any = [tuple(pair) for pair in trained["merges"]]
    return LlamaTokenizer(
        vocab={token: index for index, token in enumerate([*special, *learned])},
        merges=merges,
        pad_token="<unk>",
        add_bos_token=True,
        model_max_length=512,
    )
