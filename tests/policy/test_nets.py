"""Policies that are torch modules."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from selfimprove import ready, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.policy import Policy, Request, nets
from selfimprove.policy.draws import DrawsEngine
from selfimprove.policy.vit import Vit
from selfimprove.types import Array, Problem


class Linear(nets.Classifier):
    """Logits that are the inputs themselves."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


class Twice(nets.Regressor):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * inputs


P = (0.2, 0.5, 0.3)
LOGITS = Array((3,), tuple(np.log(P).tolist()))


def request(seed: int, temperature: float = 1.0, array: Array = LOGITS) -> Request:
    return Request((), 1, seed, temperature, array=array)


def test_a_class_is_drawn_with_its_probability() -> None:
    n = 4000
    rows = torch.tensor([LOGITS.data] * n)
    drawn = Linear().draws(rows, [request(seed) for seed in range(n)])
    shares = np.bincount([draw.ids[0] for draw in drawn], minlength=3) / n
    assert np.abs(shares - P).max() < 4 * np.sqrt(0.25 / n)
    assert drawn[0].logprob == pytest.approx(np.log(P[drawn[0].ids[0]]))
    assert {draw.ids for draw in Linear().draws(rows, [request(seed, 0) for seed in range(n)])} == {(1,)}


def test_a_problem_s_array_reaches_the_engine_through_any_solver(tmp_path: Path) -> None:
    nets.save(Vit(size=8, patch=4, width=8, blocks=1, heads=2, classes=3), tmp_path)
    policy = Policy(DrawsEngine(nets.read, str(tmp_path)), seed=0)
    rng = np.random.default_rng(0)
    problems = [Problem(str(i), "", array=Array((8, 8), tuple(rng.random(64)))) for i in range(5)]

    async def answers() -> list[float]:
        asked = [policy.for_problem(problem).sample(problem.prompt, temperature=0) for problem in problems]
        return [sample.logprobs[0] for samples in await asyncio.gather(*asked) for sample in samples]

    async def alone() -> list[float]:
        return [(await policy.for_problem(p).sample(p.prompt, temperature=0))[0].logprobs[0] for p in problems]

    together = asyncio.run(answers())
    assert together == asyncio.run(alone())  # the batch does not show
    assert len(set(together)) == 5


def test_a_regressor_gives_an_array_also_for_unlike_shapes(tmp_path: Path) -> None:
    draw = nets.read(str(saved(Twice(), tmp_path)))
    first, second = draw([request(0, array=Array((2,), (1, 2))), request(0, array=Array((1,), (3,)))])
    assert (first.array, second.array) == ((2, 4), (6,))


def saved(net: nets.Net, folder: Path) -> Path:
    nets.save(net, folder)
    return folder


def test_a_net_is_read_as_it_was_saved(tmp_path: Path) -> None:
    net = Vit(size=4, patch=2, width=8, blocks=1, heads=2, classes=3)
    again = nets.load(saved(net, tmp_path))
    assert again.options == net.options
    x = torch.rand(2, 4, 4)
    torch.testing.assert_close(again.eval()(x), net.eval()(x), rtol=0, atol=0)


def test_a_folder_that_names_no_net_is_refused(tmp_path: Path) -> None:
    saved(Twice(), tmp_path)
    for target in ("os.system", "selfimprove.cli.main", "selfimprove.policy.nets.load"):
        (tmp_path / "config.json").write_text(json.dumps({"_target_": target}))
        with pytest.raises(ConfigError, match=f"{target} is not a net"):
            nets.load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_one_line(tmp_path: Path, file: str) -> None:
    saved(Vit(size=4, patch=2, width=8, blocks=1, heads=2), tmp_path)
    (tmp_path / file).write_text("{")
    with pytest.raises(ConfigError, match=r"is not the folder of a net, which engine=net needs \([^\n]*\)$"):
        nets.load(tmp_path)


def test_an_array_survives_its_file(tmp_path: Path) -> None:
    problems = [Problem("a", "x", array=Array((2, 1), (0.1, 1 / 3))), Problem("b", "x")]
    store.write_records(tmp_path / "problems.parquet", problems, Problem)
    assert list(store.read_records(tmp_path / "problems.parquet", Problem)) == problems


def test_a_model_that_is_not_there_is_refused_before_a_run_writes_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SELFIMPROVE_CACHE", str(tmp_path))
    config = compose(["method=cl_suite", "model=fashion_vit"])
    with pytest.raises(ConfigError, match=r"^model\.path: fashion_vit is not the folder of a net"):
        ready.require_engine(config, trains=True)
