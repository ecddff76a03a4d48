"""What a dry run says of memory, beside what the run then uses on CPU."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.models.sizes import with_model_sizes
from jobs.training import memory
from jobs.training.command import parse
from jobs.training.sketch import sketch
from tests.jobs.training.test_training import ENV, ROOT
from tests.tiny_training import capfilt_output, tiny_clip, tiny_t5

MIDDLE = [
    *("--model.qformer.width", "768", "--model.qformer.layers", "6", "--global-batch", "8"),
    *("--log-every", "1", "--save-every", "3", "--steps", "3"),  # one save, and no step beside it
]


def peak_of(command: list[str]) -> int:
    """Most bytes that the process held.

    Read from the kernel while it runs: what ``wait4`` tells at the end is never less than what the
    parent held when it started the process.
    """
    env = ENV | {"ISTHMUS_KEEP_MEMORY": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    peak = 0
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as running:
        status = Path(f"/proc/{running.pid}/status")
        while running.poll() is None:
            held = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
            peak = max([peak, *(int(line.split()[1]) * 1024 for line in held)])
            time.sleep(0.05)
    assert running.returncode == 0
    return peak


def test_the_peak_is_the_process_own():
    mine = b"x" * (256 << 20)  # which a child started from here would seem to have held
    assert 0 < peak_of([sys.executable, "-c", "import time; time.sleep(0.3)"]) < len(mine) / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "zero", "precision"),
    [("stage1", 2, "bf16"), ("stage1", 3, "bf16"), ("stage2", 0, "fp32")],
)
def test_the_estimate_is_within_15_percent(tmp_path, stage, zero, precision):
    """Of some 80 million trainable parameters, a save included."""
    tiny_clip(tmp_path / "clip")
    tiny_t5(tmp_path / "t5")
    capfilt_output(tmp_path / "data", shards=2, samples=20)
    recipe = {"stage1": "tinyworld", "stage2": "tinyworld-t5"}[stage]
    given = ["--recipe", recipe, "--encoder.name", str(tmp_path / "clip"), *MIDDLE]
    given += ["--zero-stage", str(zero), "--zero.precision", precision]
    if stage == "stage2":
        given += ["--language.name", str(tmp_path / "t5"), "--model.qformer.layers", "12"]
    given += ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    parsed = parse(stage, given).config
    fitted = with_model_sizes(parsed)
    planned = memory.plan_memory(fitted, sketch(fitted), world=1, micro=8)
    used = peak_of([sys.executable, f"jobs/{stage}.py", *given])
    assert used > 2 * memory.LIBRARIES  # half of it and more is the model's
    print(f"planned {planned.on_cpu / 2**30:.2f} GiB, used {used / 2**30:.2f} GiB")
    assert planned.on_cpu == pytest.approx(used, rel=0.15)
