"""The Python door: images in every form, drawn texts, features of images, texts and pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.predict import (
    SampledSettings,
    WrongStage,
    load_embedder,
    load_writer,
    pool,
    read_picture,
)

DRAWN = SampledSettings(max_new_tokens=6, keys=("a", "b", "c"))


@pytest.fixture
def pictures(benchmark_data: Path) -> list[Path]:
    return sorted((benchmark_data / "images" / "test").iterdir())[:3]


def test_an_array_is_the_image_that_it_holds(pictures: list[Path]) -> None:
    array = np.asarray(Image.open(pictures[0]).convert("RGB"))
    assert torch.equal(read_picture(array), read_picture(pictures[0]))
    grey = read_picture(array[..., 0])
    assert torch.equal(grey[1], torch.from_numpy(array[..., 0].copy()))
    for wrong in (array.astype(np.float32), array[None], array[..., :2], array[:0]):
        with pytest.raises(ValueError, match="give uint8 of shape"):
            read_picture(wrong)


def test_drawn_texts_do_not_depend_on_batches(stage2_run: Path, pictures: list[Path]) -> None:
    three = [load_writer(stage2_run, "cpu", dtype="fp32", batch_size=n) for n in (1, 3)]
    texts = [model.generate(pictures, ["", "", ""], DRAWN) for model in three]
    assert texts[0] == texts[1]
    again = three[0].generate(pictures[1:2], [""], DRAWN.of_rows([1]))
    assert again == texts[0][1:2]
    twice = three[0].generate([pictures[0]] * 3, ["", "", ""], DRAWN)
    assert len(set(twice)) > 1  # one image, three keys


def test_features_of_images_and_texts(stage1_run: Path, pictures: list[Path]) -> None:
    model = load_embedder(stage1_run, "cpu", dtype="fp32", batch_size=2)
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in pictures]
    features = model.embed_images(arrays)
    queries, tokens = features
    assert torch.equal(queries, model.image_embeds(pictures))
    assert torch.equal(features.pooled, pool(queries))
    assert torch.allclose(features.pooled.norm(dim=-1), torch.ones(3))
    texts = ["a red star", "a blue circle", "nothing"]
    assert torch.equal(model.embed_texts(texts), model.text_embeds(texts))
    cosines = torch.einsum("rqe,re->rq", queries, model.text_embeds(texts)).amax(1)
    assert torch.equal(model.similarity(pictures, texts), cosines)
    assert len(tokens) == 3


def test_joint_features_are_what_itm_reads(stage1_run: Path, pictures: list[Path]) -> None:
    model = load_embedder(stage1_run, "cpu", dtype="fp32", batch_size=2)
    texts = ["a red star", "a blue circle", "a red star"]
    joint = model.joint_embeds(pictures, texts)
    with torch.inference_mode():
        logits = model.trained.module.itm_head(joint).mean(1)
    score = logits[:, 1] - logits[:, 0]
    assert torch.allclose(score, model.match(pictures, texts), atol=1e-5)


def test_the_wrong_stage_is_refused(stage1_run: Path, t5_run: Path) -> None:
    with pytest.raises(WrongStage, match="no language model"):
        load_writer(stage1_run, "cpu")
    with pytest.raises(WrongStage, match="no text encoder"):
        load_embedder(t5_run, "cpu")
