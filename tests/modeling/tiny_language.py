"""Small random OPT and T5 with a word-level tokenizer, made in memory."""

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "\n"]
SIZE = len(SPECIAL) + len(WORDS) + 1  # and one image token, for Hugging Face only
IMAGE = SIZE - 1
WIDTH = 20


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(" +"), "removed")
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def opt_config() -> OPTConfig:
    return OPTConfig(
        vocab_size=SIZE,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        dropout=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=SPECIAL.index("\n"),
        init_std=0.6,
    )


def t5_config() -> T5Config:
    return T5Config(
        vocab_size=SIZE,
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.5,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
        initializer_factor=3.0,
    )


def opt() -> OPTForCausalLM:
    torch.manual_seed(3)
    return OPTForCausalLM(opt_config())


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(5)
    return T5ForConditionalGeneration(t5_config())
