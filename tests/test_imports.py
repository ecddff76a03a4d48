"""Who may import whom, between the rooms and inside jobs/, and no circles: read from the imports.

Imports inside functions count like those at the top of a file.
"""

import ast
import sys
from collections.abc import Iterable, Mapping
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

# Rooms of jobs/ that each of its rooms may import; the entry points may import all but the leaves.
BELOW = {
    "recipes": set(),
    "models": {"recipes"},
    "interchange": {"recipes", "models"},
    "training": {"recipes", "models", "interchange"},
    "captioning": {"recipes", "models"},
    "prediction": {"recipes", "models", "interchange"},
    "evaluation": {"recipes", "models", "interchange", "prediction"},
    "bulk": {"recipes", "models", "interchange", "prediction"},
    "tour": {"recipes"},
    "instructions": {"recipes"},
}
# Leaves: rooms that may import every other, and that one entry point alone imports.
LEAVES = {"benchmarks": "jobs.benchmark", "zoo_training": "jobs.zoo"}
# Modules at the top of jobs/ that are no entry points; all may import them.
COMMON = {"jobs.cli"}
DOOR = "jobs.predict"  # the Python door: an entry point that others may import


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


def read_graph(root: Path, packages: Iterable[str]) -> dict[str, set[str]]:
    """The modules of ours that each of our modules imports."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in packages
        for path in (root / package).rglob("*.py")
    }

    def module(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    found = {name: {module(to) for to in imported(path)} for name, path in files.items()}
    return {name: to - {"", name} for name, to in found.items()}


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Sets of two or more modules that reach one another."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reach = {name: reached(name) for name in graph}
    return {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return read_graph(ROOT, ALLOWED)


def room(module: str) -> str:
    """The room of jobs/ that a module is in; "" for modules at its top and in other packages."""
    package, _, rest = module.partition(".")
    name = rest.split(".")[0]
    return name if package == "jobs" and name and (ROOT / "jobs" / name).is_dir() else ""


def inside_jobs(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """(importer, imported) of all imports of a module of jobs/."""
    return sorted(
        (name, to) for name, found in graph.items() for to in found if to.startswith("jobs.")
    )


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
    roots = {
        name.split(".")[0] for path in (ROOT / "modeling").rglob("*.py") for name in imported(path)
    }
    assert roots - set(sys.stdlib_module_names) - {"modeling"} <= MODELING_MAY_USE


def test_rooms_of_jobs_import_only_rooms_below_them(graph: dict[str, set[str]]) -> None:
    rooms = {path.parent.name for path in (ROOT / "jobs").glob("*/__init__.py")}
    assert rooms == BELOW.keys() | LEAVES.keys(), "list the room's imports here"
    wrong = [
        f"{name} imports {to}"
        for name, to in inside_jobs(graph)
        if room(name) in BELOW
        and to not in COMMON
        and room(to) not in BELOW[room(name)] | {room(name)}
        and not (to == DOOR and "prediction" in BELOW[room(name)])
    ]
    assert not wrong, "\n".join(wrong)


def test_a_leaf_is_imported_by_its_entry_point_alone(graph: dict[str, set[str]]) -> None:
    wrong = [
        f"{name} imports {to}"
        for name, to in inside_jobs(graph)
        if room(to) in LEAVES and room(name) != room(to) and name != LEAVES[room(to)]
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_an_entry_point(graph: dict[str, set[str]]) -> None:
    found = {(a, b) for a, b in inside_jobs(graph) if not room(b) and b not in COMMON | {DOOR}}
    assert not found


def test_no_modules_import_one_another_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert not circles(graph)


def test_a_wrong_arrow_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import jobs.cli\nfrom pipeline import sample\n")
    assert imported(file) == {"jobs.cli", "pipeline.sample"}
    assert not allowed("jobs.cli", "modeling")
    assert not allowed("modeling.vision.encoders", "evaluation")
    assert allowed("modeling.prompts.VQA", "evaluation")


def test_a_circle_would_be_seen(tmp_path: Path) -> None:
    """a -> b -> c -> a, the last import inside a function; d only leads into it."""
    (tmp_path / "p").mkdir()
    files = {
        "__init__": "",
        "a": "from p.b import x",
        "b": "from p import c",
        "c": "def f():\n    import p.a",
        "d": "import p.a, os",
    }
    for name, text in files.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    graph = read_graph(tmp_path, ["p"])
    assert graph["p.d"] == {"p.a"}
    assert circles(graph) == {frozenset({"p.a", "p.b", "p.c"})}
