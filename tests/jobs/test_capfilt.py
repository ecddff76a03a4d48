"""The job as people run it: to the end, killed and resumed to the same bytes, refused clearly."""

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset

from cluster.storage.open import open_storage
from jobs.capfilt import run_capfilt
from jobs.captioning.arguments import CapFiltArgs, parse
from jobs.captioning.models import read_processor
from jobs.captioning.run import commit_described, prepare_shard
from jobs.captioning.summary import Tally
from jobs.captioning.work import Work
from jobs.models.files import find_folder
from pipeline.capfilt.filters import FilterConfig
from pipeline.shards.manifest import committed, manifest_hash
from pipeline.shards.parquet import read_parquet
from pipeline.sources.open import InputShard, open_source
from tests.faulty_s3 import BUCKET, Faults, faulty_proxy, s3_server
from tests.pipeline.sources.test_sources import png, tar, trio
from tests.tiny_models import save_captioner, save_clip

ROOT = Path(__file__).parents[2]
STAMPS = ROOT.parent / "shared" / "data" / "stamps"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    captioner, ranker = save_captioner(folder / "captioner"), save_clip(folder / "clip")
    return [
        "--config.captioner", str(captioner), "--config.ranker", str(ranker),
        "--config.batch-size", "4", "--workers", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tars of six samples; one tar is cut, one image is HTML."""
    folder = tmp_path_factory.mktemp("web")
    for shard in range(4):
        members = [m for i in range(6) for m in trio(f"{shard:05d}{i:04d}")]
        if shard == 1:
            members[3] = (members[3][0], b"<html>")
        data = tar(folder / f"{shard:05d}.tar", members)
        if shard == 2:
            (folder / f"{shard:05d}.tar").write_bytes(data[: 3 * 5 * 512 + 700])
    return folder


def command(source: Path | str, out: Path | str, models: list[str], *more: str) -> list[str]:
    paths = ["--input", str(source), "--output", str(out)]
    return [sys.executable, "jobs/capfilt.py", "--recipe", "tinyworld", *paths, *models, *more]


def launch(*arguments: object) -> subprocess.CompletedProcess:
    return execute(command(*arguments))


def execute(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def content(out: Path) -> dict[str, object]:
    """Every byte below ``out``, the records without their wall times."""
    found: dict[str, object] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        data: object = path.read_bytes()
        if path.name.endswith("_stats.json"):
            data = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
        found[str(path.relative_to(out))] = data
    return found


@pytest.fixture(scope="module")
def undisturbed(web: Path, models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "undisturbed"
    done = launch(web, out, models)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["done"] == 4 and summary["skipped"] == 0 and summary["images_per_s"] > 0
    assert summary["images"] == summary["kept"] + summary["filtered"] + summary["failed"]
    assert summary["reasons"] == {"not_an_image": 1, "truncated_tar": 2}
    return out


def test_layout_counts_and_records(undisturbed: Path):
    commits = committed(str(undisturbed))
    assert [c.name for c in commits] == [f"{i:08d}" for i in range(4)]
    assert [(c.n, c.ok) for c in commits] == [(6, 6), (6, 5), (4, 2), (6, 6)]
    for commit in commits:
        rows = read_parquet(Path(commit.parquet_path).read_bytes())
        ok = [row for row in rows if row.status == "ok"]
        assert all(len(row.captions) == 11 and 1 <= len(row.kept) <= 2 for row in ok)
        assert all(row.origins.count("web") == 1 for row in ok)
        assert all(list(row.scores) == sorted(row.scores, reverse=True) for row in ok)
        with tarfile.open(commit.tar_path) as shard:
            assert len(shard.getnames()) == 3 * len(ok)
    page = (undisturbed / "gallery.html").read_text()
    assert page.count('class="card"') == 19 and "truncated_tar" in page
    assert "data:image/png;base64," in page


def test_the_webdataset_library_reads_the_output(undisturbed: Path):
    shards = sorted(map(str, (undisturbed / "shards").glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 19
    for sample in samples:
        record = json.loads(sample["json"])
        assert record["key"] == sample["__key__"] and sample["png"] == png()
        assert sample["txt"].decode() == record["captions"][record["kept"][0]]["text"]


def test_started_again_it_skips_what_is_there(undisturbed: Path, web: Path, models: list[str]):
    before = content(undisturbed)
    args = parse(command(web, undisturbed, models)[2:])
    summary = run_capfilt(args)
    assert (summary.done, summary.skipped, summary.images) == (0, 4, 22)
    assert content(undisturbed) == before
    (undisturbed / "shards" / "00000003_stats.json").unlink()  # killed before the record
    assert run_capfilt(args).done == 1
    assert content(undisturbed) == before


def test_what_another_run_has_committed_meanwhile_is_not_made_again(undisturbed: Path, web: Path):
    work = Work("00000001", InputShard("00001.tar", 0, ""))
    source = open_source(str(web)).reader()
    prepared, sent = prepare_shard(source, str(undisturbed), FilterConfig(), [], work)
    assert prepared == (work, None) and sent is None  # nothing for the models
    result = commit_described(str(undisturbed), 2, "full", prepared, None)
    assert result["here"] is False and result["n"] == 0
    tally = Tally()
    for here, short in ((True, {"captioner": 8}), (False, {}), (True, {"captioner": 4})):
        tally.add({"here": here, "n": 6, "reasons": {"unsafe": 1}, "short": short})
    assert (tally.done, tally.others, tally.images) == (2, 1, 18)
    assert tally.short == {"captioner": 4} and tally.dropped["unsafe"] == 3


def test_another_recipe_or_input_is_refused(undisturbed: Path, web: Path, models: list[str]):
    done = launch(web, undisturbed, models, "--config.seed", "5")
    assert done.returncode == 2
    assert "fingerprint.recipe.seed: 0 then, 5 now" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_s3_in_and_out_gives_the_same_bytes_in_spite_of_faults(
    undisturbed: Path, web: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
):
    faults = Faults(error_500=0.03, slow_down=0.03, reset=0.03, truncated=0.03, lost_answer=0.03)
    with s3_server(monkeypatch) as server, faulty_proxy(server, faults) as url:
        store = open_storage(f"s3://{BUCKET}/web")
        for path in sorted(web.iterdir()):
            store.replace(path.name, path.read_bytes())
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        source, out = f"s3://{BUCKET}/web", f"s3://{BUCKET}/out"
        done = launch(source, out, models, "--source", web.name)
        assert done.returncode == 0, done.stderr
        again = launch(source, out, models, "--source", web.name)
        assert json.loads(again.stdout.splitlines()[-1])["skipped"] == 4, again.stderr
        refused = launch(source, out, models, "--source", "other")
        assert refused.returncode == 2 and "another plan" in refused.stderr
        missing = launch(f"s3://{BUCKET}/nothing", out, models)
        assert missing.returncode == 2 and missing.stderr.count("\n") == 1
        assert f"s3://{BUCKET}/nothing' does not exist" in missing.stderr
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        store = open_storage(out)
        found = {entry.name: store.read(entry.name) for entry in store.entries(deep=True)}
    local = content(undisturbed)
    assert found.keys() == local.keys() and sum(faults.happened.values()) > 5
    for name in found.keys() - {"plan.json", "gallery.html"}:  # they name the place and its etags
        data: object = found[name]
        if name.endswith("_stats.json"):
            data = {k: v for k, v in json.loads(found[name]).items() if k != "seconds"}
        assert data == local[name], name


@pytest.mark.slow
def test_tools_plan_verify_stats_and_retry(models: list[str], tmp_path: Path):
    source, out = tmp_path / "pairs", tmp_path / "out"
    source.mkdir()
    lines = [{"file": f"{i}.png", "caption": f"a red circle {i}"} for i in range(6)]
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    for i in (0, 1, 2, 4):
        (source / f"{i}.png").write_bytes(png())

    def tool(name: str, *more: str) -> subprocess.CompletedProcess:
        run_like = name in ("plan", "run", "retry")
        options = command(source, out, models)[2:] if run_like else ["--output", str(out)]
        return execute([sys.executable, "jobs/capfilt.py", name, *more, *options])

    plan = tool("plan")
    assert plan.returncode == 0 and "1 shards, 7 images" in plan.stdout, plan.stderr
    assert "no shard is done yet" in plan.stdout and not out.exists()
    assert tool("verify").returncode == 2
    first = json.loads(tool("run").stdout.splitlines()[-1])
    assert first["reasons"] == {"duplicate_key": 1, "missing_file": 2} and first["kept"] == 4
    refused = tool("retry", "--reason", "duplicate_key")
    assert refused.returncode == 2 and "choose from missing_file" in refused.stderr

    (source / "3.png").write_bytes(png())  # one of the two comes back
    second = json.loads(tool("retry", "--reason", "missing_file").stdout.splitlines()[-1])
    assert (second["images"], second["kept"], second["failed"]) == (7, 5, 2)
    assert second["reasons"] == {"duplicate_key": 1, "missing_file": 1}
    (source / "5.png").write_bytes(png())
    third = json.loads(tool("retry", "--reason", "missing_file").stdout.splitlines()[-1])
    assert (third["images"], third["kept"], third["failed"]) == (7, 6, 1)
    names = [commit.name for commit in committed(str(out))]
    assert names == ["00000000", "00000000-retry01", "00000000-retry02"]
    assert "nothing is left to do" in tool("plan").stdout

    assert "nothing is wrong" in tool("verify").stdout
    counts = json.loads(tool("stats").stdout.splitlines()[-1])
    assert counts["kept"] == 6 and counts["images"] == 7 and counts["seconds"]["models"] > 0
    path = out / "shards" / "00000000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (out / "shards" / "00000000-retry01.parquet").unlink()
    broken = tool("verify")
    assert broken.returncode == 1
    assert "00000000.tar: sha256" in broken.stdout and "retry01.parquet: missing" in broken.stdout


@pytest.mark.slow
def test_a_cluster_under_fire_on_a_faulty_s3_gives_the_same_bytes():
    """One short seed of tests/chaos_capfilt.py; the long ones run by hand."""
    options = ["--seeds", "1", "--shards", "12", "--kills", "5", "--where", "s3"]
    done = execute([sys.executable, "tests/chaos_capfilt.py", *options])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "equals the undisturbed run" in done.stdout


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(
    undisturbed: Path, web: Path, models: list[str], tmp_path: Path
):
    """Driver (with all its Ray) and single workers killed; then it runs to the end."""
    out, chance = tmp_path / "out", random.Random(0)
    for attempt in range(3):
        process = subprocess.Popen(
            command(web, out, models), cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for_commits(out, attempt, process)
        time.sleep(chance.random())
        if attempt == 2:
            kill_workers(process.pid)
            assert process.wait(timeout=600) == 0
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    done = launch(web, out, models)
    assert done.returncode == 0, done.stderr
    assert content(out) == content(undisturbed)
    assert manifest_hash(committed(str(out))) == manifest_hash(committed(str(undisturbed)))


def wait_for_commits(out: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while len(committed(str(out))) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_workers(driver: int) -> None:
    """SIGKILL the model actor, if it is up, among the driver's own descendants."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            title = (status.parent / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        parents[int(status.parent.name)] = (int(fields[1]), title)
    for pid, (_, title) in parents.items():
        ancestor = pid
        while ancestor in parents and ancestor != driver:
            ancestor = parents[ancestor][0]
        if ancestor == driver and "_Holder" in title:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "/nowhere/at/all"}, "does not exist"),
        ({"output": "gs://bucket/x"}, "gs"),
        ({"--recipe": "nope"}, "tinyworld"),
        ({"--config.captioner": "no/such-model"}, "captioner 'no/such-model'"),
    ],
)
def test_users_mistakes_are_one_line(
    web: Path, models: list[str], tmp_path: Path, change: dict[str, str], message: str
):
    arguments = command(
        Path(change.get("input", str(web))), tmp_path / "out", models,
        *[part for key, value in change.items() if key.startswith("--") for part in (key, value)],
    )  # fmt: skip
    if "output" in change:
        arguments[arguments.index("--output") + 1] = change["output"]
    done = execute(arguments)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.slow
