"""CapFilt's models beside a plain Hugging Face loop, with the same weights and images.

    python jobs/benchmark.py capfilt                                  # a mid-size captioner, on CPU
    python jobs/benchmark.py capfilt --size full --device cuda --dtype bf16 --images 256 --batch 64

The models have random weights and the real architectures (BLIP and CLIP). The plain loop is the
code that one writes first: BLIP's ``generate`` with ten return sequences, then CLIP on padded
texts. Captions have a fixed length, so that both decode the same number of tokens. The run also
checks that greedy captions are equal, and that CLIP's scores of the same captions agree to 1e-4
(fp32). On CPU in fp32 our models run a second time, with the plain loop's library of matrix
products (see ``modeling.linear``).
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from jobs.benchmarks import measure as bench
from modeling.captioning.captioner import Captioner
from modeling.captioning.clip_scorer import ClipScorer
from modeling.captioning.cuda_graphs import Steps
from modeling.captioning.sampling import SamplingConfig
from modeling.linear import products_by
from modeling.precision import DTYPES
from modeling.prompts import CAPFILT
from pipeline.transforms import CLIP_MEAN as MEAN
from pipeline.transforms import CLIP_STD as STD

WORDS = 30_519  # with the special ones as many as BLIP has
Batches = Sequence[tuple[Tensor, Tensor]]  # images for the captioner and for the scorer


@dataclass(frozen=True)
class CapFiltBench:
    """Options of the CapFilt benchmark.

    Attributes:
        size: models: ``small`` is a 12-layer captioner 384 wide at 384 px, ``full`` is BLIP-large
            and CLIP ViT-L/14.
        device: torch's name of the device.
        dtype: number format of the models.
        images: images in a round.
        batch: images that are captioned and scored at once.
        captions: captions for each image.
        tokens: tokens of each caption behind the prompt.
        rounds: number of rounds; the contenders take turns, and the best round counts.
        peer: whether the plain loop runs too.
    """

    size: Literal["small", "full"] = "small"
    device: str = "cpu"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    images: int = 8
    batch: int = 4
    captions: int = 10
    tokens: int = 20
    rounds: int = 2
    peer: bool = True


def main(arguments: Sequence[str]) -> int:
    """Measure, check, report."""
    args = tyro.cli(CapFiltBench, args=arguments, description=__doc__)
    captioner, scorer, plain = contenders(args)
    batches = list(zip(*(part.split(args.batch) for part in random_images(args)), strict=True))
    ours = Ours(captioner, scorer)
    greedy_equal = check_greedy(args, captioner, plain.blip, batches[0][0])
    times = take_turns(args, ours, plain, batches)
    ours.run(batches)
    seconds = {name: round(spent, 3) for name, spent in ours.seconds.items()}
    largest = check_scores(ours, plain, batches[0])
    peak = bench.matmul_peak(args.device, DTYPES[args.dtype])
    flops = flops_per_image(ours, plain, batches[0], tuple(times))
    print(f"seconds by stage, once more: {seconds}; matrix products {peak / 1e12:.3f} TFLOP/s")
    print(f"greedy captions equal: {greedy_equal}; largest difference of a score: {largest:.2e}")
    checks = {"seconds": seconds, "greedy_equal": greedy_equal, "score_difference": largest}
    report(args, times, flops, peak, checks)
    return 0 if greedy_equal and (largest <= 1e-4 or args.dtype != "fp32") else 1


def take_turns(
    args: CapFiltBench, ours: "Ours", plain: "PlainLoop", batches: Batches
) -> dict[str, bench.Timed]:
    """Warm the contenders up, then time them round after round."""
    print(
        f"{args.images} images, {args.captions} captions each: ours and the plain loop "
        f"take turns, {args.rounds} rounds",
        flush=True,
    )
    ours.run(batches[:1])
    work: dict[str, Callable[[], Any]] = {"ours": lambda: ours.run(batches)}
    if bench.has_torchs(args.device, args.dtype):
        work[bench.TORCHS] = lambda: ours.run_with_torchs_products(batches)
    if args.peer:
        plain(batches[0])
        work["plain"] = lambda: [plain(batch) for batch in batches]
    with bench.progress(len(work) * args.rounds, "capfilt") as bar:
        return bench.in_turns(work, args.rounds, args.device, bar)


def flops_per_image(
    ours: "Ours", plain: "PlainLoop", batch: tuple[Tensor, Tensor], names: Sequence[str]
) -> dict[str, float]:
    """Matrix-product FLOPs of each contender for an image."""
    mine = count_flops(ours, batch)
    counted = {name: mine for name in names if name != "plain"}
    if "plain" in names:
        counted["plain"] = bench.flops(lambda: plain(batch)) / len(batch[0])
    return counted


def report(
    args: CapFiltBench,
    times: dict[str, bench.Timed],
    flops: dict[str, float],
    peak: float,
    checks: dict[str, Any],
) -> None:
    """Print the table and the line of JSON.

    Args:
        times: Seconds of each contender.
        flops: Matrix-product FLOPs of each contender for an image.
        peak: FLOP/s of a large matrix product.
        checks: Fields of the JSON that are known already.
    """
    rows = [["", "images/s", "GFLOP/image", "of peak", "best s", "median s"]]
    speeds = {name: args.images / timed.best for name, timed in times.items()}
    for name, timed in times.items():
        share = speeds[name] * flops[name] / peak
        numbers = (f"{speeds[name]:.2f}", f"{flops[name] / 1e9:.1f}", f"{share:.1%}")
        rows.append([name, *numbers, f"{timed.best:.2f}", f"{timed.median:.2f}"])
    ceiling = (f"{peak / flops['ours']:.2f}", f"{flops['ours'] / 1e9:.1f}")
    rows.append(["ceiling", *ceiling, "100.0%", "", ""])
    ratios = {}
    if args.peer:
        ratios = {who: speeds[who] / speeds["plain"] for who in speeds if who != "plain"}
        print("beside the plain loop: " + "; ".join(f"{w} {r:.2f} x" for w, r in ratios.items()))
    bench.report(
        rows,
        {
            "benchmark": "capfilt",
            **bench.machine(args.device),
            **args.__dict__,
            "images_per_s": {name: round(speed, 3) for name, speed in speeds.items()},
            "gflop_per_image": {name: round(n / 1e9, 2) for name, n in flops.items()},
            "peak_tflops": round(peak / 1e12, 3),
            "ratios": {who: round(ratio, 3) for who, ratio in ratios.items()},
            **checks,
        },
    )


class Ours:
    """The models as CapFilt's actor runs them, and the seconds that each takes."""

    def __init__(self, captioner: Captioner, scorer: ClipScorer) -> None:
        self.captioner, self.scorer = captioner, scorer
        self.seconds: dict[str, float] = {}
        self.captions: list[list[str]] = []

    def run(self, batches: Batches) -> list[list[float]]:
        """Captions and scores of all batches."""
        self.seconds, self.captions = {"caption": 0.0, "score": 0.0}, []
        scores: list[list[float]] = []
        for number, (large, small) in enumerate(batches):
            keys = [f"{number}-{i}" for i in range(len(large))]
            made = self._timed("caption", self.captioner, large, keys)
            scores += self._timed("score", self.scorer, small, made)
            self.captions += made
        return scores

    def run_with_torchs_products(self, batches: Batches) -> None:
        """The same with the plain loop's library of products: the algorithm's own gain."""
        with products_by("torch"):
            self.run(batches)

    def _timed(self, stage: str, model: Any, *inputs: Any) -> Any:
        start = time.perf_counter()
        made = model(*inputs)
        bench.settle(str(self.captioner.device))
        self.seconds[stage] += time.perf_counter() - start
        return made


