"""Sizes that keep the code readable: of files, functions and folders."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("cluster", "evaluation", "jobs", "modeling", "pipeline")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_no_file_has_more_than_400_lines() -> None:
    long = [path for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long


def test_no_function_has_more_than_80_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > 80
    ]
    assert not long


def test_no_folder_of_libraries_has_more_than_18_files() -> None:
    folders = {path.parent for path in FILES} - {ROOT / "jobs"}
    assert not [folder for folder in folders if len(list(folder.glob("*.py"))) > 18]


def test_every_package_says_in_one_line_what_belongs_there() -> None:
    for folder in {path.parent for path in FILES}:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(text))
        assert said, f"{folder.relative_to(ROOT)}/__init__.py has no docstring"
        assert "\n" not in said.split("\n\n")[0], folder
