"""Repositories with a bug: what actions do, what is held back, what ends badly, and the data sets of bugs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfimprove.config import compose
from selfimprove.datasets.envs import load
from selfimprove.env import suite
from selfimprove.env.bugs import definitions, expert, wrong
from selfimprove.env.repository import MAJOR, MINOR, Repository, definition, quoted, spans, without
from selfimprove.env.swe_mini import NAMES, base, made, repository, tasks
from selfimprove.env.worlds import play
from selfimprove.errors import ConfigError

DATES = {
    "repository": "dates",
    "path": "dates.py",
    "line": 5,
    "good": ["    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)"],
    "bad": ["    return year % 4 == 0"],
    "tests": ["test_dates.py"],
    "hidden": ["test_dates.py::TestDates.test_leap_years"],
}


def dates(**options: Any) -> Repository:
    return repository(DATES, **options)


def seen(world: Repository, *actions: str) -> list[str]:
    return [world.step(action).text for action in actions]


def test_what_is_looked_for_is_a_definition_else_a_text() -> None:
    world = dates()
    assert world.reset().text == "The files are dates.py, test_dates.py."
    found, text, nothing = seen(world, "find length", "find year + 1", "find century")
    assert found == "dates.py:8-10\ndef length(year, month):"
    assert text == "dates.py:23-23\nreturn year + 1, 1, 1"
    assert nothing == f"{MINOR}nothing is called century, and no line has it"
    assert spans(found) == {("dates.py", 8), ("dates.py", 9), ("dates.py", 10)}
    assert definition(["class A:", "    def b(self):", "        (", ")", "c = 1"], "b") == (2, 4)


def test_edits_are_shown_and_can_be_taken_back() -> None:
    world = dates()
    actions = [
        'replace dates.py "year % 4 == 0" "year % 4 == 0 and year % 100"',
        "view dates.py 4 5",
        'insert dates.py 0 "# dates\\n"',
        'create more/zones.py "UTC = 0\\n"',
        "finish",
    ]
    changed, shown, inserted, created, _ = seen(world, *actions)
    assert changed == "Changed.\ndates.py:5-5"
    assert shown == "dates.py:4-5\n4 def leap(year):\n5     return year % 4 == 0 and year % 100"
    assert (inserted, created) == ("Changed.\ndates.py:1-1", "Created.\nmore/zones.py:1-1")
    assert world.diff().splitlines() == [
        "--- dates.py",
        "+++ dates.py",
        "@@ -1 +1,2 @@",
        "+# dates",
        " LENGTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]",
        "@@ -4,3 +5,3 @@",
        " def leap(year):",
        "-    return year % 4 == 0",
        "+    return year % 4 == 0 and year % 100",
        " ",
        "--- more/zones.py",
        "+++ more/zones.py",
        "@@ -0,0 +1 @@",
        "+UTC = 0",
    ]
    world.reset()
    assert world.diff() == "No changes."


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("run", f"{MAJOR}there is no such action"),
        ("test now", f"{MAJOR}there is no such action"),
        ("view other.py 1 2", f"{MAJOR}there is no file other.py"),
        ("view dates.py 90 95", f"{MAJOR}dates.py has lines 1 to"),
        ("view dates.py 2 1", f"{MAJOR}dates.py has lines 1 to"),
        ('replace dates.py "nothing like it" "a"', f"{MAJOR}the text is not in dates.py"),
        ('replace dates.py "return" "a"', f"{MINOR}the text comes 7 times"),
        ('replace dates.py "leap" "leap"', f"{MAJOR}that changes nothing"),
        ('replace dates.py "leap"', f"{MAJOR}2 texts in double quotes"),
        ("replace dates.py leap lap", f"{MAJOR}2 texts in double quotes"),
        ('replace test_dates.py "leap" "lap"', f"{MAJOR}test_dates.py has tests"),
        ('insert dates.py 99 "a"', f"{MAJOR}dates.py has"),
        ('create dates.py "a"', f"{MINOR}dates.py is there already"),
        ('create ../a.py "a"', f"{MAJOR}a file's name"),
        ('create /tmp/a.py "a"', f"{MAJOR}a file's name"),
    ],
)
def test_an_action_that_cannot_be_done_says_so_and_changes_nothing(action: str, said: str) -> None:
    world = dates()
    assert world.step(action).text.startswith(said)
    assert world.diff() == "No changes."


def test_texts_are_read_as_json() -> None:
    assert quoted('"a\\n\\"b\\""  "c"', 2) == ['a\n"b"', "c"]


def test_the_tests_that_fail_by_the_bug_are_held_back_until_the_end() -> None:
    world = dates()
    assert "test_leap_years" not in world.files["test_dates.py"]
    assert seen(world, "test") == ["7 tests pass, 0 fail."]
    left = world.step("finish")
    assert (left.text, left.reward, left.done) == ("Finished.\nNo changes.", 0.0, True)
    world.reset()
    mended = world.step(f"replace dates.py {json.dumps(DATES['bad'][0])} {json.dumps(DATES['good'][0])}")
    assert mended.text.startswith("Changed.")
    assert world.step("finish").reward == 1.0


def test_failures_are_told_without_paths_of_this_machine() -> None:
    world = dates()
    said = seen(world, 'replace dates.py "sum(length" "max(length"', "test")[1]
    assert said.startswith("7 tests pass, 0 fail.") is False
    assert "test_dates.py:" in said
    assert "/tmp" not in said


def test_a_hung_test_is_a_timeout_and_no_success() -> None:
    world = dates(seconds=0.3)
    hang = 'replace dates.py "    days = 0\\n" "    while True:\\n        pass\\n"'
    assert seen(world, hang, "test")[1] == "timeout: the tests take too long"
    assert world.step("finish").reward == 0.0


@pytest.mark.parametrize(
    "program", ["import os\\nos._exit(0)\\n", "raise SystemExit\\n", "print('0', flush=True)\\n1/0\\n"]
)
def test_a_program_that_ends_or_breaks_the_tests_solves_nothing(program: str) -> None:
    world = dates()
    world.step(f'insert dates.py 0 "{program}"')
    assert not world.solved()


def test_a_pool_plays_an_episode_again_and_escapes_what_is_seen() -> None:
    env = {"_target_": "selfimprove.env.swe_mini.repository"}
    actions = ['create odd.py "\\u0007 = 1\\n"', "view odd.py 1 1"]
    outcome = play(json.dumps(actions), None, {"task": DATES}, env=env, chars=100)
    assert (outcome.status, outcome.extracted) == ("wrong", "odd.py:1-1\n1 \\x07 = 1")


def test_pytest_is_stood_in_for() -> None:
    text = """