def test_a_run_that_keeps_nothing_ends_with_a_code_of_its_own(models: list[str], tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "captions.jsonl").write_text('{"file": "gone.png", "caption": "a dog"}')
    done = execute(command(source, tmp_path / "out", models))
    assert done.returncode == 3
    assert "all 1 inputs were dropped (missing_file 1)" in done.stderr.splitlines()[-1]


def test_recipe_names_set_the_defaults_of_the_overrides():
    args = parse(["--recipe", "blip-large", "--input", "a", "--output", "b",
                  "--config.sampling.top-p", "0.8"])  # fmt: skip
    assert isinstance(args, CapFiltArgs) and args.config.ranker.startswith("openai/")
    assert args.config.sampling.top_p == 0.8 and args.config.sampling.captions == 10


def test_image_processors_are_understood(tmp_path: Path):
    blip = read_processor(save_captioner(tmp_path / "blip", image=32))
    clip = read_processor(save_clip(tmp_path / "clip", image=24))
    assert (blip.spec.size, blip.spec.crop) == (32, False)
    assert (clip.spec.size, clip.spec.crop) == (24, True)
    assert blip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    with pytest.raises(ValueError, match=r"python jobs/zoo\.py"):
        find_folder("captioner", "modeling/zoo/nothing", fetch=False)


@pytest.mark.skipif(not STAMPS.is_dir(), reason="the stamps are not here")
@pytest.mark.slow
def test_real_stamps_all_come_through(models: list[str], tmp_path: Path):
    done = launch(STAMPS, tmp_path / "out", models, "--config.shard-size", "200")
    assert done.returncode == 0, done.stderr
    rows = [
        row
        for commit in committed(str(tmp_path / "out"))
        for row in read_parquet(Path(commit.parquet_path).read_bytes())
    ]
    assert {row.key for row in rows} == {path.stem for path in STAMPS.glob("*.png")}
    assert all(row.status == "ok" for row in rows) and min(r.width for r in rows) == 12
