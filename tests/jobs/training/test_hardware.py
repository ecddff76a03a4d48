"""Accelerators by what their drivers say, and options that this machine cannot carry out."""

import pytest

from jobs.stage1 import main
from jobs.training import command
from jobs.training.hardware import GPUS, named


@pytest.mark.parametrize(
    ("said", "name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", 989),
        ("NVIDIA H100 PCIe", "h100-pcie", 756),
        ("NVIDIA H100 NVL", "h100-nvl", 835),
        ("NVIDIA H200", "h200", 989),
        ("NVIDIA H200 NVL", "h200-nvl", 835),
        ("NVIDIA A100-SXM4-80GB", "a100-80g", 312),
        ("NVIDIA L40S", "l40s", 362),
        ("NVIDIA B200", "b200", 2250),
    ],
)
def test_forms_of_a_gpu_have_their_own_speed(said: str, name: str, tflops: float):
    found = named(said)
    assert GPUS[found].tflops == tflops and found.partition("-")[0] == name.partition("-")[0]


def test_what_is_not_known_gets_no_speed():
    assert named("NVIDIA GeForce RTX 4090") == named("NVIDIA GH200 480GB") == ""
    assert "v100" not in GPUS  # torch's wheels begin with compute capability 7.5


def test_compiling_without_a_compiler_is_refused_before_anything_starts(monkeypatch):
    line = ["--recipe", "tinyworld", "--data", "D", "--out", "O", "--encoder.compile"]
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"--encoder\.compile: no C compiler .* install gcc"):
        main(line)


def test_a_gpu_that_torch_cannot_use_ends_a_job_at_once(monkeypatch):
    def refuse() -> None:
        raise ValueError("this machine has NVIDIA's driver, but torch cannot use its GPU")

    monkeypatch.setattr(command, "check_gpus", refuse)
    line = ["--recipe", "tinyworld", "--data", "D", "--out", "O"]
    with pytest.raises(ValueError, match="cannot use its GPU"):
        main(line)
    assert main([*line, "--dry-run"]) == 0
