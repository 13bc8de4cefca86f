"""The whole-round benchmark of scripts/bench.py."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench_train import by_trl
from children import python, selfimprove

from selfimprove import account, store
from selfimprove import config as configuration
from selfimprove.binding import Target, bind
from selfimprove.schema import Config
from selfimprove.tracking import Nothing
from selfimprove.types import Attempt, Example, Problem, Trajectory, Verdict


class Clock(Nothing):
    """A tracker that writes down when a round ended."""

    def __init__(self, path: Path) -> None:
        self.path, self.times = path, list[float]()

    def round(self, number: int, metrics: Mapping[str, Any]) -> None:
        self.times.append(time.perf_counter())
        store.write_json(self.path, self.times)


def clock(node: Target, run_dir: Path, config: Config) -> Clock:
    return Clock(run_dir / "clock.json")


def round_vs_phases(repeats: int = 3) -> dict[str, Any]:
    """Seconds of a whole round of the default run over the sum of its phases done by hand: the policy asked for all
    answers at once, the verifier and the filter called as functions, TRL's SFTTrainer on the same rows, the new weights
    loaded, the held-out problems answered and checked. Each in a process of its own; the ratio of medians."""
    whole: list[float] = []
    phases: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(repeats):
            path = Path(name) / f"run{repeat}"
            summary = selfimprove(
                path, "rounds=1", f"seed={repeat}", "tracker=none", "tracker._target_=bench_round.clock"
            )
            begun, ended = store.read_json(path / "clock.json")
            whole.append(ended - begun)
            phases.append(json.loads(python("bench_round", "bare", str(path))))
    bare_seconds = [sum(found.values()) for found in phases]
    return {
        "value": statistics.median(whole) / statistics.median(bare_seconds),
        "round_seconds": whole,
        "bare_seconds": bare_seconds,
        "bare_phases": phases,
        "phases": summary["rounds"][0]["seconds"],
    }


def serial_share() -> dict[str, Any]:
    """The share of a round of the default run that is neither sampling nor optimizer steps, with training in a process
    of its own as on GPUs."""
    with tempfile.TemporaryDirectory() as name:
        selfimprove(Path(name) / "run", "rounds=1", "tracker=none", "hardware.training.own_process=true")
        spent = account.measured(store.read_json(Path(name) / "run" / "rounds" / "000" / "metrics.json"))
    return {"value": account.serial_share(spent), "seconds": spent}


def bare(folder: str) -> None:
    """Print the seconds of each phase of the first round of a run, done by hand."""
    from selfimprove.policy import Policy
    from selfimprove.policy.models import resolve
    from selfimprove.session import open_engine

    path = Path(folder)
    config = configuration.read(path / "config.yaml")
    problems = list(store.read_records(path / "problems.parquet", Problem))
    train = [p for p in problems if p.split == "train"]
    heldout = [p for p in problems if p.split == "test"]
    start = resolve(config.model.name, config.model.path)
    engine = open_engine(config, start, ())
    options, check = config.method.generate, bind(config.dataset.verifier, "verifier")
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - begun
        return found

    with asyncio.Runner() as loop:

        def answers(asked: list[Problem], n: int, temperature: float) -> Any:
            async def ask() -> Any:
                policy = Policy(engine, config.seed, max_tokens=config.model.max_tokens)
                return await asyncio.gather(
                    *(policy.for_problem(p).sample(p.prompt, n, temperature=temperature) for p in asked)
                )

            return loop.run(ask())

        def checked(asked: list[Problem], found: Any) -> Any:
            return [
                [check(s.text, p.gold, p.metadata) for s in samples] for p, samples in zip(asked, found, strict=True)
            ]

        answers(heldout, 1, 0)  # as the run has evaluated the base policy before
        found = timed("generate", lambda: answers(train, options["n"], options["temperature"]))
        outcomes = timed("verify", lambda: checked(train, found))
        groups = [
            [
                Attempt(problem, Trajectory(problem.id, [sample]), Verdict("", outcome.status, outcome.reward))
                for sample, outcome in zip(samples, judged, strict=True)
            ]
            for problem, samples, judged in zip(train, found, outcomes, strict=True)
        ]
        timed("filter", lambda: list(bind(config.stages[""].filter, "filter")(groups, seed=0)))
        rows = list(store.read_records(path / "rounds" / "000" / "examples.parquet", Example))
        with tempfile.TemporaryDirectory() as out:
            train_node, micro = config.stages[""].train, config.hardware.micro_batch
            batch, rate = train_node["batch_size"], train_node["learning_rate"]
            timed("train", lambda: by_trl(start, Path(out), rows, batch, micro, rate))
            timed("handover", lambda: engine.load(out))
        judged = timed("evaluate", lambda: checked(heldout, answers(heldout, 1, 0)))
        assert len(judged) == len(heldout)
    print(json.dumps(seconds))
