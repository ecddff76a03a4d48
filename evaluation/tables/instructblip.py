"""Table 1 of InstructBLIP (Dai et al. 2023, arXiv 2305.06500): zero-shot results."""

from evaluation.tables.rows import Measure, Table, make_table

ZERO_SHOT = make_table(
    "instructblip.1",
    "Zero-shot results of InstructBLIP (its table 1)",
    {
        "nocaps.cider": Measure("nocaps", "cider", "val"),
        "flickr30k.cider": Measure("flickr30k", "cider", "test"),
        "gqa": Measure("gqa", split="testdev_balanced"),
        "vsr": Measure("vsr", split="zeroshot-test"),
        "iconqa": Measure("iconqa", split="test"),
        "textvqa": Measure("textvqa", split="val"),
        "visdial.mrr": Measure("visdial", "mrr", "val"),
        "hatefulmemes.auroc": Measure("hatefulmemes", "auroc"),
        "vizwiz.test-dev": Measure("vizwiz", split="test"),
        "scienceqa": Measure("scienceqa", split="test"),
        "msvdqa": Measure("msvdqa", split="test"),
        "msrvttqa": Measure("msrvttqa", split="test"),
        "ivqa": Measure("ivqa", split="test"),
    },
    {
        "BLIP-2 FlanT5-XL": (
            104.5, 76.1, 44.0, 60.5, 45.5, 43.1, 45.7, 53.0, 29.8, 54.9, 33.7, 16.2, 40.4,
        ),
        "BLIP-2 FlanT5-XXL": (
            98.4, 73.7, 44.6, 68.2, 45.4, 44.1, 46.9, 52.0, 29.4, 64.5, 34.4, 17.4, 45.8,
        ),
        "BLIP-2 Vicuna-7B": (
            107.5, 74.9, 38.6, 50.0, 39.7, 40.1, 44.9, 50.6, 25.3, 53.8, 18.3, 9.2, 27.5,
        ),
        "BLIP-2 Vicuna-13B": (
            103.9, 71.6, 41.0, 50.9, 40.6, 42.5, 45.1, 53.7, 19.6, 61.0, 20.3, 10.3, 23.5,
        ),
        "FlanT5-XL": (
            119.9, 84.5, 48.4, 64.8, 50.0, 46.6, 46.6, 56.6, 32.7, 70.4, 43.4, 25.0, 53.1,
        ),
        "FlanT5-XXL": (
            120.0, 83.5, 47.9, 65.6, 51.2, 46.6, 48.5, 54.1, 30.9, 70.6, 44.3, 25.6, 53.8,
        ),
        "Vicuna-7B": (
            123.1, 82.4, 49.2, 54.3, 43.1, 50.1, 45.2, 59.6, 34.5, 60.5, 41.8, 22.1, 52.2,
        ),
        "Vicuna-13B": (
            121.9, 82.8, 49.5, 52.1, 44.8, 50.7, 45.4, 57.5, 33.4, 63.1, 41.2, 24.8, 51.0,
        ),
    },
)  # fmt: skip

TABLES: tuple[Table, ...] = (ZERO_SHOT,)
