"""Runs unit tests on model-written Python, so that the program under test cannot influence the verdict.

`metadata["tests"]` is one of
- `{"prompt": ..., "test": ..., "entry_point": ...}`: HumanEval's form (Chen et al. 2021, arXiv 2107.03374), where
  `test` defines `check(candidate)`;
- a list of assertions that call the function by name: MBPP's form (Austin et al. 2021, arXiv 2108.07732), with code in
  `metadata["setup"]` that runs before them;
- a list of `{"input": ..., "output": ...}`: what the program reads and must print.

Assertions run in one sandbox and the program in another. Two pipes join them, and only calls and plain values pass
(`selfimprove.verify.harness`). The program sees the arguments of each call and nothing else of the tests. It cannot
reach the assertion, the verdict, or the process that decides. Printed answers are compared outside the sandbox.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import marshal
import math
import re
from dataclasses import asdict
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.types import Count, NonNegative, Seconds, Status
from selfimprove.verify import Outcome, candidate, harness, link, programs, stand_in, wire
from selfimprove.verify import sandbox as sandboxes
from selfimprove.verify.container import IMAGE
from selfimprove.verify.instrument import prepare
from selfimprove.verify.sandbox import Limits, Result, run, run_pair

NEEDS_GOLD = False
KEEPS_TIME = True  # the sandbox enforces the time limit
OUTPUT_BYTES = 1 << 20
PROCESSES = 16
REMEMBERED = 4096  # verdicts
RELATIVE = 1e-9  # relative tolerance of a printed number, if that is more than the absolute one


def require(*, sandbox: str = "bubblewrap", image: str = IMAGE, **options: Any) -> dict[str, str]:
    """The sandbox's guards, for the run's record. Raises ConfigError if the sandbox cannot run here."""
    sandboxes.require(sandbox, image)
    return sandboxes.describe(sandbox, image)


def check(
    text: str,
    gold: str | None,
    metadata: dict[str, Any],
    *,
    sandbox: str = "bubblewrap",
    image: str = IMAGE,
    seconds: Seconds = 5.0,
    memory_mb: Count = 512,
    partial: bool = False,
    float_tolerance: NonNegative = 1e-6,
) -> Outcome:
    """Check whether the program in `text` passes the tests. `gold` is not read.

    The program is the last fenced block that defines what the tests call. Without a fence it is the whole text, or the
    text that continues a HumanEval prompt. image: the image for containers. seconds: the limit of all tests together;
    waiting on a busy machine does not count. memory_mb: MiB, for the program and for the tests each. partial: the
    reward of a program that fails is the share of all assertions (or inputs) that it passes, else 0. float_tolerance:
    how much a printed number may differ if the expected one has a decimal point; 0 compares texts.

    `wrong` when an assertion fails or the program raises, exits, or needs too much memory; `unparseable` when there is
    no program; `timeout`; `error` when the tests or the sandbox are at fault, or cannot decide.
    """
    limits = Limits(seconds, memory_mb, OUTPUT_BYTES, PROCESSES)
    tests = metadata.get("tests")
    try:
        if isinstance(tests, dict):
            task = _human_eval(text, partial=partial, **{key: tests[key] for key in ("prompt", "test", "entry_point")})
        elif tests and isinstance(tests, list) and isinstance(tests[0], str):
            task = _assertions(text, metadata.get("setup") or "", tests, partial)
        elif tests and isinstance(tests, list):
            pairs = [(str.__str__(pair["input"]), str.__str__(pair["output"])) for pair in tests]
            task = {"program": programs.printing(text), "pairs": pairs, "tolerance": float_tolerance}
        else:
            raise ValueError("metadata['tests'] holds no tests")
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError) as error:
        return Outcome("error", 0.0, reason=f"the problem's tests cannot be read: {type(error).__name__}: {error}")
    return _remembered(task, limits, {"sandbox": sandbox, "image": image}, partial)


_decided: dict[bytes, Outcome] = {}  # digest of programs, tests and limits -> outcome, oldest first


def _remembered(task: dict[str, Any], limits: Limits, where: dict[str, Any], partial: bool) -> Outcome:
    """The outcome of a task, from memory if this process has decided the task before."""
    key = hashlib.blake2b(json.dumps([task, asdict(limits), where, partial]).encode()).digest()
    if key in _decided:
        return _decided[key]
    try:
        if "pairs" in task:
            outcome = _printed(**task, limits=limits, where=where, partial=partial)
        else:
            outcome = _asserted(task, limits, where, partial)
    except ConfigError as error:
        return Outcome("error", 0.0, reason=str(error))
    if outcome.status not in ("timeout", "error"):
        _decided[key] = outcome
        if len(_decided) > REMEMBERED:
            del _decided[next(iter(_decided))]
    return outcome


def reference(gold: str | None, metadata: dict[str, Any], **options: Any) -> str:
    """A completion with the gold program, which is a solution or the continuation of the problem's prompt.

    Raises ValueError if there is none.
    """
    if gold is None:
        raise ValueError("the problem has no gold program")
    tests = metadata.get("tests")
    if isinstance(tests, dict) and gold[:1] in (" ", "\t", "\n"):
        gold = tests["prompt"] + gold
    fence = max(["``", *re.findall("`+", gold)], key=len) + "`"
    return f"{fence}python\n{gold}\n{fence}"


def _human_eval(text: str, prompt: str, test: str, entry_point: str, partial: bool) -> dict[str, Any]:
    stub = f"{prompt}    pass\n\n"
    prepared = prepare((test,), entry_point, stub, partial)
    pieces = programs.continuing(text, prompt, entry_point)
    return prepared | {"programs": pieces, "needs": [entry_point], "prelude": stub, "candidate": entry_point}


def _assertions(text: str, setup: str, tests: list[str], partial: bool) -> dict[str, Any]:
    prepared = prepare((setup, *tests), None, "", partial)
    pieces = programs.defining(text)
    return prepared | {"programs": pieces, "needs": prepared["wanted"], "prelude": "", "candidate": None}


_START = """
os.unlink(sys.argv[0])  # the program finds nothing of ours
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)  # answers may be long numbers
"""


@functools.cache
def _sides(compiled: bool) -> tuple[dict[str, str | bytes], dict[str, str | bytes]]:
    """The files that run on the tests' side and on the program's side.

    Compiling them costs as much as the rest of a check. So they are compiled once, if the sandbox's Python runs
    bytecode of this one.
    """
    sides: list[dict[str, str | bytes]] = []
    for modules, start in (
        ((wire, stand_in, link, harness), "drive(int(sys.argv[-2]), int(sys.argv[-1]))"),
        ((wire, candidate), "serve()"),
    ):
        trees = [ast.parse(Path(str(module.__file__)).read_text()) for module in modules]
        body = [node for tree in trees for node in tree.body if getattr(node, "module", "") != "__future__"]
        first, last = ast.parse("from __future__ import annotations"), ast.parse(f"{_START}\n{start}")
        whole = ast.Module([*first.body, *body, *last.body], [])
        if compiled:
            code = compile(whole, "<harness>", "exec", 0, True, 2)
            sides.append({"main.pyc": MAGIC_NUMBER + bytes(12) + marshal.dumps(code)})
        else:
            sides.append({"main.py": ast.unparse(whole)})
    return sides[0], sides[1]


def _asserted(task: dict[str, Any], limits: Limits, where: dict[str, Any], partial: bool) -> Outcome:
    if not task["programs"]:
        return Outcome("unparseable", 0.0, reason="the completion is empty")
    verdict = _verdict(task, limits, where, partial, follow=False)
    if isinstance(verdict, Outcome):
        return verdict
    if verdict["status"] == "wrong" and verdict["moved"]:
        again = _verdict(task, limits, where, partial, follow=True)
        if isinstance(again, dict) and again["status"] == "correct":
            why = "the tests hold only where what the program changes in place is what they compare with"
            return Outcome("error", 0.0, reason=why)
    extracted = None
    if verdict["chosen"] is not None:
        part, whole, _ = task["programs"][verdict["chosen"]]
        extracted = part or whole
    status: Status = verdict["status"]
    reward = _reward(status, verdict["passed"], verdict["passed"] + verdict["failed"], partial)
    reason = verdict["reason"].encode(errors="replace").decode()  # an exception's text may have half a surrogate pair
    return Outcome(status, reward, extracted, reason=reason or None)


def _verdict(
    task: dict[str, Any], limits: Limits, where: dict[str, Any], partial: bool, follow: bool
) -> dict[str, Any] | Outcome:
    """The verdict of the tests' process, or an Outcome if it gave none."""
    sides = _sides(sandboxes.runs_bytecode(where["sandbox"]))
    task = task | {"partial": partial, "follow": follow}
    result = run_pair(*sides, stdin=json.dumps(task), limits=limits, **where)
    if result.status != "ok":
        return _stopped(result, limits)
    verdict: dict[str, Any] = json.loads(result.stdout)
    if result.outgrown and verdict["status"] == "wrong":
        verdict["reason"] = f"needs more than {limits.memory_mb} MiB"
    return verdict


