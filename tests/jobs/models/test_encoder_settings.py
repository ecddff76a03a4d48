"""Size, pixels and features of encoders: read from their files, overridden, kept, refused."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from PIL import Image

from cluster import checkpoint
from jobs import recipes
from jobs.captioning.models import read_processor
from jobs.interchange.huggingface import read_huggingface, write_huggingface
from jobs.interchange.huggingface_folder import _image_processor
from jobs.interchange.lavis import write_lavis
from jobs.interchange.native import read_native, write_native
from jobs.models import image_processors
from jobs.models.encoder_settings import (
    describe,
    features_of,
    own_size,
    pixels_of,
    settled,
    with_older,
)
from jobs.predict import load, read_picture
from jobs.recipes.schema import EncoderChoice
from jobs.training.command import Given, parse
from jobs.training.plan import make_plan
from modeling.vision.features import PAPER, SECOND_LAST, FeatureConfig
from pipeline.capfilt.describe import ImageSpec
from pipeline.images import resize_square
from pipeline.pixels import CLIP_MEAN, CLIP_PIXELS, CLIP_STD, PixelConfig, fit_square, normalise
from pipeline.shards.reading import data_hash
from pipeline.transforms import TrainTransform, TransformConfig, eval_transform
from tests.jobs import foreign
from tests.jobs.families import dinov2, siglip
from tests.jobs.training.test_training import ENV, ROOT, SMALL
from tests.tiny_training import capfilt_output, tiny_clip

HALVES = (0.5, 0.5, 0.5)
RED = torch.tensor([255, 0, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return Path(siglip(tmp_path_factory.mktemp("siglip") / "model").choice.name)


def processor(**fields) -> dict:
    base = {"image_mean": HALVES, "image_std": HALVES, "size": {"height": 32, "width": 32}}
    return {**base, "resample": 3, **fields}


# ------------------------------------------------------------------------- their files


def test_normalisation_by_hand():
    """(255 / 255 - .5) / .5 = 1, (0 - .5) / .5 = -1, (51 / 255 - .5) / .5 = -0.6."""
    pixels = replace(CLIP_PIXELS, mean=HALVES, std=HALVES)
    shown = eval_transform(4, pixels)(RED)
    assert torch.allclose(shown[:, 0, 0], torch.tensor([1.0, -1.0, -0.6]), atol=1e-6)


CROP = {"do_center_crop": True, "crop_size": 32}
FORMS = [
    ({}, (32, "bicubic", "squash", 0)),
    ({"resample": 2}, (32, "bilinear", "squash", 0)),
    ({"size": 32}, (32, "bicubic", "squash", 0)),
    ({"size": 32, **CROP}, (32, "bicubic", "crop", 0)),
    ({"size": {"shortest_edge": 40}, **CROP}, (32, "bicubic", "crop", 40)),
    ({"size": {"height": 40, "width": 40}, **CROP}, (32, "bicubic", "squash", 40)),
    ({"size": None, "max_num_patches": 256, "patch_size": 16}, (256, "bicubic", "squash", 0)),
]


@pytest.mark.parametrize(("fields", "expected"), FORMS)
def test_every_form_of_hugging_faces_file(tmp_path, fields, expected):
    config = processor(**fields)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = image_processors.read_huggingface(tmp_path)
    size, *rest = expected
    pixels = PixelConfig(HALVES, HALVES, *rest, "torch")
    assert found == image_processors.ImageProcessor(size, pixels)


def test_the_file_of_newer_versions_and_those_that_are_of_something_else(tmp_path):
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({"num_query_tokens": 32, "processor_class": "Blip2Processor"}))
    assert image_processors.read_huggingface(tmp_path) is None
    path.write_text(json.dumps({"image_processor": processor(), "processor_class": "Blip2"}))
    found = image_processors.read_huggingface(tmp_path)
    assert found is not None and found.size == 32 and found.pixels.mean == HALVES


def test_a_file_that_scales_bytes_otherwise():
    """1/127.5 and a mean of 1 is the same as 1/255, mean .5 and deviation .5."""
    config = processor(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3)
    found = image_processors.of_huggingface(config, "here")
    assert found.pixels.mean == pytest.approx(HALVES)
    assert found.pixels.std == pytest.approx(HALVES)
    plain = image_processors.of_huggingface(processor(do_normalize=False), "here")
    assert (plain.pixels.mean, plain.pixels.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 32, "width": 48}}, "a square is needed"),
        ({"size": {"longest_edge": 32}}, "a square is needed"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"image_mean": None}, "must be three numbers"),
        ({"do_center_crop": True, "crop_size": 40}, "crop_size 40 is larger than size 32"),
    ],
)
def test_preparations_that_are_not_supported_are_told(fields, message):
    with pytest.raises(ValueError, match=message):
        image_processors.of_huggingface(processor(**fields), "here")


def test_timms_configurations():
    siglip_cfg = timm.get_pretrained_cfg("vit_so400m_patch14_siglip_384.webli").to_dict()
    found = image_processors.of_timm(siglip_cfg, "here")
    assert found.size == 384  # timm keeps 0.9 of the short side: floor(384 / 0.9) = 426
    assert found.pixels == PixelConfig(HALVES, HALVES, "bicubic", "crop", 426, "pillow")
    assert found.at(192).resize_to == 213
    padded = image_processors.of_timm({**siglip_cfg, "crop_mode": "border"}, "here")
    with pytest.raises(ValueError, match="here: its images are padded to a square"):
        padded.checked()
    with pytest.raises(ValueError, match=r"mean None"):
        image_processors.of_timm({**siglip_cfg, "mean": None}, "here")


# ------------------------------------------------------------------------- the choice


def test_the_papers_encoders_keep_the_references_pixels_and_features():
    for job in ("stage1", "stage2", "finetune_caption", "finetune_vqa"):
        for name in recipes.names(job):
            made = recipes.recipe(job, name)
            done = settled(made, fetch=False)
            if made.encoder.name.startswith("openai/"):
                assert done == made  # yet to be fetched
                continue
            assert (done.encoder.pixels, done.encoder.features) == (CLIP_PIXELS, PAPER), name
            assert done.run.transform == made.run.transform


def test_clip_without_a_file_has_clips_constants(tmp_path):
    choice = EncoderChoice(str(tiny_clip(tmp_path / "clip")), 64)
    assert pixels_of(choice) == CLIP_PIXELS and own_size(choice) == 64
    assert pixels_of(EncoderChoice("eva_vit_g.pth")) == CLIP_PIXELS
    timm_clip = pixels_of(EncoderChoice("timm:vit_large_patch14_clip_quickgelu_224.openai"))
    assert timm_clip == CLIP_PIXELS


def test_other_encoders_that_do_not_say_are_refused_and_can_be_given(siglip_folder, tmp_path):
    bare = tmp_path / "bare"
    hf.SiglipVisionModel.from_pretrained(siglip_folder).save_pretrained(bare)
    choice = EncoderChoice(str(bare), 48)
    for wrong in (choice, replace(choice, pixels=PixelConfig(mean=HALVES))):
        with pytest.raises(ValueError, match=r"--encoder\.pixels\.mean R G B and --encoder\.pix"):
            pixels_of(wrong)
    given = pixels_of(replace(choice, pixels=PixelConfig(HALVES, HALVES)))
    assert given == PixelConfig(HALVES, HALVES, "bicubic", "squash", 0, "torch")
    assert own_size(choice) == 48  # of the model's configuration


def test_a_filter_that_is_not_supported_is_refused_and_another_can_be_chosen(tmp_path):
    torch.manual_seed(0)
    choice = siglip(tmp_path / "model").choice
    file = Path(choice.name) / "preprocessor_config.json"
    file.write_text(json.dumps(processor(resample=0)))
    with pytest.raises(ValueError, match=r"neither bilinear.*--encoder\.pixels\.interpolation"):
        pixels_of(choice)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: the filter"):
        read_processor(Path(choice.name))
    chosen = replace(choice, pixels=PixelConfig(interpolation="bilinear"))
    assert pixels_of(chosen) == PixelConfig(HALVES, HALVES, "bilinear", "squash", 0, "torch")


def test_what_is_given_by_hand_stands(siglip_folder):
    mine = PixelConfig(mean=(0.1, 0.2, 0.3), interpolation="bilinear", geometry="crop")
    found = pixels_of(EncoderChoice(str(siglip_folder), 48, pixels=mine))
    assert found == PixelConfig((0.1, 0.2, 0.3), HALVES, "bilinear", "crop", 0, "torch")
    given = FeatureConfig(-1, "yes")
    choice = EncoderChoice(str(siglip_folder), 48, features=given)
    assert features_of(choice) == FeatureConfig(-1, "yes", "class")


def test_a_run_says_what_its_encoder_is_shown(siglip_folder):
    base = recipes.recipe("stage1", "tinyworld")
    base = replace(base, encoder=EncoderChoice(str(siglip_folder), 48))
    assert describe(settled(base).encoder) == (
        f"encoder {siglip_folder}: 48 px squash bicubic, mean (0.5, 0.5, 0.5), "
        "std (0.5, 0.5, 0.5); block -2, norm no, tokens class"
    )


def test_a_margin_keeps_its_share_at_another_size(tmp_path):
    """55 px for a centre of 48 become 110 for one of 96."""
    torch.manual_seed(0)
    choice = dinov2(tmp_path / "model").choice
    assert pixels_of(choice).resize_to == 55
    assert pixels_of(replace(choice, image_size=96)).resize_to == 110
    squashed = replace(choice, pixels=PixelConfig(geometry="squash"))
    assert pixels_of(squashed).resize_to == 0


def test_clip_cropped_as_clips_own_processor_does(tmp_path):
    own = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    image = torch.randint(0, 256, (3, 50, 83), dtype=torch.uint8)
    theirs = own(images=image, return_tensors="pt").pixel_values[0]
    ours = eval_transform(32, replace(CLIP_PIXELS, geometry="crop"))(image)
    assert (ours - theirs).abs().max() < 1e-6


def test_mistakes_are_told():
    for wrong, message in (
        ({"mean": (0.5,)}, r"encoder\.pixels\.mean = \(0\.5,\): give three"),
        ({"std": (0.5, 0.0, 0.5)}, "three positive numbers"),
        ({"resize_to": -1}, "0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            PixelConfig(**wrong)
    with pytest.raises(ValueError, match=r"resize_to = 20 is below encoder\.image_size = 32"):
        fit_square(RED, 32, replace(CLIP_PIXELS, resize_to=20))


def test_a_very_long_image_costs_no_more_than_another():
    """The centre is taken before the resize: 40 x 400,000 would make 768 x 7,680,000."""
    pixels = PixelConfig(HALVES, HALVES, "bicubic", "crop", 768, "torch")
    thin = torch.zeros(3, 40, 400_000, dtype=torch.uint8)
    thin[:, :, 200_000 - 20 : 200_000 + 20] = 200
    square = fit_square(thin, 700, pixels)
    assert square.shape == (3, 700, 700) and (square == 200).all()


# --------------------------------------------------------------- training and CapFilt


def test_training_resizes_with_the_encoders_filter():
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    made = {}
    for mode in ("bicubic", "bilinear"):
        for whole in (True, False):
            area = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)} if whole else {}
            config = TransformConfig(size=16, flip=0.0, interpolation=mode, **area)
            made[mode, whole] = TrainTransform(config)(image, torch.Generator().manual_seed(0))
    bilinear = torch.nn.functional.interpolate(
        image[None], (16, 16), mode="bilinear", antialias=True
    )[0]
    assert torch.equal(made["bilinear", True], bilinear)
    assert torch.equal(made["bicubic", True], resize_square(image, 16))
    assert not torch.equal(made["bilinear", False], made["bicubic", False])


def test_capfilts_models_get_their_own_filter_and_margin(tmp_path):
    own = hf.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=2,
        image_mean=HALVES, image_std=HALVES,
    )  # fmt: skip
    own.save_pretrained(tmp_path)
    found = read_processor(tmp_path)
    assert found.spec == ImageSpec(32, True, "bilinear", 40)
    image = torch.randint(0, 256, (3, 64, 90), dtype=torch.uint8)
    square = found.spec.square(image)
    assert square.dtype == torch.uint8
    pixels = PixelConfig(found.mean, found.std)
    theirs = own(images=image, return_tensors="pt").pixel_values[0]
    assert (normalise(square, pixels) - theirs).abs().max() < 1e-6
    assert torch.equal(ImageSpec(16, True).square(image), resize_square(image, 16, crop=True))


# ------------------------------------------------------------------ command, files, runs


def test_another_encoder_is_shown_its_own_size(siglip_folder):
    base = ["--recipe", "tinyworld", "--data", "d", "--out", "o"]
    named = [*base, "--encoder.name", str(siglip_folder)]
    assert parse("stage1", named).config.encoder.image_size == 0  # settled by `fit`
    given = parse("stage1", [*named, "--encoder.image-size", "64"]).config
    assert (given.encoder.image_size, given.run.transform.size) == (64, 64)
    assert parse("stage1", base).config.encoder.image_size == 64


def test_older_checkpoints_had_clips_pixels_and_the_papers_features(siglip_folder):
    old = asdict(EncoderChoice(str(siglip_folder), 48))
    del old["pixels"], old["features"]
    then = with_older({"kind": "stage1", "encoder": old})["encoder"]
    assert (then["pixels"]["mean"], then["pixels"]["geometry"]) == (CLIP_MEAN, "squash")
    assert then["features"] == {"layer": -2, "norm": "no", "tokens": "all"}
    recipe = replace(
        recipes.recipe("stage1", "tinyworld"), encoder=EncoderChoice(str(siglip_folder), 48)
    )
    now, before = settled(recipe).encoder, settled(recipe, {"encoder": old}).encoder
    assert (now.pixels.mean, now.features) == (HALVES, SECOND_LAST)
    assert (before.pixels, before.features) == (CLIP_PIXELS, PAPER)
    asked = replace(recipe, encoder=replace(recipe.encoder, pixels=PixelConfig(std=(1.0,) * 3)))
    mixed = settled(asked, {"encoder": old}).encoder.pixels
    assert (mixed.mean, mixed.std) == (CLIP_MEAN, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("geometry", ["squash", "crop"])
@pytest.mark.parametrize("resize_to", [0, 40])
def test_an_exported_processor_makes_the_same_pixels_and_is_read_back(
    tmp_path, geometry, resize_to
):
    pixels = PixelConfig(HALVES, CLIP_STD, "bilinear", geometry, resize_to, "torch")
    exported = _image_processor(EncoderChoice("timm:any", 32, pixels=pixels))
    exported.save_pretrained(tmp_path)
    found = image_processors.read_huggingface(tmp_path)
    assert found == image_processors.ImageProcessor(32, pixels)
    image = torch.randint(0, 256, (3, 64, 51), dtype=torch.uint8)
    theirs = exported(images=image, return_tensors="pt").pixel_values[0]
    assert (eval_transform(32, pixels)(image) - theirs).abs().max() < 1e-6


def test_a_resumed_run_and_one_with_init_keep_what_their_checkpoint_had(siglip_folder, tmp_path):
    data, out = str(capfilt_output(tmp_path / "data", shards=1, samples=20)), tmp_path / "run"
    base = recipes.recipe("stage1", "tinyworld")
    choice = EncoderChoice(str(siglip_folder), 48)
    base = replace(base, encoder=choice, run=replace(base.run, global_batch=8))
    fresh = make_plan(Given(base, "", data, str(tmp_path / "other")))
    assert fresh.recipe.encoder.pixels.mean == HALVES
    written = json.loads(json.dumps(asdict(fresh.recipe)))
    del written["encoder"]["pixels"], written["encoder"]["features"]  # as an older version had it
    folder = out / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    state = {"step": 1, "manifest": data_hash(fresh.sources), "updates": 1}
    checkpoint.fill(folder, {checkpoint.TRAINABLE: {"w": torch.ones(1)}}, written, state)
    resumed = make_plan(Given(base, "", data, str(out)))
    assert resumed.done == 1 and resumed.recipe.encoder.pixels == CLIP_PIXELS
    assert resumed.recipe.encoder.features == PAPER
    after = make_plan(Given(base, "", data, str(tmp_path / "next"), init=str(out)))
    assert after.done == 0 and after.recipe.encoder.pixels == CLIP_PIXELS
    changed = replace(base, encoder=replace(choice, features=FeatureConfig(-1)))
    with pytest.raises(ValueError, match=r"encoder\.features\.layer = -2, this run has -1"):
        make_plan(Given(changed, "", data, str(out)))


def test_a_blip2_of_other_constants_is_read_predicts_and_is_written_with_them(tmp_path):
    """Somebody's Hugging Face folder, normalised with halves; there, natively, and back."""
    model, processor = foreign.retrieval_model()
    processor.image_processor.image_mean = processor.image_processor.image_std = list(HALVES)
    folder = foreign.save(tmp_path / "theirs", model, processor)
    parts = read_huggingface(folder)
    assert parts.recipe.encoder.pixels.mean == parts.recipe.encoder.pixels.std == HALVES
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    theirs = processor(images=image, return_tensors="pt").pixel_values[0]
    ours = load(folder)._transform(read_picture(image))
    assert (ours - theirs).abs().max() < 1e-6
    write_native(parts, tmp_path / "native")
    native = read_native(tmp_path / "native")
    assert native.recipe.encoder.pixels == parts.recipe.encoder.pixels
    write_huggingface(replace(native, huggingface=None), tmp_path / "back")
    again = image_processors.read_huggingface(tmp_path / "back")
    assert again is not None and again.pixels == parts.recipe.encoder.pixels
    (note,) = [n for n in write_lavis(native, tmp_path / "a.pth") if "mean" in n]
    assert "CLIP's constants; this model needs mean (0.5, 0.5, 0.5)" in note


