"""UPO: BALD and the draws by hand, what the estimator reads, and a whole small run."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.made import Made
from selfimprove.methods.upo import agrees, both, drawn, generate, orders, selected
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Outcome
from selfimprove.verify.doubt import bald, spread
from tests.forks import drive

LN2 = math.log(2)


def sample(*ids: int, prompt: tuple[int, ...] = (1, 2)) -> Sample:
    return Sample(list(prompt), list(ids), [0.0] * len(ids), str(ids), "stop", ids[0])


def attempt(name: str, p: list[float], widest: bool = False) -> Attempt:
    note = {"margin": 1.0, "widest": widest}
    trajectory = Trajectory(name, [sample(5, 6), sample(7)], note, id=f"t-{name}")
    status: Any = "correct" if agrees(p) else "wrong"
    return Attempt(Problem(name, "?"), trajectory, Verdict(trajectory.id, status, sum(p) / len(p), step_rewards=p))


class Words:
    """Says what a user says as one id, and another where the turn before had no end."""

    def turn(self, text: str, ended: bool) -> list[int]:
        return [100 if ended else 101]


def test_bald_by_hand() -> None:
    assert bald([0.3, 0.3, 0.3]) == 0
    assert bald([0.0, 1.0]) == pytest.approx(LN2)  # sure each time, of opposite things
    assert bald([0.5, 0.5]) == 0  # unsure, and always in the same way
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert bald([0.9, 0.1]) == pytest.approx(LN2 - h)


def test_the_spread_of_scores_by_hand() -> None:
    assert spread([1.0, 3.0]) == (2.0, 1.0)
    assert spread([0.5]) == (0.5, 0.0)


def test_the_majority_of_passes_decides() -> None:
    assert agrees([0.9, 0.6, 0.1])
    assert not agrees([0.9, 0.4, 0.1])
    assert agrees([0.9, 0.1])


def test_a_draw_goes_by_weight_and_takes_nothing_twice() -> None:
    found = [attempt(f"p{i}", [0.9]) for i in range(3)]
    rng, first = random.Random(0), Counter[str]()
    for _ in range(4000):
        names = [a.problem.id for a in drawn(found, [1.0, 3.0, 0.0], 3, rng)]
        assert len(set(names)) == 3
        assert names[-1] == "p2"  # of weight 0
        first[names[0]] += 1
    assert abs(first["p1"] / 4000 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)


def test_without_dropout_the_draw_is_by_chance() -> None:
    found = [attempt(f"p{i}", [0.8] * 5) for i in range(4)]
    weights = [bald(a.verdict.step_rewards or []) for a in found]
    assert weights == [0.0] * 4
    rng = random.Random(0)
    first = Counter(drawn(found, weights, 1, rng)[0].problem.id for _ in range(4000))
    assert all(abs(count / 4000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000) for count in first.values())


def labelled(tmp_path: Path, count: int) -> Made:
    rows = [Example(f"l{i}", [f"t{i}"], [1], [2], rejected_ids=[3]) for i in range(count)]
    store.write_records(tmp_path / "examples.parquet", rows, Example)
    made = Made()
    made.add("label", tmp_path, {"examples.parquet": "hash"})
    return made


def test_d_holds_a_share_of_each_set_and_one_pair_a_problem(tmp_path: Path) -> None:
    agreed = [attempt(f"p{i}", [0.9, 0.6]) for i in range(20)]
    against = [attempt(f"q{i}", [0.2, 0.1]) for i in range(20)]
    groups, made = [[a] for a in (*agreed, *against)], labelled(tmp_path, 10)
    shares: dict[str, Any] = {"rate": 0.5, "labelled": 0.4, "widest": 0.0, "hard": 0.2}
    rows = list(selected(groups, **shares, made=made, seed=0))
    count = Counter(row.metadata["set"] for row in rows)
    assert count["labelled"] == 4
    assert 10 <= count["easy"] + count["hard"] <= 12  # 10 easy, 2 hard, where they are of other problems
    assert not any(row.problem_id.startswith("q") for row in rows)
    easy = next(row for row in rows if row.metadata["set"] == "easy")
    assert (easy.prompt_ids, easy.completion_ids, easy.rejected_ids) == ([1, 2], [5, 6], [7])
    by_chance = list(selected(groups, **shares, draw="chance", made=made, seed=0))
    assert any(row.problem_id.startswith("q") for row in by_chance)
    wide = [[attempt(f"w{i}", [0.1], widest=True)] for i in range(10)]
    rows = list(selected(wide, **(shares | {"widest": 0.3}), made=made, seed=0))
    assert Counter(row.metadata["set"] for row in rows) == {"labelled": 4, "widest": 3}
    same = [[attempt("p", [0.9]), attempt("p", [0.8]), attempt("p", [0.7]), attempt("p", [0.7])]]
    assert len(list(selected(same, **(shares | {"rate": 1.0}), made=Made(), seed=0))) == 1


def test_the_estimator_reads_both_answers_in_each_order() -> None:
    right, wrong = sample(5, 6), sample(7)
    text: Any = Words()
    assert both([right, wrong], "?", text) == [1, 2, 5, 6, 100, 7]
    right.finish = "length"
    assert both([right, wrong], "?", text) == [1, 2, 5, 6, 101, 7]
    right.finish = "stop"
    group = [
        Attempt(Problem("p", "?"), Trajectory("p", [s], id=name), Verdict(name, status, 0.0))  # type: ignore[arg-type]
        for name, s, status in (("a", right, "correct"), ("b", wrong, "wrong"))
    ]
    rows = list(orders([group], per_problem=1, words="?", text=text, seed=0))
    assert [(r.prompt_ids, r.completion_ids, r.metadata["label"]) for r in rows] == [
        ([1, 2], [5, 6, 100, 7], 1),
        ([1, 2], [7, 100, 5, 6], 0),
    ]


def test_pairs_are_of_the_two_best_and_the_two_worst() -> None:
    answers = [sample(i) for i in (3, 1, 6, 2, 5, 4, 4)] + [sample(9)]
    answers[-1].finish = "length"  # which is in no pair

    async def judge(problem: Problem, group: list[Trajectory]) -> list[Outcome]:
        return [Outcome("correct", float(t.samples[0].completion_ids[0])) for t in group]

    async def sampled(prompt: str, n: int, **options: Any) -> list[Sample]:
        return answers[:n]

    policy: Any = SimpleNamespace(sample=sampled)

    def pairs(n: int, share: float = 1.0) -> dict[tuple[int, int], bool]:
        found = asyncio.run(generate(Problem("p", "?"), policy, n=n, judge=judge, seed=0, share=share))
        return {(t.samples[0].completion_ids[0], t.samples[1].completion_ids[0]): t.metadata["widest"] for t in found}

    expected = dict.fromkeys([(6, 5), (6, 2), (5, 2), (5, 1), (2, 1)], False) | {(6, 1): True}
    assert pairs(8) == expected
    assert pairs(8, share=0.0) == {(6, 1): True}
    assert pairs(1) == {}


SIZES = ["method=upo", "rounds=1", "dataset.levels=[2,3]", "dataset.train_size=9", "dataset.heldout_size=2",
         "tracker=none", "verify.workers=1", "method.stages.prefer.verifier.passes=3",
         "method.stages.reward.train.epochs=1", "method.stages.estimator.train.epochs=1"]  # fmt: skip


def test_a_small_run_trains_all_three_and_keeps_one_pair_a_problem(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    prefer = tmp_path / "rounds/000.3_prefer"
    pairs = list(store.read_records(prefer / "trajectories.parquet", Trajectory))
    verdicts = list(store.read_records(prefer / "verdicts.parquet", Verdict))
    assert pairs
    assert {s.version for t in pairs for s in t.samples} == {1}, "the policy that the labelled pairs trained samples"
    assert all(len(t.samples) == 2 and t.metadata["margin"] > 0 for t in pairs)
    assert all(len(v.step_rewards or []) == 3 and len(set(v.step_rewards or [])) > 1 for v in verdicts)
    assert all((v.status == "correct") == agrees(v.step_rewards or []) for v in verdicts)
    labelled = {
        t.problem_id for t in store.read_records(tmp_path / "rounds/000.0_label/trajectories.parquet", Trajectory)
    }
    assert not labelled & {t.problem_id for t in pairs}
    rows = list(store.read_records(prefer / "examples.parquet", Example))
    assert len({r.problem_id for r in rows}) == len(rows)
    figures = json.loads((prefer / "metrics.json").read_text())
    assert {"reward.train/pair_accuracy", "estimator.train/pair_accuracy", "prefer.train/loss"} <= figures.keys()


@pytest.mark.parametrize(
    "control",
    [
        "method.roles.estimator.model.lora.dropout=0",
        "method.stages.prefer.filter.draw=chance",
        "method.stages.prefer.filter.labelled=0",
    ],
)
def test_controls_are_overrides(control: str) -> None:
    assert compose(["method=upo", control]).method.name == "upo"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "+method.stages.prefer.verifier.reward=judge",
            "method.stages.prefer.verifier.reward=judge: no such reward model",
        ),
        ("method.roles.estimator.kind=causal", "method.stages.estimator.role=estimator"),
        ("hardware.training.processes=2", "a reward model is trained by one process"),
        ("method.stages.prefer.verifier.passes=0", "method.stages.prefer.verifier.passes=0"),
        ("method.stages.prefer.filter.draw=best", "method.stages.prefer.filter.draw=best"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=upo", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_in_its_own_phases_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = "hardware.max_batch=1 dataset.levels=[2] dataset.train_size=6 model.max_tokens=32 dataset.heldout_size=2"
    drive(
        tmp_path,
        f"method=upo rounds=1 {small} method.stages.prefer.verifier.passes=2",
        ["manifest:2/train", "manifest:3/verify"],
    )
