"""Prepares the tests of a code check for `selfimprove.verify.harness`.

It finds the names that the tests want from the program, and adds blocks that count their assertions. The tests are the
data set's. The program is not read here.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
from collections.abc import Iterable, Iterator
from typing import Any

from selfimprove.verify.candidate import bound

BUILTINS = frozenset(dir(builtins))
# Modules that tests use without an import, or whose names they use so.
MODULES = (
    *(
        "math",
        "cmath",
        "collections",
        "itertools",
        "functools",
        "copy",
        "fractions",
        "decimal",
        "statistics",
        "operator",
    ),
    *("re", "datetime", "random", "heapq", "bisect", "string", "json", "time", "typing"),
)
PACKAGES = {"np": "numpy", "pd": "pandas", "nx": "networkx"}
PACKAGES |= {name: name for name in ("numpy", "pandas", "networkx", "scipy", "sympy", "torch", "pytest")}


@functools.lru_cache(maxsize=256)
def prepare(tests: tuple[str, ...], candidate: str | None, given: str, partial: bool) -> dict[str, Any]:
    """The tests' part of the task for `harness.drive`.

    candidate: the function that `check` gets, None if tests call it by name. given: code that runs before them. Raises
    SyntaxError, ValueError or RecursionError when the tests or `given` are not Python.
    """
    trees = [ast.parse(test) for test in tests]
    own = set[str]().union(*map(bound, trees))
    free = {node.id for node in _every(trees, ast.Name)} - own - bound(ast.parse(given)) - {"__name__"}
    lent, spare = _forgotten(trees, free - BUILTINS)
    wanted = {candidate} if candidate else free - BUILTINS - lent.keys()
    if not wanted:  # the task is to write a function with the name of a built-in one
        wanted = _innermost(trees, free & BUILTINS)
    due = [candidate] if candidate else sorted(_innermost(trees, wanted))
    counter = _Counter()
    for tree in trees:
        counter.visit(tree)
    if partial:
        for tree in trees:
            checks = [n for n in tree.body if candidate and isinstance(n, ast.FunctionDef) and n.name == "check"]
            for function in checks:
                function.body = _steps(function.body)
            tree.body = _steps(tree.body)
    return {
        "tests": [ast.unparse(ast.fix_missing_locations(tree)) for tree in trees],
        "wanted": sorted(wanted),
        "due": due,
        "lent": lent,
        "spare": spare,
        "bound": sorted(own | {node.id for node in _every(trees, ast.Name) if isinstance(node.ctx, ast.Store)}),
        "assertions": counter.assertions,
        "tries": counter.tries,
    }


def _every(trees: Iterable[ast.AST], kind: type) -> Iterator[Any]:
    return (node for tree in trees for node in ast.walk(tree) if isinstance(node, kind))


def _called(tree: ast.AST) -> set[str]:
    return {call.func.id for call in _every([tree], ast.Call) if isinstance(call.func, ast.Name)}


def _innermost(trees: list[ast.Module], names: set[str]) -> set[str]:
    """The names that are called with arguments that call none of the names."""
    calls = [call for call in _every(trees, ast.Call) if isinstance(call.func, ast.Name) and call.func.id in names]
    inner = {id(call): set().union(*map(_called, [*call.args, *call.keywords])) for call in calls}
    return {call.func.id for call in calls if not inner[id(call)] & names}


def _forgotten(trees: list[ast.Module], free: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Names that the tests use without an import, with their places: `lent` and `spare`.

    Names in `lent` must not come from the program, which would then judge itself: modules of which the tests use only
    attributes that they have, and functions of the standard library that are called with the result of some other
    function. Names in `spare` may come from the program: functions of the library in a statement beside such a call,
    and names of `typing`.
    """
    lent, spare = {}, {}
    attributes: dict[str, list[str]] = {}
    for node in _every(trees, ast.Attribute):
        if isinstance(node.value, ast.Name):
            attributes.setdefault(node.value.id, []).append(node.attr)
    uses = [node.id for node in _every(trees, ast.Name)]
    library = {name: place for name in free if (place := _place(name))}
    others = free - library.keys()
    statements = [node for node in _every(trees, ast.stmt) if not hasattr(node, "body")]
    for name in sorted(free):
        used = attributes.get(name, [])
        if used and len(used) == uses.count(name):
            if name in PACKAGES:
                lent[name] = PACKAGES[name]
            elif name in MODULES and all(hasattr(importlib.import_module(name), attribute) for attribute in used):
                lent[name] = name
        elif name in library:
            calls = [call for call in _every(trees, ast.Call) if getattr(call.func, "id", "") == name]
            beside = [s for s in statements if any(node.id == name for node in _every([s], ast.Name))]
            if any(_called(argument) & others for call in calls for argument in [*call.args, *call.keywords]):
                lent[name] = library[name]
            elif library[name].startswith("typing:") or (beside and all(_called(s) & others for s in beside)):
                spare[name] = library[name]
    return lent, spare


