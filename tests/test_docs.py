"""README and docs/: every command is one that the project takes, and every link leads somewhere."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TRAINING = (
    "stage1",
    "stage2",
    "finetune_caption",
    "finetune_retrieval",
    "finetune_vqa",
    "instruct",
)


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of a page's shell blocks that start a job: its path and its arguments."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "jobs/" in line else []
            at = [n for n, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)]
            if at and words[0] in ("python", "deepspeed", "sbatch", "ray", "DS_ACCELERATOR=cpu"):
                yield words[at[0] :]


def parser_of(job: str, arguments: list[str]) -> Callable[[], Any]:
    """A function that reads a job's command line as the job does, and starts nothing."""
    from jobs import benchmark, convert, demo, instruct_tinyworld, launch, llava, report, zoo
    from jobs.bulk.captions import CaptionArgs
    from jobs.bulk.features import EmbedArgs
    from jobs.bulk.search import SearchArgs
    from jobs.captioning import arguments as capfilt
    from jobs.captioning import tools
    from jobs.evaluation.arguments import EvaluateArgs
    from jobs.training.command import parse

    forms = {
        "caption": CaptionArgs,
        "embed": EmbedArgs,
        "search": SearchArgs,
        "evaluate": EvaluateArgs,
        "demo": demo.DemoArgs,
        "convert": convert.Arguments,
        "report": report.ReportArgs,
        "zoo": zoo.ZooArgs,
        "instruct_tinyworld": instruct_tinyworld.TrialArgs,
    }
    if job in (*TRAINING, "llava"):
        stage, line = llava.take_stage(arguments) if job == "llava" else ("", arguments)
        return lambda: parse(job, line, kind=stage and f"llava_stage{stage}")
    if job in forms:
        return lambda: tyro.cli(forms[job], args=arguments)
    if job == "launch":
        launch.parse(arguments)
        rest = arguments[arguments.index("--") + 1 :]
        return parser_of(Path(rest[0]).stem, rest[1:])
    if job == "benchmark":
        return lambda: arguments == ["--help"] or benchmark.BENCHMARKS[arguments[0]]
    assert job == "capfilt", f"jobs/{job}.py is in no test"
    tool, *more = arguments
    if tool in ("verify", "stats", "compact", "gallery"):
        form: Any = tools.GalleryArgs if tool == "gallery" else tools.OutputArgs
        return lambda: tyro.cli(form, args=more)
    return lambda: capfilt.parse(more if tool in ("plan", "retry") else arguments)


FOUND = [(page, line) for page in PAGES for line in commands(page)]


def test_the_pages_have_commands() -> None:
    jobs = {Path(line[0]).stem for _, line in FOUND}
    assert {*TRAINING, "capfilt", "evaluate", "demo", "convert", "report", "launch"} <= jobs


@pytest.mark.parametrize(
    ("page", "line"), FOUND, ids=[f"{page.stem}-{shlex.join(line)[:70]}" for page, line in FOUND]
)
def test_every_command_is_taken(page: Path, line: list[str]) -> None:
    job, *arguments = line
    if "…" in arguments or "..." in arguments:
        pytest.skip("an outline")
    if arguments[:1] == ["retry"]:
        from jobs.captioning.retry import take_reasons

        _, arguments = take_reasons(arguments[1:])
        arguments = ["retry", *arguments]
    parser_of(Path(job).stem, arguments)()


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).replace("`", "") for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        to = (page.parent / name).resolve() if name else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(link)
    assert not broken


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000
