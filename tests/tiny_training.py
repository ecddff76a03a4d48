"""Small random frozen models and a small CapFilt output, for tests of training and evaluation."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from cluster.storage.open import open_storage
from pipeline.sample import make_uid
from pipeline.shards.manifest import commit_shard
from pipeline.shards.parquet import SampleRow, write_parquet
from pipeline.shards.tar import write_tar

ZOO = Path(__file__).parents[1] / "modeling" / "zoo"
COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "white": (240,) * 3}


def tiny_clip(folder: Path) -> Path:
    """A random CLIP of width 32: 64 px, patches of 16, three blocks."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **tower,
            "num_hidden_layers": 1,
            "vocab_size": 99,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={**tower, "num_hidden_layers": 3, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def tiny_t5(folder: Path) -> Path:
    """A random T5 of width 24 with the zoo's tokenizer."""
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "t5")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=24,
        d_kv=8,
        num_heads=2,
        d_ff=32,
        num_layers=1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return _with_tokenizer(folder, ZOO / "t5")


def tiny_opt(folder: Path) -> Path:
    """A random OPT of width 24 with the zoo's tokenizer."""
    torch.manual_seed(2)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "opt")
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        word_embed_proj_dim=24,
        num_hidden_layers=1,
        ffn_dim=32,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    return _with_tokenizer(folder, ZOO / "opt")


def capfilt_output(
    folder: Path, shards: int = 3, samples: int = 20, bad: tuple[int, ...] = (), seed: int = 0
) -> Path:
    """A committed CapFilt output of coloured squares.

    Args:
        bad: positions (over all shards) whose image bytes are garbage; every fifth input of each
            shard is filtered, so that it is in the parquet and not in the tar.
    """
    rng = np.random.default_rng(seed)
    storage = open_storage(str(folder))
    count = 0
    for shard in range(shards):
        name, members, rows = f"{shard:08d}", [], []
        for i in range(samples):
            key = f"{shard:04d}{i:04d}"
            uid = make_uid("tiny", name, key)
            if i % 5 == 4:
                rows.append(SampleRow(uid, key, "tiny", "filtered", "too_small"))
                continue
            color = list(COLORS)[rng.integers(4)]
            side = ("left", "right")[rng.integers(2)]
            texts = (f"a {color} square", f"a {color} square on the {side}")
            image = b"no image" if count in bad else _square(color, side, rng)
            count += 1
            record = {
                "uid": uid,
                "key": key,
                "captions": [
                    {"text": text, "score": 0.3 - 0.1 * j, "origin": "synthetic"}
                    for j, text in enumerate((*texts, "a photo"))
                ],
                "kept": [0, 1],
            }
            data = {"jpg": image, "json": json.dumps(record).encode(), "txt": texts[0].encode()}
            members.append((key, data))
            rows.append(SampleRow(uid, key, "tiny", "ok"))
        tar, spans = write_tar(members)
        kept = iter(spans)
        rows = [_placed(row, next(kept)) if row.status == "ok" else row for row in rows]
        filtered = samples - len(members)
        stats = {"n": samples, "ok": len(members), "filtered": filtered, "failed": 0}
        stats |= {"reasons": {"too_small": filtered}, "web_won": 0}
        commit_shard(storage, name, tar, write_parquet(rows), stats)
    return folder


def _placed(row: SampleRow, span: tuple[int, int]) -> SampleRow:
    return SampleRow(row.uid, row.key, row.source, row.status, offset=span[0], length=span[1])


def _square(color: str, side: str, rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 40, (64, 64, 3), dtype=np.uint8)
    left = 6 if side == "left" else 34
    pixels[20:44, left : left + 24] = COLORS[color]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


def _with_tokenizer(folder: Path, source: Path) -> Path:
    for path in source.iterdir():
        if "token" in path.name:
            shutil.copy(path, folder)
    return folder
