import subprocess
import sys
from pathlib import Path

import pytest

from jobs.demo import DemoArgs, demo
from jobs.predict import load
from modeling.language.adapters import GenerationSettings

ROOT = Path(__file__).parents[2]


def test_caption_and_instruction(stage2_run: Path, benchmark_data: Path) -> None:
    image = benchmark_data / "images" / "test" / "000002.jpg"
    assert demo(DemoArgs(stage2_run, image)) == load(stage2_run).caption([image])[0]
    prompt = "Question: What colour? Short answer:"
    limited = demo(DemoArgs(stage2_run, image, prompt, max_new_tokens=2))
    assert len(limited.split()) <= 2


def test_mistakes(stage1_run: Path, benchmark_data: Path, tmp_path: Path) -> None:
    image = benchmark_data / "images" / "test" / "000002.jpg"
    with pytest.raises(ValueError, match="stage-1 checkpoint"):
        demo(DemoArgs(stage1_run, image))
    with pytest.raises(ValueError, match="beams = 0"):
        demo(DemoArgs(stage1_run, image, beams=0))
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.png"):
        demo(DemoArgs(stage1_run, tmp_path / "page.png"))


def test_command_line_ends_with_one_line() -> None:
    command = [sys.executable, "jobs/demo.py", "--checkpoint", "none", "--image", "none.jpg"]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: no such image file: none.jpg"
    assert "Traceback" not in done.stderr


def test_a_conversation_answers_each_line_of_the_input(stage2_run: Path, benchmark_data: Path):
    image = benchmark_data / "images" / "test" / "000002.jpg"
    command = [sys.executable, "jobs/demo.py", "--checkpoint", str(stage2_run), "--chat"]
    command += ["--image", str(image), "--beams", "1", "--max-new-tokens", "4"]
    asked = "What colour is the star?\n\nIs it big?\nWhat is left of it?\n"
    done = subprocess.run(
        command, check=True, cwd=ROOT, input=asked, capture_output=True, text=True, timeout=240
    )
    chat = load(stage2_run).chat(image)
    settings = GenerationSettings(beams=1, max_new_tokens=4)
    expected = [chat.ask(line, settings) for line in asked.splitlines() if line]
    assert done.stdout.splitlines() == expected and len(expected) == 3