def _printed(
    program: str,
    pairs: list[tuple[str, str]],
    tolerance: float,
    limits: Limits,
    where: dict[str, Any],
    partial: bool,
) -> Outcome:
    if not program.strip():
        return Outcome("unparseable", 0.0, reason="the completion is empty")
    passed, reason, spent = 0, None, 0.0
    for number, (given, expected) in enumerate(pairs, start=1):
        result = run(
            program,
            stdin=given,
            seconds=max(0.0, limits.seconds - spent),
            memory_mb=limits.memory_mb,
            output_bytes=limits.output_bytes,
            processes=limits.processes,
            **where,
        )
        spent += result.counted
        last = result.stderr.rstrip().rpartition("\n")[2][:300]
        if result.status == "exit" and last.startswith(("SyntaxError:", "IndentationError:", "TabError:")):
            return Outcome("unparseable", 0.0, reason=last)
        if result.status in ("timeout", "error"):
            return _stopped(result, limits)
        if result.status == "ok" and same_output(result.stdout, expected, tolerance):
            passed += 1
            continue
        why = "printed another answer" if result.status == "ok" else f"ended with {result.status}: {last}"
        reason = reason or f"input {number} of {len(pairs)}: {why}"
        if not partial:
            break
    status: Status = "correct" if passed == len(pairs) else "wrong"
    return Outcome(status, _reward(status, passed, len(pairs), partial), program, reason=reason)


