"""Tables of LLaVA (Liu et al. 2023, arXiv 2304.08485), and the list of models of LLaVA-1.5.

The scores of tables 4 and 5 are those that a judge gives, relative to its own answers.
"""

from collections.abc import Mapping

from evaluation.tables.rows import Measure, Table, make_table

# The category in the authors' files by its name in the tables.
_JUDGED = {"conversation": "conv", "detail": "detail", "complex": "complex"}


def _judged(data: str, task: str) -> Mapping[str, Measure]:
    """A judge's relative scores by category; comparable only with the judge of the paper."""
    parts = {
        f"{data}.{kind}": Measure(task, f"by_question_type.{ours}")
        for kind, ours in _JUDGED.items()
    }
    return parts | {f"{data}.all": Measure(task, "relative")}


_COCO = {
    "Full data": (83.1, 75.3, 96.5, 85.1),
    "Detail + Complex": (81.5, 73.3, 90.8, 81.9),
    "Conv + 5% Detail + 10% Complex": (81.0, 68.4, 91.5, 80.5),
    "Conversation": (76.5, 59.8, 84.9, 73.8),
    "No Instruction Tuning": (22.0, 24.0, 18.5, 21.5),
}
_READ = ("Full data", "llava-bench-coco.all")
COCO = make_table(
    "llava.4",
    "LLaVA-Bench (COCO) by training data (LLaVA's table 4)",
    _judged("llava-bench-coco", "llava_bench_coco"),
    _COCO,
    recalled={
        model: [
            metric
            for metric in _judged("llava-bench-coco", "llava_bench_coco")
            if (model, metric) != _READ
        ]
        for model in _COCO
    },
)
IN_THE_WILD = make_table(
    "llava.5",
    "LLaVA-Bench (In-the-Wild) (LLaVA's table 5)",
    _judged("llava-bench-wild", "llava_bench"),
    {
        "OpenFlamingo": (19.3, 19.0, 19.1, 19.1),
        "BLIP-2": (54.6, 29.1, 32.9, 38.1),
        "LLaVA": (57.3, 52.5, 81.7, 67.3),
        "LLaVA, judged three times": (58.8, 49.2, 81.4, 66.7),
    },
)
SCIENCE_QA = make_table(
    "llava.7",
    "ScienceQA, all questions of the test split (LLaVA's tables 7 and 8)",
    {"scienceqa.all": None},  # ours are the questions with an image
    {
        "LLaVA": (90.92,),
        "LLaVA last layer": (89.96,),
        "LLaVA answer first": (89.77,),
        "LLaVA without stage 1": (85.81,),
        "LLaVA 7B": (89.84,),
        "GPT-4": (82.69,),
        "LLaVA + GPT-4 complement": (90.97,),
        "LLaVA + GPT-4 judge": (92.53,),
    },
)
MODELS_OF_1_5 = make_table(
    "llava1.5",
    "LLaVA-1.5's published models (the authors' list)",
    {
        "vqav2.test-dev": Measure("vqav2", split="test-dev"),
        "gqa": Measure("gqa", split="testdev_balanced"),
        "vizwiz.test-dev": Measure("vizwiz", split="test"),
        "scienceqa.img": Measure("scienceqa", split="test"),
        "textvqa": Measure("textvqa", split="val"),
        "pope": None,
        "llava-bench-wild.all": Measure("llava_bench", "relative"),
    },
    {
        "LLaVA-1.5 7B": (78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 65.4),
        "LLaVA-1.5 13B": (80.0, 63.3, 53.6, 71.6, 61.3, 85.9, 72.5),
    },
)

TABLES: tuple[Table, ...] = (COCO, IN_THE_WILD, SCIENCE_QA, MODELS_OF_1_5)