def count_flops(ours: Ours, batch: tuple[Tensor, Tensor]) -> float:
    """Matrix-product FLOPs of an image, counted over plain steps.

    torch does not see the products of a CUDA graph that is replayed.
    """
    model = ours.captioner
    plain = Captioner(model.model, model.tokenizer, model.sampling, MEAN, STD, steps=Steps())
    return bench.flops(lambda: Ours(plain, ours.scorer).run([batch])) / len(batch[0])


class PlainLoop:
    """The code that one writes first with transformers: generate, decode, pad, embed, multiply."""

    def __init__(self, args: CapFiltBench, blip: Any, clip: Any, words: Any, pieces: Any) -> None:
        self.args, self.blip, self.clip, self.words, self.pieces = args, blip, clip, words, pieces
        mean, std = (torch.tensor(v, device=args.device).view(3, 1, 1) for v in (MEAN, STD))
        self.mean, self.std = mean, std

    @torch.inference_mode()
    def __call__(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        large, small = batch
        prompt = self.words([CAPFILT] * len(large), return_tensors="pt").input_ids
        length = prompt.shape[1] - 1 + self.args.tokens  # BLIP drops the prompt's [SEP]
        ids = self.blip.generate(
            pixel_values=self.pixels(large),
            input_ids=prompt.to(self.args.device),
            do_sample=True,
            top_p=0.9,
            repetition_penalty=1.1,
            num_return_sequences=self.args.captions,
            min_length=length,
            max_length=length,
        )
        texts = self.words.batch_decode(ids[:, prompt.shape[1] - 1 :], skip_special_tokens=True)
        return self.scores(small, texts)

    @torch.inference_mode()
    def scores(self, small: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosines of each image with its own captions, texts padded to CLIP's context."""
        rows = self.pieces(
            list(texts), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).to(self.args.device)
        vision = self.clip.vision_model(pixel_values=self.pixels(small)).pooler_output
        text = self.clip.text_model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask
        ).pooler_output
        image_BE = normalize(self.clip.visual_projection(vision).float(), dim=-1)
        text_SE = normalize(self.clip.text_projection(text).float(), dim=-1)
        text_BNE = text_SE.view(len(small), self.args.captions, -1)
        return (text_BNE * image_BE[:, None]).sum(-1)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised pixels in the models' dtype."""
        scaled = (images.to(self.args.device).float() / 255 - self.mean) / self.std
        return scaled.to(DTYPES[self.args.dtype])


def contenders(args: CapFiltBench) -> tuple[Captioner, ClipScorer, PlainLoop]:
    """Both sides on the same random weights, made on the device."""
    torch.manual_seed(0)
    words, pieces = tokenizers()
    with torch.device(args.device):
        blip: Any = BlipForConditionalGeneration(blip_config(args.size))
        clip: Any = CLIPModel(clip_config(args.size))
        for parameter in (*blip.parameters(), *clip.parameters()):
            if parameter.ndim > 1:  # as initialised all captions would be one word
                torch.nn.init.normal_(parameter, std=0.05)
        # Logits as spread as a trained captioner's: a few words hold most of the mass.
        head = blip.text_decoder.cls.predictions.decoder.weight
        torch.nn.init.normal_(head, std=6 / blip.config.text_config.hidden_size**0.5)
    blip, clip = (model.to(DTYPES[args.dtype]).eval() for model in (blip, clip))
    start = len(words(CAPFILT).input_ids) - 1
    sampling = SamplingConfig(
        captions=args.captions, prompt=CAPFILT, min_length=start + args.tokens,
        max_length=start + args.tokens,
    )  # fmt: skip
    # The plain loop gets copies, since our classes change the modules' library of products.
    plain = PlainLoop(args, copy.deepcopy(blip), copy.deepcopy(clip), words, pieces)
    captioner = Captioner(blip, words, sampling, MEAN, STD)
    return captioner, ClipScorer(clip, pieces, MEAN, STD), plain


def check_greedy(args: CapFiltBench, captioner: Captioner, blip: Any, images: Tensor) -> bool:
    """Whether one greedy caption an image is the same ids as Hugging Face's."""
    sampling = SamplingConfig(
        captions=1, prompt=CAPFILT, temperature=0, min_length=captioner.sampling.max_length,
        max_length=captioner.sampling.max_length,
    )  # fmt: skip
    greedy = Captioner(captioner.model, captioner.tokenizer, sampling, MEAN, STD)
    mine = greedy.generate(images, ["x"] * len(images))[:, 0]
    pixels = (images.to(args.device).float() / 255 - captioner.mean) / captioner.std
    theirs = blip.generate(
        pixel_values=pixels.to(DTYPES[args.dtype]),
        input_ids=captioner.tokenizer([CAPFILT] * len(images), return_tensors="pt").input_ids.to(
            args.device
        ),
        do_sample=False,
        repetition_penalty=sampling.repetition_penalty,
        min_length=sampling.max_length,
        max_length=sampling.max_length,
    )
    equal = bool((mine == theirs[:, -mine.shape[1] :]).all())
    return equal or args.dtype != "fp32"  # in bf16 a near tie may fall either way


def check_scores(ours: Ours, plain: PlainLoop, batch: tuple[Tensor, Tensor]) -> float:
    """The largest difference between both sides' scores of the same captions."""
    mine = torch.tensor(ours.run([batch]))
    texts = [text for row in ours.captions for text in row]
    return float((plain.scores(batch[1], texts).cpu() - mine).abs().max())


def random_images(args: CapFiltBench) -> tuple[Tensor, Tensor]:
    """Images of noise, uint8, for the captioner (384 px) and the scorer (224 px)."""
    generator = torch.Generator().manual_seed(0)
    large, small = (
        torch.randint(0, 256, (args.images, 3, side, side), dtype=torch.uint8, generator=generator)
        for side in (384, 224)
    )
    return large, small


def blip_config(size: str) -> BlipConfig:
    """BLIP-large, or BLIP with the width of ViT-S."""
    width, layers, text = (1024, 24, 768) if size == "full" else (384, 12, 384)
    return BlipConfig(
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": width // 64, "image_size": 384, "patch_size": 16,
        },
        text_config={
            "vocab_size": WORDS + 5, "hidden_size": text, "encoder_hidden_size": width,
            "intermediate_size": 4 * text, "num_hidden_layers": 12,
            "num_attention_heads": text // 64, "max_position_embeddings": 512,
            "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0,
        },
    )  # fmt: skip


def clip_config(size: str) -> CLIPConfig:
    """CLIP ViT-L/14, or ViT-S/16 with a text tower of its size."""
    width, layers, patch, text = (1024, 24, 14, 768) if size == "full" else (384, 12, 16, 256)
    return CLIPConfig(
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": width // 64, "image_size": 224, "patch_size": patch,
        },
        text_config={
            "vocab_size": WORDS + 5, "hidden_size": text, "intermediate_size": 4 * text,
            "num_hidden_layers": 12, "num_attention_heads": text // 64,
            "max_position_embeddings": 77, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
        },
        projection_dim=768 if size == "full" else 256,
    )  # fmt: skip


def tokenizers() -> tuple[Any, Any]:
    """Tokenizers of made-up words, one token each, with BERT's special tokens and with CLIP's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, "a", "picture", "of"]
    vocabulary += [f"w{number}" for number in range(WORDS - 3)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    pieces = PreTrainedTokenizerFast(tokenizer_object=core, **names, eos_token="[SEP]")
    return words, pieces
