"""Key tables: both directions, complete, and sizes read from shapes."""

import pytest
import torch

from jobs.interchange.infer_config import infer_stage1, infer_stage2, settle
from jobs.interchange.lavis_names import check_copies, lavis_names, stage_of, to_lavis, with_copies
from jobs.interchange.towers import (
    eva_to_huggingface,
    huggingface_to_eva,
    huggingface_to_openai,
    openai_to_huggingface,
)
from modeling.blip2 import Stage1, Stage1Config, Stage2, Stage2Config
from modeling.names import all_names, blip2_vision_to_eva, compare_shapes, huggingface_names
from tests.modeling.tiny import qformer_config, stage1_config


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def test_all_names_are_all_names():
    first, second = Stage1(stage1_config()), Stage2(Stage2Config(qformer_config(), 20))
    every = set(shapes(first)) | set(shapes(second))
    extra = {n for n in all_names(4) if ".cross_attn." in n}  # every layer may have it
    assert set(all_names(4)) == every | extra


@pytest.mark.parametrize("projection", ["opt_proj", "t5_proj", "llm_proj"])
def test_lavis_names_lead_back(projection):
    names = {to_lavis(name, projection): name for name in all_names(4)}
    assert len(names) == len(all_names(4))
    assert lavis_names(names) == names
    assert names[f"{projection}.weight"] == "language_proj.weight"
    key = "Qformer.bert.encoder.layer.2.crossattention.self.key.bias"
    assert names[key] == "qformer.layers.2.cross_attn.key.bias"


@pytest.mark.parametrize("instruct", [False, True])
def test_huggingface_names_are_different_ones(instruct):
    names = huggingface_names(all_names(3), instruct)
    assert len(set(names.values())) == len(names)
    gone = set(all_names(3)) - set(names)
    assert gone == {n for n in all_names(3) if n.startswith(("lm_head.", "temperature"))}
    words = "qformer.embeddings.word_embeddings" if instruct else "embeddings.word_embeddings"
    assert names["qformer.word_embeddings.weight"] == f"{words}.weight"


def test_the_stage_shows_in_the_heads():
    assert stage_of({"temp": 0}, "file") == "stage1"
    assert stage_of({"t5_proj.weight": 0}, "file") == "stage2"
    for names in ({}, {"temp": 0, "opt_proj.bias": 0}, {"opt_proj.bias": 0, "llm_proj.bias": 0}):
        with pytest.raises(ValueError, match="file has"):
            stage_of(names, "file")


def test_copies_are_made_and_checked():
    words = torch.randn(5, 4)
    state = {"Qformer.bert.embeddings.word_embeddings.weight": words}
    assert set(with_copies(state, 7)) - set(state) == {"Qformer.bert.embeddings.position_ids"}
    state["Qformer.cls.predictions.bias"] = torch.randn(5)
    whole = with_copies(state, 7)
    assert whole["Qformer.cls.predictions.decoder.weight"] is words
    assert whole["Qformer.bert.embeddings.position_ids"].tolist() == [list(range(7))]
    check_copies(whole, "file")
    whole["Qformer.cls.predictions.decoder.weight"] = words + 1e-6
    with pytest.raises(ValueError, match=r"decoder\.weight differs from .*word_embeddings"):
        check_copies(whole, "file")


def made(table, tensors):
    return {name: one.make(*(tensors[s] for s in one.sources)) for name, one in table.items()}


def test_towers_lead_back():
    eva = {s: torch.randn(6, 2) for m in eva_to_huggingface(2).values() for s in m.sources}
    eva |= {name: torch.randn(8) for name in eva if name.endswith("_bias")}
    theirs = made(eva_to_huggingface(2), eva)
    bias = theirs["encoder.layers.1.self_attn.qkv.bias"]
    assert torch.equal(bias[:8], eva["blocks.1.attn.q_bias"]) and not bias[8:16].any()
    back = made(huggingface_to_eva(2), theirs)
    assert back.keys() == eva.keys() and all(torch.equal(back[n], eva[n]) for n in eva)
    other = blip2_vision_to_eva(theirs, 2)
    assert other.keys() == eva.keys() and all(torch.equal(other[n], eva[n]) for n in eva)
    bias[9] = 1.0
    with pytest.raises(ValueError, match="key part that is not zero"):
        made(huggingface_to_eva(2), theirs)


def test_clip_gets_a_block_that_does_nothing():
    openai = {s: torch.randn(6, 2) for m in openai_to_huggingface(2).values() for s in m.sources}
    theirs = made(openai_to_huggingface(2), openai)
    last = [n for n in theirs if n.startswith("encoder.layers.2.")]
    assert len(last) == 16 and not any(theirs[name].any() for name in last)
    back = made(huggingface_to_openai(2), theirs)
    assert back.keys() == openai.keys() and all(torch.equal(back[n], openai[n]) for n in openai)


@pytest.mark.parametrize("change", [{}, {"cross_every": 3, "queries": 5}, {"layers": 1}])
def test_sizes_of_stage1_show_in_the_shapes(change):
    config = stage1_config(**change)
    if change == {"layers": 1}:  # nothing tells how often a second layer would have it
        config = stage1_config(**change, cross_every=1)
    fields = {"num_attention_heads": 4, "hidden_dropout_prob": 0.0}
    assert infer_stage1(shapes(Stage1(config)), fields, "file") == config


def test_sizes_of_the_papers_models_need_no_configuration():
    with torch.device("meta"):
        first, second = Stage1(Stage1Config()), Stage2(Stage2Config())
    assert infer_stage1(shapes(first), {}, "file") == Stage1Config()
    assert infer_stage2(shapes(second), {}, "file") == Stage2Config()


def test_a_whole_bert_config_is_taken():
    from transformers import BertConfig

    with torch.device("meta"):
        found = infer_stage1(shapes(Stage1(Stage1Config())), BertConfig().to_dict(), "file")
    assert found.qformer.vocab == 30523  # BERT's 30522 and [DEC]
    assert (found.qformer.dropout, found.qformer.attention_drop) == (0.1, 0.1)


def test_one_misshapen_weight_is_outvoted():
    found = shapes(Stage1(stage1_config()))
    for name in ("qformer.norm.weight", "ln_vision.weight", "vision_proj.weight", "lm_head.bias"):
        wrong = found | {name: (7, 7)[: len(found[name])]}
        assert infer_stage1(wrong, {"heads": 4, "dropout": 0.0}, "file") == stage1_config()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"embed": 3}, "embed = 3, but the weights have 16"),
        ({"qformer": {"ffn": 3}}, "ffn = 3"),
        ({"itg": False}, "itg = False"),
        ({"text": False}, "text = False"),
        ({"vocab_size": 48}, "vocab = 48"),
    ],
)
def test_what_contradicts_the_shapes_is_named(given, match):
    with pytest.raises(ValueError, match=match):
        infer_stage1(shapes(Stage1(stage1_config())), {"heads": 4} | given, "file")


def test_settled_names():
    given = {"num_query_token": 3, "qformer": {"dropout": 0}, "use_cache": True}
    assert settle(given, "file") == {"queries": 3, "dropout": 0}
    with pytest.raises(ValueError, match="'querys' is not one of"):
        settle({"querys": 3}, "file")


def test_one_message_names_all_that_is_wrong():
    with pytest.raises(ValueError, match=r"file lacks a; has unknown d; misshapen: b has shape"):
        compare_shapes({"a": (1,), "b": (2,), "c": (3,)}, {"b": (1,), "c": (3,), "d": (1,)}, "file")
    compare_shapes({"a": (1,)}, {"a": (1,)}, "file")
