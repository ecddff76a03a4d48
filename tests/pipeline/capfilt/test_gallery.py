"""The gallery: what a card says, nothing from outside, and controls that do what they say."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage.open import open_storage
from pipeline.capfilt.describe import describe, prepare
from pipeline.capfilt.filters import FilterConfig
from pipeline.capfilt.gallery import build_gallery, margin, winner
from pipeline.capfilt.output import assemble
from pipeline.sample import Rejected
from pipeline.shards.manifest import commit_shard, committed
from pipeline.shards.parquet import SampleRow
from tests.pipeline.capfilt.test_describe import SPECS, captions, encoded, sample, scores

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "</ol><script>alert(1)</script> {{cards}} \"' & a longer web caption"


def write(folder: Path, source: str, records: list) -> tuple:
    named = [replace(record, source=source) for record in records]
    kept, model_input = prepare(named, FilterConfig(), *SPECS)
    described = describe(model_input, captions, scores, batch_size=4)
    out = assemble(kept, described, keep=2)
    storage = open_storage(str(folder / source))
    commit_shard(storage, "00000000", out.tar, out.parquet, out.stats)
    return storage, committed(str(folder / source))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four web samples (the web caption wins twice), two human ones, one that was dropped."""
    folder = tmp_path_factory.mktemp("gallery")
    web = [sample("a"), sample("b", caption=EVIL), sample("c", caption="short"),
           sample("d", caption="also a longer web caption"),
           Rejected("uid-r", "r<b>", "s", "shard", "missing_file", "<i>lost</i>")]  # fmt: skip
    human = [sample(key, encoded(90, 90), human=True, captions=("one", "two")) for key in "xy"]
    outputs = [write(folder, "laion", web), write(folder, "coco", human)]
    path = folder / "gallery.html"
    path.write_bytes(build_gallery(outputs, 12))
    assert build_gallery(outputs, 12) == path.read_bytes()
    return path


def cards(text: str) -> dict[str, dict[str, str]]:
    found = re.findall(r'<article class="card" ([^>]*)>', text)
    fields = [dict(re.findall(r'data-(\w+)="([^"]*)"', card)) for card in found]
    hidden = [card.endswith("hidden") or 'hidden=""' in card for card in found]
    return {f["key"]: {**f, "hidden": str(h)} for f, h in zip(fields, hidden, strict=True)}


def test_cards_say_source_winner_and_margin(page: Path):
    found = cards(page.read_text())
    assert {key: card["winner"] for key, card in found.items()} == {
        "a": "synthetic", "b": "web", "c": "synthetic", "d": "web", "x": "human", "y": "human",
    }  # fmt: skip
    assert {card["source"] for card in found.values()} == {"laion", "coco"}
    assert found["b"]["margin"] == "0.000000" and found["x"]["margin"] == ""
    # "uid-a 2" scores 0.07 + 0.002, "web" as the fourth text 0.03 + 0.003
    assert float(found["a"]["margin"]) == pytest.approx(0.039, abs=1e-6)


def test_nothing_is_run_or_fetched_that_came_with_the_data(page: Path):
    text = page.read_text()
    assert text.count("<script") == 1 and "alert(1)" in text  # as text
    assert "default-src 'none'" in text and text.count('class="card"') == 6
    assert "{{cards}}" in text and "&lt;i&gt;lost&lt;/i&gt;" in text and "r&lt;b&gt;" in text
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)\w+:""", text)
    assert not outside and "http" not in text.split("</head>")[1]
    labels = re.findall(r"<label", text)
    assert len(labels) == 6 and 'aria-live="polite"' in text


def test_outputs_share_the_places_evenly(page: Path, tmp_path: Path):
    one = write(tmp_path, "one", [sample(str(i)) for i in range(8)])
    two = write(tmp_path, "two", [sample(key) for key in "abc"])
    found = cards(build_gallery([one, two], 5).decode())
    assert len(found) == 5 and len(set(found) & set("abc")) == 3


def test_winner_and_margin_by_hand():
    row = SampleRow("u", "k", "s", "ok", captions=("a", "w"), scores=(0.5, 0.25),
              origins=("synthetic", "web"), kept=(0, 1))  # fmt: skip
    assert (winner(row), margin(row)) == ("synthetic", 0.25)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("", "abcdxy"),
        ("source=laion&winner=synthetic", "ac"),
        ("high=0&order=down", "bd"),
        ("winner=nobody&kept=on", "abcdxy"),
    ],
)
def test_controls_in_a_browser(page: Path, state: str, shown: str):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, f"{page.as_uri()}#{state}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = cards(done.stdout)
    assert "".join(sorted(key for key, card in found.items() if card["hidden"] == "False")) == shown
    assert re.search(rf"<output[^>]*>{len(shown)} of 6 images</output>", done.stdout)
