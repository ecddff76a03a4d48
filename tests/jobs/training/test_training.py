"""Both training jobs as a person runs them: by command line, killed, resumed, and misused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cluster import checkpoint
from cluster.logfiles import records_so_far
from cluster.runlog import LOG
from jobs.models import trained as models
from tests.run_ranks import free_port
from tests.tiny_training import capfilt_output, tiny_clip, tiny_opt, tiny_t5

ROOT = Path(__file__).parents[3]
TIMES = ("images_per_s", "data_wait", "memory_gb", "eta_s")
SMALL = [
    *("--model.qformer.width", "32", "--model.qformer.layers", "2", "--model.qformer.heads", "2"),
    *("--model.qformer.ffn", "32", "--model.qformer.queries", "4", "--global-batch", "8"),
    *("--log-every", "1", "--save-every", "4"),
]
ENV = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of data and frozen models."""
    folder = tmp_path_factory.mktemp("world")
    tiny_clip(folder / "clip")
    tiny_t5(folder / "t5")
    tiny_opt(folder / "opt")
    capfilt_output(folder / "data", shards=2, samples=20, bad=(5,))
    return folder


def command(world: Path, stage: str, out: Path, steps: int, *more: str) -> list[str]:
    recipe = {"stage1": "tinyworld", "stage2": "tinyworld-t5"}[stage]
    language = ["--language.name", str(world / "t5")] if stage == "stage2" else []
    return [
        *(f"jobs/{stage}.py", "--recipe", recipe, "--data", str(world / "data")),
        *("--encoder.name", str(world / "clip"), "--out", str(out), "--steps", str(steps)),
        *(*SMALL, *language, *more),
    ]


def run(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=900, check=False
    )


def python(arguments: list[str]) -> subprocess.CompletedProcess:
    return run([sys.executable, *arguments])


def launcher(arguments: list[str], ranks: int) -> list[str]:
    """The real launcher's command for ``ranks`` gloo ranks, on a free port."""
    deepspeed = shutil.which("deepspeed", path=Path(sys.executable).parent) or "deepspeed"
    options = ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [sys.executable, deepspeed, *options, *arguments]


def curve(out: Path) -> list[dict]:
    """The records of a run without what a clock measured."""
    return [
        {k: v for k, v in record.items() if k not in TIMES} for record in records_so_far(out / LOG)
    ]


