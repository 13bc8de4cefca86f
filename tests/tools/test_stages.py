"""The stages of a pipeline in the sandbox: numpy and scikit-learn are there and nothing else of this environment."""

from __future__ import annotations

import json
from typing import Any

import pytest

from selfimprove.errors import ConfigError
from selfimprove.tools.pipeline import METRICS, arrays, score, targets
from selfimprove.tools.stages import Search, ran, require_stages
from selfimprove.verify import Outcome, sandbox
from tests.methods.pipelines import codes, problems, request

np = pytest.importorskip("numpy")
pytest.importorskip("sklearn")
LIMITS: dict[str, Any] = {"seconds": 20.0, "memory_mb": 2048, "sandbox": "bubblewrap"}
SETUP = ("fetch", "modality", "maps", "metric", "form")


@pytest.fixture(autouse=True, scope="module")
def bubblewrap() -> None:
    try:
        require_stages()
    except ConfigError as error:
        pytest.skip(str(error))


def outcome(more: dict[str, str], stages: tuple[str, ...] = SETUP, **limits: Any) -> Outcome:
    problem = problems()["iris"]
    own = {stage: code for stage, code in {**codes(problem), **more}.items() if stage in stages}
    asked = request(problem, own) | {"sampler": "random", "seed": 0}
    return ran(json.dumps(asked), None, {}, **{**LIMITS, **limits})


def test_a_whole_pipeline_with_a_search_runs_in_the_sandbox() -> None:
    found = outcome({}, (*SETUP, "features", "model", "space", "ensemble"))
    assert found.status == "correct", found.extracted
    assert json.loads(found.extracted or "")["done"]["submission"].startswith("id,target")


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("def metric(text):\n    while True: pass", "timeout", "TimeoutError: took more than 1 s"),
        ("import os\ndef metric(text): os._exit(0)", "wrong", "OSError: the program ended itself"),
        ("import sys\ndef metric(text): sys.exit(0)", "wrong", "SystemExit: 0"),
        ('import os\nos.write(1, b\'{"fault": "x"}\\n\'); os._exit(0)', "wrong", "OSError: the program ended itself"),
        ('import os\nos.write(1, b\'{"broken": "x"}\\n\'); os._exit(0)', "wrong", "OSError: the program ended itself"),
        ("import os\nos.write(1, b'{\"done\": {}}\\n'); os._exit(0)", "wrong", "OSError: the program ended itself"),
        ("def metric(text): return bytearray(1 << 40)", "wrong", "MemoryError: "),
        ("import torch", "wrong", "ModuleNotFoundError: No module named 'torch'"),
        ("def metric(text): return open('/etc/passwd').read()", "wrong", "FileNotFoundError"),
        ("print('hello')\ndef other(text): pass", "wrong", "the code defines no function metric"),
        ("def metric(", "wrong", "SyntaxError"),
    ],
)
def test_whatever_a_stage_does_it_is_blamed(code: str, status: str, said: str) -> None:
    found = outcome({"metric": code}, seconds=1.0)
    reply = json.loads(found.extracted or "{}")
    assert (found.status, reply["broken"]) == (status, "metric")
    assert reply["said"].startswith(said)


def test_a_fault_of_ours_is_an_error_and_never_a_failed_stage() -> None:
    problem = problems()["iris"]
    asked = request(problem, {s: c for s, c in codes(problem).items() if s in SETUP}) | {"sampler": "tpe", "seed": 0}
    del asked["task"]["target"]
    found = ran(json.dumps(asked), None, {}, **LIMITS)
    assert (found.status, found.reason) == ("error", "the sandbox failed: KeyError: 'target'")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfimprove.tools.stages.MODULES", {"no_such_module": "no-such-package"})
    with pytest.raises(ConfigError, match=r"needs no-such-package: pip install 'selfimprove\[tables\]'"):
        require_stages()
    with pytest.raises(ConfigError, match="need no-such-package, which is not installed"):
        sandbox.run("1", packages=["no-such-package"], seconds=1, memory_mb=256, output_bytes=9)


def test_a_container_has_no_answers() -> None:
    with pytest.raises(ConfigError, match="sandbox=docker: a container's program has no answers"):
        sandbox.run("1", answer=bytes, sandbox="docker", seconds=1, memory_mb=256, output_bytes=9)


def test_each_line_of_a_program_is_answered() -> None:
    program = "for i in range(3):\n    print(i, flush=True)\n    assert input() == f'{i}!'\nprint('end')"
    answers = {b"0": b"0!\n", b"1": b"1!\n", b"2": b"2!\n"}
    found = sandbox.run(program, answer=lambda line: answers.get(line, b""), seconds=5, memory_mb=256, output_bytes=99)
    assert (found.status, found.stdout) == ("ok", "0\n1\n2\nend\n")


# The search


def line(said: dict[str, Any]) -> bytes:
    return f"word{json.dumps(said)}".encode()


def test_the_estimator_looks_where_scores_are_high_and_repeats_itself() -> None:
    def searched(sampler: str) -> list[float]:
        search, last, found = Search(sampler, 3, "word"), None, []
        for _ in range(20):
            reply = json.loads(search(line({"ask": {"x": ["log", 0.001, 1000.0]}, "last": last})))
            found.append(float(np.log10(reply["x"])))
            last = -abs(found[-1] - 1)
        return found

    tpe, random = searched("tpe"), searched("random")
    assert searched("tpe") == tpe
    assert np.mean(np.abs(np.array(tpe[5:]) - 1)) < np.mean(np.abs(np.array(random[5:]) - 1))


@pytest.mark.parametrize(
    "space", [{"a": ["float", 1, 0]}, {"a": ["float", "low", "high"]}, {"a": []}, {"a": 3}, [1], {"a": ["odd", 0, 1]}]
)
def test_what_is_no_space_is_refused(space: Any) -> None:
    assert "refused" in json.loads(Search("tpe", 0, "word")(line({"ask": space, "last": None})))


@pytest.mark.parametrize(
    "text", [b"", b"hello", b"\xff", b'word{"begin": "x"}', b"word[", b'{"ask": {}, "last": null}']
)
def test_what_is_no_question_gets_no_answer(text: bytes) -> None:
    assert Search("tpe", 0, "word")(text) == b""


# Formulas


def test_scores_and_arrays_by_hand() -> None:
    assert METRICS == ("accuracy", "r2")
    assert score("accuracy", np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75
    assert score("r2", np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])) == pytest.approx(1 - 1 / 2)
    assert score("r2", np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0.0
    assert targets(["b", "a"], ["a", "b"]).tolist() == [1, 0]
    train, test = [{"n": "1", "c": "x"}, {"n": "3", "c": "w"}], [{"n": "", "c": "v"}, {"n": "5", "c": "x"}]
    one, two = arrays(train, test, {"n": "number", "c": "category"}, ["n", "c"])
    assert one.tolist() == [[1, 1], [3, 0]]
    assert two.tolist() == [[2, -1], [5, 1]]
