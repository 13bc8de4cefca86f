"""The package's modules import each other in one direction only, imports inside functions among them."""

import ast
from pathlib import Path

import networkx
import pytest

import selfimprove

ROOT = Path(selfimprove.__file__).parent


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selfimprove") and node not in typing:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if file_of(inside) else str(node.module))
    return found


def file_of(module: str) -> Path | None:
    place = ROOT.parent / Path(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()), None)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def graph():
    found = networkx.DiGraph()
    for path in ROOT.rglob("*.py"):
        found.add_edges_from((name_of(path), other) for other in imports(path) - {name_of(path)})
    return found


def test_no_two_modules_import_each_other_by_any_way(graph):
    circles = [sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1]
    assert circles == []


@pytest.mark.parametrize(
    ("below", "above"),
    [("report", ["run", "evaluation", "solving", "sweep", "hub", "commands", "cli"]), ("verify", ["report", "run"])],
)
def test_what_is_below_needs_nothing_above(graph, below, above):
    for module in [name for name in graph if name.startswith(f"selfimprove.{below}.")]:
        needed = networkx.descendants(graph, module)
        assert not {f"selfimprove.{name}" for name in above} & needed, module


def test_no_method_imports_another():
    for path in (ROOT / "methods").glob("*.py"):
        assert not {name for name in imports(path) if name.startswith("selfimprove.methods.")}, path.name
