"""Ranking by likelihood beside a forward pass for each candidate, with the same model and scores.

    python jobs/benchmark.py ranking                                       # small models, CPU
    python jobs/benchmark.py ranking --size base --cases dialog
    python jobs/benchmark.py ranking --size full --device cuda --dtype bf16

A case is one prompt with its candidates. ``dialog`` is like a round of VisDial: 100 candidates of 5
to 10 tokens behind an image (32 visual prompts) and 100 tokens of dialog. ``video`` is like
MSRVTT-QA: 1,500 answers, most of them one token, behind four frames (128 visual prompts) and a
question; ``image`` has the same answers behind one image.

Contenders are ours (``modeling.language.ranking``); "rows", which reads prompt and candidate in a
row for each candidate, many rows a pass; and "brute force", a forward pass for each candidate. The
last two get a sample of the candidates, and their cost is scaled up to all of them, with whose
number it grows in proportion. The log-probabilities of the sample are compared. The column "tokens"
counts what a contender reads of the candidates.

Weights are random. The models of size ``small`` have few words, so that the output matrix is as
small a part of them as of the paper's language models; ``base`` has the sizes of OPT-125M and
FlanT5-base; ``full`` those of OPT-2.7B and FlanT5-XL.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, OPTConfig

from jobs.benchmarks import measure as bench
from jobs.benchmarks.train_contenders import SIZES, flan_t5, made_as, tokenizer
from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.language.ranking import Ranker
from modeling.language.trie import cut_tries
from modeling.precision import DTYPES

CASES = ("dialog", "video", "image")
QUERIES = 32  # visual prompts of an image
EQUAL = {"fp32": 1e-5, "bf16": 3e-2}


@dataclass(frozen=True)
class RankingBench:
    """Options of the ranking benchmark.

    Attributes:
        size: language models, as above; ``tiny`` for tests.
        device: torch's name of the device.
        dtype: number format of the models.
        cases: names with commas between them.
        dialog: number of candidates of ``dialog``.
        answers: number of candidates of ``video`` and ``image``.
        history: tokens of the dialog.
        question: tokens of a question.
        frames: images of ``video``.
        sample: candidates that the other contenders are given; 0: all.
        rounds: number of rounds; the contenders take turns.
    """

    size: Literal["tiny", "small", "base", "full"] = "small"
    device: str = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"
    cases: str = ",".join(CASES)
    dialog: int = 100
    answers: int = 1500
    history: int = 100
    question: int = 15
    frames: int = 4
    sample: int = 20
    rounds: int = 3


@dataclass(frozen=True)
class Case:
    """A prompt with its candidates.

    Attributes:
        queries: visual prompts.
        prompt: text of the prompt.
        candidates: texts to rank.
    """

    queries: int
    prompt: str
    candidates: list[str]


def main(arguments: Sequence[str]) -> int:
    """Measure, check, report."""
    args = tyro.cli(RankingBench, args=arguments, description=__doc__)
    names = args.cases.split(",")
    for name in names:
        if name not in CASES:
            raise ValueError(f"--cases {name!r}: give some of {', '.join(CASES)}")
    ceiling = bench.matmul_peak(args.device, DTYPES[args.dtype])
    rows = [["", "candidates", "tokens", "GFLOP", "seconds", "ratio", "of peak", "difference"]]
    found: dict[str, Any] = {}
    models = languages(args)
    with bench.progress(len(models) * len(names) * 3 * (args.rounds + 1), "ranking") as bar:
        for model, config in models.items():
            ranker = Ranker(make_language(args, config))
            for name in names:
                title = f"{name}, {model}"
                bar.set_description(title)
                case = make_case(args, name, config.vocab_size)
                found[title] = measure(args, ranker, case, ceiling, bar)
                rows += table_rows(title, found[title])
    print(f"matrix products: {ceiling / 1e12:.3f} TFLOP/s")
    worst = max(max(case["difference"].values()) for case in found.values())
    equal = worst <= EQUAL[args.dtype]
    print(f"log-probabilities equal to {EQUAL[args.dtype]:g} of their size: {equal}")
    record = {"benchmark": "ranking", **bench.machine(args.device), **args.__dict__}
    bench.report(rows, {**record, "peak_tflops": round(ceiling / 1e12, 4), "cases": found})
    return 0 if equal else 1


def languages(args: RankingBench) -> dict[str, Any]:
    """Configurations of the size's language models, one of each family, by name."""
    if args.size != "small":
        made = {name: make() for name, make in SIZES[args.size].languages.items()}
        return dict(list(made.items())[:2])
    width, words = 512, 2560
    opt = OPTConfig(
        vocab_size=words, hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width,
        num_hidden_layers=6, num_attention_heads=8,
    )  # fmt: skip
    t5 = flan_t5(d_model=width, d_ff=1024, num_layers=6, num_heads=8, vocab_size=words)
    return {"opt": opt, "t5": t5}


def make_language(args: RankingBench, config: Any) -> DecoderLM | EncoderDecoderLM:
    """A language model of random weights."""
    pair = config.is_encoder_decoder
    family: Any = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
    torch.manual_seed(0)
    with made_as(args):
        model = family.from_config(config, dtype=DTYPES[args.dtype])
    words = tokenizer(config.vocab_size, config.model_type)
    return EncoderDecoderLM(model, words) if pair else DecoderLM(model, words)


