"""Twelve image encoders x eight families of language models, beside their own libraries.

Pixels are compared with each library's own processor, tokens with its own module, and the loss of
stage 2 with the language model's own loss on what its library's tokens become.
"""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.models.encoder_settings import pixels_of
from jobs.models.encoders import encoder_width, load_encoder
from modeling.blip2 import Stage2, Stage2Config
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.qformer import QFormerConfig
from pipeline.images import decode
from pipeline.transforms import eval_transform
from tests.jobs import families
from tests.jobs.families import ENCODERS, LANGUAGES, PAIRS, WIDTH

TEXTS = ["a red square on the left", "a small blue circle"]
PROMPTS = ["a photo of", "a photo of"]
# Larger, smaller, wide, tall, odd margins, and already of the size.
SHAPES = [(60, 91), (131, 57), (20, 33), (48, 48), (97, 64), (64, 64), (56, 56)]


def picture(height: int, width: int) -> Image.Image:
    """Smooth colours under noise, so that every resize has something to round."""
    rng = np.random.default_rng(height * 1000 + width)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8))
    fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = fine + rng.integers(-30, 30, fine.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Every encoder, made once."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(name) / "model"
            made[name] = ENCODERS[name](folder)
        return made[name]

    return get


@pytest.mark.parametrize("name", ENCODERS)
def test_pixels_are_those_of_the_librarys_own_processor(encoders, name):
    one = encoders(name)
    size = one.choice.image_size
    transform = eval_transform(size, pixels_of(one.choice))
    shapes = [(80, 80), (33, 33), (48, 48)] if "naflex" in name else SHAPES
    for shape in shapes:
        image = picture(*shape)
        ours = transform(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        theirs = one.pixels(image)
        assert ours.shape == theirs.shape == (3, size, size)
        assert (ours - theirs).abs().max() < 1e-6, shape
    assert ours.std() > 0.2


def tokens_of(encoders, name):
    """Our tokens and the library's, of the same two images."""
    one = encoders(name)
    encoder = load_encoder(one.choice)
    size = one.choice.image_size
    pixels = torch.stack([one.pixels(picture(size, size)), one.pixels(picture(size, size)).flip(2)])
    with torch.no_grad():
        return encoder, encoder(pixels), one.tokens(pixels)


@pytest.mark.parametrize("name", ENCODERS)
def test_tokens_are_those_of_the_librarys_own_module(encoders, name):
    encoder, ours, theirs = tokens_of(encoders, name)
    assert ours.shape == (2, encoder.num_tokens, WIDTH) == (2, *theirs.shape[1:])
    assert (ours - theirs).abs().max() < 1e-5
    assert theirs.std() > 0.1 and (theirs[0] - theirs[1]).abs().max() > 0.01
    assert encoder_width(encoders(name).choice) == WIDTH


@pytest.fixture(scope="module")
def tokens(encoders):
    return {name: tokens_of(encoders, name)[1:] for name in ENCODERS}


@pytest.fixture(scope="module")
def stage():
    """One Q-Former for all: every encoder and every language model here has one width."""
    torch.manual_seed(1)
    qformer = QFormerConfig(
        width=32, layers=2, heads=2, ffn=40, queries=4, encoder_width=WIDTH, text=False, dropout=0.0
    )
    return families.spread(Stage2(Stage2Config(qformer, llm_width=WIDTH)))


def librarys_loss(model, prompts_BQD, given, targets, pad):
    """The language model's own loss, its inputs put together here."""
    embed = model.get_input_embeddings()
    if model.config.is_encoder_decoder:
        inputs, labels = given, targets
    else:
        inputs = [a + b for a, b in zip(given, targets, strict=True)]
        labels = [[-100] * len(a) + b for a, b in zip(given, targets, strict=True)]
    longest, last = max(map(len, inputs)), max(map(len, labels))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in inputs])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in inputs])
    wanted = torch.tensor([row + [-100] * (last - len(row)) for row in labels])
    seen = torch.ones(prompts_BQD.shape[:2], dtype=torch.long)
    if not model.config.is_encoder_decoder:
        wanted = torch.cat((seen * -100, wanted), 1)
    return model(
        inputs_embeds=torch.cat((prompts_BQD, embed(ids)), 1),
        attention_mask=torch.cat((seen, mask), 1),
        labels=wanted,
    ).loss


@pytest.mark.parametrize("family", LANGUAGES)
def test_losses_of_every_encoder_with_this_language_model(family, tokens, stage):
    torch.manual_seed(2)
    model, tokenizer = families.language(family)
    library = copy.deepcopy(model)
    adapter = (EncoderDecoderLM if family in PAIRS else DecoderLM)(model, tokenizer)
    given, targets = adapter._rows(TEXTS, None, PROMPTS)
    losses = {}
    for name, (ours_BPD, theirs_BPD) in tokens.items():
        with torch.no_grad():
            ours = adapter.loss(stage(ours_BPD), TEXTS, None, PROMPTS)
            theirs = librarys_loss(
                library, stage(theirs_BPD), given, targets, tokenizer.pad_token_id
            )
        assert abs(ours - theirs) < 1e-5, (name, ours, theirs)
        losses[name] = ours.item()
    assert len({round(loss, 5) for loss in losses.values()}) > 6  # each encoder has its say


def test_decoded_pictures_take_the_same_way(encoders):
    """What the decoder hands over is laid out otherwise in memory, and gives the same pixels."""
    one = encoders("dinov2-registers")
    image = picture(97, 64)
    path_bytes = _png(image)
    transform = eval_transform(one.choice.image_size, pixels_of(one.choice))
    assert (transform(decode(path_bytes)) - one.pixels(image)).abs().max() < 1e-6


def _png(image: Image.Image) -> bytes:
    import io

    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
