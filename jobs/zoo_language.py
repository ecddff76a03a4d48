"""Train TinyWorld's small T5 and OPT from nothing, on text alone, and measure how well they read.

They stand for FlanT5 and OPT: stage 2 puts the Q-Former's output where a sentence about the scene
stood here, and then asks with the paper's prompts. ``jobs/zoo.py`` is the command line.

T5 does not learn to look things up from nothing with a common learning rate; each tensor's rate is
scaled by its root mean square, as Adafactor does and as T5 was trained (arXiv:1910.10683, 3.1).
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from jobs.zoo_corpus import READING_KINDS, Example, Mix, pool, reading_test
from jobs.zoo_tokenizers import write_tokenizers
from pipeline.tinyworld.scene import sample_scene, stream
from pipeline.tinyworld.text import describe, is_true

BAR = 0.95  # held-out questions answered by reading text, over all kinds
IGNORE = -100
Progress = Callable[[str, int, int, float], None]  # name, steps done, steps in all, loss
Row = tuple[list[tuple[int, ...]], list[int]]  # input places (ids to be summed), labels

__all__ = ["check", "train_opt", "train_t5", "write_tokenizers"]


@dataclass(frozen=True)
class Phase:
    """Steps on one mix of tasks."""

    steps: int
    mix: Mix


@dataclass(frozen=True)
class Plan:
    """How one model is trained. ``rate`` is relative to each tensor's RMS where ``scaled``."""

    phases: tuple[Phase, ...]
    rate: float
    scaled: bool
    batch: int = 64
    warmup: int = 100
    clip: float = 1.0
    power: float = 1.0  # a target of n tokens weighs n ** (1 - power) times one of one token

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


LOOKUP = ("color", "shape")
PLACES = ("color", "shape", "exists", "position", "count")
T5_FIRST = Plan(
    phases=(
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, short=1.0, kinds=LOOKUP)),
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, short=0.3, kinds=PLACES)),
        Phase(500, Mix(0.7, 0.3, 0.1, plain=0.8, short=0.1)),
        Phase(1200, Mix(0.5, 0.4, 0.25)),
    ),
    rate=0.015,
    scaled=True,
)
# Relations step by step (see jobs.zoo_corpus.ask), everything else kept in practice.
PLAIN = (*READING_KINDS, *["plain relation"] * 6)
ONE_SIDED = (*READING_KINDS, *["one-sided relation"] * 7, "plain relation")
BOTH = (*READING_KINDS, *["one-sided relation"] * 2, *["relation"] * 5, "compositional")
HARD = (*READING_KINDS, "relation", "relation", "compositional")
T5_SECOND = Plan(
    phases=(
        Phase(150, Mix(1.0, 0.0, 0.0, plain=1.0, kinds=PLAIN)),
        Phase(400, Mix(1.0, 0.0, 0.0, plain=1.0, kinds=ONE_SIDED)),
        Phase(550, Mix(0.9, 0.1, 0.1, plain=0.9, kinds=BOTH)),
        Phase(900, Mix(0.5, 0.4, 0.25, kinds=HARD)),
    ),
    rate=0.01,
    scaled=True,
    warmup=50,
)
T5_THIRD = Plan(
    phases=(
        Phase(600, Mix(0.4, 0.6, 0.1, plain=0.8, full=0.9, kinds=HARD)),
        Phase(1000, Mix(0.4, 0.5, 0.25, full=0.5, kinds=HARD)),
    ),
    rate=0.01,
    scaled=True,
    warmup=50,
    power=0.5,
)
OPT_PLAN = Plan(
    phases=(
        Phase(600, Mix(1.0, 0.0, 0.0, plain=1.0, short=1.0, kinds=LOOKUP)),
        Phase(500, Mix(1.0, 0.0, 0.0, plain=1.0, short=0.3, kinds=PLACES)),
        Phase(200, Mix(0.8, 0.2, 0.0, plain=1.0, full=0.9, kinds=PLAIN)),
        Phase(350, Mix(0.8, 0.2, 0.0, plain=1.0, full=0.9, kinds=ONE_SIDED)),
        Phase(500, Mix(0.7, 0.3, 0.1, plain=0.9, full=0.9, kinds=BOTH, turns=2)),
        Phase(1000, Mix(0.4, 0.5, 0.25, full=0.5, kinds=HARD, turns=2)),
    ),
    rate=7e-4,
    scaled=False,
    power=0.5,
)


