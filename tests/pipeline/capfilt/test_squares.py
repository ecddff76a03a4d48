"""A prepared shard is held once: in its own process, and on its way to Ray's store."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.capfilt.squares import Squares

ROOT = Path(__file__).parents[3]
PEAK = """
import io, pickle
from pathlib import Path
import numpy as np
from PIL import Image
from pipeline.capfilt.describe import ImageSpec, prepare
from pipeline.capfilt.filters import FilterConfig
from pipeline.sample import Sample

noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
out = io.BytesIO()
Image.fromarray(noise).save(out, "JPEG", quality=90)

def records(count):
    for number in range(count):
        key = f"{(7 * number) % count:05d}"  # not in order
        data = bytes(bytearray(out.getvalue()))
        yield Sample(key, key, "s", "t", data, "a thing", ("a thing",), {}, "jpg", False)

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith(field)) * 1024

def pickled(count):
    made = prepare(records(count), FilterConfig(), ImageSpec(384), ImageSpec(224, True))
    buffers = []
    head = pickle.dumps(made, protocol=5, buffer_callback=buffers.append)
    return made, len(head) + sum(buffer.raw().nbytes for buffer in buffers), head, buffers

pickled(8)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
(kept, model_input), size, head, buffers = pickled(320)
print((resident("VmHWM") - before) / size)
back, _ = pickle.loads(head, buffers=[buffer.raw() for buffer in buffers])
assert [s.key for s, *_ in back.samples] == [f"{n:05d}" for n in range(320)]
assert back.samples[5][0].image == out.getvalue() and back == kept
print(pickle.loads(pickle.dumps(kept)) == kept)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_preparing_and_sending_a_shard_takes_the_bytes_of_the_result():
    done = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ratio, same = done.stdout.split()
    assert float(ratio) < 1.1 and same == "True"


@pytest.mark.parametrize("count", [0, 1, 16, 37])
def test_squares_come_out_in_the_order_that_is_asked_for(count: int):
    squares = Squares(2)
    for number in range(count):
        squares.add(torch.full((3, 2, 2), number, dtype=torch.uint8))
    order = np.random.default_rng(count).permutation(count).tolist()
    taken = squares.take(order)
    assert taken.shape == (count, 3, 2, 2) and taken[:, 0, 0, 0].tolist() == order
    assert squares.count == 0
