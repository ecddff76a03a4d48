"""The two stages: sizes, losses put together by hand, what stage 2 takes over, precision."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from modeling.blip2 import (
    Stage1,
    Stage1Config,
    Stage2,
    Stage2Config,
    stage2_config,
    stage2_from_stage1,
)
from modeling.names import from_bert
from modeling.qformer import QFormerConfig
from tests.modeling.tiny import VOCAB, batch, qformer_config, sharp_stage1, sharpen, stage1_config


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_trainable_parameters_are_the_papers():
    with torch.device("meta"):
        assert count(Stage1(Stage1Config())) == 186_705_470
        sizes = {2560: 107_133_696, 4096: 108_314_880, 2048: 106_739_968}
        for width, expected in sizes.items():
            assert count(Stage2(Stage2Config(llm_width=width))) == expected


def test_losses_equal_a_plain_calculation(monkeypatch):
    """The same losses from the public parts, one pair at a time, nothing shared or merged."""
    monkeypatch.setattr(torch, "multinomial", lambda w, n: w.argmax(-1, keepdim=True))
    model, (tokens, ids, mask) = sharp_stage1(), batch(4)
    losses = model(tokens, ids, mask)

    image, text = model.image_embeds(tokens), model.text_embeds(ids, mask)
    similarity = torch.einsum("iqe,te->itq", image, text).amax(-1) / model.temperature
    labels = torch.arange(4)
    itc = (
        sum(F.cross_entropy(s, labels, label_smoothing=0.1) for s in (similarity, similarity.T)) / 2
    )
    assert torch.allclose(losses["itc"], itc)

    others = similarity - 1e9 * torch.eye(4)
    negative_text, negative_image = others.argmax(1), others.argmax(0)
    rows = [(i, i, 1) for i in range(4)]
    rows += [(int(negative_image[t]), t, 0) for t in range(4)]
    rows += [(i, int(negative_text[i]), 0) for i in range(4)]
    itm = [
        F.softplus(
            (1 - 2 * label) * model.match(tokens[i : i + 1], ids[t : t + 1], mask[t : t + 1])
        )
        for i, t, label in rows
    ]
    assert torch.allclose(losses["itm"], torch.cat(itm).mean(), atol=1e-5)

    itg = []
    for i in range(4):
        length = int(mask[i].sum())
        _, cache = model.qformer.encode_image(model.project_image(tokens[i : i + 1]))
        given = torch.cat((torch.tensor([VOCAB - 1]), ids[i, 1 : length - 1]))[None]
        hidden = model.qformer.decode(cache, given, torch.ones_like(given))[0]
        logits = model.lm_head(hidden, model.qformer.word_embeddings.weight)
        target = ids[i, 1:length]
        assert target[-1] == 2  # [SEP] is predicted as the end
        itg.append(F.cross_entropy(logits, target, label_smoothing=0.1, reduction="none"))
    assert torch.allclose(losses["itg"], torch.cat(itg).mean(), atol=1e-5)
    assert torch.allclose(losses["loss"], losses["itc"] + losses["itm"] + losses["itg"])


def test_texts_of_one_token_leave_nothing_to_generate():
    tokens, ids, mask = batch(4)
    losses = sharp_stage1()(tokens, ids[:, :1], mask[:, :1])
    losses["loss"].backward()
    assert losses["itg"] == 0 and losses["itm"].isfinite() and losses["itc"].isfinite()


def test_every_parameter_learns():
    model = sharp_stage1()
    model(*batch(4))["loss"].backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A key bias shifts all scores of a row alike, so softmax is blind to it.
    assert [n for n in still if not n.endswith("key.bias")] == []


def test_overfits_one_batch():
    model, inputs = sharp_stage1(), batch(6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(45):
        losses = model(*inputs)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["itc"] < 0.6 and losses["itm"] < 0.1 and losses["itg"] < 1.0


def test_temperature_is_bounded_and_can_come_back():
    model = sharp_stage1()
    with torch.no_grad():
        model.temperature.fill_(0.9)
    bounded = model(*batch(3))["itc"]
    with torch.no_grad():
        model.temperature.fill_(0.5)
    model_at_bound = model(*batch(3))["itc"]
    assert torch.allclose(bounded, model_at_bound)
    from modeling.blip2 import Bounded

    for value, pull, expected in [
        (0.9, 1.0, 1.0),
        (0.9, -1.0, 0.0),
        (0.0, -1.0, -1.0),
        (0.0, 1.0, 0.0),
    ]:
        x = torch.tensor([value], requires_grad=True)
        Bounded.apply(x, 0.001, 0.5).backward(torch.tensor([pull]))
        assert x.grad.item() == expected  # descent moves against the gradient


def test_equal_image_ids_soften_targets_and_are_no_negatives(monkeypatch):
    seen = []

    def spy(weights, count):
        seen.append(weights)
        return weights.argmax(-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", spy)
    sharp_stage1()(*batch(3), torch.tensor([5, 5, 9]))
    for weights in seen:
        assert weights[0].tolist() == [0, 0, 1] and weights[1].tolist() == [0, 0, 1]
        assert weights[2, 2] == 0


def test_bf16_losses_are_near_fp32(monkeypatch):
    monkeypatch.setattr(torch, "multinomial", lambda w, n: w.argmax(-1, keepdim=True))
    model, inputs = Stage1(stage1_config()), batch(4)
    exact = model(*inputs)
    rough = model.bfloat16()(*inputs)
    assert all(value.dtype == torch.float32 for value in rough.values())
    assert torch.allclose(rough["loss"], exact["loss"], rtol=0.02)
    rough["loss"].backward()


def test_one_pair_is_an_error():
    with pytest.raises(ValueError, match="batch size is 1"):
        sharp_stage1()(*batch(1))


def test_without_itg_no_head_is_built():
    config = stage1_config()
    model = Stage1(Stage1Config(config.qformer, embed=16, dec_token_id=VOCAB - 1, itg=False))
    assert "itg" not in model(*batch(3))
    assert not any(name.startswith("lm_head") for name, _ in model.named_parameters())


def test_stage2_continues_stage1():
    first = sharp_stage1().eval()
    second = Stage2(stage2_config(first.config, llm_width=20)).eval()
    taken = stage2_from_stage1(first.state_dict())
    assert set(second.state_dict()) - set(taken) == {"language_proj.weight", "language_proj.bias"}
    assert set(taken) <= set(second.state_dict())
    second.load_state_dict({**second.state_dict(), **taken})
    tokens, _, _ = batch(2)
    expected, _ = first.qformer.encode_image(first.project_image(tokens))
    prompts = second(tokens)
    assert prompts.shape == (2, 3, 20)
    assert torch.allclose(prompts, second.language_proj(expected))
    assert second(tokens[:1]).shape == (1, 3, 20)


def test_stage2_that_reads_text_takes_the_text_weights_too():
    first = sharp_stage1().eval()
    second = Stage2(stage2_config(first.config, 20, text=True)).eval()
    taken = stage2_from_stage1(first.state_dict(), text=True)
    second.load_state_dict({**second.state_dict(), **taken})
    tokens, ids, mask = batch(2)
    expected = first.qformer.encode_pair(first.project_image(tokens), ids, mask)
    assert torch.allclose(second(tokens, ids, mask), second.language_proj(expected))


def test_wrong_use_names_the_remedy():
    with pytest.raises(ValueError, match="not a stage-1 checkpoint"):
        stage2_from_stage1({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"qformer\.text = True"):
        Stage2(Stage2Config(qformer_config(text=False), 20))(*batch(2))
    with pytest.raises(ValueError, match="dec_token_id = 30522"):
        Stage1Config(qformer_config())
    with pytest.raises(ValueError, match="must divide"):
        QFormerConfig(width=30, heads=4)
    with pytest.raises(ValueError, match="temperature"):
        Stage1Config(temperature=0.0)


def test_bert_fills_everything_but_what_it_lacks():
    from transformers import BertConfig, BertForMaskedLM

    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=16,
            type_vocab_size=1,
        )
    ).eval()
    sharpen(bert)
    bert.bert.embeddings.token_type_embeddings.weight.data.zero_()  # the Q-Former has none
    model = Stage1(stage1_config()).eval()
    taken = from_bert(bert.state_dict(), 4)
    fresh = set(model.state_dict()) - set(taken)
    assert all("cross_attn" in n or not n.startswith(("qformer.l", "lm_head")) for n in fresh)
    model.load_state_dict({**model.state_dict(), **taken})
    _, ids, mask = batch(3)
    hidden = bert.bert(ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(model.qformer.encode_text(ids, mask), hidden[:, 0], atol=1e-5)
    logits = model.lm_head(hidden, model.qformer.word_embeddings.weight)
    assert torch.allclose(logits, bert.cls(hidden), atol=1e-5)
    for part in ("up", "down", "norm"):
        query = taken[f"qformer.layers.1.query_ffn.{part}.weight"]
        assert torch.equal(query, taken[f"qformer.layers.1.text_ffn.{part}.weight"])


def test_modeling_needs_only_torch_timm_and_transformers():
    blocked = "'cluster', 'pipeline', 'evaluation', 'jobs', 'ray', 'deepspeed', 'webdataset'"
    program = f"""
import sys
sys.modules.update(dict.fromkeys([{blocked}, 'pyarrow', 'tyro', 'pandas', 'boto3']))
from modeling import blip2, gather, language, losses, masks, optim
from modeling import names, prompts, qformer, vision
"""
    subprocess.run([sys.executable, "-c", program], check=True)