def t5_config(tokenizer: PreTrainedTokenizerBase) -> T5Config:
    """T5 v1.1's shape (gated GELU, untied head, no dropout) with 1.4 million parameters."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": 128,
        "d_kv": 32,
        "num_heads": 4,
        "d_ff": 256,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return T5Config(**settings)


def opt_config(tokenizer: PreTrainedTokenizerBase) -> OPTConfig:
    """OPT's shape (pre-norm, learned positions, tied head) with 1.1 million parameters."""
    return OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        word_embed_proj_dim=128,
        num_hidden_layers=5,
        ffn_dim=512,
        num_attention_heads=4,
        max_position_embeddings=256,
        do_layer_norm_before=True,
        dropout=0.0,
        attention_dropout=0.0,
        init_std=0.09,
        tie_word_embeddings=True,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )


# ------------------------------------------------------------------------ text to rows


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


class Encoder:
    """Turns examples into rows for one model; remembers the pieces it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.seen: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.seen:
            self.seen[text] = _ids(self.tokenizer, text)
        return self.seen[text]

    def context(self, one: Example) -> list[tuple[int, ...]]:
        """The places of the context: one id each, or the ids of a bundle."""
        if one.context.bundles:
            return [
                tuple(token for word in bundle for token in self.ids(" " + word))
                for bundle in one.context.bundles
            ]
        return [(token,) for token in _ids(self.tokenizer, one.context.text)]

    def t5(self, one: Example) -> Row:
        """Context, prompt and ``</s>`` for the encoder; the target and ``</s>`` as labels."""
        prompt, target = one.turns[0]
        end = self.tokenizer.eos_token_id
        source = [*self.context(one), *((token,) for token in self.ids(prompt)), (end,)]
        return source, [*self.ids(target), end]

    def opt(self, one: Example) -> Row:
        r"""Running text, each turn ended by "\n". Contexts and questions are not targets.

        ``</s>`` stands first, as OPT's tokenizer puts it, or behind the context, where it comes
        to stand when stage 2 puts queries before a tokenized prompt.
        """
        start = self.tokenizer.bos_token_id
        places = self.context(one)
        behind = not places or bool(one.context.bundles) or self.rng.random() < 0.5
        labels = [IGNORE] * (len(places) + 1)
        if behind:
            places, labels[-1] = [*places, (start,)], start  # stage 2's loss has it as a target
        else:
            places = [(start,), *places]
        for index, (prompt, target) in enumerate(one.turns):
            space = "" if behind or index else " "
            asked = prompt.startswith("Question")
            before = self.ids(space + prompt) if prompt else []
            after = self.ids((" " if prompt else space) + target + "\n")
            places += [(token,) for token in (*before, *after)]
            labels += [IGNORE] * len(before) if asked else before
            labels += after
        return places, labels


def _batches(rows: Sequence[Row], size: int, rng: random.Random) -> Iterator[list[Row]]:
    """Batches of similar length, in random order: sorted within stretches of twenty batches."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), size * 20):
        stretch = sorted(order[start : start + size * 20], key=lambda i: len(rows[i][0]))
        batches += [stretch[at : at + size] for at in range(0, len(stretch), size)]
    rng.shuffle(batches)
    for batch in batches:
        yield [rows[i] for i in batch]


def _embed(table: nn.Embedding, batch: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, D) of the places, the sum of its words each, and the mask (B, L)."""
    longest = max(len(row[0]) for row in batch)
    lengths = torch.tensor([len(row[0]) for row in batch])
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    flat: list[int] = []
    offsets: list[int] = []
    for places, _ in batch:
        for place in (*places, *[(pad,)] * (longest - len(places))):
            offsets.append(len(flat))
            flat.extend(place)
    vectors = F.embedding_bag(torch.tensor(flat), table.weight, torch.tensor(offsets), mode="sum")
    return vectors.view(len(batch), longest, -1), mask


def _labels(batch: Sequence[Row]) -> Tensor:
    longest = max(len(row[1]) for row in batch)
    return torch.tensor([row[1] + [IGNORE] * (longest - len(row[1])) for row in batch])


def _mean_loss(logits: Tensor, labels: Tensor, power: float) -> Tensor:
    """Cross-entropy, each example's sum over its count of targets to the power; then the mean."""
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
    )
    counts = (labels != IGNORE).sum(1).clamp(min=1)
    return (losses.sum(1) / counts**power).mean()


