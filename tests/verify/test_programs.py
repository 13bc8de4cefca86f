"""The program is found wherever a model puts it; what is not one is not taken for one."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from selfimprove.verify import candidate, programs
from selfimprove.verify.code import same_output

GOOD, BAD = "def square(a):\n    return a * a\n", "def square(a):\n    return a + a\n"
PROMPT = 'from typing import List\n\n\ndef twice(xs: List[int]) -> List[int]:\n    """Each of them twice."""\n'
BODY = "    return [2 * x for x in xs]\n"


def loaded(found: list[programs.Program], name: str) -> Any:
    """What the program's side takes for the function, of rows that are our own."""
    before = sys.modules.get("candidate")
    try:
        _, names = candidate.Server([list(program) for program in found], [name], False).load([name])
    finally:
        if before is None:
            sys.modules.pop("candidate", None)
    return names[name]


def indented(text: str, by: str) -> str:
    return "".join(by + line for line in text.splitlines(keepends=True))


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{GOOD}```",
        f"```python\n{GOOD}",
        f"{GOOD}```\n\nThis multiplies.",
        f"{GOOD}```\nUse it so:\n```python\nprint(square(2))\n```",
        f"```py\n{BAD}```\nBetter:\n```Python3\n{GOOD}```\nOutput:\n```\n9\n```",
        f"~~~\n{GOOD}~~~",
        f"~~~python\n{GOOD}~~~\nDone.",
        f"````python\n{GOOD}````",
        "1. So:\n\n" + indented(f"```python\n{GOOD}```\n", "   ") + "2. Done",
        "- So:\n" + indented(f"```python\n{GOOD}```\n", "      "),
        indented(f"```python\n{GOOD}```\n", "\t"),
        indented(f"```python\n{GOOD}```\n", "> "),
        f"```python\n{GOOD}```\n".replace("\n", "\r\n"),
        f"Here: ```python\n{GOOD}```",
        '```python\ndef square(a):\n    """So:\n\n    ```\n    square(2)\n    ```\n    """\n    return a * a\n```',
        f"Sure!\n\n{GOOD}\nIt multiplies.",
        f"{GOOD}[DONE]\n\nYou are an expert. Here is your task:\n[BEGIN]\n{BAD}",
        f"[BEGIN]\n{GOOD}[DONE]\n",
        f"{GOOD}<|endoftext|> and so on",
        f"import math\n{GOOD}\nassert square(2) == 5\nNow the next one:",
        "try:\n    from math import prod\nexcept ImportError:\n    prod = None\nif prod:\n"
        "    def square(a): return prod([a, a])\n",
        "square, other = (lambda a: a * a), None",
    ],
)
def test_a_whole_program_is_found(text: str) -> None:
    assert loaded(programs.defining(text), "square")(3) == 9


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        f"\n{BODY}",
        BODY.lstrip(),
        f" {BODY.lstrip()}",
        f"{BODY}```\nThis doubles.",
        f"```python\n{BODY}```",
        "```python\nout = []\nfor x in xs:\n    out.append(2 * x)\nreturn out\n```",
        "out = []\n    for x in xs:\n        out.append(2 * x)\n    return out\n",
        f"{BODY}\n\ndef other():\n    return 1 / 0\n\nprint(other())",
        f"{BODY}\n\nassert twice([1]) == [3]",
        f"{BODY}\n\ndef twice(xs):\n    return []\n",
        f'{BODY}\n\ndef twice(xs: List[int]) -> List[int]:\n    """Each of',
        f"{BODY}\n\nQuestion: what is 2 + 2?",
        f"```python\n{PROMPT}{BODY}```",
        f"```python\ndef twice(xs: List[int]) -> List[int]:\n{BODY}```",
        "    return helper(xs)\n\n\ndef helper(xs):\n    return [2 * x for x in xs]\n",
    ],
)
def test_what_continues_a_prompt_is_found_and_what_it_runs_on_into_is_not(text: str) -> None:
    assert loaded(programs.continuing(text, PROMPT, "twice"), "twice")([1, 2]) == [2, 4]


def test_the_first_answer_to_a_prompt_counts_and_the_last_block() -> None:
    first = "    pass\n\n\ndef twice(xs):\n    return [2 * x for x in xs]\n"
    assert loaded(programs.continuing(first, PROMPT, "twice"), "twice")([1]) is None
    assert loaded(programs.defining(f"```\n{GOOD}```\nBetter:\n```\n{BAD}```"), "square")(3) == 6
    with pytest.raises(AssertionError):  # a block that fails is not cut short
        loaded(programs.defining(f"```python\n{GOOD}\nassert square(2) == 5\n```"), "square")


@pytest.mark.parametrize(
    "text",
    ["", "No.", "```\nno code\n```", "def square(a):\n    return a a\n", "def square(a):\n", "```python\nx = 1\n```"],
)
def test_what_is_no_program_is_not_taken_for_one(text: str) -> None:
    for found, name in (
        (programs.defining(text), "square"),
        (programs.continuing(text.replace("square", "twice"), PROMPT, "twice"), "twice"),
    ):
        with pytest.raises(LookupError):
            loaded(found, name)


PRINTS = "n = int(input())\nprint(2 * n)\n"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{PRINTS}```\nOutput:\n```\n6\n```",
        f"```\n{PRINTS}```\nwe print it:\n```text\n6\n```",
        f"{PRINTS}```\nThis prints twice n.",
        f"~~~python\n{PRINTS}~~~",
        PRINTS,
    ],
)
def test_the_program_that_prints_is_found(text: str) -> None:
    assert programs.printing(text) == PRINTS


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("0.333333", "0.333333333333", True),
        ("0.33333", "0.333333333333", False),
        ("1.5 2.5000001", "1.5 2.5", True),
        ("1.5  2.5", "1.5 2.5", False),
        ("1", "1.0", True),
        ("1.0", "1", False),
        ("5e-1", "0.5", True),
        ("1000000.55", "1000000.56", False),
        ("12345678901.000001", "12345678901.000002", True),
        ("nan", "0.5", False),
        ("1_0.0", "10.0", False),
        ("a \nb\t\n\n", "a\nb", True),
        ("a\r\nb\r\n", "a\nb\n", True),
        ("\na", "a", False),
        *((f"a{end}b", "a\nb", False) for end in "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"),
        ("a\x1c", "a", False),
    ],
)
def test_printed_lines_are_compared_as_print_ends_them_and_floats_by_value(
    printed: str, expected: str, same: bool
) -> None:
    assert same_output(printed, expected, 1e-6) == same
    assert same_output(printed, expected, 0) == (same and not any(c in expected for c in ".e"))
