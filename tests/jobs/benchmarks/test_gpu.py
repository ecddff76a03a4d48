"""`benchmark.py gpu` on a CPU: its flow with tiny models, what a killed run leaves, its pages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmarks.gpu import rows
from jobs.benchmarks.gpu import run as gpu
from jobs.benchmarks.gpu.suite import read_results

ROOT = Path(__file__).parents[3]
PARTS = "stage1,flan-t5-xxl,capfilt,vit-g,q-former"


def run(out: Path, *options: str) -> str:
    command = [sys.executable, "jobs/benchmark.py", "gpu", "--size", "tiny", "--out", str(out)]
    done = subprocess.run(
        [*command, "--commit", "abc", *options],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_whole_flow_runs_on_a_cpu_and_goes_on_where_it_was_killed(tmp_path):
    kept = tmp_path / rows.RECORDS
    head = {"part": "ceiling", "size": "tiny", "commit": "abc", "date": "2026-11-01"}
    ceiling = {**head, "product_tflops": {"bf16": 0.01, "fp32": 0.01}, "copy_tb_per_s": 0.01}
    half_a_line = json.dumps({**head, "part": "stage1", "status": "done"})[:40]
    kept.write_text(json.dumps({**ceiling, "status": "done"}) + "\n" + half_a_line)
    said = run(tmp_path, "--parts", PARTS, "--page", str(tmp_path / "page.md"))
    assert "part 1 of 5: stage1" in said  # the ceiling was there, half a record is none
    found = {record["part"]: record for record in rows.read(kept)}
    assert set(found) == {"ceiling", *PARTS.split(",")}
    assert all(record["status"] == "done" for record in found.values()), found
    assert found["stage1"]["images_per_s"] > 0 and found["stage1"]["mfu"]["of_product"] > 0
    assert set(found["flan-t5-xxl"]["parts"]) == {
        "encoder",
        "language model",
        "Q-Former and update",
    }
    assert found["capfilt"]["gflop_per_image"] > 0 and found["vit-g"]["peer"]["ratio"] > 0
    losses = found["q-former"]["loss"]
    assert losses["ours"] == pytest.approx(losses["Hugging Face"], rel=1e-4)
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# On a GPU") and "| tinyworld, batch 4" in page
    gpu.main(["--size", "tiny", "--out", str(tmp_path), "--commit", "abc", "--parts", PARTS])
    assert len(kept.read_text().splitlines()) == 1 + 5  # the second run measured nothing


def test_a_part_without_time_or_that_ends_badly_is_a_record(tmp_path, monkeypatch):
    args = gpu.GpuBench(size="tiny", out=tmp_path, commit="abc")
    monkeypatch.setattr(gpu, "measure", lambda *_: os._exit(3))
    gpu.run_part(args, "stage1", 60)
    monkeypatch.setattr(gpu, "measure", lambda *_: {}["no number"])
    gpu.run_part(args, "vit-g", 60)
    monkeypatch.setattr(gpu, "measure", lambda *_: __import__("time").sleep(60))
    gpu.run_part(args, "q-former", 0.2)
    monkeypatch.setattr(gpu, "SECONDS", {"ceiling": 20, "capfilt": 20})
    gpu.main(["--size", "tiny", "--out", str(tmp_path), "--commit", "abc", "--minutes", "0"])
    whys = {record["part"]: record["why"] for record in rows.read(tmp_path / "gpu.jsonl")}
    assert whys["stage1"] == "its process ended with code 3"
    assert whys["vit-g"].startswith("KeyError: 'no number' (test_gpu.py:")
    assert whys["q-former"] == "it was ended after 0 s"
    assert whys["capfilt"].startswith("time: about 5 s are needed, 0 are left")
    assert "- vit-g: failed" in (tmp_path / rows.PAGE).read_text()


def test_unknown_parts_are_named():
    assert gpu.part_names("q-former,stage1") == ["ceiling", "stage1", "q-former"]
    with pytest.raises(ValueError, match="'stage3': give all, or some of ceiling, tests, stage1"):
        gpu.part_names("stage3")


def test_results_of_the_tests_are_read():
    case = '<testcase classname="tests.gpu.test_x" name="{}" time="1">{}</testcase>'
    cases = [
        case.format("good", ""),
        case.format("bad", '<failure message="assert 1 == 2">x</failure>'),
        case.format("idle", '<skipped message="needs a CUDA device"/>'),
    ]
    xml = f'<testsuites><testsuite time="3.5">{"".join(cases)}</testsuite></testsuites>'
    found = read_results(xml)
    assert found["status"] == "failed" and found["why"] == "test_x::bad: assert 1 == 2"
    assert found["count"] == {"passed": 1, "failed": 1, "skipped": 1} and found["seconds"] == 3.5
    skipped = read_results(f"<testsuites><testsuite>{cases[2]}</testsuite></testsuites>")
    assert skipped["status"] == "left out" and "needs a CUDA device" in skipped["why"]


def test_a_page_keeps_older_sections_and_replaces_its_own(tmp_path):
    page, kept = tmp_path / "gpu.md", tmp_path / "gpu.jsonl"
    for day, speed in (("2026-11-01", 1.0), ("2026-11-02", 2.0), ("2026-11-02", 3.0)):
        record = {"part": "ceiling", "size": "full", "commit": "abc", "date": day}
        record |= {"status": "done", "device": "NVIDIA X", "copy_tb_per_s": speed}
        rows.append(kept, record | {"product_tflops": {"bf16": 700.0, "fp32": 50.0}})
        rows.add_to_page(page, kept)
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## NVIDIA X, 2026-11-02",
        "## NVIDIA X, 2026-11-01",
    ]
    assert "large copy: 3 TB/s" in text and "2 TB/s" not in text and "1 TB/s" in text
    assert rows.measured_peak(kept, "full") == 700e12
    assert rows.done(kept, "full", "abc") == {"ceiling"}
    assert not rows.done(kept, "full", "other")
