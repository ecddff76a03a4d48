"""The decode loop equals Hugging Face's, draws as computed by hand, and ignores neighbours."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer, BlipForConditionalGeneration, CLIPModel

from modeling.captioning.captioner import Captioner
from modeling.captioning.clip_scorer import ClipScorer
from modeling.captioning.sampling import SamplingConfig, nucleus, uniforms
from tests.tiny_models import save_captioner, save_clip

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
UIDS = [f"{i:032x}" for i in range(6)]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = save_captioner(tmp_path_factory.mktemp("captioner"))
    model = BlipForConditionalGeneration.from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = save_clip(tmp_path_factory.mktemp("clip"))
    return CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)


def captioner(blip: tuple, seed: int = 0, **sampling: object) -> Captioner:
    return Captioner(*blip, SamplingConfig(**sampling), MEAN, STD, seed=seed)


def pixels(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def test_logits_equal_hugging_faces_step_by_step(blip: tuple, images: torch.Tensor):
    loop = captioner(blip, captions=3)
    ids_BNT = loop.generate(images, UIDS)
    embeds = blip[0].vision_model(pixel_values=pixels(images)).last_hidden_state
    embeds = embeds.repeat_interleave(3, 0)
    with torch.inference_mode():
        expected = blip[0].text_decoder(ids_BNT.flatten(0, 1), encoder_hidden_states=embeds).logits
        caches = loop._image_caches(images)
        start = len(loop.prompt)
        got = [loop._advance(ids_BNT[:, :1, :start], 0, caches).expand(-1, 3, -1)]
        for t in range(start, ids_BNT.shape[2]):
            got.append(loop._advance(ids_BNT[:, :, t : t + 1], t, caches))
    difference = torch.stack(got, 2).flatten(0, 1) - expected[:, start - 1 :]
    assert ids_BNT.shape[2] > start + 5
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("penalty", [1.0, 1.1, 1.6])
def test_greedy_ids_equal_generate(blip: tuple, images: torch.Tensor, penalty: float):
    loop = captioner(
        blip, captions=2, temperature=0, repetition_penalty=penalty, max_length=20, min_length=8
    )
    expected = blip[0].generate(
        pixels(images),
        input_ids=torch.tensor([[*loop.prompt, loop.end]]).repeat(6, 1),
        do_sample=False, max_length=20, min_length=8, repetition_penalty=penalty,
    )  # fmt: skip
    ids_BNT = loop.generate(images, UIDS)
    assert torch.equal(ids_BNT[:, 0], ids_BNT[:, 1])
    assert ids_BNT[:, 0].tolist() == expected.tolist()


def test_captions_do_not_depend_on_neighbours_order_or_padding(blip: tuple, images: torch.Tensor):
    loop = captioner(blip)
    together = loop(images, UIDS)
    assert len({text for row in together for text in row}) > 30
    alone = [loop(images[i : i + 1], UIDS[i : i + 1])[0] for i in range(6)]
    assert alone == together
    assert loop(images.flip(0), UIDS[::-1])[::-1] == together
    padded = loop(torch.cat([images, torch.zeros_like(images)]), UIDS + [""] * 6)
    assert padded == together + [[""] * 10] * 6


def test_seed_uid_and_index_each_change_the_draw(blip: tuple, images: torch.Tensor):
    base = captioner(blip)(images[:1], UIDS[:1])[0]
    assert captioner(blip)(images[:1], UIDS[:1])[0] == base
    assert captioner(blip, seed=1)(images[:1], UIDS[:1])[0] != base
    assert captioner(blip)(images[:1], UIDS[1:2])[0] != base
    assert captioner(blip, captions=4)(images[:1], UIDS[:1])[0] == base[:4]
    assert len(set(base)) > 3


def test_lengths_are_kept(blip: tuple, images: torch.Tensor):
    loop = captioner(blip, min_length=9, max_length=12)
    ids_BNT = loop.generate(images, UIDS)
    assert ids_BNT.shape[2] <= 12
    assert not (ids_BNT[:, :, len(loop.prompt) : 9] == loop.end).any()
    after_end = (ids_BNT == loop.end).cumsum(2) - (ids_BNT == loop.end).int() > 0
    assert (ids_BNT[after_end] == loop.pad).all()


def test_nucleus_by_hand():
    # p = .5 .3 .15 .05; top_p .9 keeps the first three (.95): cuts at .5/.95 and .8/.95 of u
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()

    def draw(u: float, top_p: float = 0.9) -> int:
        return int(nucleus(logits[None], torch.tensor([u], dtype=torch.float64), top_p)[0])

    assert [draw(u) for u in (0.0, 0.526, 0.527, 0.842, 0.843, 0.9999999)] == [1, 1, 3, 3, 0, 0]
    assert draw(0.9999999, top_p=0.5) == 1 and draw(0.9999999, top_p=0.51) == 3
    assert draw(0.9999999, top_p=1.0) == 2


def test_nucleus_breaks_ties_by_id_and_wide_ones_take_the_full_sort():
    flat = torch.zeros(1, 1000)
    for u in (0.0, 0.25, 0.4999):
        got = int(nucleus(flat, torch.tensor([u], dtype=torch.float64), 0.5)[0])
        assert abs(got - u * 500) <= 1
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 300, generator=generator) * 3
    u = torch.rand(400, dtype=torch.float64, generator=generator)
    sorted_RV, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass = sorted_RV.double().cumsum(-1)
    expected = []
    for row in range(400):
        last = int(((mass[row] - sorted_RV[row].double()) < 0.9).sum()) - 1
        index = min(int((mass[row] <= u[row] * mass[row, last]).sum()), last)
        expected.append(int(order[row, index]))
    assert nucleus(logits, u, 0.9).tolist() == expected


def test_uniforms_are_fixed_for_ever_and_look_uniform():
    first = uniforms(0, "a" * 32, 0, 4)
    assert torch.equal(uniforms(0, "a" * 32, 0, 9)[:4], first)
    expected = [0.35430581083214674, 0.7620041664635646]  # pins the definition
    assert first[:2].tolist() == pytest.approx(expected, abs=1e-15)
    many = torch.cat([uniforms(7, f"{i}", 3, 20) for i in range(500)])
    assert abs(float(many.mean()) - 0.5) < 0.01 and many.min() >= 0 and many.max() < 1


@pytest.mark.parametrize(
    "wrong",
    [{"captions": 0}, {"top_p": 0.0}, {"temperature": -1.0}, {"min_length": 40}, {"max_length": 4}],
)
def test_wrong_sampling_is_refused(blip: tuple, wrong: dict):
    with pytest.raises(ValueError):
        captioner(blip, **wrong)


def test_scores_are_clips_cosines_and_trimming_is_exact(clip: tuple, images: torch.Tensor):
    scorer = ClipScorer(*clip, MEAN, STD)
    texts = [["a red circle", "two", "a red circle"], [], ["a large blue star above " * 9]] + [
        ["two", f"{i}"] for i in range(3)
    ]
    scores = scorer(images, texts)
    assert [len(row) for row in scores] == [3, 0, 1, 2, 2, 2]
    assert scores[0][0] == scores[0][2] != scores[0][1]
    for index, row in enumerate(texts):
        for text, score in zip(row, scores[index], strict=True):
            full = clip[1](text, padding="max_length", max_length=77, truncation=True,
                           return_tensors="pt")  # fmt: skip
            with torch.inference_mode():
                t = clip[0].get_text_features(**full).pooler_output
                i = clip[0].get_image_features(pixels(images[index : index + 1])).pooler_output
            assert score == pytest.approx(float(cosine_similarity(i, t)), abs=1e-5)


def test_many_texts_come_back_in_order(clip: tuple):
    scorer = ClipScorer(*clip, MEAN, STD)
    texts = [f"{'star ' * (i % 7)}{i}" for i in range(300)]
    together = scorer.text_embeds(texts)
    for index in (0, 131, 299):
        assert torch.allclose(together[index], scorer.text_embeds([texts[index]])[0], atol=1e-6)
