"""Frozen language models: what is learned, padding, prompts, and Hugging Face's BLIP-2."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Blip2Config, Blip2ForConditionalGeneration

from modeling.blip2 import Stage2, Stage2Config
from modeling.language.adapters import (
    DecoderLM,
    EncoderDecoderLM,
    GenerationSettings,
    pad_left,
    split_prefix,
)
from modeling.names import huggingface_names
from tests.modeling import tiny_language as tiny
from tests.modeling.tiny import qformer_config, sharpen

BEAM = GenerationSettings(beams=3, max_new_tokens=6)
GREEDY = GenerationSettings(beams=1, max_new_tokens=6)
PROMPTS = ["w1 w2 w3 w4", "w5", "w6 w7"]
EOL = tiny.SPECIAL.index("\n")


def decoder() -> DecoderLM:
    return DecoderLM(tiny.opt(), tiny.tokenizer("<s> $A"))


def encoder_decoder() -> EncoderDecoderLM:
    return EncoderDecoderLM(tiny.t5(), tiny.tokenizer("$A </s>"))


def visual(size: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 2, tiny.WIDTH, generator=generator)


# ------------------------------------------------------------------------------ both families


@pytest.mark.parametrize("make", [decoder, encoder_decoder])
def test_frozen_in_eval_but_the_prompt_learns(make):
    language = make()
    language.model.train()
    prompts = visual().requires_grad_()
    uniform = torch.rand(len(PROMPTS), dtype=torch.float64)
    first = language.loss(prompts, PROMPTS, uniform)
    second = language.loss(prompts, PROMPTS, uniform)
    assert torch.equal(first, second)  # no dropout, though the configuration has 0.5
    first.backward()
    assert prompts.grad.abs().sum(-1).all()
    assert not any(p.requires_grad or p.grad is not None for p in language.model.parameters())


@pytest.mark.parametrize("make", [decoder, encoder_decoder])
@pytest.mark.parametrize("settings", [GREEDY, BEAM])
def test_a_padded_batch_generates_what_single_rows_do(make, settings):
    language, prompts = make(), visual()
    together = language.generate(prompts, PROMPTS, settings)
    single = [
        language.generate(prompts[i : i + 1], PROMPTS[i : i + 1], settings)[0] for i in range(3)
    ]
    assert together == single
    assert len(set(together)) > 1


@pytest.mark.parametrize("make", [decoder, encoder_decoder])
def test_the_visual_prompt_matters_and_may_be_absent(make):
    language = make()
    text_only = language.generate(None, PROMPTS, GREEDY)
    assert len(text_only) == 3
    assert language.generate(visual() * 5, PROMPTS, GREEDY) != text_only
    assert language.loss(None, PROMPTS).isfinite()
    assert language.generate(visual(), [], GREEDY) == []


@pytest.mark.parametrize("make", [decoder, encoder_decoder])
def test_batches_must_agree(make):
    with pytest.raises(ValueError, match="3 visual prompts for 2 texts"):
        make().loss(visual(3), PROMPTS[:2], prompt_texts=["w1", "w2"])


@pytest.mark.parametrize("make", [decoder, encoder_decoder])
def test_a_batch_is_the_token_weighted_mean_of_its_rows(make):
    language, prompts = make(), visual()
    total, count = language.token_losses(prompts, PROMPTS, prompt_texts=["w9", "w9 w8", "w7"])
    parts = [
        language.token_losses(prompts[i : i + 1], [PROMPTS[i]], None, [["w9", "w9 w8", "w7"][i]])
        for i in range(3)
    ]
    assert torch.allclose(total, sum(part for part, _ in parts), rtol=1e-5)
    assert count == sum(n for _, n in parts) == 4 + 1 + 2 + 3


def test_bf16_model_takes_fp32_prompts():
    language = DecoderLM(tiny.opt().bfloat16(), tiny.tokenizer("<s> $A"))
    loss = language.loss(visual().requires_grad_(), PROMPTS)
    assert loss.dtype == torch.float32 and loss.requires_grad
    assert len(language.generate(visual(), PROMPTS, BEAM)) == 3


@pytest.mark.parametrize(
    ("changes", "match"), [({"beams": 0}, "beams = 0"), ({"min_new_tokens": 40}, "min_new_tokens")]
)
def test_bad_generation_settings(changes, match):
    with pytest.raises(ValueError, match=match):
        GenerationSettings(**changes)


# ------------------------------------------------------------------------------ OPT


def opt_loss_by_hand(language: DecoderLM, prompts, rows: list[list[int]], first: int) -> float:
    """Mean over the targets of single, unpadded rows; ids from index `first` on are targets."""
    total, count = 0.0, 0
    for prompt, row in zip(prompts, rows, strict=True):
        ids = torch.tensor([row])
        inputs = torch.cat((prompt[None], language.embed(ids)), 1)
        logits = language.model(inputs_embeds=inputs).logits[0, len(prompt) + first - 1 : -1]
        total += F.cross_entropy(logits, ids[0, first:], reduction="sum").item()
        count += len(row) - first
    return total / count


def word(number: int) -> int:
    return len(tiny.SPECIAL) + number


def test_opt_learns_the_caption_and_its_end():
    language = decoder()
    rows = [[1, word(1), word(2), EOL], [1, word(3), EOL]]
    expected = opt_loss_by_hand(language, visual(2), rows, first=0)
    assert language.loss(visual(2), ["w1 w2", " w3 "]).item() == pytest.approx(expected, rel=1e-5)


def test_opt_does_not_learn_the_text_prompt():
    language = decoder()
    rows = [[1, word(9), word(8), word(1), word(2), EOL], [1, word(9), word(8), word(3), EOL]]
    expected = opt_loss_by_hand(language, visual(2), rows, first=3)
    loss = language.loss(visual(2), ["w1 w2", "w3"], prompt_texts=["w9 w8", "w9 w8"])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_over_long_captions_keep_their_end():
    language = DecoderLM(tiny.opt(), tiny.tokenizer("<s> $A"), max_text=4)
    expected = opt_loss_by_hand(language, visual(1), [[1, word(1), word(2), EOL]], first=0)
    loss = language.loss(visual(1), ["w1 w2 w3 w4 w5"])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_queries_stand_next_to_the_text_when_padded():
    inputs = torch.arange(10.0).reshape(2, 5, 1)  # two queries, then text of length 3 and 1
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    turned, turned_mask = pad_left(inputs, mask)
    assert turned[0, :, 0].tolist() == [0, 1, 2, 3, 4]
    assert turned[1, 2:, 0].tolist() == [5, 6, 7]
    assert turned_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]


def test_opt_stops_at_the_end_of_the_line():
    language = decoder()
    prompts = visual(2)
    hidden = language.model.model(inputs_embeds=prompts).last_hidden_state[:, -1]
    # After the first row's prompt the end of the line is by far the likeliest token.
    head = torch.nn.Linear(tiny.WIDTH, tiny.SIZE, bias=False)
    head.weight.data = language.model.lm_head.weight.detach().clone()
    head.weight.data[EOL] = 50 * hidden[0] / hidden[0].norm() - 40 * hidden[1] / hidden[1].norm()
    language.model.lm_head = head
    language.tokenizer = tiny.tokenizer("$A")
    first, second = language.generate(prompts, ["", ""], GREEDY)
    assert first == "" and second != ""


def test_opt_refuses_more_positions_than_it_has():
    with pytest.raises(ValueError, match="has 48"):
        decoder().generate(visual(1), ["w1"], GenerationSettings(max_new_tokens=60))


# ------------------------------------------------------------------------------ T5


def test_t5_with_a_prompt_learns_the_whole_text():
    language, prompts = encoder_decoder(), visual(1)
    ids = torch.tensor([[word(4), word(5), 2]])
    encoder_text = language.embed(torch.tensor([[word(1), 2]]))
    expected = language.model(inputs_embeds=torch.cat((prompts, encoder_text), 1), labels=ids).loss
    loss = language.loss(prompts, ["w4 w5"], prompt_texts=["w1"])
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_t5_prefix_lm_is_one_of_its_splits():
    language, prompts = encoder_decoder(), visual(1)
    whole = language.loss(prompts, ["w1 w2 w3 w4"], torch.tensor([0.3]).double())
    splits = [("w1", "w2 w3 w4"), ("w1 w2", "w3 w4")]
    candidates = [language.loss(prompts, [b], prompt_texts=[a]).item() for a, b in splits]
    assert any(whole.item() == pytest.approx(c, rel=1e-5) for c in candidates)


def test_split_is_uniform_from_one_to_the_middle():
    lengths = torch.tensor([9]).repeat(8000)
    cuts = split_prefix(lengths, torch.rand(lengths.shape, dtype=torch.float64))
    shares = torch.bincount(cuts, minlength=6).float() / 8000
    assert shares[0] == shares[5] == 0
    assert torch.allclose(shares[1:5], torch.full((4,), 0.25), atol=0.02)
    assert split_prefix(torch.tensor([0, 1, 2, 3])).tolist() == [0, 0, 1, 1]


def test_t5_with_tied_and_scaled_output_agrees():
    config = tiny.t5_config()
    config.tie_word_embeddings = True
    config.scale_decoder_outputs = True
    torch.manual_seed(0)
    model = type(tiny.t5())(config)
    language = EncoderDecoderLM(model, tiny.tokenizer("$A </s>"))
    ids = torch.tensor([[word(4), word(5), 2]])
    expected = model(input_ids=torch.tensor([[word(1), 2]]), labels=ids).loss
    assert torch.allclose(language.loss(None, ["w4 w5"], prompt_texts=["w1"]), expected, rtol=1e-5)


def test_t5s_gelu_keeps_less_and_is_the_same():
    """Against the model as transformers made it: values, gradients, what autograd holds."""
    made = tiny.t5().eval().double()
    fused = encoder_decoder().model.double()  # of the same weights
    kept: list[int] = []
    found = []
    for model in (made, fused):
        prompts = visual().double().requires_grad_()
        held: dict[int, int] = {}

        def keep(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(inputs_embeds=prompts, labels=torch.tensor([[word(1), word(2), 2]] * 3))
        kept.append(sum(held.values()))
        (gradient,) = torch.autograd.grad(out.loss, prompts)
        found.append((out.loss.detach(), gradient))
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() < 1e-6 * theirs.norm()
    rows = 2 * 3 * (2 + 3)  # of both layers of encoder and decoder, each of 32 units in fp64
    assert kept[0] - kept[1] >= 3 * rows * 32 * 8


# ------------------------------------------------------------------ Hugging Face's BLIP-2


def huggingface(text_config) -> Blip2ForConditionalGeneration:
    config = Blip2Config(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        qformer_config={
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        },
        text_config=text_config.to_dict(),
        num_query_tokens=3,
        image_token_index=tiny.IMAGE,
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval()
    sharpen(model)
    model.vision_model.post_layernorm.eps = 1e-5
    return model


def ours_from(theirs: Blip2ForConditionalGeneration) -> Stage2:
    stage2 = Stage2(Stage2Config(qformer_config(text=False), tiny.WIDTH)).eval()
    names, source = huggingface_names(stage2.state_dict()), theirs.state_dict()
    assert set(names) == set(stage2.state_dict())
    stage2.load_state_dict({ours: source[name] for ours, name in names.items()})
    return stage2


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_stage2_loss_and_generation_equal_huggingface(family):
    theirs = huggingface(tiny.opt_config() if family == "opt" else tiny.t5_config())
    stage2 = ours_from(theirs)
    template, adapter = ("<s> $A", DecoderLM) if family == "opt" else ("$A </s>", EncoderDecoderLM)
    language = adapter(theirs.language_model, tiny.tokenizer(template))
    images = torch.randn(2, 3, 28, 28)
    ids = torch.tensor([[1, word(1), word(2)] if family == "opt" else [word(1), word(2), 2]] * 2)
    target = torch.tensor([[word(3), word(4), EOL if family == "opt" else 2]] * 2)
    queries = torch.full((2, 3), tiny.IMAGE)
    with torch.no_grad():
        states = theirs.vision_model.embeddings(images)
        tokens = theirs.vision_model.encoder(inputs_embeds=states).last_hidden_state
        prompts = stage2(tokens)
        assert torch.allclose(prompts, theirs.get_image_features(images).pooler_output, atol=1e-5)
        loss = language.loss(prompts, ["w3 w4"] * 2, prompt_texts=["w1 w2"] * 2)
        if family == "opt":
            given = torch.cat((queries, ids), 1)
            labels = torch.cat((torch.full_like(given, -100), target), 1)
            expected = theirs(images, torch.cat((given, target), 1), labels=labels).loss
        else:
            expected = theirs(images, torch.cat((queries, ids), 1), labels=target).loss
        assert torch.allclose(loss, expected, atol=1e-5)
        for settings in (GREEDY, BEAM):
            found = language.generate(prompts, ["w1 w2"] * 2, settings)
            theirs_ids = theirs.generate(
                images,
                torch.cat((queries, ids), 1),
                **settings.arguments(),
                eos_token_id=target[0, -1].item(),
            )
            new = theirs_ids[:, 6:] if family == "opt" and theirs_ids.shape[1] > 6 else theirs_ids
            texts = language.tokenizer.batch_decode(new, skip_special_tokens=True)
            assert any(found)
            assert found == [text.partition("\n")[0].strip() for text in texts]


def test_t5s_position_bias_lies_in_memory_as_fused_attention_wants_it():
    model = tiny.t5()
    first = model.encoder.block[0].layer[0].SelfAttention
    permuted = first.compute_bias(5, 5)
    EncoderDecoderLM(model, tiny.tokenizer("$A </s>"))
    bias = first.compute_bias(5, 5)
    assert bias.is_contiguous() and not permuted.is_contiguous()
    assert torch.equal(bias, permuted)
