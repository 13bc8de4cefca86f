"""Answers scored by their reasoning-gym task, and nothing that a model wrote run by it."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from selfimprove.datasets.reasoning_gym import load
from selfimprove.types import Problem
from selfimprove.verify import Outcome
from selfimprove.verify.file import check_gold
from selfimprove.verify.plain import decode
from selfimprove.verify.pool import Pool
from selfimprove.verify.reasoning_gym import check, evaluates, extract, harmless, reference

CHECK = "selfimprove.verify.reasoning_gym.check"
TASKS = [
    "arc_agi", "chain_sum", "codeio", "countdown", "graph_color", "knights_knaves", "n_queens", "propositional_logic",
    "simple_integration", "tower_of_hanoi", "word_ladder",
]  # fmt: skip
NO_GOLD = {"boxnet", "rush_hour"}
BROKEN = {"game_of_life_halting"}  # calls every answer right, and is refused by the loader


def problems(tasks: Any, size: int) -> list[Problem]:
    return load(tasks=tasks, prompt="{question}", train_size=0, heldout_size=size, seed=0)


def judge(problem: Problem, text: str, **options: Any) -> Outcome:
    return check(text, problem.gold, json.loads(json.dumps(problem.metadata)), **options)


@pytest.fixture(scope="module")
def mixed() -> list[Problem]:
    return [p for task in TASKS for p in problems([task], 4)]


def test_gold_passes_and_others_do_not(mixed: list[Problem]) -> None:
    assert {p.metadata["task"] for p in mixed} == set(TASKS)
    with Pool(CHECK, {}, workers=1, seconds=60) as pool:
        assert check_gold(mixed, pool) == []
        wrong = list(pool.run(("<answer>no such answer</answer>", p.gold, p.metadata) for p in mixed))
    assert {o.status for o in wrong} <= {"wrong", "unparseable"}
    assert {o.reward for o in wrong} == {0.0}


def test_where_the_answer_is_read() -> None:
    assert extract("<answer>1</answer> no, <answer>\n2 3\n4 5 </answer>") == "2 3\n4 5"
    assert extract("<answer>1</answer> The answer is 2.") == "1"
    assert extract("So the answer is $12$.") == extract("\\boxed{12}") == "12"
    assert extract("It is 12") is None
    (problem,) = problems(["gcd"], 1)
    assert judge(problem, f"The answer is {problem.gold}.") == Outcome("correct", 1.0, problem.gold)
    assert judge(problem, "I cannot say.").status == "unparseable"
    assert judge(problem, "<answer> </answer>").status == "unparseable"


def test_the_tasks_own_score_is_the_reward_when_asked() -> None:
    (problem,) = problems(["arc_agi"], 1)
    assert problem.gold is not None
    nearly = f"<answer>{problem.gold[:-1]}{(int(problem.gold[-1]) + 1) % 10}</answer>"
    assert judge(problem, nearly).reward == 0.0
    partial = judge(problem, nearly, partial=True)
    assert partial.status == "wrong"
    assert 0 < partial.reward < 1


def test_an_answer_that_the_task_cannot_read_is_not_an_error() -> None:
    (problem,) = problems(["prime_factorization"], 1)
    outcome = judge(problem, "<answer>two times two</answer>")
    assert (outcome.status, outcome.reward) == ("unparseable", 0.0)
    assert "prime_factorization: ValueError" in (outcome.reason or "")


def test_a_broken_record_is_an_error() -> None:
    (problem,) = problems(["gcd"], 1)
    for metadata in ({}, problem.metadata | {"task": "none"}, problem.metadata | {"entry": ["handle", 1]}):
        assert check("<answer>1</answer>", "1", metadata).status == "error"


# Nothing runs


@pytest.mark.parametrize(
    "task", ["countdown", "puzzle24", "simple_integration", "polynomial_multiplication", "n_queens", "spiral_matrix"]
)
def test_an_answer_is_never_run(task: str, tmp_path: Path) -> None:
    (problem,) = problems([task], 1)
    file = tmp_path / "made"
    for code in (f"__import__('os').system('touch {file}')", f"open('{file}', 'w')", f"[open('{file}', 'w')]"):
        outcome = judge(problem, f"<answer>{code}</answer>")
        assert outcome.status == "wrong"
        assert "would run it as code" in (outcome.reason or "")
    assert not file.exists()


@pytest.mark.parametrize(
    "answer",
    [
        "open(chr(120))", "eval (1)", "eval\t(1)", "[eval # no\n(1)]", "eval\\\n(1)", "\uff45\uff56al(1)", "(eval)(1)",
        "[exit][0](1)", "x.func(1)", "x . func", "1 .real", "'a' + 'b'", 'f"{exit(1)}"', "(x := exit)", "print(1)",
        "sqrt(exit())", "lambda: exit()", "sqrt (4)(2)", "__builtins__", "'text'", "{}(1)", "sqrt\u00a0(exit\u00a0())",
    ],
)  # fmt: skip
def test_what_could_run_is_known(answer: str) -> None:
    assert not harmless(answer)


@pytest.mark.parametrize(
    "answer",
    ["(1 + 2) * 3", "2*x**2 + sqrt(x) - log(Abs(x)) + C", "-1.5", "1.0e-5*x", "['a', 'b']", "[[1, 2], [3]]", "1 2 3",
     "_ Q\nQ _", "ABCD", "exp(-x)*cosh(2*x)/3", "1, 2"],
)  # fmt: skip
def test_formulas_and_lists_of_literals_are_harmless(answer: str) -> None:
    assert harmless(answer)


def test_every_task_that_evaluates_answers_is_known() -> None:
    """Whoever takes a new version of the package must look at what this finds."""
    tasks = {name for name, (kind, _) in reasoning_gym.factory.DATASETS.items() if evaluates(kind.score_answer)}
    assert tasks == {
        "binary_matrix", "countdown", "intermediate_integration", "n_queens", "number_sorting",
        "polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
    }  # fmt: skip
    package = Path(inspect.getfile(reasoning_gym)).parent
    evaluating = re.compile(r"(?<!def )(?<!\w)(?:eval|exec|parse_expr|sympify)\(")
    modules = {file.stem for file in package.rglob("*.py") if evaluating.search(file.read_text())}
    generating = {"dice", "codeio", "bitwise_arithmetic", "basic_arithmetic", "propositional_logic"}
    assert modules - tasks == (generating | {"generators_00_49", "generators_50_99"}) - {"dice"}


def test_an_integral_is_not_the_answer_to_an_integral() -> None:
    (problem,) = problems(["simple_integration"], 1)
    record = dict(problem.metadata["entry"][1])
    restated = f"<answer>Integral({record['integrand']}, {record['variable']})</answer>"
    assert judge(problem, restated).status == "wrong"
    assert not harmless("3*Integral(x*sin(x), x) + C")


@pytest.mark.slow
def test_every_tasks_gold_answers_pass_and_nonsense_does_not() -> None:
    names = sorted(set(reasoning_gym.factory.DATASETS) - {"composite"} - BROKEN)
    for name in names:
        found = problems([name], 4 if name == "knight_swap" else 10)
        with Pool(CHECK, {}, workers=1, seconds=60) as pool:
            failing = [p for p, _ in check_gold(found, pool) if "Integral(" not in str(p.gold)]
            assert failing == [], name
            wrong = list(pool.run(("<answer>no such answer</answer>", p.gold, p.metadata) for p in found))
            assert {o.status for o in wrong} <= {"wrong", "unparseable"}, name
        assert all((p.gold is None) == (name in NO_GOLD) for p in found), name


def test_the_game_of_24_is_won_with_the_given_numbers_only():
    problems = load(tasks=["puzzle24"], prompt="{question}", train_size=20, heldout_size=1, seed=0)
    passed = 0
    for problem in problems:
        passed += check(reference(problem.gold, problem.metadata), problem.gold, problem.metadata).status == "correct"
        numbers = sorted(decode(problem.metadata["entry"])["numbers"])
        for other in ("6*4*1*1", "8*3*1*1", "2*3*4*1"):
            if sorted(map(int, other.split("*"))) != numbers:
                assert check(f"<answer>{other}</answer>", problem.gold, problem.metadata).status == "wrong"
    assert passed >= 15
