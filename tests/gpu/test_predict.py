"""Trained checkpoints on a GPU say and score what they do on the CPU."""

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import predict
from tests.gpu.needs import GPU, ON_GPU
from tests.jobs import tiny_checkpoints

pytestmark = ON_GPU


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_captions_and_answers_are_the_cpus_in_fp32(tmp_path, pictures, family):
    run = tiny_checkpoints.save_stage2(tmp_path, family)
    cpu = predict.load(run, "cpu", dtype="fp32")
    gpu = predict.load(run, str(GPU), dtype="fp32")
    assert gpu.caption(pictures) == cpu.caption(pictures)
    questions = ["what color is it"] * len(pictures)
    assert gpu.answer(pictures, questions) == cpu.answer(pictures, questions)
    candidates = ["red", "a red circle", "blue", "a red circle on the left"]
    for mine, theirs in zip(
        gpu.rank(pictures, questions, candidates),
        cpu.rank(pictures, questions, candidates),
        strict=True,
    ):
        assert mine.log_probs == pytest.approx(theirs.log_probs, rel=1e-3)
    assert all(predict.load(run, str(GPU)).caption(pictures))  # in bf16


def test_embeddings_and_matches_are_the_cpus_in_fp32(tmp_path, pictures):
    run = tiny_checkpoints.save_stage1(tmp_path)
    cpu = predict.load(run, "cpu", dtype="fp32")
    gpu = predict.load(run, str(GPU), dtype="fp32")
    texts = ["a red circle", "a blue star", "two squares", "a circle", "a star", "a dog"]
    for name, given in (
        ("image_embeds", (pictures,)),
        ("text_embeds", (texts,)),
        ("match", (pictures, texts)),
    ):
        mine, theirs = getattr(gpu, name)(*given), getattr(cpu, name)(*given)
        torch.testing.assert_close(mine.cpu(), theirs.cpu(), rtol=1e-3, atol=1e-4)
