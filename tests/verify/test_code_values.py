"""A right program passes whatever it returns, or the check says that it cannot tell: it is never called wrong."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from selfimprove.verify import Outcome
from selfimprove.verify.code import check

SANDBOX = "bubblewrap" if shutil.which("bwrap") else "unsafe_subprocess"


def judge(program: str, *tests: str, **options: Any) -> Outcome:
    text = f"```python\n{program}\n```"
    return check(text, None, {"tests": list(tests)}, **{"sandbox": SANDBOX, "seconds": 20.0} | options)


LIBRARY = (
    """
import array, collections, datetime, decimal, fractions, io, itertools, json, pathlib, re, types, typing, uuid
from enum import Enum, IntEnum
Point = collections.namedtuple("Point", "x y")
class Pair(typing.NamedTuple):
    a: int
    b: int = 2
    def total(self): return self.a + self.b
class Colour(Enum):
    RED = 1
    BLUE = 2
class Level(IntEnum):
    LOW = 1
class Name(str):
    def upper(self): return "N" + str.upper(self)
class Stack(list):
    def push(self, x): self.append(x)
class Zero(dict):
    def __missing__(self, key): return 0
def same(x): return x
def make(text): return eval(text)
def count():
    yield from itertools.count()
def slow():
    yield 1
    while True: pass
def fails():
    yield 1
    raise ValueError("end")
def nested(n):
    x = []
    for _ in range(n): x = [x]
    return x
def own():
    x = [1]
    x.append(x)
    return x
class Link:
    def __init__(self, v, next=None): self.v, self.next, self.kids = v, next, []
    def __len__(self): return 1 + (len(self.next) if self.next else 0)
    def __iter__(self):
        yield self.v
        yield from self.next or ()
    def __getitem__(self, i): return list(self)[i]
    def __repr__(self): return f"Link({self.v})"
class Sub(Link): pass
async def later(x): return 2 * x
def adder(n): return lambda x: x + n
"""
    + "def raises(error): raise error\n"
)

VALUES = [
    "assert make('fractions.Fraction(1, 2)') == 0.5 and make('fractions.Fraction(1, 2)').numerator == 1",
    "from decimal import Decimal\nassert make('decimal.Decimal(\"0.1\") * 3') == Decimal('0.3')",
    "assert list(make('collections.deque([1, 2], 2)')) == [1, 2] and make('collections.deque([1], 5)').maxlen == 5",
    "import datetime\nassert make('datetime.date(2020, 1, 2)') == datetime.date(2020, 1, 2)",
    "from datetime import datetime, timedelta, timezone\nd = make('datetime.datetime(2020, 1, 1, tzinfo="
    "datetime.timezone(datetime.timedelta(hours=2)))')\nassert d == datetime(2019, 12, 31, 22, tzinfo=timezone.utc)",
    "assert make('collections.Counter(\"aab\")').most_common(1) == [('a', 2)]",
    "assert make('collections.defaultdict(list, a=[1])')['z'] == []",
    "assert make('collections.OrderedDict(a=1, b=2)').popitem() == ('b', 2)",
    "assert make('{1: 2}.keys()') == {1} and sum(make('{1: 2}.values()')) == 2 and (1, 2) in make('{1: 2}.items()')",
    "assert bytes(make('memoryview(b\"ab\")')) == b'ab' and list(make('array.array(\"i\", [3])')) == [3]",
    "import uuid\nassert make('uuid.UUID(int=5)') == uuid.UUID(int=5) and "
    "str(make('pathlib.Path(\"a\") / \"b\"')) == 'a/b'",
    "assert make('types.SimpleNamespace(a=1)').a == 1 and make('slice(1, 2)') == slice(1, 2) and make('...') is ...",
    'assert make(\'re.match("(a)b", "ab")\').group(1) == \'a\' and not make(\'re.match("a", "b")\')',
    "s = make('io.StringIO(\"x\")')\nassert s.read() == 'x'",
    "assert make('int') is int and make('Point').__name__ == 'Point' and make('ValueError') is ValueError",
    "p = make('Point(1, 2)')\nassert p == (1, 2) and p.x == 1 and p._replace(x=3) == (3, 2) and "
    "repr(p) == 'Point(x=1, y=2)'",
    "assert make('Pair(1)').total() == 3 and isinstance(make('Pair(1)'), tuple)",
    "assert make('Colour(1)') is Colour.RED and [c.name for c in Colour] == ['RED', 'BLUE'] and "
    "Colour['RED'].value == 1",
    "assert make('Level.LOW') == 1 and make('Level.LOW') + 1 == 2 and make('Level.LOW').name == 'LOW'",
    "assert make('Name(\"a\")') == 'a' and make('Name(\"a\")').upper() == 'NA' and "
    "'b'.join([make('Name(\"a\")')]) == 'a'",
    "s = Stack()\ns.push(1)\ns.push(2)\nassert s == [1, 2] and s.pop() == 2 and [1] == s and isinstance(s, list)",
    "z = make('Zero(a=1)')\nassert z == {'a': 1} and z['b'] == 0 and dict(z) == {'a': 1}",
    "assert make('json.loads(\"[1, {}]\")') == [1, {}] and "
    "make('{(1, frozenset([2])): {None}}') == {(1, frozenset([2])): {None}}",
    "import itertools\nassert list(itertools.islice(count(), 300)) == list(range(300))",
    "assert next(slow()) == 1 and sum(make('iter(range(200000))')) == 19999900000 and next(make('iter([])'), 5) == 5",
    "f = fails()\nassert next(f) == 1\ntry:\n    next(f)\n    assert f == 1\nexcept ValueError as e:\n"
    "    assert e.args == ('end',)",
    "x, n = nested(5000), 0\nwhile x:\n    x, n = x[0], n + 1\nassert n == 5000\ny = own()\nassert y[1] is y",
    "l = Link(1, Link(2))\nassert list(l) == [1, 2] and len(l) == 2 and l[1] == 2 and repr(l) == 'Link(1)' and "
    "l.next.next is None",
    "l = Link(1)\nl.kids.append(Link(2))\nk = l.kids\nk.append(Link(3))\nassert [each.v for each in l.kids] == [2, 3]",
    "s = Sub(1)\nassert isinstance(s, Link) and issubclass(Sub, Link) and type(s) is Sub and type(s).__name__ == 'Sub'",
    "import asyncio\nasync def both():\n    return await asyncio.gather(later(1), later(2))\n"
    "assert asyncio.run(both()) == [2, 4]",
    "assert adder(2)(3) == 5 and list(map(adder(1), [1, 2])) == [2, 3] and callable(adder(1))",
    "import math, operator\nassert same(math.sqrt)(4) == 2 and same(abs) is abs and same(operator.add) is operator.add",
    "import json\ntry:\n    make('json.loads(\"{\")')\n    assert same == 1\n"
    "except json.JSONDecodeError as e:\n    assert str(e)",
    "try:\n    make('open(\"/none\")')\n    assert same == 1\nexcept FileNotFoundError as e:\n    assert e.errno == 2",
    "try:\n    raises(SystemExit(3))\n    assert same == 1\nexcept SystemExit as e:\n    assert e.code == 3",
]


def test_values_are_what_the_program_returned() -> None:
    """All in one check, for each costs two sandboxes."""
    assert judge(LIBRARY, *VALUES) == Outcome("correct", 1.0, LIBRARY + "\n")


ERRORS = """
class Problem(ValueError):
    def __init__(self, text, code):
        super().__init__(text)
        self.code = code
