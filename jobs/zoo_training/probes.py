"""Tests that each of the zoo's vision models must pass before it is used.

* encoder: a small probe reads colour, shape, size, count and position from the tokens;
* ranker: CLIP scores a true caption above one that is wrong in one attribute, and above web noise;
* captioner: captions are true, both greedy ones and those of nucleus sampling.

Probes learn from training scenes only and are tested on evaluation scenes, which no model of the
zoo has seen.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, BlipForConditionalGeneration, CLIPModel

from jobs.models.encoders import load_encoder
from jobs.recipes.schema import EncoderChoice
from jobs.zoo_training.pictures import draw, pixels, vary
from modeling.captioning.captioner import Captioner
from modeling.captioning.clip_scorer import ClipScorer
from modeling.captioning.sampling import SamplingConfig
from modeling.prompts import CAPFILT
from pipeline.pixels import CLIP_MEAN, CLIP_STD
from pipeline.tinyworld.render import IMAGE_SIZE
from pipeline.tinyworld.scene import COLORS, QUARTERS, SHAPES, SIZES, Scene, sample_scene, stream
from pipeline.tinyworld.text import caption, describe, is_true, web_caption

WORDS = ("none", *SIZES, *COLORS, *SHAPES)
_SIZE, _COLOR, _SHAPE = slice(1, 3), slice(3, 11), slice(11, 17)

Encode = Callable[[Tensor], Tensor]  # images_B3HW -> tokens_BPD


def survey(scenes: Sequence[Scene]) -> Tensor:
    """Index in `WORDS` of size, colour and shape of each quarter in reading order: (B, 12)."""
    rows = []
    for scene in scenes:
        at = {(thing.row, thing.column): thing for thing in scene.things}
        row: list[str] = []
        for quarter in QUARTERS:
            thing = at.get(quarter)
            row += [thing.size, thing.color, thing.shape] if thing else ["none"] * 3
        rows.append([WORDS.index(word) for word in row])
    return torch.tensor(rows)


class Surveyor(nn.Module):
    """Twelve learned queries that read size, colour and shape of each quarter from tokens.

    It has one cross-attention and one hidden layer: enough to select and to read, too little to do
    the encoder's work.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(3 * len(QUARTERS), width) * 0.5)
        self.look = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.think = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(WORDS))
        )

    def forward(self, tokens_BPD: Tensor) -> Tensor:
        """Logits (B, 12, V) over `WORDS`."""
        memory_BPD = self.norm(tokens_BPD)
        queries_BQD = self.queries.expand(len(tokens_BPD), -1, -1)
        seen_BQD, _ = self.look(queries_BQD, memory_BPD, memory_BPD)
        logits_BQV: Tensor = self.think(self.norm2(seen_BQD))
        return logits_BQV


# ----------------------------------------------------------------------------- encoder


@dataclass(frozen=True)
class ProbeScores:
    """Shares of right answers, each between 0 and 1.

    Attributes:
        color, shape, size: share of the objects, each read in the quarter where it is.
        count: share of the pictures whose number of objects is right.
        position: share of the pictures whose occupied quarters are right.
        everything: share of the pictures with twelve right answers; it has no bar.
    """

    color: float
    shape: float
    size: float
    count: float
    position: float
    everything: float


def _read(logits_BQV: Tensor, truth_BQ: Tensor) -> ProbeScores:
    there_BQ = truth_BQ != 0
    best_BQ = logits_BQV.argmax(-1)

    def among(words: slice, first: int) -> float:
        right_BQ = logits_BQV[:, first::3, words].argmax(-1) + words.start == truth_BQ[:, first::3]
        return right_BQ[there_BQ[:, first::3]].float().mean().item()

    seen_BQ, held_BQ = best_BQ[:, ::3] != 0, there_BQ[:, ::3]
    return ProbeScores(
        size=among(_SIZE, 0),
        color=among(_COLOR, 1),
        shape=among(_SHAPE, 2),
        count=(seen_BQ.sum(1) == held_BQ.sum(1)).float().mean().item(),
        position=(seen_BQ == held_BQ).all(1).float().mean().item(),
        everything=(best_BQ == truth_BQ).all(1).float().mean().item(),
    )


@torch.no_grad()
def _tokens(encode: Encode, scenes: Sequence[Scene], name: str) -> Tensor:
    parts = []
    for start in range(0, len(scenes), 128):
        rng = stream("probe", name, start)
        parts.append(encode(pixels(scenes[start : start + 128], rng)).float())
    return torch.cat(parts)