def t5_loss(model: Any, batch: Sequence[Row], power: float = 1.0) -> Tensor:
    vectors, mask = _embed(model.get_input_embeddings(), batch, 0)
    labels = _labels(batch)
    decoder = model.prepare_decoder_input_ids_from_labels(labels)  # shifts right
    out = model(inputs_embeds=vectors, attention_mask=mask, decoder_input_ids=decoder)
    return _mean_loss(out.logits, labels, power)


def opt_loss(model: Any, batch: Sequence[Row], power: float = 1.0) -> Tensor:
    vectors, mask = _embed(model.get_input_embeddings(), batch, 1)
    logits = model(inputs_embeds=vectors, attention_mask=mask).logits
    return _mean_loss(logits[:, :-1], _labels(batch)[:, 1:], power)


# ---------------------------------------------------------------------------- training


def _rate(plan: Plan, step: int) -> float:
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


def fit(  # noqa: PLR0917
    model: Any,
    plan: Plan,
    rows_of: Callable[[Sequence[Example]], list[Row]],
    loss_of: Callable[[Any, Sequence[Row], float], Tensor],
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Train ``model`` in place along ``plan``; ``report(step, loss)`` after every step."""
    groups = [{"params": [tensor]} for tensor in model.parameters()]
    optimizer = torch.optim.AdamW(
        groups, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0, fused=True
    )
    rng = random.Random(seed)
    model.train()
    step = 0
    for number, phase in enumerate(plan.phases):
        examples = pool(f"{seed} phase {number}", phase.steps * plan.batch, phase.mix)
        for batch in _batches(rows_of(examples), plan.batch, rng):
            _set_rates(optimizer, _rate(plan, step), plan.scaled)
            with torch.autocast("cpu", torch.bfloat16):
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


def _initialise(model: Any) -> None:
    """Starts that make looking things up quick to learn; the architectures stay as they are.

    Looking up takes a head that attends by distance, to gather what stands beside a word, and one
    that attends to the same word elsewhere. T5's distance biases start too small to tell distances
    apart: they start wide, and its untied head is brought to unit logits. OPT's positions start
    unrelated to each other: they start as sinusoids in a quarter of the width; three heads of the
    first layer attend one, two and three places back, two of the second to equal words.
    """
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            model.lm_head.weight.mul_(model.config.d_model**-0.5)
            for stack in (model.encoder, model.decoder):
                bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias
                bias.weight.normal_(0.0, 2.0)
            return
        decoder = model.model.decoder
        places = decoder.embed_positions.weight
        quarter = places.shape[1] // 4
        places.zero_()
        places[:, :quarter] = 3 * model.config.init_std * _sinusoids(len(places), quarter)
        decoder.embed_tokens.weight[:, :quarter] = 0.0
        for head in range(3):
            _look_back(decoder.layers[0].self_attn, head, back=head + 1, width=quarter)
        for head in range(2):
            _look_alike(decoder.layers[1].self_attn, head, beyond=quarter)


def _frequencies(width: int) -> Tensor:
    """``width / 2`` geometric frequencies from 1 to 0.01, in radians a place."""
    return 100.0 ** -(torch.arange(width // 2) / (width // 2))


def _sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines (length, width) of these frequencies, of root mean square 1."""
    turns = torch.arange(length)[:, None] * _frequencies(width)
    return math.sqrt(2.0) * torch.cat((turns.sin(), turns.cos()), 1)


def _look_back(attention: Any, head: int, back: int, width: int, gain: float = 0.7) -> None:
    """Make one head attend ``back`` places back, by the sinusoids in the first ``width``."""
    half = width // 2
    rows = head * attention.head_dim + torch.arange(half)
    waves = torch.arange(half)
    angle = -back * _frequencies(width)
    for weight, turn in ((attention.q_proj.weight, angle), (attention.k_proj.weight, 0 * angle)):
        weight[head * attention.head_dim : (head + 1) * attention.head_dim] = 0.0
        weight[rows, waves] = gain * turn.cos()
        weight[rows, waves + half] = gain * turn.sin()
        weight[rows + half, waves] = -gain * turn.sin()
        weight[rows + half, waves + half] = gain * turn.cos()


def _look_alike(attention: Any, head: int, beyond: int, gain: float = 0.2) -> None:
    """Make one head attend to equal words: queries equal keys, both blind to positions."""
    rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    attention.q_proj.weight[rows].normal_(0.0, gain)
    attention.q_proj.weight[rows, :beyond] = 0.0
    attention.k_proj.weight[rows] = attention.q_proj.weight[rows]


def _train(  # noqa: PLR0917
    name: str, model: Any, plans: Sequence[Plan], out: str | Path, seed: int, progress: Progress
) -> dict[str, float]:
    """Train, round to bf16, save beside the tokenizer, measure what was saved, check the bar.

    Each plan has a warm-up, a decay and an optimizer of its own and begins with rounded weights.
    """
    folder = Path(out) / name
    begun = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = Encoder(tokenizer, seed)
    row_of, loss_of = (
        (encoder.t5, t5_loss) if model.config.is_encoder_decoder else (encoder.opt, opt_loss)
    )

    def rows(examples: Sequence[Example]) -> list[Row]:
        return [row_of(one) for one in examples]

    recent: list[float] = []

    def report(step: int, loss: float) -> None:
        recent.append(loss)
        del recent[:-50]
        progress(name, done + step, steps, sum(recent) / len(recent))

    steps = sum(plan.steps for plan in plans)
    done = 0
    for cycle, plan in enumerate(plans):
        encoder.rng.seed(seed + cycle)
        fit(model.float(), plan, rows, loss_of, seed + cycle, report)
        model.to(torch.bfloat16)
        done += plan.steps
    model.save_pretrained(folder)
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


def _print_progress(name: str, step: int, steps: int, loss: float) -> None:
    if step % 100 == 0 or step == steps:
        print(f"{name} step {step}/{steps} loss {loss:.4f}", flush=True)


def train_t5(
    out: str | Path, seed: int = 0, progress: Progress = _print_progress
) -> dict[str, float]:
    """Make ``out/t5``; returns its scores.

    Raises:
        RuntimeError: it reads less than :data:`BAR` of the held-out questions right.
    """
    folder = Path(out) / "t5"
    if not (folder / "tokenizer.json").exists():
        write_tokenizers(out)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(t5_config(AutoTokenizer.from_pretrained(folder)))
    _initialise(model)
    return _train("t5", model, (T5_FIRST, T5_SECOND, T5_THIRD), out, seed, progress)


def train_opt(
    out: str | Path, seed: int = 0, progress: Progress = _print_progress
) -> dict[str, float]:
    """Make ``out/opt``; returns its scores. Raises as :func:`train_t5`."""
    folder = Path(out) / "opt"
    if not (folder / "tokenizer.json").exists():
        write_tokenizers(out)
    torch.manual_seed(seed)
    model = OPTForCausalLM(opt_config(AutoTokenizer.from_pretrained(folder)))
    _initialise(model)
    return _train("opt", model, (OPT_PLAN,), out, seed, progress)


# ------------------------------------------------------------------------------ scores


@torch.no_grad()
def continue_texts(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], new: int
) -> list[str]:
    """Greedy continuations of texts; a decoder's up to the end of the line."""
    decoder = not model.config.is_encoder_decoder
    found: dict[int, str] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1] if decoder else None
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
            eos_token_id=newline if decoder else tokenizer.eos_token_id,
        )
        if decoder:
            ids = ids[:, batch["input_ids"].shape[1] :]
        said = tokenizer.batch_decode(ids, skip_special_tokens=True)
        found |= {i: text.partition("\n")[0].strip() for i, text in zip(rows, said, strict=True)}
    return [found[i] for i in range(len(texts))]


def check(folder: str | Path, count: int = 200) -> dict[str, float]:
    """Measure the model in ``folder`` on held-out scenes, ``count`` questions of each kind.

    Returns ``reading`` (exact answers over all kinds, by both of the paper's prompts), ``reading
    KIND`` for each, and ``rewriting``: true captions among those continued from a description.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    kind_of_model: Any = T5ForConditionalGeneration if config.is_encoder_decoder else OPTForCausalLM
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
