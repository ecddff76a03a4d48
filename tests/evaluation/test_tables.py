import pytest

from evaluation.results import beside_paper
from evaluation.tables import METRICS, ROWS, TABLES, beside, compare, find_row, render_text
from evaluation.tables.beside import printed


def test_every_row_of_tables_2_to_5() -> None:
    assert [sum(row.table == table for row in ROWS) for table in ("2", "3", "4", "5")] == [
        6,
        3,
        3,
        2,
    ]
    for row in ROWS:
        if row.table in ("2", "3", "4", "5"):
            assert tuple(row.values) == METRICS[row.table]
    assert find_row(2, "vit-g-flant5-xxl").values["vqav2.test-dev"] == 65.0
    assert find_row(3, "vit-g-opt-6.7b").values["nocaps.overall.spice"] == 15.3
    assert find_row(5, "vit-g").values["coco.ir_r1"] == 68.3


def test_unknown_table_row_and_metric_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tables: 1, 2, 3, 4, 5, 6, instructblip\.1, llava\.4"):
        find_row(7, "vit-g")
    with pytest.raises(ValueError, match=r"rows: vit-l-opt-2\.7b"):
        find_row(2, "vit-h")
    with pytest.raises(ValueError, match=r"no metric 'coco\.cider'"):
        compare(find_row(2, "vit-l-opt-2.7b"), {"coco.cider": 1.2})


def test_ours_beside_the_papers() -> None:
    row = find_row(2, "vit-l-opt-2.7b")
    lines = compare(row, {"gqa.test-dev": 0.35})
    text = render_text(row, lines)
    assert text.splitlines()[-1].split() == ["gqa.test-dev", "33.9", "35.0", "+1.1"]
    assert text.splitlines()[2].split() == ["vqav2.val", "50.1", "–", "–"]


def test_rows_of_all_tables_have_names_of_their_own_and_known_metrics() -> None:
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        for row in table.rows:
            assert set(row.values) <= set(table.measures) and row.recalled <= set(row.values)
            assert all(0 <= value < 150 for value in row.values.values())
    assert sum(row.table == "instructblip.1" for row in ROWS) == 8
    assert find_row("instructblip.1", "vicuna-13b").values["ivqa"] == 51.0
    assert find_row("instructblip.1", "blip-2-flant5-xxl").values["vsr"] == 68.2
    assert find_row("6", "itc-itm").values["coco.ir_r1"] == 67.2
    assert find_row("llava1.5", "llava-1.5-7b").values["gqa"] == 62.0


def test_the_overview_repeats_the_other_tables() -> None:
    row = find_row(1, "blip-2").values
    best = find_row(3, "vit-g-flant5-xl").values
    assert row["vqav2.test-dev"] == find_row(2, "vit-g-flant5-xxl").values["vqav2.test-dev"]
    assert row["nocaps.overall.cider"] == best["nocaps.overall.cider"]
    assert row["flickr30k.ir_r1"] == find_row(5, "vit-g").values["flickr30k.ir_r1"]
    assert (
        find_row(6, "itc-itm-itg").values["coco.tr_r1"] == find_row(5, "vit-g").values["coco.tr_r1"]
    )


def test_recalled_numbers_are_marked() -> None:
    row = find_row("llava.4", "full-data")
    lines = {line.metric: line.cells()[1] for line in compare(row, {})}
    assert lines["llava-bench-coco.detail"] == "75.3 (recalled)"
    assert lines["llava-bench-coco.all"] == "85.1"
    assert "(recalled)" not in render_text(
        find_row(1, "blip-2"), compare(find_row(1, "blip-2"), {})
    )


def test_instructblips_row_takes_each_benchmarks_own_score_with_its_interval() -> None:
    row = find_row("instructblip.1", "flant5-xl")
    results = {
        "nocaps": {"cider": 1.2, "split": "val", "domains": {}, "intervals": {"cider": [1.1, 1.3]}},
        "visdial": {"mrr": 0.46, "split": "val"},
        "hatefulmemes": {"auroc": 0.6, "accuracy": 0.5, "split": "dev"},
        "vizwiz": {"accuracy": 0.3, "split": "val"},  # another split than the published number's
        "split": "test",
    }
    lines = {line.metric: line for line in beside(row, results)}
    assert lines["nocaps.cider"].cells() == (
        "nocaps.cider",
        "119.9",
        "120.0",
        "+0.1",
        "110.0 to 130.0",
    )
    assert lines["visdial.mrr"].ours == 46.0
    assert lines["hatefulmemes.auroc"].ours == 60.0
    assert lines["vizwiz.test-dev"].ours is None and lines["gqa"].ours is None
    text = render_text(row, list(lines.values())).splitlines()
    assert text[1].split("  ")[-1].strip() == "95 % interval of ours"
    assert text[2].endswith("110.0 to 130.0")


def test_a_row_asked_for_by_number_or_name_is_found_from_the_results() -> None:
    results = {"vqa": {"accuracy": 0.5}, "table": 2, "row": "vit-l-opt-2.7b"}
    assert beside_paper(results) is not None
    for table in (2, "2"):
        _, lines = beside_paper(results | {"table": table}) or (None, [])
        assert [line.ours for line in lines] == [50.0, None, None, None]
    _, lines = beside_paper(results | {"table": "4", "row": "vit-g-opt-2.7b"}) or (None, [])
    assert [line.ours for line in lines] == [50.0, None]
    assert printed(81.55) == "81.55" and printed(82.3) == "82.3"