def kill_at(arguments: list[str], out: Path, step: int) -> None:
    """Start a run, and SIGKILL it with all its ranks once it has logged ``step`` and published its
    last save before that, which is written while the next steps are made.
    """
    saved, before = step // 4 * 4, step_saved(out)
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for_step(out, step, process)
    while step_saved(out) < max(saved, before):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def step_saved(out: Path) -> int:
    """The step of a run's latest checkpoint, 0 without one."""
    pointer = out / "checkpoints" / "latest"
    return int(pointer.read_text().strip().removeprefix("step_")) if pointer.is_file() else 0


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until a run has logged ``step``."""
    limit = time.monotonic() + 900
    while not any(record["step"] >= step for record in records_so_far(out / LOG)):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """A stage-1 run of 12 steps that nothing interrupted."""
    out = tmp_path_factory.mktemp("undisturbed")
    done = python(command(world, "stage1", out, 12))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_stage1_learns_logs_and_saves(undisturbed):
    out, said = undisturbed
    records = records_so_far(out / LOG)
    assert [record["step"] for record in records] == list(range(1, 13))
    for record in records:
        assert record["loss"] == pytest.approx(sum(record[k] for k in ("itc", "itm", "itg")))
        assert record["grad_norm"] > 0 and record["images_per_s"] > 0
    assert records[-1]["loss"] < records[0]["loss"]
    assert "global batch 8 = 1 ranks x 8 x 1" in said
    assert "replaced an unreadable sample" in said
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["latest", "step_00000008", "step_00000012"]
    found = checkpoint.find(out)
    assert found.recipe["kind"] == "stage1" and found.state["step"] == 12
    weights = found.trainable()
    assert not any("encoder" in name or "vit" in name for name in weights)  # nothing frozen
    whole = sum(file["bytes"] for file in found.state["files"].values())
    assert whole < 1.2 * 12 * sum(tensor.numel() for tensor in weights.values())


def test_killed_and_resumed_equals_undisturbed(world, undisturbed, tmp_path):
    arguments = command(world, "stage1", tmp_path, 12)
    kill_at([sys.executable, *arguments], tmp_path, step=6)
    assert checkpoint.find(tmp_path).step == 4
    done = python(arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout and "step_00000004 at step 4" in done.stdout
    assert curve(tmp_path) == curve(undisturbed[0])
    again = python(arguments)
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_sigterm_saves_at_the_step_it_meets_and_resumes(world, undisturbed, tmp_path):
    """Preemption: exit code 0 and a checkpoint where none was due; nothing is made twice."""
    arguments = command(world, "stage1", tmp_path, 12, "--save-every", "12")
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True
    )
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    stopped = checkpoint.find(tmp_path).step
    assert process.returncode == 0 and 3 <= stopped < 12
    assert f"stopped by a signal at step {stopped}; the same command resumes" in said
    assert len(records_so_far(tmp_path / LOG)) == stopped
    assert python(arguments).returncode == 0
    assert curve(tmp_path) == curve(undisturbed[0])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_micro_batches_change_nothing(world, tmp_path, stage):
    """Without dropout, four micro-batches learn what the whole batch does: negatives of ITC and
    ITM span the step, tokens weigh alike, and a step is one update.
    """
    plain = ["--model.qformer.dropout", "0", "--zero.precision", "fp32"]
    for name, more in (("whole", []), ("cut", ["--micro-batch", "2"])):
        done = python(command(world, stage, tmp_path / name, 4, *plain, *more))
        assert done.returncode == 0, done.stderr
    assert "8 = 1 ranks x 2 x 4 accumulated" in done.stdout
    for whole, cut in zip(curve(tmp_path / "whole"), curve(tmp_path / "cut"), strict=True):
        assert cut == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_validation_profile_and_boards(world, tmp_path):
    """What may be switched on, in one run: none of it changes what is learned."""
    plain, seen = tmp_path / "plain", tmp_path / "seen"
    assert python(command(world, "stage1", plain, 6)).returncode == 0
    more = ["--validate", str(world / "data"), "--validate-every", "3", "--validate-batches", "2"]
    more += ["--profile-at", "2", "--tensorboard"]
    done = python(command(world, "stage1", seen, 6, *more))
    assert done.returncode == 0, done.stderr
    assert curve(seen) == curve(plain)
    measured = [json.loads(line) for line in (seen / "validation.jsonl").read_text().splitlines()]
    assert [record["step"] for record in measured] == [3, 6]
    for record in measured:
        parts = sum(record[f"val_{name}"] for name in ("itc", "itm", "itg"))
        assert record["val_loss"] == pytest.approx(parts, rel=1e-5)
    trace = json.loads((seen / "profile" / "rank_0000.json").read_text())
    assert any("addmm" in event.get("name", "") for event in trace["traceEvents"])
    assert "profile of steps 2 to 4" in done.stdout
    assert list((seen / "tensorboard").glob("events.*"))


def test_bad_steps_are_skipped_told_and_limited(world, tmp_path):
    """A learning rate that breaks everything: every step after is skipped, with its samples."""
    more = ["--guard.spike", "1.05", "--guard.warmup", "1", "--guard.limit", "2"]
    done = python(command(world, "stage1", tmp_path, 12, "--optim.lr", "0.5", *more))
    assert done.returncode == 2, done.stdout
    assert "steps were skipped by step" in done.stderr and "guard.limit = 2" in done.stderr
    assert done.stderr.count("error: ") == 1


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_every_zero_stage_learns_the_same(world, tmp_path, stage):
    """On two ranks, all in fp32 (bf16 kernels may round by where a tensor lies); of ZeRO-3
    also what is read of a weight outside the module it belongs to (image projections, tied head).
    """
    exact, curves = ["--encoder.dtype", "fp32"], []
    exact += ["--language.dtype", "fp32"] if stage == "stage2" else []
    for zero in ("0", "2", "3"):
        more = ["--zero-stage", zero, "--zero.precision", "fp32", *exact]
        done = run(launcher(command(world, stage, tmp_path / zero, 3, *more), 2))
        assert done.returncode == 0, done.stderr
        curves.append(curve(tmp_path / zero))
    for others in curves[1:]:
        for one, other in zip(curves[0], others, strict=True):
            assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_two_ranks_killed_and_resumed(world, undisturbed, tmp_path):
    """Through the real launcher; then 2 ranks to 1: the same samples, nearly the same losses."""
    whole, killed, fewer = tmp_path / "whole", tmp_path / "killed", tmp_path / "fewer"
    done = run(launcher(command(world, "stage1", whole, 12), 2))
    assert done.returncode == 0, done.stderr
    kill_at(launcher(command(world, "stage1", killed, 12), 2), killed, step=6)
    shutil.copytree(killed, fewer)
    again = run(launcher(command(world, "stage1", killed, 12), 2))
    assert again.returncode == 0, again.stderr
    assert curve(killed) == curve(whole)
    assert python(command(world, "stage1", fewer, 12)).returncode == 0
    for one, two in zip(curve(fewer)[4:], curve(whole)[4:], strict=True):
        assert one["step"] == two["step"]  # dropout and ITM draw per rank: close, not equal
        assert one["itc"] == pytest.approx(two["itc"], rel=0.05)


@pytest.mark.parametrize("language", ["t5", "opt"])
def test_stage2_starts_from_stage1(world, undisturbed, tmp_path, language):
    more = ["--init", str(undisturbed[0]), "--recipe", f"tinyworld-{language}"]
    more += ["--language.name", str(world / language)]
    done = python(command(world, "stage2", tmp_path, 4, *more))
    assert done.returncode == 0, done.stderr
    assert "starting from" in done.stdout and "step_00000012" in done.stdout
    assert len(records_so_far(tmp_path / LOG)) == 4
    trained = models.load_trained(tmp_path)
    assert trained.step == 4 and trained.recipe.name == f"tinyworld-{language}"
    with torch.no_grad():
        tokens = trained.encoder(torch.zeros(2, 3, 64, 64)).float()
        assert trained.module(tokens).shape == (2, 4, 24)
    other = python(command(world, "stage1", tmp_path, 4))
    assert other.returncode == 2
    assert other.stderr.startswith("error: --out") and "kind 'stage2'" in other.stderr


def mistake(capsys, main, arguments: list[str]) -> str:
    """Run a job in this process; its one error line."""
    from jobs import cli

    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: main(arguments))
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_mistakes_end_with_one_line(world, undisturbed, tmp_path, capsys):
    from jobs import recipes, stage1, stage2

    out = undisturbed[0]
    good = command(world, "stage1", tmp_path / "out", 12)[1:]
    assert "no stage1 recipe" in mistake(capsys, stage1.main, ["--recipe", "vit-x"])
    assert "none given" in mistake(capsys, stage1.main, ["--data", "x"])
    assert "no such folder" in mistake(capsys, stage1.main, [*good, "--data", "/nowhere"])
    (tmp_path / "empty").mkdir()
    line = mistake(capsys, stage1.main, [*good, "--data", str(tmp_path / "empty")])
    assert "neither commit records nor" in line
    with pytest.raises(SystemExit) as refused:  # by the option parser, in its own words
        stage1.main([*good, "--optim.lr", "-1"])
    assert refused.value.code == 2 and "optim.min_lr = 1e-05" in capsys.readouterr().err
    line = mistake(capsys, stage1.main, [*good, "--zero-stage", "7"])
    assert "--zero-stage 7" in line
    line = mistake(capsys, stage1.main, [*good, "--out", str(out), "--optim.lr", "0.5"])
    usual = recipes.recipe("stage1", "tinyworld").run.optim.lr
    assert f"optim.lr = {usual}, this run has 0.5" in line
    line = mistake(capsys, stage1.main, [*good, "--out", str(out), "--seed", "9"])
    assert "seed = 0, this run has 9" in line
    line = mistake(capsys, stage1.main, [*good, "--out", str(out), "--text", "reference"])
    assert "text = 'plain', this run has 'reference'" in line
    line = mistake(capsys, stage1.main, [*good, "--init", str(out)])
    assert "starts from nothing" in line

    second = [*command(world, "stage2", tmp_path / "out", 12)[1:], "--init"]
    assert "no checkpoint there" in mistake(capsys, stage2.main, [*second, "/nowhere"])
    wide = ["--model.qformer.width", "64"]
    line = mistake(capsys, stage2.main, [*second, str(out), *wide])
    assert "has shape" in line and "step_00000012" in line


def test_changed_data_and_cut_checkpoint(world, undisturbed, tmp_path, capsys):
    from jobs import stage1

    out = tmp_path / "copy"
    shutil.copytree(undisturbed[0], out)
    arguments = command(world, "stage1", out, 20)[1:]
    other = capfilt_output(tmp_path / "other", shards=1, samples=20)
    line = mistake(capsys, stage1.main, [*arguments, "--data", str(other)])
    assert "manifest" in line and "another --out" in line
    cut = out / "checkpoints" / "step_00000012" / "optimizer.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    shutil.rmtree(out / "checkpoints" / "step_00000008")
    line = mistake(capsys, stage1.main, arguments)
    assert "none of its 1 checkpoints is good" in line and "optimizer.safetensors has" in line


def test_other_ranks_of_a_node_stay_silent(world, tmp_path, monkeypatch, capsys):
    from jobs import cli, stage1

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("cluster.ranks.dist.have_met", lambda: False)  # other tests let them meet
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: stage1.main(["--recipe", "vit-x"]))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == ""


def test_dry_run_prints_the_arithmetic(capsys):
    from jobs import stage1, stage2

    assert stage1.main(["--recipe", "vit-g", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "trainable parameters: 186,705,470" in said
    assert "global batch 1680 = 1 ranks x 1680 x 1" in said
    assert stage2.main(["--recipe", "vit-g-opt-2.7b", "--dry-run", "--micro-batch", "96"]) == 0
    said = capsys.readouterr().out
    assert "trainable parameters: 107,133,696" in said and "1 ranks x 96 x 20" in said
    assert json.loads(said[: said.rindex("}") + 1])["run"]["optim"]["min_lr"] == 5e-5
