"""Parts of `benchmark.py gpu` that set ours beside Hugging Face's modules on the same device."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from jobs.benchmarks import train
from jobs.benchmarks.gpu import cases
from jobs.benchmarks.gpu.parts import median_seconds, mfu
from modeling import flops
from modeling.vision.encoders import EvaConfig, build_eva_encoder, freeze


def vit_beside_huggingface(args: Any, device: torch.device, peak: float) -> dict[str, Any]:
    """The frozen tower's forward pass, ours beside Hugging Face's BLIP-2 vision model."""
    tiny = args.size == "tiny"
    sizes = EvaConfig(width=48, blocks=2, heads=4, mlp=96) if tiny else EvaConfig()
    batch = args.batch or (2 if tiny else cases.share_of("full", "stage1"))
    dtype, side = torch.bfloat16, 28 if tiny else 224
    with torch.device(device):
        mine = freeze(build_eva_encoder(sizes, side), dtype)
        config = Blip2VisionConfig(
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp,
            num_hidden_layers=sizes.blocks,
            num_attention_heads=sizes.heads,
            image_size=side,
            patch_size=sizes.patch,
        )
        theirs = freeze(Blip2VisionModel(config), dtype)
        images = torch.randn(batch, 3, side, side).to(dtype)
    towers = {"ours": mine, "Hugging Face": theirs}
    if device.type == "cuda":
        begun = time.perf_counter()
        towers["ours, compiled by block"] = compiled_by_block(sizes, side, device)
        towers["ours, compiled by block"](images)
        torch.cuda.synchronize()
        compiled_in = round(time.perf_counter() - begun, 1)
    else:
        compiled_in = None
    work = flops.vit_flops(flops.vit_sizes(mine.vit), trained=False) * batch
    with torch.no_grad():
        seconds = {
            name: median_seconds(lambda tower=tower: tower(images), device)  # type: ignore[misc]
            for name, tower in towers.items()
        }
    return compared(seconds, batch, work, peak) | {"compiled_in_s": compiled_in}


def compiled_by_block(sizes: EvaConfig, side: int, device: torch.device) -> nn.Module:
    """A frozen bf16 tower whose blocks, which are all alike, are one compiled program."""
    with torch.device(device):
        tower: Any = freeze(build_eva_encoder(sizes, side), torch.bfloat16)
    for block in tower.vit.blocks:
        block.compile(dynamic=False)
    return tower.requires_grad_(False)


def qformer_beside_huggingface(args: Any, device: torch.device, peak: float) -> dict[str, Any]:
    """Stage 1's objectives, forward and backward, beside the reference's algorithm made of Hugging
    Face's modules: same weights, same image tokens, texts of full length.
    """
    tiny = args.size == "tiny"
    batch = args.batch or (3 if tiny else cases.share_of("full", "stage1"))
    options = train.TrainBench(
        size="tiny" if tiny else "base",
        device=device.type,
        dtype="fp32" if tiny else "bf16",
        cases="stage1",
        batch=batch,
        memory=False,
    )
    case = train.make_case(options, "stage1")
    made = {"ours": case.make["ours"](), "Hugging Face": case.make["reference"]()}
    losses = {who: train.loss_without_dropout(one) for who, one in made.items()}
    seconds = {who: median_seconds(one.step, device) for who, one in made.items()}
    found = compared(seconds, batch, case.gflop * 1e9 * batch, peak)
    return found | {"loss": losses, "precision": options.dtype}


def compared(seconds: Mapping[str, float], batch: int, work: float, peak: float) -> dict[str, Any]:
    """A record of contenders that did the same, one of them Hugging Face's."""
    return {
        "batch": batch,
        "images_per_s": round(batch / seconds["ours"], 2),
        "step_ms": round(1e3 * seconds["ours"], 2),
        "contenders_ms": {name: round(1e3 * spent, 2) for name, spent in seconds.items()},
        "mfu": mfu(work, seconds["ours"], peak),
        "peer": {
            "name": "Hugging Face",
            "images_per_s": round(batch / seconds["Hugging Face"], 2),
            "ratio": round(seconds["Hugging Face"] / seconds["ours"], 2),
        },
    }
