"""A report with every kind of section, and a hostile string in every field that data can reach."""

import io
import math

from PIL import Image, ImageDraw

from evaluation.report.changes import Change, Changes
from evaluation.report.page import (
    Answer,
    Answers,
    AnswerSample,
    CapFilt,
    Captions,
    CaptionSample,
    Curves,
    Dropped,
    Facts,
    Failures,
    FilteredImage,
    Grid,
    Overview,
    PaperTable,
    Query,
    RankedCaption,
    Report,
    Result,
    Results,
    Retrieval,
    Retrieved,
    Said,
)
from evaluation.report.plots import Chart, Series
from evaluation.tables import compare, find_row

HOSTILE = "<script>alert('x')</script>&\"><img src=x onerror=alert(1)>"


def picture(colour: str, mode: str = "RGB", size: int = 64) -> bytes:
    image = Image.new(mode, (size, size), "white")
    ImageDraw.Draw(image).ellipse((12, 12, size - 12, size - 12), fill=colour)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def sample_report(hostile: str = "") -> Report:
    steps = list(range(10, 1010, 10))
    falling = [3 * math.exp(-step / 300) + 0.4 + 0.05 * math.sin(step) for step in steps]
    itm = [0.6 - step / 4000 for step in steps]
    captions = [
        RankedCaption("a large red star above a small blue circle", 0.312, "synthetic", True, True),
        RankedCaption(f"a red star {hostile}", 0.287, "web", True, False),
        RankedCaption("IMG_2041.JPG", 0.113, "web", False, False),
    ]
    filtered = [
        FilteredImage(picture(c), f"00000{n}{hostile}", captions) for n, c in enumerate(COLOURS)
    ]
    said = {"T5": "a red star above a circle", "OPT": f"a red star {hostile}"}
    seen = [
        CaptionSample(picture(c), f"{n}{hostile}", said, ["a red star.", hostile or "a star"])
        for n, c in enumerate(COLOURS)
    ]
    asked = Answer(
        f"What colour is the star? {hostile}",
        {"T5": ("red", 1.0), "OPT": ("blue", 0.0), f"blind{hostile}": ("pink", 0.6)},
        ["red", "red", "pink", hostile],
    )
    texts = [Retrieved(n == 1, 5.2 - n, text=f"a red star {hostile}") for n in range(3)]
    images = [Retrieved(n == 0, 5.2 - n, image=picture(c)) for n, c in enumerate(COLOURS[:5])]
    row = find_row(2, "vit-l-opt-2.7b")
    results = [
        Result("capfilt.right_after", 0.912, "at least 0.85", "before: 0.503", True),
        Result("retrieval.tr_r1", 0.371, "at least 0.40", "chance: 0.004", False, (0.31, 0.437)),
        Result(f"vqa.t5.accuracy{hostile}", 0.583, f"blind + 0.20{hostile}", "blind 0.311", True),
        Result("seconds.capfilt", 141.2),
    ]
    changes = [
        Change(f"accuracy{hostile}", "0.412", "0.583", "+0.171", "+0.120 to +0.222", "< 0.001",
               0.171, (0.12, 0.222), "higher"),
        Change("blind", "0.311", "0.311", "0", "–", "1", 0.0, None, "equal"),
    ]  # fmt: skip
    return Report(
        f"TinyWorld demo {hostile}",
        [
            Facts(
                "What ran", {"recipe": f"tinyworld {hostile}", "seconds, CapFilt": 141.2}, hostile
            ),
            Results("Results", results, "Held-out images; shares between 0 and 1."),
            Grid(
                "Answers by type",
                ["type", "T5", "blind"],
                [["colour", 0.61, 0.12], [hostile, 1, 2]],
            ),
            PaperTable(
                "Beside the paper",
                compare(row, {"vqav2.val": 0.512}, {"vqav2.val": (0.481, 0.543)}),
            ),
            Changes("T5 compared with OPT", f"OPT{hostile}", "T5", changes, hostile),
            Curves(
                "Training",
                [
                    Chart(
                        "Stage 1",
                        [Series("loss", steps, falling), Series(f"itm{hostile}", steps, itm)],
                        "step",
                        "loss",
                    ),
                    Chart(
                        f"Stage 2 {hostile}",
                        [Series("t5", steps, falling[::-1])],
                        hostile or "step",
                    ),
                    Chart("Nothing yet", [Series("loss", [1], [math.nan])]),
                ],
            ),
            CapFilt(
                "CapFilt", {"images in": 6000, "kept": 5950}, 0.503, 0.912, 0.31, filtered, hostile
            ),
            Captions("Captions", seen),
            Answers(
                "Answers",
                [AnswerSample(picture(c), f"{n}", [asked]) for n, c in enumerate(COLOURS[:3])],
            ),
            Retrieval(
                "Retrieval",
                [Query(texts, image=picture("red")), Query(images, text=f"a star {hostile}")],
            ),
            Failures(
                "Dropped samples",
                {f"too small {hostile}": 1204, "not an image": 3},
                [Dropped(f"stamp{hostile}", "failed", f"not an image {hostile}", b"<html>")],
            ),
        ],
        f"commit 0123abc {hostile}",
        Overview(
            [Said(picture(c), {f"said{hostile}": hostile or "a star"}) for c in COLOURS[:4]],
            results,
            {f"it took{hostile}": f"8 min {hostile}"},
            hostile,
        ),
    )


COLOURS = ["red", "blue", "green", "orange", "purple", "black"]