@pytest.mark.slow
def test_a_run_keeps_its_pixels_and_an_old_one_goes_on_with_clips(siglip_folder, tmp_path):
    data, out = capfilt_output(tmp_path / "data", shards=1, samples=20), tmp_path / "run"
    command = [
        *(sys.executable, "jobs/stage1.py", "--recipe", "tinyworld", "--data", str(data)),
        *("--encoder.name", str(siglip_folder), "--out", str(out), *SMALL),
    ]

    def train(steps: int) -> dict:
        done = subprocess.run(
            [*command, "--steps", str(steps)], cwd=ROOT, env=ENV, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return checkpoint.find(out).recipe["encoder"]

    new = train(1)
    assert new["image_size"] == 48
    assert new["pixels"]["mean"] == list(HALVES) and new["pixels"]["geometry"] == "squash"
    assert new["features"] == {"layer": -2, "norm": "no", "tokens": "class"}
    image = Image.new("RGB", (30, 20), (255, 0, 51))
    model = load(out, dtype="fp32")
    shown = model._transform(
        torch.tensor([255, 0, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    )
    assert torch.allclose(shown[:, 0, 0], torch.tensor([1.0, -1.0, -0.6]), atol=1e-6)
    assert model.image_embeds([image]).isfinite().all()
    recipe = checkpoint.find(out).folder / "recipe.json"
    written = json.loads(recipe.read_text())
    del written["encoder"]["pixels"], written["encoder"]["features"]
    del written["run"]["transform"]["interpolation"]
    recipe.write_text(json.dumps(written))
    assert load(out).trained.recipe.encoder.pixels == CLIP_PIXELS
    old = train(2)
    assert old["pixels"]["mean"] == list(CLIP_MEAN) and old["features"]["tokens"] == "all"