def _place(name: str) -> str | None:
    """A name's place in the standard library, in the form of `wire.named`; None if it has none."""
    modules = (module for module in MODULES if hasattr(importlib.import_module(module), name))
    return next((f"{module}:{name}" for module in modules if not name.startswith("_")), None)


class _Counter(ast.NodeTransformer):
    """Puts statements into the blocks of `harness.Tally`."""

    def __init__(self) -> None:
        self.assertions = 0
        self.tries = False  # whether some assertion is in a `try`

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if not any(isinstance(part, ast.Name) for part in ast.walk(node.test)):  # does not involve the program
            return node
        self.assertions += 1
        same = [
            node for node in _every([node], ast.Compare) if any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
        ]
        names = sorted(
            {part.id for node in same for part in (node.left, *node.comparators) if isinstance(part, ast.Name)}
        )
        used = ast.parse(f"_used_({', '.join(names)})").body if names else []  # `is` would not notice a lost value
        return _within(f"_assertion_({self.assertions})", [*used, node])

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return _within("_effect_", [node]) if any(_every([node], ast.Call)) else node

    def visit_Try(self, node: ast.Try) -> ast.stmt:
        self.tries = self.tries or any(_every([node], ast.Assert))
        self.generic_visit(node)
        node.body = [_within("_attempt_", node.body)]
        return node

    def visit_With(self, node: ast.With) -> ast.stmt:
        self.generic_visit(node)
        node.body = [_within("_attempt_", node.body)]
        return node


def _steps(block: list[ast.stmt]) -> list[ast.stmt]:
    """Wrap each statement so that the next one runs even if it fails. Names that a failed one binds are deleted."""
    steps: list[ast.stmt] = []
    for statement in block:
        fields = ["body", "orelse"] if isinstance(statement, ast.For | ast.While | ast.If) else []
        if isinstance(statement, ast.With) and not _ours(statement):
            fields = ["body"]
        for field in fields:
            setattr(statement, field, _steps(getattr(statement, field)))
        if isinstance(statement, _WHOLE) or _ours(statement) == "_assertion_":
            steps.append(statement)
            continue
        steps.append(_within("_step_", [statement]))
        if names := sorted(bound(ast.Module([statement], []))):
            lost = f"if _step_.lost:\n    {' = '.join(names)} = None\n    del {', '.join(names)}"
            steps += ast.parse(lost).body
    return steps


_WHOLE = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom),
    *(ast.Return, ast.Break, ast.Continue, ast.Pass, ast.Global, ast.Nonlocal),
)


def _ours(statement: ast.stmt) -> str:
    """The name of the block that wraps a statement; empty if it is not one of ours."""
    if not isinstance(statement, ast.With):
        return ""
    block = statement.items[0].context_expr
    name = getattr(getattr(block, "func", block), "id", "")
    return name if name in ("_assertion_", "_effect_", "_attempt_", "_step_") else ""


def _within(block: str, statements: list[ast.stmt]) -> ast.With:
    return ast.With([ast.withitem(ast.parse(block, mode="eval").body)], statements)