def probe(
    encode: Encode, train: int = 3072, test: int = 1024, steps: int = 500, seed: int = 0
) -> ProbeScores:
    """Train a `Surveyor` on a frozen encoder's tokens, then test it on unseen scenes.

    Args:
        encode: function from normalised images (B, 3, H, W) to tokens (B, P, D).
        train: number of pictures of training scenes.
        test: number of pictures of evaluation scenes.
        steps: training steps of the probe.
        seed: seed of scenes and weights.
    """
    rng = stream(seed, "probe scenes")
    known = [sample_scene(rng) for _ in range(train)]
    unseen = [sample_scene(rng, "eval") for _ in range(test)]
    tokens_NPD, truth_NQ = _tokens(encode, known, "train"), survey(known)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Surveyor(tokens_NPD.shape[-1], 4)
        optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(steps):
            pick = torch.randint(train, (128,))
            loss = F.cross_entropy(reader(tokens_NPD[pick]).flatten(0, 1), truth_NQ[pick].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return _read(reader(_tokens(encode, unseen, "test")), survey(unseen))


# ------------------------------------------------------------------------------ ranker


@dataclass(frozen=True)
class RankerScores:
    """Shares of comparisons in which the true caption scores higher, between 0 and 1.

    Attributes:
        attribute: comparisons with a caption that is wrong in one attribute, place or exchange.
        noise: comparisons with vague, cut-off, foreign and other web texts.
    """

    attribute: float
    noise: float


def _said(scene: Scene, rng: random.Random) -> str:
    return describe(scene) if rng.random() < 0.5 else caption(scene, rng)


def _wrong(scene: Scene, rng: random.Random, count: int) -> list[str]:
    """Captions that are wrong for ``scene`` in one attribute, place or exchange."""
    found: list[str] = []
    while len(found) < count:
        text = _said(vary(scene, rng), rng)
        if not is_true(text, scene):
            found.append(text)
    return found


def _noise(scene: Scene, rng: random.Random) -> str:
    while True:
        text, kind = web_caption(scene, rng)
        if kind not in ("right", "other image"):
            return text


def rank(scorer: ClipScorer, images: int = 300, seed: int = 0) -> RankerScores:
    """Shares of comparisons in which CLIP prefers the true caption, on evaluation scenes.

    Each picture has one true caption, four that are wrong in one attribute and one of web noise.
    """
    rng = stream(seed, "ranker")
    scenes = [sample_scene(rng, "eval") for _ in range(images)]
    texts = [[_said(s, rng), *_wrong(s, rng, 4), _noise(s, rng)] for s in scenes]
    scores_NT = torch.tensor(scorer(torch.stack([draw(s, rng) for s in scenes]), texts))
    wins_NT = scores_NT[:, :1] > scores_NT[:, 1:]
    return RankerScores(wins_NT[:, :4].float().mean().item(), wins_NT[:, 4].float().mean().item())


# --------------------------------------------------------------------------- captioner


@dataclass(frozen=True)
class CaptionerScores:
    """Shares of captions, between 0 and 1.

    Attributes:
        greedy: greedy captions that are true.
        nucleus: captions of nucleus sampling (p = 0.9, as in CapFilt) that are true.
        different: different captions among five of a picture; it has no bar.
    """

    greedy: float
    nucleus: float
    different: float


def speak(model: Any, tokenizer: Any, images: int = 200, seed: int = 0) -> CaptionerScores:
    """Shares of true captions on pictures of evaluation scenes."""
    rng = stream(seed, "captioner")
    scenes = [sample_scene(rng, "eval") for _ in range(images)]
    images_B3SS = torch.stack([draw(scene, rng) for scene in scenes])
    uids = [f"{number:032x}" for number in range(1, images + 1)]

    def captions(count: int, temperature: float) -> list[list[str]]:
        sampling = SamplingConfig(
            captions=count, temperature=temperature, top_p=0.9, max_length=40, repetition_penalty=1
        )
        captioner = Captioner(model, tokenizer, sampling, CLIP_MEAN, CLIP_STD, seed=seed)
        return captioner(images_B3SS, uids)

    def share(said: list[list[str]]) -> float:
        right = [
            is_true(CAPFILT + text, scene)
            for scene, texts in zip(scenes, said, strict=True)
            for text in texts
        ]
        return sum(right) / len(right)

    drawn = captions(5, 1.0)
    different = sum(len(set(texts)) for texts in drawn) / (5 * images)
    return CaptionerScores(share(captions(1, 0.0)), share(drawn), different)


# ---------------------------------------------------------------------- shipped folders


def check_clip(folder: Path) -> dict[str, float]:
    """Scores of the CLIP in ``folder``: ``probe NAME`` of the encoder, ``ranker NAME``."""
    encoder = load_encoder(EncoderChoice(str(folder), IMAGE_SIZE))
    read = probe(encoder)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    scorer = ClipScorer(model, AutoTokenizer.from_pretrained(folder), CLIP_MEAN, CLIP_STD)
    scores = {f"probe {name}": score for name, score in asdict(read).items()}
    scores |= {f"ranker {name}": score for name, score in asdict(rank(scorer)).items()}
    return {name: round(score, 4) for name, score in scores.items()}


def check_captioner(folder: Path) -> dict[str, float]:
    """Scores of the captioner in ``folder``."""
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    scores = asdict(speak(model, AutoTokenizer.from_pretrained(folder)))
    return {name: round(score, 4) for name, score in scores.items()}


BARS: dict[str, dict[str, float]] = {
    "clip": {
        **{f"probe {name}": 0.9 for name in ("color", "shape", "size", "count", "position")},
        "ranker attribute": 0.85,
        "ranker noise": 0.95,
    },
    "captioner": {"greedy": 0.9, "nucleus": 0.8},
}


def demand(name: str, scores: dict[str, float]) -> None:
    """Compare the scores of the model ``name`` with its bars.

    Raises:
        ValueError: a score is below its bar.
    """
    low = [f"{k} {scores[k]:.3f} < {bar}" for k, bar in BARS[name].items() if scores[k] < bar]
    if low:
        raise ValueError(f"{name} is below its bar ({', '.join(low)}): train it longer")
