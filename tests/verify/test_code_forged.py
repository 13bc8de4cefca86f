"""No program passes that does not answer, and none is paid more for how it fails."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from selfimprove.verify import Outcome, sandbox
from selfimprove.verify.code import check

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason=f"needs bubblewrap: {sandbox.INSTALL}")


def judge(program: str, tests: Any, **options: Any) -> Outcome:
    return check(f"```python\n{program}\n```", None, {"tests": tests}, **{"seconds": 20.0} | options)


def stub(test: str) -> dict[str, str]:
    return {
        "prompt": "def f(x):\n    '''Some number.'''\n",
        "entry_point": "f",
        "test": f"def check(candidate):\n    {test}\n",
    }


SNEAKY = """
class A:
    def __eq__(s, o): return type(o) is not object
    def __ne__(s, o): return False
    __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__
    __hash__ = lambda s: 4
    __sub__ = __rsub__ = __truediv__ = lambda s, o: 0
    __abs__ = lambda s: 0
def f(x): return A()
"""  # equal to all but what it has been found out by
STOP = "def f(x): raise StopIteration"
ROWS: dict[str, tuple[str, Any]] = {
    "stops map": (STOP, ["assert all(map(lambda x: f(x) == 2 * x, [1, 2]))"]),
    "stops zip": (STOP, ["for a, b in zip(map(f, [1, 2]), [2, 4]):\n    assert a == b"]),
    "stops filter": (STOP, ["assert not list(filter(lambda x: f(x) != 2 * x, [1, 2]))"]),
    "stops with its own": (
        "class S(StopIteration): pass\ndef f(x): raise S",
        ["assert all(map(lambda x: f(x) == 1, [1]))"],
    ),
    "stops as next does": ("def f(x): return next(iter(()))", ["assert all(map(lambda x: f(x) == 1, [1]))"]),
    "ends a generator": ("def f(x): raise GeneratorExit", ["assert all(f(x) == 2 * x for x in [1, 2])"]),
    "a module": (
        "class math: isclose = staticmethod(lambda *a: True)\ndef f(x): return 0",
        ["assert math.isclose(f(1), 4)"],
    ),
    "a function": ("isclose = lambda *a: True\ndef f(x): return 0", ["assert isclose(f(1), 4)"]),
    "a package": (
        "class np: allclose = staticmethod(lambda *a: True)\ndef f(x): return 0",
        ["assert np.allclose(f(1), 4)"],
    ),
    "a built-in": (
        "sorted = len = abs = lambda *a: 4\ndef f(x): return []",
        ["assert sorted(f(1)) == 4 and len(f(1)) == 4"],
    ),
    "deleted": ("def f(x): return 5\ndel f", stub("assert candidate(1) is None")),
    "removed": ("def f(x): return 5\nglobals().pop('f')", stub("assert candidate(1) == f(1)")),
    "no module": ("import sys\ndef f(x): return 5\nsys.modules.clear()\ndel f", stub("assert candidate(1) is None")),
    "own check": (
        "def f(x): return 5\ndef check(c): pass\n_assertion_ = _step_ = None",
        stub("assert candidate(1) == 4"),
    ),
    "dies where it should raise": (
        "import os\ndef f(x): os._exit(0)",
        ["try:\n    f(1)\n    assert f == 1\nexcept:\n    pass"],
    ),
    "clears what it is compared with": (
        "def f(a):\n    a.clear()\n    return a",
        ["a = [1]\nr = f(a)\nassert r == sorted(a)"],
    ),
    "patches the harness": (
        "import sys\nm = sys.modules['__main__']\n"
        "for n in ('Encoded', 'changes', 'plain'): setattr(m, n, lambda *a: None)\n"
        "def f(x): return 5",
        ["assert f(1) == 4"],
    ),
    "raises the harness's own": (
        "import sys\ndef f(x): raise sys.modules['__main__'].Unsendable",
        ["assert f(1) == 4"],
    ),
    "an empty answer": ("def f(x): return []", ["for a, b in zip(f(1), [2, 4]):\n    assert a == b"]),
    "a metaclass": (
        "class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = None\nclass C(metaclass=M): pass\n"
        "def f(x): return C",
        ["assert f(1) == 4"],
    ),
    "a class that is called": (
        "class f:\n    def __init__(s, x): pass\n    def __eq__(s, o): return True",
        ["assert f(1) == 4"],
    ),
    "a line end of its own": ("print('a\\x1cb')", [{"input": "", "output": "a\nb"}]),
    "another line end": ("print('a\\u2028b')", [{"input": "", "output": "a\nb"}]),
}
SNEAKY_TESTS = [
    *(
        "f(1) == 4",
        "4 == f(1)",
        "f(1) in (3, 4)",
        "4 in f(1)",
        "[4] == [f(1)]",
        "f(1) - 4 == 0",
        "abs(f(1) - 4) < 1e-9",
    ),
    *("3 < f(1) < 5", "not f(1) != 4", "{4: 5}[f(1)] == 5", "len({4, f(1)}) == 1", "sorted([4, f(1)])[0] == 4"),
]
BASES = ("int", "float", "str", "list", "tuple", "dict", "__import__('decimal').Decimal")


@pytest.mark.parametrize("name", ROWS)
def test_a_forged_pass_does_not_count(name: str) -> None:
    outcome = judge(*ROWS[name], partial=True)
    assert (outcome.status != "correct", outcome.reward) == (True, 0.0), outcome


@pytest.mark.parametrize("test", SNEAKY_TESTS)
def test_an_object_that_is_equal_to_the_expected_one_does_not_pass(test: str) -> None:
    assert judge(SNEAKY, [f"assert {test}"], partial=True).reward == 0


@pytest.mark.parametrize("base", BASES)
def test_nor_does_one_of_a_class_that_extends_the_librarys(base: str) -> None:
    program = SNEAKY.replace("class A:", f"class A({base}):")
    assert judge(program, ["assert f(1) == 4.5"], partial=True).reward == 0
    always = program.replace("type(o) is not object", "True")
    assert judge(always, ["assert f(1) == 4.5"]).status == "wrong"  # what equals everything equals nothing


# Partial credit

ENDS = {
    "exits": "os._exit(0)",
    "leaves": "raise SystemExit(0)",
    "kills itself": "os.kill(os.getpid(), 9)",
    "raises": "raise ValueError",
    "stops": "raise StopIteration",
    "wants memory": "bytearray(1 << 40)",
    "becomes another": "os.execv('/bin/true', ['true'])",
    "deletes itself": "globals().clear(); sys.modules.clear(); raise NameError",
    "sends rubbish": "os.write(4, b'{}\\n'); os._exit(0)",
    "patches": "import json; json.dumps = None; return None",
    "sets an alarm": "import signal; signal.signal(signal.SIGALRM, lambda *_: 1 / 0); "
    "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001); return None",
    "is always equal": "return type('A', (), {'__eq__': lambda s, o: True})()",
    "is equal and exits": "return type('A', (), {'__eq__': lambda s, o: os._exit(0)})()",
}
CHECK = (
    "def check(candidate):\n    for i in range(1, 5):\n        assert candidate(i) == 2 * i\n"
    "    r = candidate(5)\n    assert r == 10\n"
)
FORMS: dict[str, tuple[Any, float]] = {  # right for 1 and 2
    "ten assertions": ([f"assert f({i}) == {2 * i}" for i in range(1, 11)], 2 / 10),
    "in one text": (["\n".join(f"assert f({i}) == {2 * i}" for i in range(1, 11))], 2 / 10),
    "of variables": ([f"x = f({i})\nassert x == {2 * i}" for i in range(1, 11)], 2 / 10),
    "in a loop": (["for i, x in enumerate(map(f, range(1, 9)), 1):\n    assert x == 2 * i"], 2 / 8),
    "of a list": (
        ["xs = [f(i) for i in (1, 3, 2, 4)]\nassert xs[0] == 2\nfor x in xs:\n    assert x > 0", "assert f(1) == 2"],
        None,
    ),
    "by a function": (["def same(a, b):\n    assert a == b", *[f"same(f({i}), {2 * i})" for i in range(1, 6)]], 2 / 5),
    "of HumanEval": ({"prompt": "def f(x):\n", "entry_point": "f", "test": CHECK}, 2 / 5),
}


def answers(rest: str) -> str:
    return f"import os, sys\ndef f(x):\n    if x > 2:\n        {rest}\n    return 2 * x"


@pytest.mark.parametrize("end", ENDS)
def test_however_it_fails_it_earns_what_a_wrong_answer_earns(end: str) -> None:
    tests, share = FORMS["ten assertions"]
    outcome = judge(answers(ENDS[end]), tests, partial=True)
    assert (outcome.status, outcome.reward) == ("wrong", pytest.approx(share)), outcome


@pytest.mark.parametrize("form", FORMS)
def test_every_assertion_counts_however_it_is_written(form: str) -> None:
    tests, share = FORMS[form]
    honest = judge(answers("return 'no'"), tests, partial=True)
    assert (honest.status, share in (None, pytest.approx(honest.reward))) == ("wrong", True), honest
    for end in ("raise ValueError", "os._exit(0)"):
        outcome = judge(answers(end), tests, partial=True)
        assert outcome.status == "wrong"
        assert outcome.reward <= honest.reward + 1e-9 if share is None else outcome.reward == honest.reward, outcome


def test_what_fails_outside_of_assertions_is_not_the_whole_reward() -> None:
    outcome = judge("def f(x):\n    return x\ndef g(): 1 / 0", ["assert f(1) == 1", "g()"], partial=True)
    assert (outcome.status, outcome.reward) == ("wrong", 0.5)
    right = [
        "with open('/dev/null') as file:\n    assert f(1) == 1",
        "try:\n    g()\n    assert f == 1\nexcept ZeroDivisionError:\n    pass",
    ]
    assert judge("def f(x):\n    return x\ndef g(): 1 / 0", right, partial=True).status == "correct"
