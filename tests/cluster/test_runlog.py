import json

from cluster.logfiles import records_so_far
from cluster.ranks.dist import Process
from cluster.runlog import LOG, RunLog


def log(out, done=0, every=2):
    return RunLog(out, Process(), steps=6, done=done, every=every, samples=64)


def write(run, steps):
    for step in steps:
        if run.due(step):
            run.report(step, {"itc": 1.0, "loss": 3.0 + step}, lr=1e-4, norm=2.0)


def test_first_every_and_last(tmp_path, capsys):
    write(log(tmp_path), range(1, 7))
    records = records_so_far(tmp_path / LOG)
    assert [record["step"] for record in records] == [1, 2, 4, 6]
    assert list(records[0]) == [
        *("step", "loss", "itc", "grad_norm", "lr"),
        *("images_per_s", "data_wait", "memory_gb", "eta_s"),
    ]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("step 6/6  loss 9.0000  itc 1.0000  norm 2.00  lr 1.00e-04")
    assert line.endswith("ETA 0:00")


def test_resume_cuts_what_came_after_the_checkpoint(tmp_path):
    write(log(tmp_path, every=1), range(1, 6))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    resumed = log(tmp_path, done=3, every=1)
    assert [record["step"] for record in records_so_far(tmp_path / LOG)] == [1, 2, 3]
    write(resumed, range(4, 7))
    text = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in text] == [1, 2, 3, 4, 5, 6]


def test_other_ranks_write_nothing(tmp_path, capsys):
    run = RunLog(tmp_path / "x", Process(rank=1, world=2), steps=1, done=0, every=1, samples=1)
    write(run, [1])
    assert not (tmp_path / "x").exists() and capsys.readouterr().out == ""


def test_no_norm(tmp_path):
    run = log(tmp_path)
    run.report(1, {"loss": 1.0}, lr=0.1, norm=None)
    assert records_so_far(tmp_path / LOG)[0]["grad_norm"] is None
