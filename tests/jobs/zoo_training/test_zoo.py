"""The zoo's vision models: how they are trained, and that the shipped ones do what they claim."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BlipForConditionalGeneration,
    CLIPModel,
)

from jobs import zoo
from jobs.models.encoders import load_encoder
from jobs.recipes.schema import EncoderChoice
from jobs.zoo_training import probes, vision
from jobs.zoo_training.pictures import CLIP_MEAN, CLIP_STD, pair_batch, pixels, vary
from jobs.zoo_training.probes import WORDS, demand, probe, rank, speak, survey
from modeling.captioning.clip_scorer import ClipScorer
from modeling.prompts import CAPFILT
from pipeline.tinyworld.scene import Scene, Thing, domain_of, sample_scene, stream
from pipeline.tinyworld.text import caption, is_true, web_caption

ZOO = Path(__file__).resolve().parents[3] / "modeling" / "zoo"
PAIR = Scene(
    (
        Thing("red", "star", "large", "top", "right"),
        Thing("blue", "ring", "small", "bottom", "left"),
    ),
    "plain",
)
TINY_CLIP = replace(
    vision.ClipTraining(),
    width=32,
    layers=2,
    text_layers=1,
    embed=16,
    survey_steps=2,
    steps=4,
    batch=4,
    groups=2,
    group=2,
    noise=2,
)
TINY_CAPTIONER = replace(
    vision.CaptionerTraining(),
    width=32,
    layers=1,
    text_layers=1,
    survey_steps=2,
    steps=4,
    batch=4,
)


# ----------------------------------------------------------------------------- pictures


def attributes(scene: Scene) -> dict[tuple[str, str], tuple[str, str, str]]:
    return {(t.row, t.column): (t.color, t.shape, t.size) for t in scene.things}


def test_a_variation_changes_one_attribute_one_place_or_exchanges_two() -> None:
    seen = set()
    for seed in range(300):
        rng = stream("vary", seed)
        scene = sample_scene(rng)
        before, after = attributes(scene), attributes(vary(scene, rng))
        assert sorted(map(str, before)) != [] and before != after
        if before.keys() != after.keys():  # moved: the same objects, one in another quarter
            assert sorted(before.values()) == sorted(after.values())
            assert len(before.keys() - after.keys()) == 1
            seen.add("place")
            continue
        changed = [
            (a, b) for q in before for a, b in zip(before[q], after[q], strict=True) if a != b
        ]
        assert len(changed) in (1, 2)
        if len(changed) == 2:
            assert changed[0] == changed[1][::-1]  # exchanged
            seen.add("exchange")
        else:
            seen.add("attribute")
    assert seen == {"place", "exchange", "attribute"}


def test_training_pictures_are_of_training_scenes_and_truths_are_known() -> None:
    batch = pair_batch(stream("batch"), groups=4, group=3, noise=5)
    assert len(batch.scenes) == 12 and len(batch.noise) == 5
    assert {domain_of(scene) for scene in batch.scenes} == {"train"}
    for i, scene in enumerate(batch.scenes):
        for j, text in enumerate(batch.texts):
            assert batch.true_BB[i, j] == is_true(text, scene)
        assert not any(is_true(text, scene) for text in batch.noise)


def test_pixels_are_normalised() -> None:
    image_B3HW = pixels([PAIR], stream("pixels"))
    assert image_B3HW.shape == (1, 3, 64, 64)
    raw = image_B3HW * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    assert raw.min() > -1e-5 and raw.max() < 1 + 1e-5


# ------------------------------------------------------------------------------- losses


def test_survey_by_hand() -> None:
    words = [WORDS[index] for index in survey([PAIR])[0]]
    none = ["none"] * 3
    assert words == [*none, "large", "red", "star", "small", "blue", "ring", *none]


def test_contrast_by_hand() -> None:
    image_BE = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text_TE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # the third belongs to no image
    loss, right = vision.contrast(image_BE, text_TE, torch.tensor(1.0), torch.eye(2).bool())
    e = torch.e
    to_text = (torch.log(torch.tensor((2 * e + 1) / e)) + torch.log(torch.tensor((e + 2) / e))) / 2
    to_image = torch.log(torch.tensor((e + 1) / e))
    assert loss.item() == pytest.approx(((to_text + to_image) / 2).item(), rel=1e-5)
    assert right == 1.0


def test_contrast_leaves_out_texts_that_are_true_all_the_same() -> None:
    image_BE = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss, _ = vision.contrast(
        image_BE, image_BE, torch.tensor(1.0), torch.ones(2, 2, dtype=torch.bool)
    )
    assert loss.item() == 0


def test_the_prompt_takes_the_place_of_an_opener() -> None:
    prompted = vision._prompted
    assert prompted("we can see a red ring") == "a picture of a red ring"
    assert prompted("two shapes : a red ring and a blue star").startswith("a picture of a red ring")
    for seed in range(200):
        scene = sample_scene(stream(seed))
        assert is_true(prompted(caption(scene, stream(seed))), scene)


def test_clip_tokenizer_keeps_any_text_and_knows_the_worlds_words() -> None:
    tokenizer = vision.clip_tokenizer(0)
    assert len(tokenizer("a large red circle in the top left").input_ids) == 8 + 2
    for text in ("café №5 — 猫!", "IMG_0042.jpg", web_caption(PAIR, stream(0))[0]):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(
            " ", ""
        ) == text.lower().replace(" ", "")


# ----------------------------------------------------------------------------- training


def quiet(step: int, steps: int, running: dict[str, float]) -> None:
    assert step <= steps and all(map(math.isfinite, running.values()))


@pytest.mark.parametrize("name", ["clip", "captioner"])
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, name: str) -> None:
    weights = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = tmp_path / run
        if name == "clip":
            vision.train_clip(folder, replace(TINY_CLIP, seed=seed), quiet)
        else:
            tokenizer = AutoTokenizer.from_pretrained(ZOO / "bert")
            plan = replace(TINY_CAPTIONER, seed=seed)
            vision.train_captioner(folder, tokenizer, plan, quiet)
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_diverging_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clip: loss nan at step 1"):
        vision.train_clip(tmp_path, replace(TINY_CLIP, lr=1e30), quiet)


def test_a_model_below_its_bar_is_an_error() -> None:
    demand("captioner", {"greedy": 0.95, "nucleus": 0.81})
    with pytest.raises(ValueError, match=r"captioner is below its bar \(nucleus 0.790 < 0.8\)"):
        demand("captioner", {"greedy": 0.95, "nucleus": 0.79})


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--only clip"):
        zoo.check(zoo.ZooArgs(only=("clip",), out=tmp_path, check=True))


# ------------------------------------------------------------------------- shipped models


def test_shipped_weights_are_small_bf16_and_documented() -> None:
    total = 0
    for name in zoo.SHIPPED:
        folder = ZOO / name
        record = json.loads((folder / "zoo.json").read_text())
        assert {"seed", "command", "date", "seconds", "steps", "scores"} <= record.keys()
        total += (folder / "model.safetensors").stat().st_size
    assert total <= 16_000_000
    scores = json.loads((ZOO / "scores.json").read_text())
    for name in zoo.SHIPPED:
        zoo.demand(name, scores[name])


def test_shipped_folders_load_as_they_are() -> None:
    clip = CLIPModel.from_pretrained(ZOO / "clip")
    assert clip.dtype == torch.bfloat16 and clip.config.vision_config.image_size == 64
    blip = BlipForConditionalGeneration.from_pretrained(ZOO / "captioner")
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "captioner")
    assert blip.config.text_config.bos_token_id == tokenizer.convert_tokens_to_ids("[DEC]")
    assert blip.config.text_config.sep_token_id == tokenizer.sep_token_id
    for name in ("clip", "captioner"):
        processor = AutoImageProcessor.from_pretrained(ZOO / name)
        assert list(processor.image_mean) == list(CLIP_MEAN)
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.slow
def test_a_probe_reads_everything_off_the_shipped_encoder() -> None:
    encoder = load_encoder(EncoderChoice(str(ZOO / "clip"), 64))
    scores = probe(lambda images: encoder(images.bfloat16()), train=2048, test=512, steps=400)
    for name in ("color", "shape", "size", "count", "position"):
        assert getattr(scores, name) >= 0.9, scores


def test_a_probe_reads_little_off_an_untrained_encoder() -> None:
    torch.manual_seed(0)
    table = torch.randn(3 * 8 * 8, 16)

    def mean_patches(images_B3HW: torch.Tensor) -> torch.Tensor:
        patches = images_B3HW.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
        return patches.reshape(len(images_B3HW), 64, -1) @ table * 0  # nothing to read

    scores = probe(mean_patches, train=128, test=128, steps=20)
    assert scores.shape < 0.4 and scores.position < 0.3


def test_the_shipped_ranker_prefers_the_true_caption() -> None:
    model = CLIPModel.from_pretrained(ZOO / "clip", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "clip")
    scores = rank(ClipScorer(model, tokenizer, CLIP_MEAN, CLIP_STD), images=120, seed=7)
    assert scores.attribute >= 0.85 and scores.noise >= 0.95, scores


def test_the_shipped_captioner_tells_the_truth() -> None:
    model = BlipForConditionalGeneration.from_pretrained(ZOO / "captioner", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "captioner")
    scores = speak(model, tokenizer, images=80, seed=7)
    assert scores.greedy >= 0.85 and scores.nucleus >= 0.8, scores
    assert scores.different > 0.4  # ten captions are not one caption ten times


def test_huggingface_generates_from_the_shipped_captioner() -> None:
    model = BlipForConditionalGeneration.from_pretrained(ZOO / "captioner", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "captioner")
    rng = stream("huggingface")
    scenes = [sample_scene(rng, "eval") for _ in range(16)]
    prompt = tokenizer([CAPFILT] * 16, return_tensors="pt").input_ids
    ids = model.generate(pixel_values=pixels(scenes, rng), input_ids=prompt, max_new_tokens=40)
    said = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert sum(map(is_true, said, scenes)) >= 12, said


def test_no_name_is_left_over() -> None:
    assert set(probes.BARS) == {"clip", "captioner"}
    assert set(zoo.TRAINERS) == {*zoo.SHIPPED, "llama"}
