"""A conversion of gigabytes in little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
)

from tests.jobs import foreign

GIB = 1 << 30
MEASURED = """
import sys
from jobs import convert
def peak():  # not getrusage's, which a child inherits from its parent
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
convert.main(sys.argv[1:])
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_is_a_shard_and_a_tensor(tmp_path: Path) -> None:
    total = big_folder(tmp_path / "hf")
    for source, target, given, out in (
        ("hf", "native", "hf", "native"),
        ("native", "hf", "native", "again"),
    ):
        arguments = ["--from", source, "--to", target, str(tmp_path / given), str(tmp_path / out)]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        grown = int(done.stdout.split()[-1]) * 1024
        print(f"{source} to {target}: {total / GIB:.2f} GiB with {grown / GIB:.2f} GiB more")
        assert total > 3 * GIB and GIB / 4 < grown < 1.8 * GIB


def big_folder(folder: Path) -> int:
    """3 GiB of OPT in bf16 under a small Q-Former, in shards of 1.5 GiB."""
    text, tokenizer = foreign.text_config("opt", 1)
    sizes = {"hidden_size": 4096, "word_embed_proj_dim": 4096, "ffn_dim": 16384}
    sizes |= {"num_hidden_layers": 8, "num_attention_heads": 32}
    config = Blip2Config(
        vision_config=foreign.VISION,
        qformer_config=foreign.QFORMER,
        text_config=text.to_dict() | sizes,
        num_query_tokens=foreign.QUERIES,
        image_token_index=text.vocab_size - 1,
    )
    config.architectures = ["Blip2ForConditionalGeneration"]
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    config.save_pretrained(folder)
    pictures = BlipImageProcessor(size={"height": foreign.IMAGE, "width": foreign.IMAGE})
    Blip2Processor(pictures, tokenizer, foreign.QUERIES).save_pretrained(folder)
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total = 0
    names = list(model.named_parameters())
    for number, (name, parameter) in enumerate(names):
        half = name.startswith("language_model.")
        shard[name] = torch.zeros(parameter.shape, dtype=torch.bfloat16 if half else torch.float32)
        if sum(t.nbytes for t in shard.values()) > 1.5 * GIB or number == len(names) - 1:
            file = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(shard, file)
            total += sum(t.nbytes for t in shard.values())
            shard = {}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total
