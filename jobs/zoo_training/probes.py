"""What each of the zoo's vision models must be able to do before it counts.

* encoder: a small probe reads colour, shape, size, count and position off its tokens;
* ranker: CLIP scores a true caption above one that is wrong in one attribute, and above web noise;
* captioner: its captions are true, greedy ones and those of nucleus sampling.

Probes learn from training scenes only and are judged on evaluation scenes, which no model of the
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
from jobs.zoo_training.pictures import CLIP_MEAN, CLIP_STD, draw, pixels, vary
from modeling.captioning.captioner import Captioner
from modeling.captioning.clip_scorer import ClipScorer
from modeling.captioning.sampling import SamplingConfig
from modeling.prompts import CAPFILT
from pipeline.tinyworld.render import IMAGE_SIZE
from pipeline.tinyworld.scene import COLORS, QUARTERS, SHAPES, SIZES, Scene, sample_scene, stream
from pipeline.tinyworld.text import caption, describe, is_true, web_caption

WORDS = ("none", *SIZES, *COLORS, *SHAPES)
_SIZE, _COLOR, _SHAPE = slice(1, 3), slice(3, 11), slice(11, 17)

Encode = Callable[[Tensor], Tensor]  # images_B3HW -> tokens_BPD


def survey(scenes: Sequence[Scene]) -> Tensor:
    """Index in :data:`WORDS` of size, colour and shape of each quarter in reading order: B,12."""
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
    """Twelve learned queries that look once at an encoder's tokens: size, colour, shape × quarter.

    One cross-attention and one hidden layer: it can pick and read, not see for the encoder.
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
        """Logits over :data:`WORDS`, B × 12 × V."""
        memory_BPD = self.norm(tokens_BPD)
        queries_BQD = self.queries.expand(len(tokens_BPD), -1, -1)
        seen_BQD, _ = self.look(queries_BQD, memory_BPD, memory_BPD)
        logits_BQV: Tensor = self.think(self.norm2(seen_BQD))
        return logits_BQV


# ----------------------------------------------------------------------------- encoder


@dataclass(frozen=True)
class ProbeScores:
    """Shares of right readings, each between 0 and 1."""

    color: float  # of the objects, in the quarter where each is
    shape: float
    size: float
    count: float  # of the pictures
    position: float  # of the pictures: which quarters hold an object
    everything: float  # of the pictures: all twelve readings right (not gated)


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
    """Train a :class:`Surveyor` on a frozen encoder's tokens, then read unseen scenes.

    Args:
        encode: images B3HW (normalised) to tokens BPD.
        train, test: pictures of training and of evaluation scenes.
    """
    rng = stream(seed, "probe scenes")
    known = [sample_scene(rng) for _ in range(train)]
    unseen = [sample_scene(rng, "eval") for _ in range(test)]
    tokens_NPD, truth_NQ = _tokens(encode, known, "train"), survey(known)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Surveyor(tokens_NPD.shape[-1], 4)
        optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
        plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(steps):
            pick = torch.randint(train, (128,))
            loss = F.cross_entropy(reader(tokens_NPD[pick]).flatten(0, 1), truth_NQ[pick].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plan.step()
    with torch.no_grad():
        return _read(reader(_tokens(encode, unseen, "test")), survey(unseen))


# ------------------------------------------------------------------------------ ranker


@dataclass(frozen=True)
class RankerScores:
    """Share of comparisons in which the true caption scores higher, between 0 and 1."""

    attribute: float  # against a caption that is wrong in one attribute, place or exchange
    noise: float  # against vague, cut-off, foreign and other web texts


def _said(scene: Scene, rng: random.Random) -> str:
    return describe(scene) if rng.random() < 0.5 else caption(scene, rng)


def _wrong(scene: Scene, rng: random.Random, count: int) -> list[str]:
    """Captions that fail ``scene`` by one attribute, place or exchange."""
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
    """How often CLIP prefers the true caption, on pictures of evaluation scenes.

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
    """Shares of captions that are true, prompt included, between 0 and 1."""

    greedy: float
    nucleus: float  # p = 0.9, as CapFilt draws them
    different: float  # of five nucleus captions of a picture (not gated)


def speak(model: Any, tokenizer: Any, images: int = 200, seed: int = 0) -> CaptionerScores:
    """How many captions of pictures of evaluation scenes are true."""
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
    """Check the scores of the model ``name`` against its bars.

    Raises:
        ValueError: a score is below its bar.
    """
    low = [f"{k} {scores[k]:.3f} < {bar}" for k, bar in BARS[name].items() if scores[k] < bar]
    if low:
        raise ValueError(f"{name} is below its bar ({', '.join(low)}): train it longer")
