"""Small random language models of the real classes, each with a byte-level tokenizer that writes
begin, end and chat as its family does.
"""

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers import PreTrainedTokenizerFast as Fast

WIDTH, ROWS = 32, 288  # 256 bytes, special tokens, and spare rows as released models have them

TURNS = (
    "{{% for m in messages %}}{{{{ {before} }}}}{{{{ m['content'] }}}}"
    "{{{{ {after} }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ {ask} }}}}{{% endif %}}"
)
CHATML = TURNS.format(
    before="'<|im_start|>' + m['role'] + '\\n'",
    after="'<|im_end|>' + '\\n'",
    ask="'<|im_start|>assistant\\n'",
)
# An answer is set off by a blank, and the text begins in the template.
INSTRUCT = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
# It thinks before it answers, unless it is told not to.
THINKING = TURNS.format(
    before="'<|im_start|>' + m['role'] + '\\n' + ('<think>\\n\\n</think>\\n\\n' if "
    "m['role'] == 'assistant' else '')",
    after="'<|im_end|>' + '\\n'",
    ask="'<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if "
    "enable_thinking is defined and enable_thinking is false else '')",
)


@dataclass(frozen=True)
class Family:
    """What a family's models and tokenizers are like.

    Attributes:
        config: fields of its configuration beside the common sizes.
        special: its special tokens; their ids are 256, 257, …
        template: what its tokenizer puts around a text, ``$A``.
        names: which special token is which.
    """

    kind: str
    special: tuple[str, ...]
    template: str
    names: dict[str, str]
    config: dict[str, Any]

    def id(self, token: str) -> int:
        return 256 + self.special.index(token)


SIZES = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": ROWS,
    "max_position_embeddings": 64, "attention_dropout": 0.0,
}  # fmt: skip
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_S = {"bos_token": "<s>", "eos_token": "</s>"}
_BART = {
    "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "vocab_size": ROWS,
}  # fmt: skip
_T5 = {
    "d_model": WIDTH, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": ROWS,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 256,
}  # fmt: skip
_END = {"pad_token": "<pad>", "eos_token": "</s>"}

FAMILIES = {
    "opt": Family(
        "opt", ("<pad>", "</s>"), "</s> $A",
        {"pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>"},
        SIZES | {"word_embed_proj_dim": WIDTH, "ffn_dim": 48},
    ),
    "gpt2": Family("gpt2", ("<|endoftext|>",), "$A", {"eos_token": "<|endoftext|>"}, {
        "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": ROWS}),
    "llama": Family("llama", ("<unk>", "<s>", "</s>"), "<s> $A", _S, SIZES),
    "mistral": Family("mistral", ("<unk>", "<s>", "</s>"), "<s> $A", _S, SIZES),
    "qwen2": Family("qwen2", _IM, "$A", {
        "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, SIZES),
    "qwen3": Family("qwen3", _IM, "$A", {
        "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, SIZES),
    "gemma2": Family("gemma2", ("<pad>", "<eos>", "<bos>"), "<bos> $A", {
        "pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}, SIZES | {
        "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}),
    "gemma3": Family("gemma3_text", ("<pad>", "<eos>", "<bos>"), "<bos> $A", {
        "pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}, SIZES | {
        "query_pre_attn_scalar": 16}),
    "phi": Family("phi", ("<|endoftext|>",), "$A", {
        "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, SIZES),
    "cohere": Family("cohere", ("<PAD>", "<BOS>", "<END>"), "<BOS> $A", {
        "pad_token": "<PAD>", "bos_token": "<BOS>", "eos_token": "<END>"}, SIZES),
    "t5": Family("t5", ("<pad>", "</s>"), "$A </s>", _END, _T5),
    "mt5": Family("mt5", ("<pad>", "</s>"), "$A </s>", _END, _T5),
    "bart": Family("bart", ("<s>", "<pad>", "</s>"), "<s> $A </s>", _S | {"pad_token": "<pad>"},
        _BART),
}  # fmt: skip


def tokenizer(family: Family, chat: str | None = None, more: tuple[str, ...] = ()) -> Fast:
    """A tokenizer of bytes with the family's special tokens, and ``more`` behind them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([*family.special, *more])
    core.post_processor = processors.TemplateProcessing(
        single=family.template,
        special_tokens=[(token, family.id(token)) for token in family.special],
    )
    made = Fast(tokenizer_object=core, **family.names)
    made.chat_template = chat
    return made


def model(family: Family, **changes: Any) -> Any:
    """A random model whose weights are large enough that every part matters."""
    words = tokenizer(family)
    tokens = {
        name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = AutoConfig.for_model(family.kind, **(family.config | tokens | changes))
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(0)
    made = kind.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    return made.eval()


def ids(text: str) -> list[int]:
    """The bytes of a text, as all the tokenizers here number them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [letters.index(letter) for piece, _ in pieces for letter in piece]
