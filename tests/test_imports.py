"""The one-way flow between the folders, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"pipeline", "modeling", "cluster", "evaluation", "jobs", "tests"}
ALLOWED = {
    "cluster": set(),
    "modeling": set(),
    "pipeline": {"cluster"},
    "evaluation": {"pipeline", "cluster", "modeling.prompts"},
    "jobs": {"pipeline", "modeling", "cluster", "evaluation"},
}
# modeling/ is for people who have only these.
MODELING_MAY_USE = {"torch", "timm", "transformers"}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, with from-imports as ``module.name``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import on line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def allowed(name: str, package: str) -> bool:
    return any(f"{name}.".startswith(f"{to}.") for to in ALLOWED[package] | {package})


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in sorted(imported(path))
        if name.split(".")[0] in OURS and not allowed(name, package)
    ]
    assert not wrong, "\n".join(wrong)


def test_modeling_needs_only_torch_timm_and_transformers() -> None:
    import sys

    roots = {
        name.split(".")[0] for path in (ROOT / "modeling").rglob("*.py") for name in imported(path)
    }
    assert roots - set(sys.stdlib_module_names) - {"modeling"} <= MODELING_MAY_USE


def test_a_wrong_arrow_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import jobs.cli\nfrom pipeline import sample\n")
    assert imported(file) == {"jobs.cli", "pipeline.sample"}
    assert not allowed("jobs.cli", "modeling")
    assert not allowed("modeling.vision.encoders", "evaluation")
    assert allowed("modeling.prompts.VQA", "evaluation")
