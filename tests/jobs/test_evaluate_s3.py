"""An evaluation whose data, checkpoint and results are on S3."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage.open import open_storage
from cluster.storage.s3 import _client
from evaluation.images import remote
from jobs.evaluation.arguments import EvaluateArgs, FurtherArgs, WorkArgs
from jobs.evaluation.run import evaluate
from tests.faulty_s3 import BUCKET, s3_server
from tests.jobs.evaluation_files import answers_of


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    _client.cache_clear()
    with s3_server(monkeypatch):
        yield f"s3://{BUCKET}"
    _client.cache_clear()


def put(folder: Path, url: str) -> None:
    store = open_storage(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.replace(path.relative_to(folder).as_posix(), path.read_bytes())


def get(url: str, folder: Path) -> Path:
    store = open_storage(url)
    for entry in store.entries(deep=True):
        (folder / entry.name).parent.mkdir(parents=True, exist_ok=True)
        store.download(entry.name, folder / entry.name)
    return folder


def test_data_checkpoint_and_results_on_s3(
    t5_run: Path, benchmark_data: Path, tmp_path: Path, bucket: str
) -> None:
    put(benchmark_data, f"{bucket}/data")
    put(t5_run, f"{bucket}/run")
    few = {"further": FurtherArgs(controls=False), "work": WorkArgs(chunk=3)}
    here = EvaluateArgs(t5_run, benchmark_data, ("vqa",), out=tmp_path / "here", **few)  # type: ignore[arg-type]
    there = EvaluateArgs(
        *(Path(f"{bucket}/run"), Path(f"{bucket}/data"), ("vqa",)),  # slashes joined, as by tyro
        out=Path(f"{bucket}/eval"),
        **few,  # type: ignore[arg-type]
    )
    results, again = evaluate(here), evaluate(there)
    assert again["data"] == f"{bucket}/data"
    assert again["vqa"] == results["vqa"]
    copied = get(f"{bucket}/eval", tmp_path / "there")
    assert json.loads((copied / "results.json").read_text()) == again
    assert answers_of(copied) == answers_of(tmp_path / "here")


def test_files_that_have_not_changed_are_not_copied_again(
    benchmark_data: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(benchmark_data, f"{bucket}/again")
    url, folders = Path(f"{bucket}/again"), ("annotations", "images", "coco")
    root = remote.local_data(url, folders)
    assert (root / "annotations/captions_test.json").is_file()
    store = open_storage(f"{bucket}/again")
    store.replace("annotations/captions_test.json", b"{}")
    fetched: list[str] = []
    download = type(store).download
    monkeypatch.setattr(
        type(store),
        "download",
        lambda s, name, path: (fetched.append(name), download(s, name, path)),
    )
    assert remote.local_data(url, folders) == root
    assert fetched == ["annotations/captions_test.json"]
    assert (root / "annotations/captions_test.json").read_text() == "{}"
    with pytest.raises(FileNotFoundError, match=r"--data s3://.*: there is nothing in okvqa"):
        remote.local_data(url, ("okvqa",))


def test_items_find_their_images_on_another_node(benchmark_data: Path, tmp_path: Path) -> None:
    from evaluation.tasks.captions import Picture

    home = remote.Home(benchmark_data, ("images",), tmp_path)
    (item,) = home.moved([Picture(1, tmp_path / "images/test/000001.jpg")])
    assert item.path == benchmark_data / "images/test/000001.jpg"
    assert home.moved(["a text"]) == ["a text"]
