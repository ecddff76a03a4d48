"""TinyWorld's small T5, OPT and LLaMA, trained from nothing on text alone, and tests of them.

They stand for FlanT5, OPT and Vicuna: stage 2 puts the Q-Former's output where a sentence about the
scene stands here, and then asks with the paper's prompts. ``jobs/zoo.py`` is the command.

With one learning rate for all tensors T5 does not learn to look things up; each tensor's rate is
scaled by its root mean square, as in Adafactor, with which T5 was trained (arXiv:1910.10683, 3.1).
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)

from jobs.zoo_training.corpus import Example, pool, reading_test
from jobs.zoo_training.curriculum import (
    LLAMA_FIRST,
    LLAMA_SECOND,
    OPT_FIRST,
    OPT_SECOND,
    T5_FIRST,
    T5_SECOND,
    T5_THIRD,
    LanguageTraining,
    initialise,
    llama_config,
    opt_config,
    t5_config,
)
from jobs.zoo_training.encoding import (
    Encoded,
    ExampleEncoder,
    batches,
    decoder_end,
    decoder_loss,
    t5_loss,
)
from jobs.zoo_training.tokenizers import write_tokenizers
from modeling.precision import multiplies_bf16
from pipeline.tinyworld.scene import sample_scene, stream
from pipeline.tinyworld.text import describe, is_true

BAR = 0.95  # least share of right answers to held-out questions about a text
Progress = Callable[[str, int, int, float], None]  # name, steps done, steps in all, loss

__all__ = ["check", "train_llama", "train_opt", "train_t5", "write_tokenizers"]


def _rate(plan: LanguageTraining, step: int) -> float:
    """Linear warm-up, then cosine to 2%."""
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def _set_rates(optimizer: torch.optim.Optimizer, rate: float, scaled: bool) -> None:
    for group in optimizer.param_groups:
        (tensor,) = group["params"]
        scale = max(1e-3, tensor.detach().square().mean().sqrt().item()) if scaled else 1.0
        group["lr"] = rate * scale


def train_phases(
    model: Any,
    plan: LanguageTraining,
    *,
    encode: Callable[[Sequence[Example]], list[Encoded]],
    loss_of: Callable[[Any, Sequence[Encoded], float], Tensor],
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Train ``model`` in place by ``plan``; ``report(step, loss)`` is called after every step."""
    groups = [{"params": [tensor]} for tensor in model.parameters()]
    optimizer = torch.optim.AdamW(
        groups, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0, fused=True
    )
    rng = random.Random(seed)
    model.train()
    step = 0
    for number, phase in enumerate(plan.phases):
        examples = pool(f"{seed} phase {number}", phase.steps * plan.batch, phase.mix)
        for batch in batches(encode(examples), plan.batch, rng):
            _set_rates(optimizer, _rate(plan, step), plan.scaled)
            with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16("cpu")):
                loss = loss_of(model, batch, plan.power)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"loss {loss.item()} at step {step}")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            report(step, loss.item())
    model.eval()


