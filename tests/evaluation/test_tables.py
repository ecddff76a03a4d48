import pytest

from evaluation.tables import METRICS, ROWS, compare, find_row, render_text


def test_every_row_of_tables_2_to_5() -> None:
    assert [sum(row.table == table for row in ROWS) for table in (2, 3, 4, 5)] == [6, 3, 3, 2]
    for row in ROWS:
        assert tuple(row.values) == METRICS[row.table]
    assert find_row(2, "vit-g-flant5-xxl").values["vqav2.test-dev"] == 65.0
    assert find_row(3, "vit-g-opt-6.7b").values["nocaps.overall.spice"] == 15.3
    assert find_row(5, "vit-g").values["coco.ir_r1"] == 68.3


def test_unknown_table_row_and_metric_are_refused() -> None:
    with pytest.raises(ValueError, match="tables: 2, 3, 4, 5"):
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
