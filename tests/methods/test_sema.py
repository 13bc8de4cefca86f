"""SEMA: descriptors, the scan, the mixture and what learns, by hand, and a whole small run."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.datasets import pictures
from selfimprove.errors import ConfigError
from selfimprove.methods import sema
from selfimprove.policy import nets
from selfimprove.policy.vit import Vit
from selfimprove.studies import Result
from selfimprove.studies import sema as study
from selfimprove.train import TrainContext, own
from selfimprove.types import Example
from tests.forks import drive

OPTIONS: dict[str, Any] = {
    "threshold": 2.0, "blocks": 2, "bottleneck": 3, "descriptor": 2, "epochs": 1, "learning_rate": 1e-2,
    "descriptor_epochs": 20, "descriptor_rate": 0.01, "batch_size": 4,
}  # fmt: skip
SIZE = [
    "method=sema",
    "tracker=none",
    "verify.workers=1",
    "rounds=2",
    "dataset.train_size=40",
    "dataset.heldout_size=20",
    "dataset.tasks=[{classes:[0,1]},{classes:[2,3],invert:true}]",
    "method.train.epochs=1",
    "method.train.descriptor_epochs=2",
]


def context(start: Path, out: Path) -> TrainContext:
    return TrainContext(str(start), str(start), out, 0, "cpu", "float32", 8, False, None, lambda record: None)


def rows(classes: list[int], count: int = 12, **how: Any) -> list[Example]:
    tasks = [pictures.Task(classes=classes, **how)]
    found = pictures.digits(tasks=tasks, train_size=count, heldout_size=1, seed=0)[:count]
    return [Example(p.id, [], [], [int(str(p.gold))], metadata={"input": asdict(p.array)}) for p in found]  # type: ignore[call-overload]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    nets.save(Vit(size=8, patch=4, width=8, blocks=3, heads=2), tmp_path / "base")
    return tmp_path / "base"


def trained(start: Path, name: str, examples: list[Example], **more: Any) -> tuple[sema.Sema, dict[str, float]]:
    figures = sema.train(examples, context(start, start.with_name(name)), **OPTIONS | more)
    net = nets.load(start.with_name(name))
    assert isinstance(net, sema.Sema)
    return net, figures


def test_a_mixture_adds_its_adapters_in_the_shares_of_the_router() -> None:
    mixture = sema.Mixture(2, 1, 1, 1)
    for adapter, value in zip(mixture.adapters, (1.0, 5.0), strict=True):
        torch.nn.init.constant_(adapter.up.bias, value)
    for column, value in zip(mixture.router, (0.0, math.log(3)), strict=True):
        torch.nn.init.zeros_(column.weight)
        torch.nn.init.constant_(column.bias, value)
    found = mixture(torch.zeros(2, 4, 1))
    torch.testing.assert_close(found, torch.full((2, 4, 1), 1 / 4 * 1 + 3 / 4 * 5))
    assert sema.Mixture(0, 1, 1, 1)(torch.zeros(2, 4, 1)) is None


def test_how_unlike_pictures_are_is_the_least_z_of_all_descriptors() -> None:
    mixture = sema.Mixture(2, 1, 1, 1)
    for descriptor in mixture.descriptors:
        for part in descriptor:
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
    mixture.statistics[0].copy_(torch.tensor([1.0, 0.5]))
    mixture.statistics[1].copy_(torch.tensor([0.0, 10.0]))
    x = torch.tensor([[[2.0]], [[1.0]]])  # errors 4 and 1
    assert mixture.unlike(x) == pytest.approx(min((3 + 0) / 0.5 / 2, (4 + 1) / 10 / 2))
    assert sema.Mixture(0, 1, 1, 1).unlike(x) == math.inf


def test_the_first_task_gives_each_block_a_module_and_its_statistics(base: Path) -> None:
    net, figures = trained(base, "first", rows([0, 1]))
    assert net.options["modules_of"] == [1, 1]
    assert (figures["grown"], figures["modules/1"], figures["modules/2"]) == (2, 1, 1)
    assert "z/1" not in figures
    x = own.inputs(rows([0, 1]))
    with torch.no_grad():
        errors = net.mixtures[1].error(net.inputs(x)[1], 0)
    expected = torch.stack([errors.mean(), errors.std(correction=0)])
    torch.testing.assert_close(net.mixtures[1].statistics[0].data, expected, rtol=1e-3, atol=1e-6)
    assert figures["steps"] == 2 * (3 + 60)


def test_a_familiar_task_trains_the_head_alone_and_a_strange_one_grows(base: Path) -> None:
    trained(base, "first", rows([0, 1]))
    first = base.with_name("first")
    same, figures = trained(first, "same", rows([0, 1]))
    assert (figures["grown"], same.options["modules_of"]) == (0, [1, 1])
    before = dict(nets.load(first).named_parameters())
    moved = {name for name, weight in same.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {"head.weight", "head.bias"}
    strange = rows([2, 3])
    for row in strange:
        row.metadata["input"]["data"] = [50 * value for value in row.metadata["input"]["data"]]
    grown, figures = trained(first, "strange", strange, threshold=1.0)
    assert figures["grown"] >= 1
    for name, weight in before.items():
        if not name.startswith("head"):
            torch.testing.assert_close(dict(grown.named_parameters())[name], weight)


def test_growth_never_rises_with_the_threshold(base: Path) -> None:
    trained(base, "first", rows([0, 1]))
    other = rows([2, 3], invert=True)
    grew = [trained(base.with_name("first"), f"t{t}", other, threshold=t)[1]["grown"] for t in (0.0, 1.0, 4.0, 1e9)]
    assert grew == sorted(grew, reverse=True)
    assert (grew[0], grew[-1]) == (2, 0)


def test_a_shared_adapter_learns_on(base: Path) -> None:
    first, _ = trained(base, "first", rows([0, 1]))
    second, figures = trained(base.with_name("first"), "second", rows([2, 3]), threshold=0.0, shared=True)
    assert (figures["grown"], second.options["modules_of"]) == (0, [1, 1])
    assert not torch.equal(second.mixtures[0].adapters[0].up.weight, first.mixtures[0].adapters[0].up.weight)


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = run.start(compose(SIZE), tmp_path / "run")
    assert summary["status"] == "complete"
    manifest = store.read_json(tmp_path / "run/rounds/001/train.manifest.json")
    assert manifest["metrics"]["modules/3"] >= 1
    result = Result(tmp_path / "run", summary, tuple(SIZE))
    assert study.modules(result) == [manifest["metrics"][f"modules/{block}"] for block in (2, 3)]
    monkeypatch.setattr(study, "FAMILIAR", (0,))
    monkeypatch.setattr(study, "CHANGED", (1,))
    runs = {arm: [result] for arm in study.ARMS}
    grown = list(study.growth(runs))
    assert grown[0].holds is False  # its first task always grows
    assert grown[2].holds
    assert [claim.value for claim in study.accuracy(runs)] == [0, 0, 0]  # against itself
    study.table(runs, dict.fromkeys(runs, 1e-3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.train.threshold=-1", "method.train.threshold=-1"),
        ("method.train.blocks=0", "method.train.blocks=0"),
        ("rounds=6", "rounds=6: a round is a task"),
    ],
)
def test_bad_input_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        compose(["method=sema", wrong])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_in_a_task_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = "method=sema dataset=digit_changes method.train.epochs=1 method.train.descriptor_epochs=1"
    drive(tmp_path, small, ["manifest:0/train", "train:2"])