def _train(
    name: str,
    model: Any,
    plans: Sequence[LanguageTraining],
    *,
    out: str | Path,
    seed: int,
    progress: Progress | None,
) -> dict[str, float]:
    """Train a model, save it in bf16 beside its tokenizer, measure it and hold it against the bar.

    Each plan has a warm-up, a decay and an optimizer of its own, and begins with bf16 weights.
    """
    folder = Path(out) / name
    begun = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = ExampleEncoder(tokenizer, seed)
    encode_one, loss_of = (
        (encoder.t5, t5_loss)
        if model.config.is_encoder_decoder
        else (encoder.decoder, decoder_loss)
    )

    def encode(examples: Sequence[Example]) -> list[Encoded]:
        return [encode_one(one) for one in examples]

    recent: list[float] = []

    def report(step: int, loss: float) -> None:
        recent.append(loss)
        del recent[:-50]
        show(name, done + step, steps, sum(recent) / len(recent))

    show = progress or _Lines()
    steps = sum(plan.steps for plan in plans)
    done = 0
    for cycle, plan in enumerate(plans):
        encoder.rng.seed(seed + cycle)
        train_phases(
            model.float(), plan, encode=encode, loss_of=loss_of, seed=seed + cycle, report=report
        )
        model.to(torch.bfloat16)
        done += plan.steps
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    scores = check(folder)
    record = {
        "command": f"python jobs/zoo.py --only {name}",
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - begun),
        "steps": steps,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "scores": scores,
        "plans": [asdict(plan) for plan in plans],
    }
    (folder / "zoo.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if scores["reading"] < BAR:
        raise RuntimeError(
            f"{name} reads {scores['reading']:.3f} of the held-out questions right, the bar is "
            f"{BAR}: train it longer or with another seed before anything is built on it."
        )
    return scores


class _Lines:
    """Prints a line of progress every hundred steps, with the time that is left."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    def __call__(self, name: str, step: int, steps: int, loss: float) -> None:
        if step % 100 == 0 or step == steps:
            left = (time.monotonic() - self.begun) / step * (steps - step)
            print(f"{name} step {step}/{steps} loss {loss:.4f} eta {left:.0f} s", flush=True)


def train_t5(out: str | Path, seed: int = 0, progress: Progress | None = None) -> dict[str, float]:
    """Make ``out/t5``; returns its scores.

    Args:
        out: folder of all models.
        seed: seed of weights and examples.
        progress: function that is called after every step; by default progress is printed.

    Raises:
        RuntimeError: fewer than `BAR` of the held-out questions are answered right.
    """
    tokenizer = _seeded_tokenizer(out, "t5", seed)
    model = T5ForConditionalGeneration(t5_config(tokenizer))
    initialise(model)
    plans = (T5_FIRST, T5_SECOND, T5_THIRD)
    return _train("t5", model, plans, out=out, seed=seed, progress=progress)


def train_opt(out: str | Path, seed: int = 0, progress: Progress | None = None) -> dict[str, float]:
    """Make ``out/opt``; arguments, result and errors are those of `train_t5`."""
    tokenizer = _seeded_tokenizer(out, "opt", seed)
    model = OPTForCausalLM(opt_config(tokenizer))
    initialise(model)
    plans = (OPT_FIRST, OPT_SECOND)
    return _train("opt", model, plans, out=out, seed=seed, progress=progress)


def train_llama(
    out: str | Path, seed: int = 0, progress: Progress | None = None
) -> dict[str, float]:
    """Make ``out/llama``; arguments, result and errors are those of `train_t5`."""
    tokenizer = _seeded_tokenizer(out, "llama", seed)
    model = LlamaForCausalLM(llama_config(tokenizer))
    initialise(model)
    plans = (LLAMA_FIRST, LLAMA_SECOND)
    return _train("llama", model, plans, out=out, seed=seed, progress=progress)


def _seeded_tokenizer(out: str | Path, name: str, seed: int) -> PreTrainedTokenizerBase:
    """Seed torch, and read a model's tokenizer, which is written first where it is missing."""
    folder = Path(out) / name
    if not (folder / "tokenizer.json").exists():
        write_tokenizers(out)
    torch.manual_seed(seed)
    return AutoTokenizer.from_pretrained(folder)


# ------------------------------------------------------------------------------ scores


@torch.no_grad()
def continue_texts(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], new: int
) -> list[str]:
    """Greedy continuations of at most ``new`` tokens, up to the end of their turn."""
    decoder = not model.config.is_encoder_decoder
    found: dict[int, str] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    end = decoder_end(tokenizer) if decoder else str(tokenizer.eos_token)
    stop = tokenizer(end, add_special_tokens=False)["input_ids"][-1]
    for start in range(0, len(order), 100):
        rows = order[start : start + 100]
        side = "left" if decoder else "right"
        batch = tokenizer(
            [texts[i] for i in rows], padding=True, padding_side=side, return_tensors="pt"
        )
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=stop,
        )
        if decoder:
            ids = ids[:, batch["input_ids"].shape[1] :]
        said = tokenizer.batch_decode(ids, skip_special_tokens=True)
        found |= {i: text.partition("\n")[0].strip() for i, text in zip(rows, said, strict=True)}
    return [found[i] for i in range(len(texts))]


def check(folder: str | Path, count: int = 200) -> dict[str, float]:
    """Measure the model in ``folder`` on held-out scenes, with ``count`` questions of each kind.

    Returns:
        Shares between 0 and 1: ``reading``, exact answers over all kinds of questions, asked by
        both of the paper's prompts; ``reading KIND`` for each kind; ``rewriting``, true captions
        among those that continue a description.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    kind_of_model: Any = (
        T5ForConditionalGeneration if config.is_encoder_decoder else AutoModelForCausalLM
    )
    model = kind_of_model.from_pretrained(folder, dtype=torch.float32).eval()
    tests = reading_test(count)
    asked = [f"{one.context.text} {one.turns[0][0]}" for one in tests]
    answers = continue_texts(model, tokenizer, asked, new=6)
    right: dict[str, list[bool]] = {}
    for one, answer in zip(tests, answers, strict=True):
        right.setdefault(one.kind, []).append(answer == one.turns[0][1])
    every = [hit for hits in right.values() for hit in hits]
    scores = {"reading": sum(every) / len(every)}
    scores |= {f"reading {kind}": sum(hits) / len(hits) for kind, hits in right.items()}
    scores["rewriting"] = _rewriting(model, tokenizer, count)
    return {name: round(score, 4) for name, score in scores.items()}


def _rewriting(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int) -> float:
    """The share of true captions when "a" is continued behind a complete description."""
    scenes = [sample_scene(stream("zoo", "rewriting", i), "eval") for i in range(count)]
    told = [f"{describe(scene)} on a {scene.texture} background. a" for scene in scenes]
    said = continue_texts(model, tokenizer, told, new=40)
    hits = [is_true(f"a {text}", scene) for text, scene in zip(said, scenes, strict=True)]
    return sum(hits) / len(hits)
