"""Against transformers' LLaVA, with small random weights: losses, logits, texts."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from modeling.language.adapters import GenerationSettings
from modeling.language.conversation import LAYOUTS, Turn, encode, segments
from modeling.language.talking import TalkingLM
from modeling.llava import NO_IMAGE, Decoder, Llava, embed, join, make_rows
from modeling.llava import LlavaConfig as Sizes
from modeling.vision.encoders import build_clip_encoder
from modeling.vision.features import FeatureConfig
from tests.modeling.language.pieces_tokenizer import IDS, tokenizer

WORDS, IMAGE, PATCHES = len(IDS), len(IDS), 4
GRID = FeatureConfig(-2, "no", "patches")


def theirs(kind):
    """transformers' LLaVA; a linear bridge is a linear activation and an identity behind it."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        image_size=16, patch_size=8, hidden_act="quick_gelu",
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=WORDS + 1, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    act = "linear" if kind == "linear" else "gelu"
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        projector_hidden_act=act,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
        if kind == "linear":
            second = model.model.multi_modal_projector.linear_2
            second.weight.copy_(torch.eye(24))
            second.bias.zero_()
    return model


def ours(model, kind, train):
    """The same weights in our modules: encoder, module, and the language model."""
    language = language_of(model)
    llava = Llava(Sizes(kind, 16, 24), language if train else None)
    projector = model.model.multi_modal_projector
    llava.bridge.linear_1.load_state_dict(projector.linear_1.state_dict())
    if kind == "mlp2x_gelu":
        llava.bridge.linear_2.load_state_dict(projector.linear_2.state_dict())
    state = model.model.vision_tower.state_dict()
    encoder = build_clip_encoder(model.config.vision_config, 16, state, features=GRID)
    return encoder.eval(), llava, language


def language_of(model):
    """The language model alone, sharing the weights."""
    language = LlamaForCausalLM(model.config.text_config).eval()
    language.model, language.lm_head = model.model.language_model, model.lm_head
    return language


TALKS = [
    [Turn("user", "<image>\nWhat colour is the star?"), Turn("assistant", "red")],
    [Turn("user", "Is it big? <image>"), Turn("assistant", "yes"), Turn("user", "red?"),
     Turn("assistant", "a red star, big")],
    [Turn("user", "What is it?"), Turn("assistant", "the star")],
]  # fmt: skip


def encoded(talks, layout="v1", reply=False, front=False):
    words = tokenizer()
    talks = [talk[:-1] if reply else talk for talk in talks]
    made = [
        encode(segments(LAYOUTS[layout], talk, image_first=front, reply=reply), words)
        for talk in talks
    ]
    places = [(*one.image_at, NO_IMAGE)[0] for one in made]
    return make_rows([one.ids for one in made], [one.target for one in made], places)


def expanded(rows):
    """What transformers is given: placeholders in the place of images, padding on the right."""
    lines, labels = [], []
    for row, length in enumerate(rows.length_B.tolist()):
        line, learned = rows.ids_BL[row, :length].tolist(), rows.target_BL[row, :length].tolist()
        label = [one if wanted else -100 for one, wanted in zip(line, learned, strict=True)]
        at = rows.image_B[row].item()
        if at != NO_IMAGE:
            line[at:at], label[at:at] = [IMAGE] * PATCHES, [-100] * PATCHES
        lines.append(line)
        labels.append(label)
    longest = max(map(len, lines))
    mask = [[1] * len(line) + [0] * (longest - len(line)) for line in lines]
    ids = [line + [0] * (longest - len(line)) for line in lines]
    labels = [label + [-100] * (longest - len(label)) for label in labels]
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(labels)


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("train", [False, True])
def test_losses_are_those_of_transformers(kind, train):
    model = theirs(kind)
    encoder, llava, language = ours(model, kind, train)
    rows = encoded(TALKS)
    images = torch.randn(2, 3, 16, 16)
    ids, mask, labels = expanded(rows)
    expected = model(input_ids=ids, attention_mask=mask, labels=labels, pixel_values=images)
    frozen = None if train else Decoder.of(language)
    total, count = llava(encoder(images), rows, frozen)
    assert count.item() == rows.targets() == (labels != -100).sum().item()
    assert (total / count).item() == pytest.approx(expected.loss.item(), abs=1e-5)
    inputs_BSD, joined = embed(language, llava.bridge(encoder(images)), rows)
    logits = language(inputs_embeds=inputs_BSD, attention_mask=joined.mask_BS).logits
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected.logits[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(kind, beams):
    model = theirs(kind)
    encoder, llava, language = ours(model, kind, False)
    words, images = tokenizer(), torch.randn(2, 3, 16, 16)
    talking = TalkingLM(language, words, LAYOUTS["v1"])
    said = talking.converse(
        llava.bridge(encoder(images)),
        [talk[:-1] for talk in TALKS[:2]],
        GenerationSettings(beams=beams, max_new_tokens=12),
    )
    how = {"num_beams": beams, "max_new_tokens": 12, "do_sample": False, "eos_token_id": 2}
    for number, talk in enumerate(TALKS[:2]):  # each alone, so that nothing is padded
        ids, mask, _ = expanded(encoded([talk], reply=True, front=True))
        found = model.generate(
            input_ids=ids, attention_mask=mask, pixel_values=images[number : number + 1], **how
        )
        text = words.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        assert said[number] == text.strip() and said[number]


def test_images_are_put_between_texts():
    rows = make_rows([[7, 8, 9], [5], [4, 6]], [[0, 1, 1], [1], [0, 1]], [1, NO_IMAGE, 0])
    joined = join(rows, prompts=2)
    # Rows 0 to 8 are words, three a text; then come the first image's two and the second's two.
    assert joined.source_BS.tolist() == [[0, 9, 10, 1, 2], [3, 0, 0, 0, 0], [11, 12, 6, 7, 0]]
    assert joined.mask_BS.sum(1).tolist() == [5, 1, 4]
    # The only word of the second row has nothing in front that could predict it.
    assert joined.target_T.tolist() == [8, 9, 6]
    assert joined.before_T.tolist() == [2, 3, 12]


def test_a_batch_without_images_gives_the_bridge_a_gradient_of_zero():
    model = theirs("mlp2x_gelu")
    _, llava, _ = ours(model, "mlp2x_gelu", True)
    total, _ = llava(None, encoded(TALKS[2:]))
    total.backward()
    for parameter in llava.bridge.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert all(p.grad is not None for p in llava.language.parameters())
    with pytest.raises(ValueError, match="2 images for 1 rows"):
        llava(torch.zeros(2, 4, 16), encoded(TALKS[:1]))


def test_a_cast_leaves_the_positions_exact():
    model = theirs("linear")
    _, llava, language = ours(model, "linear", True)
    before = language.model.rotary_emb.inv_freq.clone()
    llava.bfloat16()
    assert llava.bridge.linear_1.weight.dtype == torch.bfloat16
    assert torch.equal(language.model.rotary_emb.inv_freq, before)
