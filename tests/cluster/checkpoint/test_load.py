import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from cluster import checkpoint
from tests.run_ranks import run_ranks

ROOT = Path(__file__).parents[3]


def phase(label: str, resume: bool = False, last: int = 8, save_at: int = 0) -> dict:
    return {"label": label, "resume": resume, "last": last, "save_at": save_at}


def run(out, world, stage, phases, *, precision="bf16", dropout=0.1) -> dict[str, dict[int, float]]:
    """Run the worker on ``world`` ranks; rank 0's exact losses by phase and step."""
    plan = {"out": str(out), "stage": stage, "precision": precision, "dropout": dropout}
    plan["phases"] = phases
    text = run_ranks("tests.cluster.ranks.zero_worker", world, json.dumps(plan))
    lines = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("loss ")]
    found: dict[str, dict[int, float]] = {}
    for label, step, value in lines:
        found.setdefault(label, {})[step] = float.fromhex(value)
    return found


@pytest.mark.parametrize(
    ("stage", "world", "precision"),
    [(0, 1, "bf16"), (1, 2, "bf16"), (2, 2, "bf16"), (2, 1, "fp32")],
)
def test_resume_is_exact(tmp_path, stage, world, precision):
    phases = [phase("undisturbed", save_at=5), phase("resumed", resume=True)]
    found = run(tmp_path, world, stage, phases, precision=precision)
    assert list(found["resumed"]) == [5, 6, 7]
    assert found["resumed"] == {step: found["undisturbed"][step] for step in (5, 6, 7)}
    assert len(set(found["undisturbed"].values())) == 8


def test_another_world_size_and_stage(tmp_path):
    """Saved by two ranks at stage 3: exact there, and the same run on one rank at stage 2."""
    phases = [phase("undisturbed", save_at=5), phase("resumed", resume=True)]
    two = run(tmp_path, 2, 3, phases, dropout=0.0)
    assert two["resumed"] == {step: two["undisturbed"][step] for step in (5, 6, 7)}
    one = run(tmp_path, 1, 2, [phase("resumed", resume=True)], dropout=0.0)
    for step, loss in one["resumed"].items():
        assert loss == pytest.approx(two["undisturbed"][step], rel=1e-3)


def test_masters_start_from_fp32(tmp_path):
    """After one step, the masters come from the fp32 initial weights, not from bf16 copies."""
    run(tmp_path, 1, 2, [phase("first", last=1, save_at=1)])
    saved = checkpoint.find(tmp_path).trainable()["inner.weight"]
    torch.manual_seed(5)
    start = torch.nn.Linear(7, 33).weight
    # Adam's first step moves a weight by the learning rate, unless its gradient is next to zero;
    # a bf16 copy would be up to 7e-4 off before it.
    moved = (saved - start * (1 - 1e-2 * 0.05)).detach().abs()
    updated = moved > 5e-3
    assert updated.float().mean() > 0.5
    assert ((moved[updated] - 1e-2).abs() < 1e-5).float().mean() > 0.9


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with checkpoints of steps 2 and 3."""
    out = tmp_path_factory.mktemp("saved")
    phases = [phase("a", last=2, save_at=2), phase("b", resume=True, last=3, save_at=3)]
    run(out, 1, 2, phases)
    return out


def test_holds_trainable_state_only_and_no_pickle(saved):
    folder = checkpoint.find(saved).folder
    assert folder.name == "step_00000003"
    names = {"trainable.safetensors", "optimizer.safetensors", "recipe.json", "state.json"}
    assert {path.name for path in folder.iterdir()} == names
    parameters = 7 * 33 + 33 + 33 * 5 + 5 + 1
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert parameters * 12 <= size < parameters * 12 + 4096


def test_partial_folders_never_count(saved, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(saved, out)
    (out / "checkpoints" / ".step_00000009.partial").mkdir()
    assert checkpoint.find(out).step == 3


def test_falls_back_when_the_newest_was_removed(saved, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(saved, out)
    shutil.rmtree(out / "checkpoints" / "step_00000003")
    assert checkpoint.find(out).step == 2


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors"])
def test_cut_short(saved, tmp_path, name):
    out = tmp_path / "copy"
    shutil.copytree(saved, out)
    found = checkpoint.find(out)
    data = (found.folder / name).read_bytes()
    (found.folder / name).write_bytes(data[:-7])
    with pytest.raises(ValueError, match=rf"{name} has .* bytes instead of .*falls back"):
        found.verify()
    (found.folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="another sha256"):
        found.verify()


def test_of_another_recipe(saved):
    found = checkpoint.find(saved)
    other = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="belongs to another recipe"):
        checkpoint.load_weights(other, found.trainable(), "checkpoint X")
    shapes = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"weight has shape \(3, 4\)"):
        checkpoint.load_weights(other, shapes, "checkpoint X")


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint there"):
        checkpoint.find(tmp_path / "nowhere")


DAMAGES = {
    "cut": ("optimizer.safetensors", lambda data: data[:-100], "bytes instead of"),
    "changed": ("trainable.safetensors", lambda data: data[:-1] + b"x", "another sha256"),
    "missing": ("trainable.safetensors", None, "has 0 bytes"),
    "no record": ("state.json", None, "cannot be read"),
    "half a record": ("state.json", lambda data: data[:-9], "cannot be read"),
    "no recipe": ("recipe.json", None, "cannot be read"),
}


def damage(folder: Path, kind: str) -> str:
    name, change, what = DAMAGES[kind]
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if change is not None:
        (folder / name).write_bytes(change(data))
    return f"{name} .*{what}"


@pytest.mark.parametrize("kind", DAMAGES)
def test_resume_falls_back_to_the_newest_good_one(saved, tmp_path, kind):
    out = tmp_path / "copy"
    shutil.copytree(saved, out)
    folder = out / "checkpoints" / "step_00000003"
    expected = damage(folder, kind)
    store = checkpoint.open_store(str(out))
    found, damaged = checkpoint.resume(store)
    assert found.step == 2 and list(damaged) == ["step_00000003"]
    (line,) = checkpoint.set_aside(store, damaged, found)
    assert re.search(expected, line) and "falling back to" in line
    assert line.endswith("step_00000002") and "\n" not in line
    assert not folder.exists() and folder.with_name("step_00000003.damaged").is_dir()
    assert checkpoint.resume(store)[1] == {} and checkpoint.find(out).step == 2


def test_none_good_is_refused(saved, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(saved, out)
    for step in (2, 3):
        damage(out / "checkpoints" / f"step_0000000{step}", "cut")
    with pytest.raises(ValueError, match=r"none of its 2 checkpoints is good .*start again"):
        checkpoint.resume(checkpoint.open_store(str(out)))
    assert checkpoint.resume(checkpoint.open_store(str(tmp_path / "new"))) == (None, {})
