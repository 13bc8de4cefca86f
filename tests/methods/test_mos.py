"""MOS: merging, retrieval, statistics and alignment by hand, and a whole small run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import softmax

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.datasets import pictures
from selfimprove.errors import ConfigError
from selfimprove.methods import mos
from selfimprove.policy import nets
from selfimprove.policy.vit import Vit
from selfimprove.studies import Result, overall, streams
from selfimprove.studies import mos as study
from selfimprove.train import TrainContext, own
from selfimprove.types import Example
from tests.forks import drive

OPTIONS: dict[str, Any] = {
    "epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "bottleneck": 3, "momentum": 0.1, "reg": 0.1,
    "align_epochs": 2, "align_rate": 0.005,
}  # fmt: skip
SIZE = [
    "method=mos",
    "tracker=none",
    "verify.workers=1",
    "rounds=2",
    "dataset.train_size=40",
    "dataset.heldout_size=20",
    "dataset.tasks=[{classes:[0,1]},{classes:[2,3]}]",
    "method.train.epochs=1",
    "method.train.align_epochs=2",
]


def context(start: Path, out: Path) -> TrainContext:
    return TrainContext(str(start), str(start), out, 0, "cpu", "float32", 8, False, None, lambda record: None)


def rows(classes: list[int], count: int = 12) -> list[Example]:
    found = pictures.digits(tasks=[pictures.Task(classes=classes)], train_size=count, heldout_size=1, seed=0)
    return [Example(p.id, [], [], [int(str(p.gold))], metadata={"input": asdict(p.array)}) for p in found[:count]]  # type: ignore[call-overload]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    nets.save(Vit(size=8, patch=4, width=8, blocks=2, heads=2), tmp_path / "base")
    return tmp_path / "base"


def trained(start: Path, name: str, classes: list[int], **more: Any) -> mos.Mos:
    mos.train(rows(classes), context(start, start.with_name(name)), **OPTIONS | more)
    net = nets.load(start.with_name(name))
    assert isinstance(net, mos.Mos)
    return net


def weights(net: mos.Mos, task: int) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in net.adapters[task].parameters()])


def test_a_merge_goes_the_share_alpha_to_the_mean_of_the_earlier_ones() -> None:
    adapters = torch.nn.ModuleList(torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False)]) for _ in range(3))
    for adapter, value in zip(adapters, (2.0, 4.0, 10.0), strict=True):
        torch.nn.init.constant_(adapter[0].weight, value)  # type: ignore[index]
    mos.merge(adapters, 0.1)
    assert [adapter[0].weight.item() for adapter in adapters] == pytest.approx([2.0, 4.0, 0.9 * 10 + 0.1 * 3])  # type: ignore[index]
    mos.merge(adapters[:1], 0.1)  # type: ignore[arg-type]
    assert adapters[0][0].weight.item() == 2.0  # type: ignore[index]


def test_a_second_adapter_starts_as_the_first_and_leaves_it_alone(base: Path) -> None:
    first = trained(base, "first", [0, 1])
    grown = mos.next_task(first, [2, 3], 3, "cpu")
    torch.testing.assert_close(weights(grown, 1), weights(first, 0))
    second = trained(base.with_name("first"), "second", [2, 3])
    torch.testing.assert_close(weights(second, 0), weights(first, 0))
    assert not torch.equal(weights(second, 1), weights(second, 0))
    assert second.options["tasks"] == [[0, 1], [2, 3]]
    for name, weight in nets.load(base).named_parameters():
        if name.startswith("body"):
            torch.testing.assert_close(second.get_parameter(name), weight)


def test_with_alpha_1_nothing_but_the_mean_of_earlier_adapters_is_left(base: Path) -> None:
    first = trained(base, "first", [0, 1])
    merged = trained(base.with_name("first"), "second", [2, 3], momentum=1.0)
    torch.testing.assert_close(weights(merged, 1), weights(first, 0))


def test_statistics_are_those_of_the_new_classes(base: Path) -> None:
    net = trained(base, "first", [0, 1])
    x, y = own.inputs(rows([0, 1])), own.labels(rows([0, 1]))
    found = net.adapted(x, 0)[y == 1].detach()
    torch.testing.assert_close(net.means[1], found.mean(0))
    centred = found - found.mean(0)
    torch.testing.assert_close(net.covariances[1], centred.T @ centred / len(found) + 1e-4 * torch.eye(8))
    torch.testing.assert_close(net.prototypes[1], net.features(x)[y == 1].mean(0))
    assert not net.means[2:].any()


def test_the_orthogonality_loss_by_hand() -> None:
    found, means = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    by_hand = -(torch.log_softmax(torch.tensor([4.0, 0.0]) / 0.8, -1)[0] + torch.log_softmax(
        torch.tensor([0.0, 1.0]) / 0.8, -1)[1]) / 2  # fmt: skip
    torch.testing.assert_close(mos.alike(found, means), by_hand)


def test_retrieval_loops_until_a_task_repeats(base: Path) -> None:
    """Three tasks of a class each; the head says with adapter t that the task is NEXT[t]."""
    following = {0: 1, 1: 2, 2: 2}
    net = mos.Mos(tasks=[[0], [1], [2]], bottleneck=3, **nets.load(base).options)
    net.cosines = lambda pictures: torch.eye(10)[[0, 2]]  # type: ignore[method-assign]
    net.adapted = lambda pictures, task: torch.full((2, 8), float(task))  # type: ignore[method-assign]
    net.head.forward = lambda found: 5 * torch.eye(10)[[following[int(task)] for task in found[:, 0]]]  # type: ignore[method-assign]
    logits, loops = net.retrieved(torch.zeros(2, 8, 8))
    assert loops.T.tolist() == [[0, 1, 2, 2], [2, 2, 2, 2]]
    assert logits.argmax(-1).tolist() == [2, 2]
    both = softmax(torch.tensor([0.0, 0.0, 5.0]), -1) + softmax(torch.tensor([3.0, 0.0, 0.0]), -1)
    torch.testing.assert_close(net(torch.zeros(2, 8, 8))[0, :3], both.log(), rtol=1e-4, atol=1e-4)


def test_alignment_teaches_the_head_all_classes_from_gaussians_alone(base: Path) -> None:
    net = mos.Mos(tasks=[[0], [1]], bottleneck=3, **nets.load(base).options)
    for label, side in ((0, -1.0), (1, 1.0)):
        net.means[label], net.covariances[label] = side, 0.01 * torch.eye(8)
    torch.manual_seed(0)
    mos.align(net, 20, 0.1, 16)
    for label in (0, 1):
        assert net.head(net.means[label]).argmax().item() == label
    kept = [weight.clone() for weight in net.head.parameters()]
    mos.align(net, 0, 0.1, 16)
    assert all(torch.equal(a, b) for a, b in zip(kept, net.head.parameters(), strict=True))


def test_a_small_run(tmp_path: Path) -> None:
    summary = run.start(compose(SIZE), tmp_path / "run")
    assert summary["status"] == "complete"
    net = nets.load(tmp_path / "run/rounds/001/policy")
    assert net.options["tasks"] == [[0, 1], [2, 3]]
    figures = store.read_json(tmp_path / "run/rounds/001/evaluate.manifest.json")["metrics"]
    assert {"AA", "FM", "accuracy/task=1"} <= figures.keys()
    result = Result(tmp_path / "run", summary, tuple(SIZE))
    loops = study.retrieval(result)
    assert [found.keys() for found in loops] == [streams.final(result).keys()] * 4
    lost = overall([streams.forgotten(result)])
    assert lost == pytest.approx(figures["FM"])  # two tasks: what the first one lost
    runs = {arm: [result] for arm in study.ARMS}
    same = list(study.claims(runs, [loops]))
    assert [claim.value for claim in same[:4]] == [0, 0, 0, 0]  # against itself
    assert same[4].value == pytest.approx(overall([loops[-1]]) - overall([loops[0]]))
    study.table(runs, dict.fromkeys(runs, 1e-3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.train.momentum=1.5", "method.train.momentum=1.5"),
        ("engine=transformers", "needs"),
        ("rounds=6", "rounds=6: a round is a task"),
    ],
)
def test_bad_input_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("+", r"\+")) as caught:
        compose(["method=mos", wrong])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_in_a_task_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = "method=mos dataset=digit_tasks method.train.epochs=1 method.train.align_epochs=1"
    drive(tmp_path, small, ["manifest:0/train", "train:2"])
