"""Every benchmark by name: its files, its reader, metric, prompt, splits and submission file.

The files of a benchmark are those that its authors publish, in the folder ``DIR/NAME`` of the data
folder ``DIR``. Benchmarks on COCO's images also find them in ``DIR/coco``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from evaluation.benchmarks import prompts, submissions
from evaluation.benchmarks.aokvqa import read_aokvqa, read_aokvqa_choices
from evaluation.benchmarks.coco import read_coco_captions
from evaluation.benchmarks.fields import first_file
from evaluation.benchmarks.folder import Asked, Captioned
from evaluation.benchmarks.gqa import read_gqa
from evaluation.benchmarks.iconqa import read_iconqa
from evaluation.benchmarks.judged.llava_bench import read_llava_bench
from evaluation.benchmarks.karpathy import read_karpathy
from evaluation.benchmarks.prompts import Prompt
from evaluation.benchmarks.scienceqa import read_scienceqa
from evaluation.benchmarks.statements import FALSE_TRUE, NO_YES, read_hatefulmemes, read_vsr
from evaluation.benchmarks.submissions import Submission
from evaluation.benchmarks.textvqa import read_textvqa
from evaluation.benchmarks.video.ivqa import read_ivqa
from evaluation.benchmarks.video.videoqa import read_videoqa, training_answers
from evaluation.benchmarks.visdial import read_visdial
from evaluation.benchmarks.vizwiz import read_vizwiz
from evaluation.benchmarks.vqav2 import read_vqa

Way = Literal["caption", "answer", "choose", "retrieve", "judge"]
Data = Captioned | Asked
Read = Callable[[Path, str], Data]
"""The folder of a benchmark and the name of a split -> its data."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        title: name as papers print it.
        way: task of the model. caption: a caption of each image. answer: a free answer to each
            question. choose: the likeliest of each question's candidates. retrieve: the captions of
            an image, and the image of a caption. judge: a long answer to each question, which a
            judge compares with a reference.
        splits: names of the splits; published numbers are of the first.
        read: reader of a split.
        metric: family and variant of the metric of answers (``evaluation.scores.answers.METRICS``);
            for choices accuracy, auroc or dialog; captions for captions, recall for retrieval,
            judged for answers that are judged.
        prompt: InstructBLIP's prompt of a question; for captions it is ``prompts.CAPTION``.
        verbalisers: texts whose probabilities add up to that of a candidate; candidates that are
            not here stand for themselves.
        submission: writer of the server's file; None: the results file is what a server takes.
        suffix: ending of the server's file.
        lemmatise: whether references are lemmas, so that answers must be (OK-VQA).
        shares: name of the benchmark whose folder this one reads; empty: it has its own.
        candidates: reader of the answers, in the benchmark's folder, among which the model chooses
            where nothing else is asked for; None: it writes its answers.
    """

    name: str
    title: str
    way: Way
    splits: tuple[str, ...]
    read: Read
    metric: str
    prompt: Prompt = prompts.question_prompt
    verbalisers: Mapping[str, tuple[str, ...]] | None = None
    submission: Submission | None = None
    suffix: str = ".json"
    lemmatise: bool = False
    shares: str = ""
    candidates: Callable[[Path], tuple[str, ...]] | None = None

    def load(self, data: Path, split: str | None = None) -> Data:
        """The data of a split; None: of the first.

        Raises:
            FileNotFoundError: the benchmark's folder, a file of it or an image is not there.
            ValueError: there is no such split, or a file is not what it must be.
        """
        split = split or self.splits[0]
        if split not in self.splits:
            known = ", ".join(self.splits)
            raise ValueError(f"{self.name} has no split {split!r}; its splits: {known}")
        folder = self.folder(data)
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder: {folder}, for the files of {self.title}")
        return self.read(folder, split)

    def folder(self, data: Path) -> Path:
        """The folder of its files in the data folder."""
        return data / (self.shares or self.name)

    def own_candidates(self, data: Path) -> tuple[str, ...]:
        """The answers among which the model chooses by default; none: it writes its answers.

        Raises:
            FileNotFoundError: a benchmark with candidates has no file of them in its folder.
            ValueError: the file is not what it must be.
        """
        return self.candidates(self.folder(data)) if self.candidates else ()


# --------------------------------------------------------------------- the files of each


def _coco_images(folder: Path, name: str) -> Path:
    """A folder of COCO's images: beside the benchmark's files, else the one in ``coco``."""
    shared = folder.parent / "coco" / name
    return folder / name if (folder / name).is_dir() or not shared.is_dir() else shared


_VQAV2_FILES = {  # split: questions, annotations, images
    "val": ("mscoco_val2014", "mscoco_val2014", "val2014"),
    "test-dev": ("mscoco_test-dev2015", "", "test2015"),
    "test-std": ("mscoco_test2015", "", "test2015"),
    "train": ("mscoco_train2014", "mscoco_train2014", "train2014"),
}


def _vqav2(folder: Path, split: str) -> Asked:
    asked, noted, images = _VQAV2_FILES[split]
    notes = folder / f"v2_{noted}_annotations.json" if noted else None
    questions = folder / f"v2_OpenEnded_{asked}_questions.json"
    return Asked(read_vqa(questions, notes, _coco_images(folder, images)))


def _okvqa(folder: Path, split: str) -> Asked:
    name = f"mscoco_{split}2014"
    questions = folder / f"OpenEnded_{name}_questions.json"
    images = _coco_images(folder, f"{split}2014")
    return Asked(read_vqa(questions, folder / f"{name}_annotations.json", images))


def _aokvqa(folder: Path, split: str) -> Asked:
    images = _coco_images(folder, f"{split}2017")
    return Asked(read_aokvqa(folder / f"aokvqa_v1p0_{split}.json", images))


def _aokvqa_choice(folder: Path, split: str) -> Asked:
    images = _coco_images(folder, f"{split}2017")
    return Asked(read_aokvqa_choices(folder / f"aokvqa_v1p0_{split}.json", images))


def _gqa(folder: Path, split: str) -> Asked:
    name = f"{split.partition('_')[0]}_choices.json"
    choices = next(
        (path for path in (folder / name, folder / "eval" / name) if path.is_file()), None
    )
    return Asked(read_gqa(folder / f"{split}_questions.json", folder / "images", choices))


def _vizwiz(folder: Path, split: str) -> Asked:
    path = first_file(folder, [f"{split}.json", f"Annotations/{split}.json"])
    return Asked(read_vizwiz(path, folder / split))


def _textvqa(folder: Path, split: str) -> Asked:
    words = folder / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    # Training and validation images come in one archive.
    images = folder / ("test_images" if split == "test" else "train_images")
    path = folder / f"TextVQA_0.5.1_{split}.json"
    return Asked(read_textvqa(path, words if words.is_file() else None, images))


def _scienceqa(folder: Path, split: str) -> Asked:
    files = (folder / "problems.json", folder / "pid_splits.json", folder / "images")
    return Asked(read_scienceqa(*files, split))


def _iconqa(folder: Path, split: str) -> Asked:
    return Asked(read_iconqa(folder / "iconqa_data" / "iconqa" / split / "choose_txt"))


def _vsr(folder: Path, split: str) -> Asked:
    kind, name = split.split("-")
    return Asked(read_vsr(folder / "splits" / kind / f"{name}.jsonl", folder / "images"))


def _hatefulmemes(folder: Path, split: str) -> Asked:
    return Asked(read_hatefulmemes(folder / f"{split}.jsonl"))


def _visdial(folder: Path, split: str) -> Asked:
    dense = folder / f"visdial_1.0_{split}_dense_annotations.json"
    images = folder / f"VisualDialog_{split}2018"
    path = folder / f"visdial_1.0_{split}.json"
    return Asked(read_visdial(path, dense if dense.is_file() else None, images))


def _videoqa(folder: Path, split: str) -> Asked:
    return Asked(read_videoqa(folder, split))


def _ivqa(folder: Path, split: str) -> Asked:
    return Asked(read_ivqa(folder / f"{split}.csv", folder))


def _llava_bench(folder: Path, split: str) -> Asked:
    names = ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl", "images")
    return Asked(read_llava_bench(*(folder / name for name in names)))


def _llava_bench_coco(folder: Path, split: str) -> Asked:
    contexts = folder / "caps_boxes_coco2014_val_80.jsonl"
    asked, said = (folder / f"qa90_{name}.jsonl" for name in ("questions", "gpt4_answer"))
    return Asked(read_llava_bench(asked, contexts, said, _coco_images(folder, "val2014")))


_NOCAPS_FILES = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}


def _nocaps(folder: Path, split: str) -> Captioned:
    items = read_coco_captions(folder / _NOCAPS_FILES[split], folder / split)
    return Captioned(tuple(items))


def _coco(folder: Path, split: str) -> Captioned:
    return Captioned(tuple(read_karpathy(folder / "dataset_coco.json", folder, split)))


def _flickr30k(folder: Path, split: str) -> Captioned:
    images = folder / "flickr30k-images"
    return Captioned(tuple(read_karpathy(folder / "dataset_flickr30k.json", images, split)))


# -------------------------------------------------------------------------- the catalogue

_YES_NO = {"no": ("no", "false"), "yes": ("yes", "true")}
_TRUE_FALSE = {"false": ("false", "no"), "true": ("true", "yes")}
assert tuple(_YES_NO) == NO_YES and tuple(_TRUE_FALSE) == FALSE_TRUE
_VIDEO_SPLITS = ("test", "val", "train")
_KARPATHY_SPLITS = ("test", "val", "train")
_GQA_SPLITS = ("testdev_balanced", "val_balanced", "test_balanced", "testdev_all", "val_all",
               "test_all", "challenge_balanced", "challenge_all", "submission_all")  # fmt: skip

_ALL = (
    Benchmark("coco", "COCO Karpathy", "caption", _KARPATHY_SPLITS, _coco, "captions"),
    Benchmark("nocaps", "NoCaps", "caption", ("val", "test"), _nocaps, "captions"),
    Benchmark("flickr30k", "Flickr30K", "caption", _KARPATHY_SPLITS, _flickr30k, "captions"),
    Benchmark(
        "coco_retrieval", "COCO Karpathy", "retrieve", _KARPATHY_SPLITS, _coco, "recall",
        shares="coco",
    ),
    Benchmark(
        "flickr30k_retrieval", "Flickr30K", "retrieve", _KARPATHY_SPLITS, _flickr30k, "recall",
        shares="flickr30k",
    ),
    Benchmark("vqav2", "VQAv2", "answer", tuple(_VQAV2_FILES), _vqav2, "vqa.official"),
    Benchmark(
        "okvqa", "OK-VQA", "answer", ("val", "train"), _okvqa, "vqa.official", lemmatise=True
    ),
    Benchmark(
        "aokvqa", "A-OKVQA, direct answers", "answer", ("val", "test", "train"), _aokvqa,
        "aokvqa.official", submission=submissions.aokvqa_direct,
    ),
    Benchmark(
        "gqa", "GQA", "answer", _GQA_SPLITS, _gqa, "gqa.normalised", submission=submissions.gqa
    ),
    Benchmark(
        "vizwiz", "VizWiz", "answer", ("val", "test", "train"), _vizwiz, "vqa.official",
        submission=submissions.vizwiz,
    ),
    Benchmark(
        "textvqa", "TextVQA", "answer", ("val", "test", "train"), _textvqa, "vqa.always",
        prompts.text_prompt,
    ),
    # The numbers of answers are the reference's: a convention, since test answers lie outside too.
    Benchmark(
        "msvdqa", "MSVD-QA", "answer", _VIDEO_SPLITS, _videoqa, "videoqa.official",
        candidates=partial(training_answers, most=2423),
    ),
    Benchmark(
        "msrvttqa", "MSRVTT-QA", "answer", _VIDEO_SPLITS, _videoqa, "videoqa.official",
        candidates=partial(training_answers, most=1500),
    ),
    Benchmark("ivqa", "iVQA", "answer", _VIDEO_SPLITS, _ivqa, "ivqa.official"),
    Benchmark(
        "aokvqa_choice", "A-OKVQA, choices", "choose", ("val", "test", "train"), _aokvqa_choice,
        "accuracy", prompts.icon_prompt, submission=submissions.aokvqa_choice, shares="aokvqa",
    ),
    Benchmark(
        "scienceqa", "ScienceQA-IMG", "choose",
        ("test", "val", "train", "minitest", "minival", "trainval"), _scienceqa,
        "accuracy", prompts.science_prompt, submission=submissions.choice_index,
    ),
    Benchmark(
        "iconqa", "IconQA, choice of texts", "choose", ("test", "val", "train"), _iconqa,
        "accuracy", prompts.icon_prompt, submission=submissions.choice_index,
    ),
    Benchmark(
        "vsr", "VSR", "choose",
        tuple(f"{kind}-{name}" for kind in ("zeroshot", "random")
              for name in ("test", "dev", "train")),
        _vsr, "accuracy", prompts.statement_prompt, _TRUE_FALSE,
    ),
    Benchmark(
        "hatefulmemes", "HatefulMemes", "choose",
        ("dev", "dev_seen", "dev_unseen", "test", "test_seen", "test_unseen", "train"),
        _hatefulmemes, "auroc", prompts.meme_prompt, _YES_NO,
        submission=submissions.hatefulmemes, suffix=".csv",
    ),
    Benchmark(
        "visdial", "VisDial 1.0", "choose", ("val", "test"), _visdial, "dialog",
        prompts.dialog_prompt, submission=submissions.visdial,
    ),
    Benchmark(
        "llava_bench", "LLaVA-Bench (In-the-Wild)", "judge", ("test",), _llava_bench, "judged",
        prompts.plain_prompt,
    ),
    Benchmark(
        "llava_bench_coco", "LLaVA-Bench (COCO)", "judge", ("val",), _llava_bench_coco, "judged",
        prompts.plain_prompt,
    ),
)  # fmt: skip
BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