def make_case(args: RankingBench, name: str, vocabulary: int) -> Case:
    """A case by name; its texts are made-up words of one token each."""
    draw, words = random.Random(0), vocabulary - 5
    if name == "dialog":
        candidates = sentences(draw, args.dialog, words)
    else:
        candidates = answers(draw, args.answers, words)
    given = args.history if name == "dialog" else args.question
    prompt = " ".join(f"w{draw.randrange(words)}" for _ in range(given))
    return Case(QUERIES * (args.frames if name == "video" else 1), prompt, candidates)


def sentences(draw: random.Random, count: int, words: int) -> list[str]:
    """Different texts of 5 to 10 tokens, the end token among them, of which some begin alike.

    After every word the others follow in an order of its own, the n-th one with a probability in
    proportion to n ** -1.5: 4.4 bits a word, about the uncertainty of a language model.
    """
    weights = [(n + 1) ** -1.5 for n in range(words)]
    found: dict[str, None] = {}
    while len(found) < count:
        text, before = [], 0
        for _ in range(draw.randint(4, 9)):
            [rank] = draw.choices(range(words), weights)
            before = (rank * 7919 + before * 104729 + 1) % words
            text.append(f"w{before}")
        found[" ".join(text)] = None
    return list(found)


def answers(draw: random.Random, count: int, words: int) -> list[str]:
    """Different texts, nine tenths of them a single token, the others two."""
    single = draw.sample(range(words), min(count - count // 10, words // 2))
    found = dict.fromkeys(f"w{word}" for word in single)
    while len(found) < count:
        found[f"w{draw.choice(single)} w{draw.randrange(words)}"] = None
    return list(found)


def measure(
    args: RankingBench, ranker: Ranker, case: Case, ceiling: float, bar: Any
) -> dict[str, Any]:
    """Measure one case: seconds in turns, FLOPs, equality, and its rows of the table.

    Args:
        bar: progress bar that counts one for each run.
    """
    language, lines = ranker.language, Ranker(ranker.language)
    lines.branched = False
    visual_1QD = torch.randn(1, case.queries, language.width).to(args.device, language.dtype)
    every = max(1, len(case.candidates) // args.sample) if args.sample else 1
    sample = case.candidates[::every]

    def rank(by: Ranker, candidates: list[str]) -> tuple[float, ...]:
        return by.rank(visual_1QD, [case.prompt], [candidates])[0].log_probs

    work: dict[str, Callable[[], Sequence[float]]] = {
        "ours": lambda: rank(ranker, case.candidates),
        "rows": lambda: rank(lines, sample),
        "brute force": lambda: brute_force(language, visual_1QD, case.prompt, sample),
    }
    values: dict[str, Sequence[float]] = {}
    scale = dict.fromkeys(work, len(case.candidates) / len(sample)) | {"ours": 1.0}
    flops: dict[str, float] = {}
    for who, run in work.items():
        values[who] = run()
        flops[who] = bench.flops(run) * scale[who]  # warms too
        bar.update()
    times = bench.in_turns(work, args.rounds, args.device, bar)
    seconds = {who: timed.best * scale[who] for who, timed in times.items()}
    ours = values["ours"][::every]
    ids = language._continuations(case.candidates, [" "] * len(case.candidates))
    return {
        "candidates": len(case.candidates),
        "tokens": sum(map(len, ids)),
        "nodes": sum(len(trie) - 1 for trie in cut_tries(ids, limit=10**9)),
        "branched": ranker.branched,
        "seconds": {who: round(spent, 4) for who, spent in seconds.items()},
        "ratio": {who: round(seconds["brute force"] / s, 1) for who, s in seconds.items()},
        "gflop": {who: round(count / 1e9, 2) for who, count in flops.items()},
        "of_peak": round(flops["ours"] / seconds["ours"] / ceiling, 4),
        "difference": {who: difference(values[who], ours) for who in ("rows", "brute force")},
    }


def difference(values: Sequence[float], ours: Sequence[float]) -> float:
    """The largest difference, as a share of the value's size."""
    pairs = zip(values, ours, strict=True)
    return max(abs(value - mine) / max(1.0, abs(value)) for value, mine in pairs)


@torch.no_grad()
def brute_force(
    language: Any, visual_1QD: Tensor, prompt: str, candidates: Sequence[str]
) -> list[float]:
    """Minus the loss of a forward pass for each candidate."""
    losses = [language.token_losses(visual_1QD, [text], None, [prompt])[0] for text in candidates]
    return [-loss.item() for loss in losses]


def table_rows(title: str, case: Mapping[str, Any]) -> list[list[str]]:
    """The rows of one case, a contender each."""
    rows = []
    for who, seconds in case["seconds"].items():
        ours = who == "ours"
        rows.append(
            [
                f"{title}, {who}",
                f"{case['candidates']:,}",
                f"{case['nodes'] if ours else case['tokens']:,}",
                f"{case['gflop'][who]:,.0f}",
                f"{seconds:.3f}",
                f"{case['ratio'][who]:.1f}",
                f"{case['of_peak']:.1%}" if ours else "",
                "" if ours else f"{case['difference'][who]:.1e}",
            ]
        )
    return rows
