import dataclasses
import json

import pytest
import torch

from jobs import recipes
from modeling.blip2 import Stage1, Stage2


@pytest.mark.parametrize("kind", ["stage1", "stage2"])
def test_every_recipe_survives_json_and_builds(kind):
    for name in recipes.names(kind):
        made = recipes.recipe(kind, name)
        assert (made.kind, made.name) == (kind, name)
        assert made.run.optim.total_steps == made.run.steps
        data = json.loads(json.dumps(dataclasses.asdict(made)))
        assert recipes.from_dict(type(made), data) == made
        with torch.device("meta"):
            (Stage1 if kind == "stage1" else Stage2)(made.model)


@pytest.mark.parametrize(
    ("kind", "name", "parameters"),
    [
        ("stage1", "vit-g", 186_705_470),
        ("stage2", "vit-g-opt-2.7b", 107_133_696),
        ("stage2", "vit-g-opt-6.7b", 108_314_880),
        ("stage2", "vit-g-flant5-xl", 106_739_968),
        ("stage2", "vit-g-flant5-xxl", 108_314_880),
    ],
)
def test_the_papers_parameter_counts(kind, name, parameters):
    with torch.device("meta"):
        module = (Stage1 if kind == "stage1" else Stage2)(recipes.recipe(kind, name).model)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_the_papers_batches():
    batches = {
        name: recipes.recipe(kind, name).run.global_batch
        for kind in ("stage1", "stage2")
        for name in recipes.names(kind)
        if name.startswith("vit")
    }
    assert batches.pop("vit-g") == 1680 and batches.pop("vit-l") == 2320
    assert {v for k, v in batches.items() if "opt" in k} == {1920}
    assert {v for k, v in batches.items() if "t5" in k} == {1520}


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(ValueError, match=r"no stage2 recipe of that name; choose one of tinyworld"):
        recipes.recipe("stage2", "vit-g")
    with pytest.raises(ValueError, match="unknown field surprise"):
        recipes.from_dict(type(recipes.recipe("stage1", "vit-g")), {"surprise": 1})