class Worse(Problem):
    def __str__(self): return "worse"
def bad(): raise Problem("x", 7)
def worse(): raise Worse("x", 8)
"""


def test_exceptions_of_its_own_are_caught_as_what_they_are() -> None:
    tests = [
        "try:\n    bad()\n    assert bad == 1\nexcept Problem as e:\n    assert e.code == 7 and str(e) == 'x'",
        "try:\n    worse()\n    assert bad == 1\nexcept ValueError as e:\n    assert str(e) == 'worse' and "
        "isinstance(e, Worse)",
        "try:\n    worse()\nexcept Problem as e:\n    assert type(e).__name__ == 'Worse'\nelse:\n    assert bad == 1",
    ]
    assert judge(ERRORS, *tests).status == "correct"


CHANGES = """
total = 0
log = []
def sort(a): a.sort()
def edit(d, s, q): d["b"] = d.pop("a"); s.add(3); q.rotate(1)
def swap(a): a[0], a[1] = a[1], a[0]
def clear(a):
    a.clear()
    return a
def unique(a):
    a[:] = sorted(set(a))
    return len(a)
def add(x):
    global total
    total += x
    log.append(x)
"""


def test_arguments_change_in_place_where_a_call_is_made_for_that() -> None:
    tests = [
        "a = [3, 1]\nsort(a)\nassert a == [1, 3]",
        "a = [3, 1]\nassert sort(a) is None\nassert a == [1, 3]",
        "from collections import deque\nd, s, q = {'a': [1]}, {1}, deque([1, 2])\nl = d['a']\nedit(d, s, q)\n"
        "assert (d, s, q) == ({'b': [1]}, {1, 3}, deque([2, 1])) and d['b'] is l",
        "a = [[1], [2]]\nfirst = a[0]\nfor _ in range(3):\n    swap(a)\nassert a == [[2], [1]] and a[1] is first",
        "add(2)\nadd(3)\nassert total == 5 and log == [2, 3]",
    ]
    assert judge(CHANGES, *tests).status == "correct"


@pytest.mark.parametrize(
    "test",
    ["a = [3, 1]\nassert clear(a) == sorted(a)", "a = [2, 2]\nk = unique(a)\nassert k == 1 and a == [2]"],
)
def test_what_holds_only_by_a_change_in_place_cannot_be_told(test: str) -> None:
    outcome = judge(CHANGES, test)
    assert (outcome.status, "in place" in (outcome.reason or "")) == ("error", True)


EQUAL = """
from dataclasses import dataclass
@dataclass
class Box:
    x: int
