"""The ranking benchmark on tiny models: equal log-probabilities, a table, a last line of JSON."""

import json

import pytest

from jobs.benchmarks import ranking

TINY = ["--size", "tiny", "--dialog", "12", "--answers", "30", "--history", "9", "--question", "4"]


def test_all_contenders_agree(capsys):
    assert ranking.main([*TINY, "--frames", "2", "--sample", "0", "--rounds", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["cases"]) == 6
    for name, case in found["cases"].items():
        assert max(case["difference"].values()) <= 1e-5
        assert case["branched"] and case["nodes"] < case["tokens"]
        assert case["candidates"] == (12 if name.startswith("dialog") else 30)
        assert case["gflop"]["ours"] < case["gflop"]["brute force"]


def test_unknown_cases_are_named():
    with pytest.raises(ValueError, match="'movie': give some of dialog, video, image"):
        ranking.main([*TINY, "--cases", "movie"])
