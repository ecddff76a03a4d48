"""Tables of BLIP-2 (Li et al. 2023, arXiv 2301.12597)."""

from evaluation.tables.rows import Measure, Table, make_table

_DOMAINS = {
    "in": "domains.in-domain.",
    "near": "domains.near-domain.",
    "out": "domains.out-domain.",
}
_NOCAPS = {
    f"nocaps.{name}.{metric}": Measure("nocaps", f"{before}{metric}", "val")
    for name, before in (*_DOMAINS.items(), ("overall", ""))
    for metric in ("cider", "spice")
}
_RETRIEVAL = {
    f"{data}.{side}_r{cutoff}": Measure(f"{data}_retrieval", f"{side}_r{cutoff}", "test")
    for data in ("flickr30k", "coco")
    for side in ("tr", "ir")
    for cutoff in (1, 5, 10)
}
_TEST_DEV = Measure("vqav2", split="test-dev")

OVERVIEW = make_table(
    "1",
    "Overview of BLIP-2's zero-shot results (table 1)",
    {
        "vqav2.test-dev": _TEST_DEV,
        "nocaps.overall.cider": _NOCAPS["nocaps.overall.cider"],
        "nocaps.overall.spice": _NOCAPS["nocaps.overall.spice"],
        "flickr30k.tr_r1": _RETRIEVAL["flickr30k.tr_r1"],
        "flickr30k.ir_r1": _RETRIEVAL["flickr30k.ir_r1"],
    },
    {
        "BLIP": (None, 113.2, 14.8, 96.7, 86.7),
        "SimVLM": (None, 112.2, None, None, None),
        "BEIT-3": (None, None, None, 94.9, 81.5),
        "Flamingo": (56.3, None, None, None, None),
        "BLIP-2": (65.0, 121.6, 15.8, 97.6, 89.7),
    },
    recalled={
        "BLIP": (
            "nocaps.overall.cider",
            "nocaps.overall.spice",
            "flickr30k.tr_r1",
            "flickr30k.ir_r1",
        ),
        "SimVLM": ("nocaps.overall.cider",),
        "BEIT-3": ("flickr30k.tr_r1", "flickr30k.ir_r1"),
        "Flamingo": ("vqav2.test-dev",),
    },
)
ZERO_SHOT_VQA = make_table(
    "2",
    "Zero-shot visual question answering (table 2)",
    {
        "vqav2.val": Measure("vqav2", split="val"),
        "vqav2.test-dev": Measure("vqav2", split="test-dev", common=False),
        "okvqa.test": Measure("okvqa", split="val"),  # the authors' name of the published test set
        "gqa.test-dev": Measure("gqa", split="testdev_balanced"),
    },
    {
        "ViT-L OPT-2.7B": (50.1, 49.7, 30.2, 33.9),
        "ViT-g OPT-2.7B": (53.5, 52.3, 31.7, 34.6),
        "ViT-g OPT-6.7B": (54.3, 52.6, 36.4, 36.4),
        "ViT-L FlanT5-XL": (62.6, 62.3, 39.4, 44.4),
        "ViT-g FlanT5-XL": (63.1, 63.0, 40.7, 44.2),
        "ViT-g FlanT5-XXL": (65.2, 65.0, 45.9, 44.7),
    },
)
CAPTIONING = make_table(
    "3",
    "Image captioning after finetuning on COCO (table 3)",
    {
        **_NOCAPS,
        "coco.bleu4": Measure("coco", "bleu4", "test"),
        "coco.cider": Measure("coco", "cider", "test"),
    },
    {
        "ViT-g OPT-2.7B": (123.0, 15.8, 117.8, 15.4, 123.4, 15.1, 119.7, 15.4, 43.7, 145.8),
        "ViT-g OPT-6.7B": (123.7, 15.8, 119.2, 15.3, 124.4, 14.8, 121.0, 15.3, 43.5, 145.2),
        "ViT-g FlanT5-XL": (123.7, 16.3, 120.2, 15.9, 124.8, 15.1, 121.6, 15.8, 42.4, 144.5),
    },
)
FINETUNED_VQA = make_table(
    "4",
    "Visual question answering after finetuning (table 4)",
    {
        "vqav2.test-dev": _TEST_DEV,
        "vqav2.test-std": Measure("vqav2", split="test-std", common=False),
    },
    {
        "ViT-g FlanT5-XL": (81.55, 81.66),
        "ViT-g OPT-2.7B": (81.59, 81.74),
        "ViT-g OPT-6.7B": (82.19, 82.30),
    },
)
RETRIEVAL = make_table(
    "5",
    "Image-text retrieval after finetuning on COCO (table 5)",
    _RETRIEVAL,
    {
        "ViT-L": (96.9, 100.0, 100.0, 88.6, 97.6, 98.9, 83.5, 96.0, 98.0, 66.3, 86.5, 91.8),
        "ViT-g": (97.6, 100.0, 100.0, 89.7, 98.1, 98.9, 85.4, 97.0, 98.5, 68.3, 87.7, 92.6),
    },
)
ITG = make_table(
    "6",
    "Retrieval on COCO by the losses of finetuning (table 6)",
    {name: _RETRIEVAL[name] for name in ("coco.tr_r1", "coco.ir_r1")},
    {"ITC + ITM": (84.5, 67.2), "ITC + ITM + ITG": (85.4, 68.3)},
)

TABLES: tuple[Table, ...] = (OVERVIEW, ZERO_SHOT_VQA, CAPTIONING, FINETUNED_VQA, RETRIEVAL, ITG)
