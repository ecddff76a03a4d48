"""A GPU that torch cannot use is a mistake that is told, not a run on the CPU."""

from pathlib import Path

import pytest
import torch

from cluster.ranks.gpus import check_gpus, too_old


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch):
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    reason = "The NVIDIA driver on your system is too old (found version 11040).\nUpdate it."

    def refuse() -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)


def test_an_old_driver_is_told_in_torchs_words(no_cuda, tmp_path: Path):
    driver = tmp_path / "version"
    check_gpus(driver)  # a machine without a GPU
    driver.touch()
    with pytest.raises(ValueError, match=r"driver .* too old \(found version 11040\).*DS_ACCEL"):
        check_gpus(driver)


@pytest.mark.parametrize(
    ("name", "value"), [("DS_ACCELERATOR", "cpu"), ("CUDA_VISIBLE_DEVICES", "")]
)
def test_who_asks_for_the_cpu_gets_it(no_cuda, tmp_path: Path, monkeypatch, name, value):
    (tmp_path / "version").touch()
    monkeypatch.setenv(name, value)
    check_gpus(tmp_path / "version")


def test_a_gpu_that_this_torch_has_no_kernels_for():
    built = ["sm_75", "sm_80", "sm_90a", "sm_100", "sm_120", "compute_120"]
    assert "compute capability 7.0" in too_old(7, 0, built) and "7.5 and later" in too_old(
        7, 0, built
    )
    assert too_old(7, 5, built) == too_old(8, 9, built) == too_old(9, 0, []) == ""