class Like:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == getattr(other, "x", other)
    def __lt__(self, other): return self.x < getattr(other, "x", other)
    def __contains__(self, x): return x == self.x
    def __add__(self, other): return Like(self.x + other.x)
def f(x): return Like(x)
"""


def test_a_class_may_say_what_its_objects_are_not_and_is_otherwise_asked_for_values() -> None:
    tests = ["assert Box(1).x == 1 and repr(Box(1)) == 'Box(x=1)'", "assert f(1) != Like(2)", "assert 3 not in f(1)"]
    assert judge(EQUAL, *tests, "assert (Like(1) + Like(2)).x == 3").status == "correct"
    assert judge(EQUAL, "assert Box(1) == Box(2)").status == "wrong"


@pytest.mark.parametrize(
    "test", ["assert Box(1) == Box(1)", "assert f(1) == 1", "assert f(1) < 2", "assert 1 in f(1)", "assert f(1) in [1]"]
)
def test_an_equality_of_its_own_shows_nothing(test: str) -> None:
    outcome = judge(EQUAL, test)
    assert (outcome.status, "own class" in (outcome.reason or "")) == ("error", True)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (["import no_such_package\nassert f(1) == 1"], "no_such_package"),
        (["assert np.allclose(f(1), 1)"], "numpy"),
        (["from solution import f\nassert f(1) == 1"], "solution"),
        (["assert f(1) == open('expected.txt').read()"], "expected.txt"),
        (["assert f(1) == EXPECTED"], "EXPECTED"),
        (["assert close(f(1), 1)"], "close"),
        (["import sys\nassert f(1) == 1\nsys.exit(0)"], "SystemExit"),
        (["x = 1\nassert x == 1"], "ask nothing"),
        (["for x in f([]):\n    assert x == 1"], "no assertion was reached"),
        (["class More(C):\n    pass\nassert More().x == 1"], "extend a class"),
        (["import copy\nassert copy.deepcopy(C()).x == 1"], "copy an object"),
        (["import json\nassert json.dumps(L([1])) == '[1]'"], "JSON"),
        (["assert f(lambda: 1)() == 1"], "function"),
        (["try:\n    s()\n    assert f == 1\nexcept StopIteration:\n    pass"], "StopIteration"),
        (
            ["async def all():\n    return [x async for x in g()]\nimport asyncio\nassert asyncio.run(all()) == [1]"],
            "async",
        ),
        (
            {"prompt": "def f(x):\n", "entry_point": "f", "test": "def test(candidate):\n    assert candidate(1) == 1"},
            "check",
        ),
        (
            {
                "prompt": "import no_such_package\ndef f(x):\n",
                "entry_point": "f",
                "test": "def check(c):\n    assert c(1)",
            },
            "no_such",
        ),
    ],
)
def test_faults_of_tests_and_harness_are_errors(tests: Any, reason: str) -> None:
    program = (
        "class C: x = 1\nclass L(list): pass\ndef f(x): return x\ndef s(): raise StopIteration\nasync def g(): yield 1"
    )
    outcome = check(f"```python\n{program}\n```", None, {"tests": tests}, sandbox=SANDBOX, seconds=20)
    assert (outcome.status, reason in (outcome.reason or "")) == ("error", True), outcome


def test_names_the_tests_forgot_are_the_librarys() -> None:
    tests = [
        "assert isclose(area(1), math.pi)",
        "assert area(2) == 4 * pi",
        "assert Counter(str(int(area(1)))) == {'3': 1}",
    ]
    assert judge("def area(r): return 3.141592653589793 * r * r", *tests).status == "correct"
    own = "def product(a): return a[0] * a[1]\ndef mean(a): return sum(a) / len(a)\ndef sum_(a): return sum(a)"
    assert (
        judge(own, "assert product([2, 3]) == 6", "assert mean([1, 3]) == 2", "assert sum_([1]) == 1").status
        == "correct"
    )
    assert judge("def sum(a, b): return a * b", "assert sum(3, 4) == 12").status == "correct"
    assert judge("def add(a, b): return a + b", "assert add(1, 2) == 3", "assert sub(2, 1) == 1").status == "wrong"
