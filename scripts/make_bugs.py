"""Make bugs by mutation: of each module's mutants those that its own tests find.

    python scripts/make_bugs.py mini          # the small repositories; writes selfimprove/env/mini/bugs.json
    python scripts/make_bugs.py libraries     # boltons and more-itertools, for dataset=repositories; into the cache

cosmic-ray makes the mutants (pip install "selfimprove[bugs]"), and they are drawn by a seed. The tests run in the
sandbox. A mutant that hangs or that breaks the import is left out, for it fails every test, and so is one outside of
functions. The libraries' sources come from the package index, by pip.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfimprove.env import libraries, swe_mini
from selfimprove.env.bugs import Bug, around, wrong
from selfimprove.env.repository import Base
from selfimprove.env.suite import tested
from selfimprove.files import write_text

SOURCES = {"boltons": "boltons==26.2.0", "more_itertools": "more-itertools==11.2.1"}
MODULES = {  # repository -> module -> its tests
    "boltons": {
        f"boltons/{name}.py": f"tests/test_{name}.py"
        for name in (
            "cacheutils",
            "dictutils",
            "iterutils",
            "listutils",
            "mathutils",
            "setutils",
            "strutils",
            "urlutils",
        )
    },
    "more_itertools": {"more_itertools/recipes.py": "tests/test_recipes.py"},
}
LIMITS: dict[str, Any] = {"seconds": 20.0, "memory_mb": 1024}  # as conf/dataset/repositories.yaml has them
LEFT_OUT = ("Variable", "Decorator", "ExceptionReplacer")  # operators with arguments, and two that break imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mini", "libraries"])
    parser.add_argument("--mutants", type=int, help="of a module, drawn at random; default 14 and 8")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    mini = given.what == "mini"
    sources = {name: swe_mini.files(name) for name in swe_mini.NAMES} if mini else dict(fetched())
    modules = MODULES
    if mini:
        tests = {name: [path for path in files if path.startswith("test")] for name, files in sources.items()}
        modules = {name: {p: tests[name][0] for p in files if p not in tests[name]} for name, files in sources.items()}
    passes: dict[str, dict[str, list[str]]] = {name: {} for name in sources}
    bugs, counts = list[Bug](), Counter[str]()
    for name, pairs in modules.items():
        for path, test in pairs.items():
            ran = tested(sources[name], tests=[test], **LIMITS)
            passes[name][test] = [one for one, failure in ran.failures.items() if failure is None]
            base = Base(sources[name], passes[name])
            for bug in killed(name, path, test, base, given.mutants or (14 if mini else 8), given.seed, counts):
                bugs.append(bug)
            print(f"{name} {path}: {len(passes[name][test])} tests, so far {dict(counts)}", flush=True)
    made: dict[str, Any] = {"passes": passes, "bugs": bugs} | ({} if mini else {"files": sources})
    out = swe_mini.BUGS if mini else libraries.path()
    write_text(out, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(bugs)} bugs: {out}")


def killed(name: str, path: str, test: str, base: Base, count: int, seed: int, counts: Counter[str]) -> Iterator[Bug]:
    """The bugs among `count` mutants of a module. `counts` gets how many were made, killed, survived and left out."""
    for operator, code in mutants(base.files[path], count, random.Random(f"{seed}/{name}/{path}")):
        bug = changed(base.files[path], code) | {
            "repository": name,
            "path": path,
            "tests": [test],
            "operator": operator,
        }
        counts["made"] += 1
        ran = tested({**base.files, path: code}, tests=[test], **LIMITS)
        failed = [one for one in base.passes[test] if ran.failures.get(one) is not None]
        if ran.status != "ok" or not set(base.passes[test]) <= set(ran.failures):
            counts["left out"] += 1
        elif not failed:
            counts["survived"] += 1
        else:
            counts["killed"] += 1
            bug |= {"hidden": failed, "issue": f"{failed[0]}\n{ran.failures[failed[0]]}"}
            bug["id"] = named(bug)
            try:
                around(base.files[path], bug["line"])
            except ValueError:
                counts["outside of functions"] += 1
                continue
            if wrong(bug, base):
                yield bug


def named(bug: Bug) -> str:
    mark = hashlib.blake2b("\n".join(bug["bad"]).encode(), digest_size=3).hexdigest()
    return f"{bug['repository']}-{Path(bug['path']).stem}-{bug['line']}-{mark}"


def mutants(text: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """`count` mutants of a module that are drawn from all its sites: the operator, and the code."""
    try:
        from cosmic_ray.ast import ast_nodes, get_ast
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator, operator_names
    except ImportError:
        sys.exit('cosmic-ray is missing: pip install "selfimprove[bugs]"')
    nodes, sites = list(ast_nodes(get_ast(text))), list[tuple[str, int]]()
    for name in sorted(operator_names()):
        if not any(part in name for part in LEFT_OUT):
            operator = get_operator(name)()
            places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            sites += [(name, place) for place in range(places)]
    drawn = rng.sample(sites, min(count, len(sites)))
    made = {mutate_code(text, get_operator(name)(), place): name.partition("/")[2] for name, place in sorted(drawn)}
    return sorted((operator, code) for code, operator in made.items() if code not in (None, text))


def changed(before: str, after: str) -> dict[str, Any]:
    """The lines in which two texts differ: where they begin, and what they were and are."""
    a, b = before.splitlines(), after.splitlines()
    codes = [code for code in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes() if code[0] != "equal"]
    start, end = codes[0][1], codes[-1][2]
    return {"line": start + 1, "good": a[start:end], "bad": b[codes[0][3] : codes[-1][4]]}


def fetched() -> Iterator[tuple[str, Mapping[str, str]]]:
    """The Python files of each library's source archive, and its tests."""
    for name, wanted in SOURCES.items():
        with tempfile.TemporaryDirectory() as folder:
            words = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder, wanted]
            subprocess.run([sys.executable, "-m", "pip", *words], check=True)
            with tarfile.open(next(Path(folder).iterdir())) as archive:
                kept = {}
                for member in archive.getmembers():
                    path = member.name.partition("/")[2]
                    if path.endswith(".py") and path.startswith((f"{name}/", "tests/")):
                        file = archive.extractfile(member)
                        assert file is not None
                        kept[path] = file.read().decode()
                tests = {"tests/__init__.py", *MODULES[name].values()}
                yield name, {p: t for p, t in sorted(kept.items()) if not p.startswith("tests/") or p in tests}


if __name__ == "__main__":
    main()
