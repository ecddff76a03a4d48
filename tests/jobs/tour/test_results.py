"""The tour's page: its headline scores in words, with targets and controls."""

from jobs.tour.results import headlines


def test_the_first_screen_has_the_readmes_eight_numbers() -> None:
    results = {
        "capfilt": {"right_before": 0.5, "right_after": 0.9, "samples": 48},
        "retrieval": {"tr_r1": 0.5, "ir_r1": 0.3, "chance": 0.004},
        "caption": {
            "t5": {"cider": 0.9, "shuffled_cider": 0.3},
            "opt": {"cider": 0.9, "shuffled_cider": 0.2},
        },
        "vqa": {"t5": {"accuracy": 0.65, "blind": 0.41}},
        "seconds": {"data": 30.0, "capfilt": 60.0},
        "peak_memory_gb": 8.29,
    }
    rows = headlines(results)
    assert [row.name for row in rows] == [
        "right captions before CapFilt",
        "right captions after CapFilt",
        "text retrieval R@1",
        "image retrieval R@1",
        "CIDEr, T5",
        "CIDEr, OPT",
        "zero-shot VQA accuracy, T5",
        "minutes for all stages",
    ]
    assert rows[1].control == "pairs audited: 48"
    assert (rows[3].target, rows[3].control, rows[3].passed) == ("≥ 0.40", "chance: 0.004", False)
    assert (rows[6].target, rows[6].control, rows[6].passed) == ("≥ 0.610", "blind: 0.410", True)
    assert (rows[7].value, rows[7].control) == ("1.5", "peak memory: 8.3 GB")
