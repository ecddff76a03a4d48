"""What --init reads: the trained weights of three formats, and nothing of the frozen models."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.interchange import read
from jobs.interchange.trained_weights import trained_weights
from tests.jobs import foreign
from tests.jobs.test_convert import run


@pytest.fixture(scope="module")
def itr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.save(tmp_path_factory.mktemp("init") / "itr", *foreign.retrieval_model())


def test_three_formats_give_the_same_weights(itr: Path, tmp_path: Path) -> None:
    native = run("hf", "native", itr, tmp_path / "native")
    lavis = run("hf", "lavis", itr, tmp_path / "itr.pth")
    expected = trained_weights(str(native), "stage1", 4)
    assert expected.where == native and expected.recipe["kind"] == "stage1"
    for path in (itr, lavis):
        found = trained_weights(str(path), "stage1", 4)
        assert found.where == path and not found.recipe
        assert found.weights.keys() == expected.weights.keys()
        for name, tensor in found.weights.items():
            assert torch.equal(tensor, expected.weights[name]), name


def test_a_frozen_model_that_lacks_a_weight_is_not_looked_at(itr: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(itr, tmp_path / "itr")
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.embeddings.class_embedding"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks embeddings\.class_embedding"):
        read("hf", folder)
    found = trained_weights(str(folder), "stage1", 4)
    assert torch.equal(found.weights["qformer.query_tokens"], weights["query_tokens"])