import pytest

@pytest.mark.parametrize("a, b", [(1, 2), (2, 3)])
def test_pairs(a, b):
    assert a + 1 == b

@pytest.mark.parametrize("a", [1, 0])
def test_one_case_fails(a):
    assert a

@pytest.mark.skipif(True, reason="never")
def test_skipped():
    assert False

@pytest.fixture
def thing():
    return 1

def test_with_a_fixture(thing):
    assert thing

def test_raises():
    with pytest.raises(ValueError, match="odd"):
        raise ValueError("an odd thing")

def test_raises_nothing():
    with pytest.raises(ValueError):
        pass
"""
    ran = suite.tested({"test_a.py": text}, tests=["test_a.py"])
    failures = {name.partition("::")[2]: failure for name, failure in ran.failures.items()}
    assert [name for name, failure in failures.items() if failure is None] == [
        "test_pairs",
        "test_skipped",
        "test_raises",
    ]
    assert failures["test_one_case_fails"] == "test_a.py:10: assert a\nAssertionError: "
    assert set(failures) == {"test_pairs", "test_one_case_fails", "test_skipped", "test_raises", "test_raises_nothing"}


def test_tests_are_cut_out_with_their_decorators() -> None:
    text = "@mark\ndef test_a():\n    pass\n\n\nclass TestB:\n    def test_c(self):\n        pass\n\n    x = 1\n"
    assert "test_a" not in without(text, ["test_a"])
    assert "mark" not in without(text, ["test_a"])
    assert "TestB" in without(text, ["TestB.test_c"])
    assert "class" not in without("class TestB:\n    def test_c(self):\n        pass\n", ["TestB.test_c"])


def test_every_bug_of_the_small_repositories_is_found_by_tests_and_mended_by_its_expert() -> None:
    first: dict[str, dict[str, Any]] = {}
    for bug in made()["bugs"]:
        assert set(bug["hidden"]) <= set(base(bug["repository"]).passes[bug["tests"][0]])
        assert len(wrong(bug, base(bug["repository"]))) == 4
        first.setdefault(bug["repository"], bug)
    assert sorted(first) == list(NAMES)
    for bug in first.values():
        world = repository(bug)
        assert not any(text.startswith((MAJOR, MINOR)) for text in seen(world, *expert(bug, base(bug["repository"]))))
        assert world.files[bug["path"]] == base(bug["repository"]).files[bug["path"]]


def test_sides_have_nothing_in_common_and_do_not_depend_on_the_hash_seed() -> None:
    sides = [{row.id for row in tasks(side, 1000, 0)} for side in ("train", "dev", "test")]  # type: ignore[arg-type]
    assert len(set.union(*sides)) == sum(map(len, sides)) == len(made()["bugs"])
    assert len(sides[2]) > 60
    code = "from selfimprove.env.swe_mini import tasks; print(list(tasks('test', 20, 0)))"
    here = hashlib.sha256(f"{list(tasks('test', 20, 0))}\n".encode()).hexdigest()
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert hashlib.sha256(there.stdout).hexdigest() == here


def test_definitions_of_a_file() -> None:
    assert ("leap", 4, 5) in definitions(base("dates").files["dates.py"])


@pytest.mark.parametrize(
    ("dataset", "word", "message"),
    [
        ("repositories", "seed=0", "python scripts/make_bugs.py libraries"),
        ("swe_mini", "dataset.env.sandbox=nobody", "dataset.env.sandbox=nobody"),
        ("swe_mini", "dataset.heldout_size=5000", "dataset.heldout_size=5000: there are only"),
    ],
)
def test_bad_input_is_one_line(
    dataset: str, word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFIMPROVE_CACHE", str(tmp_path))
    node = compose(["method=swe_search", f"dataset={dataset}", word], needs=False).dataset.model_dump(by_alias=True)
    with pytest.raises(ConfigError) as error:
        load(env=node["env"], seed=0, prompt="{question}", train_size=0, heldout_size=node["heldout_size"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
