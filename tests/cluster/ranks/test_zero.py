import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cluster.ranks import zero_state
from cluster.ranks.zero import ZeroConfig, _check, to_deepspeed


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_accumulates_and_exchanges_in_fp32(stage):
    made = to_deepspeed(
        ZeroConfig(stage=stage, precision="bf16"), micro_batch=5, accumulation=3, world=2
    )
    assert made["train_batch_size"] == 30
    assert made["train_micro_batch_size_per_gpu"] == 5
    assert made["gradient_accumulation_steps"] == 3
    assert made["zero_optimization"]["stage"] == stage
    assert made["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert made["data_types"] == {"grad_accum_dtype": "fp32"}
    assert made["communication_data_type"] == "fp32"
    assert made["gradient_clipping"] == 0.0


def test_stage_0_keeps_fp32_weights_under_autocast():
    made = to_deepspeed(ZeroConfig(stage=0, precision="bf16", clip=1.0), 1, 1, 1)
    assert made["torch_autocast"]["enabled"] and "bf16" not in made
    assert made["gradient_clipping"] == 0.0  # the guard clips
    assert "torch_autocast" not in to_deepspeed(ZeroConfig(stage=0, precision="fp32"), 1, 1, 1)


@pytest.mark.parametrize("part", [None, torch.empty(0), torch.zeros(3)])
def test_a_rank_s_part_is_never_saved_as_the_whole(monkeypatch, part):
    """ZeRO-3 leaves empty tensors behind where a parameter was not gathered."""
    monkeypatch.setattr(zero_state, "_whole", lambda *_: part)
    engine = SimpleNamespace(module=nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match=r"master of weight was gathered .* not \(2, 3\)"):
        list(zero_state.read(engine, zero_state.MASTER))


def test_what_deepspeed_would_choke_on_is_named():
    module = nn.Linear(2, 2)
    _check(module)
    module.scale = nn.Parameter(torch.tensor(0.07))
    with pytest.raises(ValueError, match=r"scale has no dimension.*\(1,\)"):
        _check(module)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="weight is frozen"):
        _check(frozen)


COUNT_WAITS = """
import torch
from cluster.ranks import zero

zero.start(77)
from deepspeed.accelerator import get_accelerator

waits = []
for stage in (0, 1, 2):
    module = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    config = zero.ZeroConfig(stage=stage, precision="fp32")
    engine = zero.engine(module, optimizer, config, 2)
    get_accelerator().synchronize = lambda *_: waits.append(stage)
    for _ in range(6):
        engine.backward(engine(torch.ones(2, 8)).square().mean())
        engine.step()
from deepspeed.utils import groups
clone = groups._clone_world_group()._get_backend(torch.device("cpu"))
print("limit:", clone.options._timeout.total_seconds())
print("waits:", waits)
"""


def test_a_step_does_not_wait_for_the_accelerator_and_groups_wait_no_longer_than_asked():
    """DeepSpeed's throughput timer would, twice a step from the third on; and its clone of the
    world would have torch's 30 minutes.
    """
    done = subprocess.run(
        [sys.executable, "-c", COUNT_WAITS],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout.splitlines()[-2:]
    assert said == ["limit: 77.0", "waits: []"], done.stdout + done.stderr
