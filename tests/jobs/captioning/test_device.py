"""What CapFilt asks of a cluster: the device of the plan, and memory for a shard."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage.local import LocalStorage
from jobs.captioning.arguments import parse
from jobs.captioning.plan import on_device_of_plan
from jobs.captioning.run import prepared_bytes
from jobs.captioning.work import Work
from pipeline.shards.plan import OutputPlan, open_plan
from pipeline.sources.base import InputShard, ListedImage

GIB = 1 << 30


@pytest.mark.parametrize(
    ("begun", "device"), [("cpu AVX512, 1 threads", "cpu"), ("accelerator_type:A10G", "gpu")]
)
def test_a_resumed_output_keeps_its_device(tmp_path: Path, begun: str, device: str):
    """Also on a cluster that has gone down to its head meanwhile."""
    storage = LocalStorage(tmp_path)
    args = parse(["--input", "I", "--output", str(tmp_path)])
    assert on_device_of_plan(args, storage).ray.device == "auto"
    open_plan(storage, OutputPlan({"device": begun}, ()))
    assert on_device_of_plan(args, storage).ray.device == device
    said = replace(args, ray=replace(args.ray, device="cpu"))
    assert on_device_of_plan(said, storage).ray.device == "cpu"  # the plan then refuses it


def test_a_shard_asks_for_the_memory_that_its_images_take():
    """10,000 images for BLIP (384 px) and CLIP (224 px): 5.5 GiB of pixels."""
    pixels = 10_000 * 3 * (384**2 + 224**2)
    listed = InputShard("part-0", 10_000, "", (ListedImage.__new__(ListedImage),))
    tar = InputShard("a.tar", 400_000_000, "")
    for shard in (listed, tar):
        asked = prepared_bytes([384, 224], Work("00000000", shard))
        assert pixels < asked < pixels + 1.5 * GIB