def same_output(printed: str, expected: str, tolerance: float) -> bool:
    """Whether a program printed the expected lines, ignoring blanks at their ends and empty lines at the end.

    A number may differ by the tolerance if the expected one has a decimal point or an exponent.
    """
    ours, theirs = _lines(printed), _lines(expected)
    return len(ours) == len(theirs) and all(
        a == b or (tolerance > 0 and _same_numbers(a.split(" "), b.split(" "), tolerance))
        for a, b in zip(ours, theirs, strict=True)
    )


def _same_numbers(printed: list[str], expected: list[str], tolerance: float) -> bool:
    def same(a: str, b: str) -> bool:
        if a == b or not (_FLOAT.fullmatch(b) and _NUMBER.fullmatch(a)):
            return a == b
        return math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=tolerance)

    return len(printed) == len(expected) and all(map(same, printed, expected))


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_FLOAT = re.compile(r"(?=.*[.eE])" + _NUMBER.pattern, re.ASCII)


def _lines(text: str) -> list[str]:
    """Lines without blanks at their ends, and without empty ones at the end. Only a newline ends a line."""
    return [line.rstrip(" \t\r") for line in text.rstrip(" \t\r\n").split("\n")]


def _reward(status: Status, passed: int, total: int, partial: bool) -> float:
    if status == "correct":
        return 1.0
    return passed / total if partial and status == "wrong" and total else 0.0


def _stopped(result: Result, limits: Limits) -> Outcome:
    """The outcome if the tests' process did not end by itself."""
    if result.status == "timeout":
        return Outcome("timeout", 0.0, reason=f"took more than {limits.seconds:g} s")
    if result.status == "memory":
        return Outcome("wrong", 0.0, reason=f"needs more than {limits.memory_mb} MiB")
    return Outcome("error", 0.0, reason=f"the sandbox failed: {result.status}: {result.stderr.strip()[-300:]}")
