"""Families of continual learning: their formulas, what each does to a net, and a whole small run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from selfimprove import run
from selfimprove.config import compose
from selfimprove.datasets import pictures
from selfimprove.errors import ConfigError
from selfimprove.filter.replay import labelled, reservoir
from selfimprove.policy import nets
from selfimprove.policy.vit import Vit
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Result, claim_within
from selfimprove.studies import streams as shared
from selfimprove.studies.streams import matrix
from selfimprove.train import TrainContext, continual, own
from selfimprove.types import Array, Attempt, Example, Memory, Problem, Sample, Trajectory, Verdict

SIZE = ["method=cl_suite", "tracker=none", "verify.workers=1", "rounds=2", "dataset.train_size=40",
        "dataset.heldout_size=20", "method.train.epochs=1", "method.remember.size=6"]  # fmt: skip


def context(start: Path, out: Path) -> TrainContext:
    return TrainContext(str(start), str(start), out, 0, "cpu", "float32", 8, False, None, lambda record: None)


def rows(classes: list[int], count: int = 12, **metadata: Any) -> list[Example]:
    problems = pictures.digits(tasks=[pictures.Task(classes)], train_size=count, heldout_size=1, seed=0)[:count]
    return [Example(p.id, [], [], [int(str(p.gold))], metadata={"input": asdict(p.array), **metadata})  # type: ignore[call-overload]
            for p in problems]  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    nets.save(Vit(size=8, patch=4, width=8, blocks=1, heads=2), tmp_path / "base")
    return tmp_path / "base"


def trained(start: Path, name: str, examples: list[Example], family: Any, **more: Any) -> Path:
    out = start.with_name(name)
    options = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4} | more
    continual.continual(examples, context(start, out), family=family, **options)
    return out


def test_a_gem_projects_against_the_memory_and_leaves_what_does_no_harm() -> None:
    g, r = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(continual.projected(g, r), torch.tensor([0.5, 0.5]))  # g - (-1 / 2) r
    assert continual.projected(g, r) @ r == pytest.approx(0)
    torch.testing.assert_close(continual.projected(g, -r), g)


def test_distillation_is_t_squared_times_the_divergence_of_seen_classes() -> None:
    before, after = torch.tensor([[2.0, 0.0, 9.0]]), torch.tensor([[0.0, 0.0, -9.0]])
    p = 1 / (1 + np.exp(-1.0))  # softmax of (1, 0), at T = 2
    expected = 4 * (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)))
    seen = torch.tensor([True, True, False])
    assert continual.distilled(before, after, seen, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_fisher_diagonal_is_the_mean_square_of_single_gradients(base: Path) -> None:
    net = nets.load(base)
    x, y = own.inputs(rows([0, 1], 3)), own.labels(rows([0, 1], 3))
    found = continual.fisher(net, x, y)["head.bias"]
    probabilities = torch.softmax(net(x), -1)
    by_hand = (probabilities - torch.nn.functional.one_hot(y, 10)).square().mean(0)  # d CE / d bias = p - y
    torch.testing.assert_close(found, by_hand)


def test_ewc_and_lwf_hold_a_net_where_it_was(base: Path) -> None:
    first = trained(base, "first", rows([0, 1]), "ewc")
    old = nets.load(first)

    def far(family: str, **more: Any) -> float:
        net = nets.load(trained(first, f"second_{family}", rows([2, 3]), family, epochs=4, **more))
        x = own.inputs(rows([0, 1]))
        return float((torch.softmax(net(x)[:, :2], -1) - torch.softmax(old(x)[:, :2], -1)).abs().mean().detach())

    free = far("finetune")
    assert far("lwf") < free
    assert far("ewc", strength=1e6) < free


def test_ewc_adds_the_fishers_of_all_tasks(base: Path) -> None:
    first = continual._state(str(trained(base, "first", rows([0, 1]), "ewc")), "cpu")
    second = trained(base.with_name("first"), "second", rows([2, 3]), "ewc")
    both, net = continual._state(str(second), "cpu"), nets.load(second)
    own_part = continual.fisher(net, own.inputs(rows([2, 3])), own.labels(rows([2, 3])))["head.bias"]
    torch.testing.assert_close(both["head.bias"], first["head.bias"] + own_part)
    assert both["seen"].tolist() == [True] * 4 + [False] * 6


def test_replay_and_a_gem_keep_the_memory_s_loss_lower(base: Path) -> None:
    first = trained(base, "first", rows([0, 1]), "finetune", epochs=10)
    memory = rows([0, 1], replay=True)
    x, y = own.inputs(memory), own.labels(memory)

    def loss(family: str) -> float:
        net = nets.load(trained(first, family, rows([2, 3]) + memory, family, epochs=8))
        return cross_entropy(net(x), y).item()

    forgotten = loss("finetune")
    assert loss("replay") < forgotten
    assert loss("agem") < forgotten


def test_prototypes_are_class_means_whatever_the_order_of_tasks(base: Path) -> None:
    one = trained(trained(base, "a", rows([0]), "prototypes"), "ab", rows([1]), "prototypes")
    both = trained(base, "both", rows([0], 12) + rows([1], 12), "prototypes")
    x = own.inputs(rows([0, 1]))
    torch.testing.assert_close(nets.load(one)(x), nets.load(both)(x))
    net = nets.load(one)
    assert isinstance(net, continual.Prototypes)
    features = net.features(own.inputs(rows([0])))
    torch.testing.assert_close(net.sums[0] / net.counts[0], features.mean(0))
    assert net(x)[:, 2:].max() < -1e8  # classes not seen


def test_an_adapter_leaves_those_of_earlier_tasks_as_they_are(base: Path) -> None:
    first = nets.load(trained(base, "first", rows([0, 1]), "adapters"))
    second = nets.load(trained(base.with_name("first"), "second", rows([2, 3]), "adapters"))
    x = own.inputs(rows([0, 1]))
    torch.testing.assert_close(second(x)[:, :2], first(x)[:, :2])
    assert (second(x)[:, 2:4] > -1e8).all()


def attempt(number: int) -> list[Attempt]:
    problem = Problem(f"p{number}", "", "3", metadata={"task": 1}, array=Array((1,), (float(number),)))
    return [Attempt(problem, Trajectory(problem.id, [], id=f"r1/p{number}/0"), Verdict("", "wrong", 0.0))]


def test_a_reservoir_keeps_each_of_all_examples_alike() -> None:
    counts = np.zeros(30)
    for seed in range(200):
        memory: list[Memory] = []
        for task in range(3):  # a memory that goes on from task to task
            groups = [attempt(10 * task + i) for i in range(10)]
            memory = list(reservoir(groups, memory=memory, seed=3 * seed + task, size=6))
        assert len(memory) == 6
        assert memory[0].metadata["seen"] == 30
        for one in memory:
            counts[int(one.key[1:])] += 1
    sigma = np.sqrt(200 * 0.2 * 0.8)
    assert np.abs(counts - 40).max() < 4.5 * sigma


def test_the_memory_s_examples_are_what_they_were() -> None:
    memory = list(reservoir([attempt(0)], memory=[], seed=0, size=2))
    new, old = labelled([attempt(5)], memory=memory)
    assert (new.completion_ids, new.metadata) == ([3], {"input": {"shape": (1,), "data": (5.0,)}, "task": 1})
    assert old.metadata == {"input": {"shape": (1,), "data": (0.0,)}, "task": 1, "replay": True}


def test_texts_go_through_the_same_memory_by_their_ids() -> None:
    problem = Problem("t", "Say it", metadata={"task": 2})
    said = Trajectory("t", [Sample([1, 2], [3, 4], [-1.0, -1.0], "it", "stop", 0)], id="r2/t/0")
    memory = list(reservoir([[Attempt(problem, said, Verdict("", "correct", 1.0))]], memory=[], seed=0, size=2))
    (old,) = labelled([], memory=memory)
    assert (old.prompt_ids, old.completion_ids, old.metadata) == ([1, 2], [3, 4], {"task": 2, "replay": True})


def test_a_small_run_has_the_figures_of_the_matrix_and_resumes_to_the_same(tmp_path: Path) -> None:
    config = compose(SIZE)
    summary = run.start(config, tmp_path / "run")
    last = summary["final"]
    assert summary["status"] == "complete"

    a = matrix(Result(tmp_path / "run", summary, ()))
    assert a.shape == (3, 5)
    figures = run_figures(tmp_path / "run")
    assert figures["AA"] == pytest.approx(a[2, :2].mean())
    assert figures["FM"] == pytest.approx(a[1, 0] - a[2, 0])
    weights = tmp_path / "run/rounds/001/policy/model.safetensors"
    before = weights.read_bytes()
    for name in ("filter", "remember", "train", "evaluate"):  # as if it had been killed before these ended
        (tmp_path / f"run/rounds/001/{name}.manifest.json").unlink()
    shutil.rmtree(tmp_path / "run/rounds/001/policy")
    again = run.resume(tmp_path / "run")
    assert weights.read_bytes() == before
    assert again["final"] == last


def run_figures(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "rounds/001/metrics.json").read_text())
    return {key.rpartition("/")[2]: value for key, value in found.items()}


def test_bad_input_is_refused_before_a_model_loads() -> None:
    with pytest.raises(ConfigError, match=r"rounds=6: a round is a task, and dataset=digit_tasks has 5"):
        compose([*SIZE, "rounds=6"])
    with pytest.raises(ConfigError, match="needs arrays, tasks"):
        compose([*SIZE, "dataset=arithmetic", "engine=transformers", "model=tiny"])


def runs_of(*matrices: list[list[float]]) -> list[Any]:
    return [SimpleNamespace(command="selfimprove run", matrix=np.array(a)) for a in matrices]


@pytest.mark.parametrize(
    ("more", "holds"),
    [([0.1, 0.1, 0.2], True), ([0.9, 0.9, 0.8], False), ([0.1, 0.9, 0.5], None)],  # accuracy left on task 1
)
def test_forgetting_is_compared_seed_by_seed(monkeypatch: pytest.MonkeyPatch, more: list[float], holds: Any) -> None:
    monkeypatch.setattr(shared, "matrix", lambda result: result.matrix)
    less = runs_of(*[[[0, 0], [1, 0], [0.5 + noise, 1]] for noise in (0.0, 0.01, 0.02)])
    worse = runs_of(*[[[0, 0], [1, 0], [left, 1]] for left in more])
    claim = shared.forgets("FM", less, worse, "control")
    assert claim.holds is holds
    assert claim.value == pytest.approx(0.51 - np.mean(more))


def test_each_arm_has_the_rate_that_is_best_on_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    best, asked = {"a": "0.01", "b": "0.001"}, []

    class Asked:
        quick = False
        seeds = (0, 1)

        def note(self, said: object) -> None: ...

        def run(self, *words: str) -> Any:
            asked.append(words)
            return {"p": float(words[2].endswith(f"={best[words[1]]}"))}

        def over_seeds(self, *words: str) -> Any:
            return [words]

    monkeypatch.setattr(shared, "final", lambda scores: scores)
    arms = {"a": ["a"], "b": ["b"]}
    runs, rates = shared.tuned_arms(Asked(), ["common"], arms, (0.001, 0.01), 9)  # type: ignore[arg-type]
    assert rates == {"a": 0.01, "b": 0.001}
    assert runs["a"] == [("common", "a", "method.train.learning_rate=0.01")]
    assert len(asked) == 4, "all arms try the same rates"
    assert all({"eval.side=dev", "seed=100", "dataset.dev_size=9"} <= set(words) for words in asked)


@pytest.mark.parametrize(
    ("low", "high", "holds"), [(-0.04, 0.04, True), (-0.2, 0.04, None), (0.06, 0.2, False), (-0.2, -0.06, False)]
)
def test_about_as_good_needs_the_whole_interval(low: float, high: float, holds: Any) -> None:
    estimate = Estimate((low + high) / 2, low, high, 100)
    assert claim_within("as good", estimate, 0.05, "control", "command").holds is holds
