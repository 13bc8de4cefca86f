"""CoSC: rounds of program, output and verification; what is learnt of them; and a whole small run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from selfimprove import run, store, supplies
from selfimprove.config import compose
from selfimprove.datasets.arithmetic import load
from selfimprove.datasets.calculations import teacher
from selfimprove.errors import ConfigError
from selfimprove.methods.cosc import OUTPUT, by_round, chains, right, seeds
from selfimprove.policy import Policy, Request
from selfimprove.policy.scripted import ANSWER, END, ScriptedEngine
from selfimprove.studies.tiny import shipped
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify.answers import last
from tests.forks import drive

PROBLEM = Problem("p", "Question?", "7")
REJECTS = "Verdict: incorrect"


async def printed(program: str) -> str:
    """Stands in the place of the sandbox: what `print(N)` prints."""
    return program.strip().removeprefix("print(").removesuffix(")")


class Correcting(ScriptedEngine):
    """Programs are right with p. A right output is called incorrect with `alarm`, a wrong one with `hit`."""

    def __init__(self, p: float, hit: float, alarm: float) -> None:
        super().__init__({})
        self.rates = p, hit, alarm

    async def sample(self, request: Request) -> Sample:
        p, hit, alarm = self.rates
        draws = np.random.default_rng(request.seed).random(2)
        so_far = "".join(map(chr, request.prompt_ids))
        program = f"```python\nprint({7 if draws[0] < p else 8})\n```\n{OUTPUT}"
        said = program
        if OUTPUT in so_far:
            output = so_far.rpartition(OUTPUT)[2].strip("\n`")
            rejects = draws[1] < (alarm if output == "7" else hit)
            said = f"{REJECTS}\n{program}" if rejects else f"Verdict: correct\n{ANSWER}{output}.{END}"
        ids = self.encode(said)
        return Sample(list(request.prompt_ids), ids, [0.0] * len(ids), said.removesuffix(END), "stop", request.seed)


def candidates(engine: ScriptedEngine, count: int, rounds: int) -> list[list[Trajectory]]:
    async def everything() -> list[list[Trajectory]]:
        policy = Policy(engine, 0, max_tokens=64)
        problems = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(count)]
        words: dict[str, Any] = {"answer": f"{ANSWER}{{output}}.", "rejects": REJECTS}
        return await asyncio.gather(
            *(by_round(q, policy.for_problem(q), rounds=rounds, tools={"python": printed}, **words) for q in problems)
        )

    return asyncio.run(everything())


def test_final_accuracy_is_that_of_the_rates() -> None:
    """With two rounds the answer is right with p (1 - alarm) + (p alarm + (1 - p) hit) p."""
    p, hit, alarm, n = 0.5, 0.9, 0.2, 1000
    found = candidates(Correcting(p, hit, alarm), n, 2)
    for which, expected in ((0, p), (-1, p * (1 - alarm) + (p * alarm + (1 - p) * hit) * p)):
        share = np.mean([f"{ANSWER}7" in group[which].text for group in found])
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_each_round_has_a_candidate_that_says_what_its_program_printed() -> None:
    (group,) = candidates(Correcting(0.0, 1.0, 1.0), 1, 3)
    assert [(t.text, t.metadata["stage"], t.metadata["rejected"]) for t in group] == [
        (f"{ANSWER}8.", round, True) for round in (1, 2, 3)
    ]
    assert [sample.role for sample in group[-1].samples] == ["policy"] * 3 + ["tool"]
    assert group[-1].samples[-1].completion_ids == [ord(c) for c in f"{ANSWER}8."]


def test_the_policys_own_answer_counts_where_it_accepts_one() -> None:
    (group,) = candidates(Correcting(1.0, 1.0, 0.0), 1, 3)
    assert [(t.text, t.metadata) for t in group] == [
        (f"{ANSWER}7.", {"stage": 1, "rejected": False}),
        (f"Verdict: correct\n{ANSWER}7.", {"stage": 4, "rejected": None}),
    ]
    attempts = [Attempt(PROBLEM, t, Verdict("", "correct", 1.0)) for t in group]
    assert last(attempts) == 1


def test_a_policy_that_writes_no_program_just_answers() -> None:
    (group,) = candidates(ScriptedEngine({"Question 0?": "7"}, 1.0), 1, 3)
    assert [(t.text, t.metadata["stage"]) for t in group] == [(f"{ANSWER}7", 4)]


def test_outputs_stand_in_the_policys_turn_in_a_fence() -> None:
    policy = Policy(Correcting(1.0, 1.0, 0.0), 0, max_tokens=64)
    (found,) = asyncio.run(chains(PROBLEM, policy, n=1, rounds=3, tools={"python": printed}))
    first, second = found.samples
    before = [*first.prompt_ids, *first.completion_ids]
    assert second.prompt_ids[: len(before)] == before
    assert "".join(map(chr, second.prompt_ids[len(before) :])) == "\n7\n```\n"


def attempt(number: int, status: str, *texts: str, finish: str = "stop") -> Attempt:
    samples, ids = list[Sample](), [1]
    for i, text in enumerate(texts):
        own = [ord(c) for c in text]
        kind: Any = finish if i + 1 == len(texts) else "stop"
        samples.append(Sample(ids, own, [0.0] * len(own), text, kind, 0))
        ids = [*ids, *own, 10, 36]  # what was observed
    return Attempt(PROBLEM, Trajectory("p", samples, id=f"t{number}"), Verdict("", status, 0.0))  # type: ignore[arg-type]


def test_rows_are_right_whole_trajectories_with_no_loss_on_what_was_observed() -> None:
    group = [
        attempt(0, "correct", f"a{OUTPUT}", "yes"),
        attempt(1, "wrong", f"b{OUTPUT}", "yes"),
        attempt(2, "correct", f"c{OUTPUT}", "yes", finish="length"),
        attempt(3, "correct", f"d{OUTPUT}", f"no, e{OUTPUT}"),  # not concluded
        attempt(4, "correct", f"a{OUTPUT}", "yes"),  # the same again
        attempt(5, "unparseable", "well"),
    ]
    (row,) = right([group])
    assert row.trajectory_ids == ["t0"]
    assert row.mask == [1] * (1 + len(OUTPUT)) + [0, 0] + [1, 1, 1]


def test_a_teachers_words_become_the_policys_ids_with_its_log_probabilities() -> None:
    problem = load(train_size=1, heldout_size=1, seed=0)[0]
    policy = Policy(shipped(), 0)

    async def python(program: str) -> str:
        lines = program.replace("print(x", "").splitlines()
        scope: dict[str, Any] = {}
        exec("\n".join(lines[:-1] if lines[-1] in ("", ")") else lines), scope)
        return str(scope["x"])

    tools = {"python": python, "teacher": teacher(bugs=[1.0])}
    (found,) = asyncio.run(seeds(problem, policy, rounds=3, tools=tools, seed=3))
    assert [sample.role for sample in found.samples] == ["teacher"] * len(found.samples)
    assert len(found.samples) == 3  # a bug, then right, then the answer
    for sample in found.samples:
        assert len(sample.logprobs) == len(sample.completion_ids)
        assert all(value <= 0 for value in sample.logprobs)
    assert found.text.endswith(f"Verdict: correct\nThe answer is {problem.gold}.")
    assert found.samples[-1].completion_ids[-1] == policy.engine.end
    ids = asyncio.run(policy.engine.logprobs(found.samples[1].prompt_ids, found.samples[1].completion_ids))
    assert found.samples[1].logprobs == pytest.approx(ids)


def test_what_a_tool_is_joins_the_key_of_the_phase() -> None:
    def key(*overrides: str) -> Any:
        config = compose(["method=cosc", *overrides])
        node = config.stages["self"].generate
        assert node is not None
        return supplies.key(SimpleNamespace(config=config), None, node, config.dataset.verifier)  # type: ignore[arg-type]

    assert key() == key()
    assert key() != key("method.tools.python.chars=100")


SIZES = ["method=cosc", "rounds=1", "dataset.levels=[2,3]", "dataset.train_size=8", "dataset.heldout_size=4",
         "tracker=none", "verify.workers=1", "+method.tools.python.workers=1", "method.stages.seed.problems.count=6",
         "method.train.epochs=1", "method.stages.self.generate.n=1", "method.stages.self.generate.max_tokens=40",
         "method.evaluate.max_tokens=40"]  # fmt: skip


def test_a_small_run_learns_from_the_teacher_and_then_from_itself(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    phases = tmp_path / "rounds/000.0_seed", tmp_path / "rounds/000.1_self"
    taught, own = (list(store.read_records(phase / "examples.parquet", Example)) for phase in phases)
    assert len(taught) == 6
    assert all(0 in (row.mask or []) and 1 in (row.mask or []) for row in taught)
    assert [row.completion_ids for row in own[:6]] == [row.completion_ids for row in taught]
    figures = store.read_json(phases[0] / "generate.manifest.json")["metrics"]
    assert figures["tools/python/ok"] >= 6  # the right programs at least
    assert figures["tokens/sampled"] == figures["tokens/sampled@teacher"] > 0, "nothing was sampled of the policy"
    assert "evaluate/accuracy" in json.loads((phases[1] / "metrics.json").read_text())
    assert "sandbox" in (tmp_path / "environment.json").read_text()


@pytest.mark.parametrize(
    "control",
    [
        ["method.tools.teacher.checks=false"],
        ["~method.stages.self", "rounds=1"],
        ["method.evaluate.rounds=1"],
        ["method.stages.seed.generate.rounds=1", "method.stages.self.generate.rounds=1", "method.evaluate.rounds=1",
         "method.tools.teacher.bugs=[0]"],
    ],
    ids=str,
)  # fmt: skip
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=cosc", *control]).method.name == "cosc"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("~method.tools.python", "method.tools.python: needs a tool of this name"),
        ("method.tools.python.seconds=0", "method.tools.python.seconds=0"),
        ("method.tools.teacher.bugs=[2]", "method.tools.teacher.bugs.0=2"),
        ("dataset=alpacaeval", "method=cosc needs gold"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=cosc", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_between_its_phases_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(o for o in SIZES if not o.startswith(("tracker", "verify.")))
    drive(tmp_path, f"{small} hardware.max_batch=1", ["manifest:0/train", "manifest:1/generate"])
