"""``auto`` is bf16 where the device multiplies it in hardware, else fp32."""

import os
import subprocess
import sys

import pytest
import torch

from modeling import precision
from modeling.precision import chosen, multiplies_bf16, seconds_of_product

AVX2_ONLY = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


@pytest.mark.parametrize("fast, found", [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_device_and_other_names_stay(fast, found):
    assert chosen("auto", fast) == found
    assert [chosen(name, fast) for name in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]


@pytest.mark.parametrize("seconds, found", [((1.0, 2.0), True), ((2.0, 1.0), False)])
def test_a_cpu_that_says_yes_must_also_be_faster(monkeypatch, seconds, found):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    taken = dict(zip((torch.bfloat16, torch.float32), seconds, strict=True))
    monkeypatch.setattr(precision, "seconds_of_product", taken.__getitem__)
    precision._cpu_multiplies_bf16.cache_clear()
    assert multiplies_bf16("cpu") is found
    precision._cpu_multiplies_bf16.cache_clear()


def test_a_cpu_that_says_no_is_not_timed(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(precision, "seconds_of_product", None)
    precision._cpu_multiplies_bf16.cache_clear()
    assert not multiplies_bf16("cpu")
    precision._cpu_multiplies_bf16.cache_clear()


def test_a_processor_that_plays_one_with_avx2_alone_has_no_bf16():
    code = "from modeling.precision import multiplies_bf16; print(multiplies_bf16('cpu'))"
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, env=os.environ | AVX2_ONLY, capture_output=True, check=True)
    assert said.stdout == b"False\n"


def test_the_product_is_timed():
    assert 0 < seconds_of_product(torch.float32, size=16, repeats=2) < 1
