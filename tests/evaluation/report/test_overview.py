"""The first screen of a report: names of scores, the processor, and what any folders give it."""

from pathlib import Path

import pytest

from evaluation.report.evaluations import Evaluated
from evaluation.report.machine import cpu
from evaluation.report.names import readable
from evaluation.report.overview import overview
from evaluation.report.page import CapFilt, FilteredImage, RankedCaption, Report, render

XEON = """processor	: 0
model name	: Intel(R) Xeon(R) Processor
flags		: fpu avx avx2 avx512f amx_bf16

processor	: 1
model name	: another
"""


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("retrieval.tr_r1", "text retrieval R@1"),
        ("retrieval.itc.ir_r10", "image retrieval R@10, ITC alone"),
        ("coco_retrieval.ir_r5", "COCO image retrieval R@5"),
        ("caption.t5.bleu4", "BLEU-4, T5"),
        ("vqa.opt.accuracy", "VQA accuracy, OPT"),
        ("capfilt.right_after", "right captions after CapFilt"),
        ("new_task.some_score", "new task some score"),
    ],
)
def test_scores_have_names_that_a_reader_knows(key: str, name: str) -> None:
    assert readable(key) == name


def test_the_processor_is_named_with_its_instruction_sets() -> None:
    said = cpu(XEON)
    assert said.startswith("Intel Xeon Processor, ")
    assert said.endswith("cores; AVX2, AVX-512, AMX BF16")
    assert ";" not in cpu("")  # no /proc/cpuinfo: the architecture alone


def test_headlines_stand_beside_their_controls() -> None:
    scores = {
        "retrieval": {"tr_r1": 0.5, "ir_r1": 0.25, "tr_r5": 0.9, "chance": 0.01},
        "vqa": {"accuracy": 0.75, "blind": 0.5},
        "seconds": {"retrieval": 20.0, "vqa": 13.0},
    }
    first = overview([], [], [Evaluated(Path("t5"), scores | {"data": "", "split": "test"})])
    assert [(row.name, row.value, row.control) for row in first.numbers] == [
        ("VQA accuracy", 0.75, "blind: 0.500"),
        ("text retrieval R@1", 0.5, "chance: 0.010"),
        ("image retrieval R@1", 0.25, "chance: 0.010"),
    ]
    assert first.facts == {"evaluation took": "t5 33 s"}
    assert not first.pictures


def test_without_captions_the_pictures_are_those_of_capfilt() -> None:
    captions = [
        RankedCaption("a red star", 0.9, "synthetic ×2", kept=True),
        RankedCaption("IMG_2041.JPG", 0.1, "web", kept=False),
    ]
    counts = {"pairs in": 1200, "kept": 1100}
    only = CapFilt("CapFilt: web", counts, samples=[FilteredImage(None, "0", captions)])
    first = overview([only], [], [])
    texts = [dict(said.texts) for said in first.pictures]
    assert texts == [{"CapFilt keeps": "a red star", "the web caption": "IMG_2041.JPG"}]
    page = render(Report("a run", [only], overview=first))
    before, _, _ = page.partition("<main>")
    assert "1,100" in before and "of 1,200" in before and "IMG_2041.JPG" in before
