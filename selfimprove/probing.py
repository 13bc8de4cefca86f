"""`selfimprove doctor --probe KEY=VALUE...`: what a run will cost, by small runs on this machine.

The small runs have the same configuration, and one round in which every stage has one pass. The first one has one
problem of each side. It loads all that is loaded once. The next ones have ever more problems, at most eight times as
many as the one before, as long as the time allows. Evaluation gets a third of the time, so that its problems grow by
themselves. The two largest of each phase tell how its cost grows (`forecast.py`). The small runs are done in one
process, which is ended after a minute. Then those count that are done.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfimprove import config as configuration
from selfimprove import store
from selfimprove.errors import ConfigError, RunError
from selfimprove.forecast import SPEED, Forecast, Key, Work, expect, measured
from selfimprove.plan import AFTER, plan
from selfimprove.report.expected import SOLVING, Expected, total
from selfimprove.report.statistics import Z
from selfimprove.schema import Config
from selfimprove.sides import evaluated
from selfimprove.types import Problem, Trajectory

SECONDS = 60.0  # limit of the whole probe
MARGIN = 0.9  # of it, that the small runs may fill
GROWTH = 8  # from one small run to the next, at most
_SMALL = "small.json"  # in the probe's folder: what the small runs were
_REPLACED = ("tracker", "hydra")  # words of the command line that the probe leaves out


@dataclass(frozen=True)
class Probe:
    """The small runs, smallest first."""

    config: Config
    runs: list[tuple[Path, dict[str, int], float]]  # folder, problems of each side, seconds
    sizes: dict[str, int]  # the whole run's problems of each side
    start: float  # seconds before the first of them


def probe(overrides: Sequence[str], folder: Path, seconds: float = SECONDS) -> Probe:
    """The small runs, below `folder`. Raises ConfigError if they are refused, and RunError if time is too short."""
    words = [*(word for word in overrides if word.lstrip("+~").split("=")[0].split(".")[0] not in _REPLACED)]
    call = "import sys; from selfimprove.commands.common import guarded; from selfimprove.probing import small_runs"
    call += "; sys.exit(guarded(lambda: small_runs(sys.argv[4:], sys.argv[1], *map(float, sys.argv[2:4]))))"
    program = [sys.executable, "-c", call, str(folder), str(seconds), str(time.time()), *words]
    with subprocess.Popen(
        program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds)
        except BaseException as problem:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(problem, subprocess.TimeoutExpired):
                raise
            said = ""
    if process.returncode and process.returncode != -signal.SIGKILL:
        last = said.strip().splitlines()[-1:] or ["?"]
        raise ConfigError(f"the probe was refused: {last[0].removeprefix('selfimprove: ')}")
    found = read(words, folder)
    if len(found.runs) < 2:
        raise RunError(f"two small runs did not end within {seconds:g} s: this machine is too slow for a forecast")
    return found


def read(words: Sequence[str], folder: Path) -> Probe:
    """What the small runs in a folder were."""
    known: dict[str, Any] = (
        store.read_json(folder / _SMALL) if (folder / _SMALL).exists() else {"start": 0.0, "sizes": {}, "runs": []}
    )
    runs = [(folder / str(i), sizes, took) for i, (sizes, took) in enumerate(known["runs"])]
    return Probe(_config(words), runs, known["sizes"], known["start"])


# In the probe's process


def small_runs(words: Sequence[str], folder: str, seconds: float, began: float) -> None:
    """The small runs, as many as end in time. small.json tells of those that have ended.

    `began`: when the process was started, by `time.time`.
    """
    config = _config(words)
    problems, also = _problems(config)
    start = time.time() - began
    small, sizes = _small(config), _sizes(config, problems, also)
    most = _most(config, sizes)
    done: list[tuple[dict[str, int], float]] = []
    spent = dict[str, list[tuple[int, float]]](learn=[], test=[])
    counts: dict[str, int] | None = {"learn": 1, "test": 1}
    while counts:
        path, at = Path(folder) / str(len(done)), time.monotonic()
        some, other = _some(config, problems, counts), _spaced(also, counts["test"])
        try:
            _run(small, path, some, other)
        except RunError:  # of so few problems nothing may be left to learn from
            if done or counts["learn"] >= GROWTH**2:
                raise
            shutil.rmtree(path, ignore_errors=True)
            counts = {side: GROWTH * count for side, count in counts.items()}
            continue
        done.append((_sizes(config, some, other), time.monotonic() - at))
        store.write_json(Path(folder) / _SMALL, {"start": start, "sizes": sizes, "runs": done})
        works = _measured(path, config, len(done) - 1, done[-1][0])
        for side, count in counts.items():
            took = sum(work.seconds for work in works if (work.key[1] in (*AFTER, *SOLVING)) == (side == "test"))
            spent[side].append((count, took))
        counts = _grown(spent, most, MARGIN * seconds - (time.time() - began))


def _grown(spent: dict[str, list[tuple[int, float]]], most: dict[str, int], left: float) -> dict[str, int] | None:
    """The problems of the next small run, to learn from and to test on; None: the time does not suffice for one."""
    if not most["learn"]:
        found = _next(spent["test"], most["test"], left)
        return {"learn": 1, "test": found} if found else None
    shares = {"learn": 2 * left / 3, "test": left / 3}
    grown = {side: _next(spent[side], most[side], share) for side, share in shares.items()}
    again = sum(spent[side][-1][1] for side in grown if not grown[side])  # of a side that stays as it is
    if again > left / 2 or (not any(grown.values()) and len(spent["test"]) > 1):
        return None
    return {side: grown[side] or spent[side][-1][0] for side in grown}


def _next(spent: Sequence[tuple[int, float]], most: int, left: float) -> int:
    """How many problems of a side the next small run may have, in the time that is left; 0: no more than before.

    `spent`: the problems and seconds of those before. A second run is expected to take longer by the root of its size.
    A later one is expected between what the last two say and its share of the last one.
    """
    count, took = spent[-1]
    if count >= most:
        return 0
    earlier = [each for each in spent if each[0] < count]
    if not earlier:
        grown = count * (left / 2 / took) ** 2
        return min(most, int(max(2 * count, min(grown, GROWTH * count)))) if took < left else 0
    before, less = earlier[-1]
    slope = (max(0.0, took - less) / (count - before) + took / count) / 2
    grown = min(most, GROWTH * count, int(count + (left - took) / slope))
    return grown if grown >= 1.5 * count else 0


def _config(words: Sequence[str]) -> Config:
    config = configuration.compose([*words, "tracker=none"], needs=False)
    if not configuration.learns(config):
        configuration.check_solver(config)
        return config
    return configuration.compose([*words, "tracker=none"])


def _problems(config: Config) -> tuple[list[Problem], list[Problem]]:
    """The whole run's problems, and those of its second data set."""
    from selfimprove import ready

    trains = configuration.learns(config)
    ready.require_engine(config, trains=trains)
    if trains:
        ready.require_training(config)
    problems, _ = ready.prepare(config, trains=trains)
    return problems, ready.also_heldout(config) if trains else []


def _run(config: Config, path: Path, problems: list[Problem], also: list[Problem]) -> None:
    from selfimprove import run, solving
    from selfimprove.session import base_policies

    if configuration.learns(config):
        run.begin(config, path, (problems, {}), also)
    else:
        solving.begin(config, path, problems, base_policies(config)["policy"])


def _small(config: Config) -> Config:
    """The same configuration with one round of one pass a stage, without a budget."""
    raw = configuration.absolute(config).model_dump(by_alias=True)
    raw |= {"rounds": 1, "budget": {}}
    for stage in (raw["method"], *raw["method"]["stages"].values()):
        stage["parts"] = 1
    return configuration.check(raw, needs=configuration.learns(config))


def _some(config: Config, problems: Sequence[Problem], counts: dict[str, int]) -> list[Problem]:
    """So many problems of each side, or as many as a pass has, spread evenly over the side."""
    pass_size = _pass_size(config, sum(problem.split == "train" for problem in problems))
    own = {"train": min(counts["learn"], pass_size), "dev": counts["learn"], "test": counts["test"]}
    own["dev"] = counts["test"] if config.eval.side == "dev" else own["dev"]
    return [p for side, n in own.items() for p in _spaced([p for p in problems if p.split == side], n)]


def _spaced(problems: Sequence[Problem], count: int) -> list[Problem]:
    count = min(count, len(problems))
    return [problems[i * len(problems) // count] for i in range(count)]


def _pass_size(config: Config, train: int) -> int:
    """The training problems that a small run needs at most: of the largest pass, or all if a rule chooses."""
    rules = any(stage.problems for stage in config.stages.values())
    return train if rules else math.ceil(train / min(stage.parts for stage in config.stages.values()))


def _most(config: Config, sizes: dict[str, int]) -> dict[str, int]:
    """The most problems that a small run needs, to learn from and to test on."""
    learnt = _pass_size(config, sizes["train"]) if configuration.learns(config) else 0
    probed = any(stage.probe for stage in config.stages.values())
    return {"learn": max(learnt, sizes["dev"] if probed else 0), "test": max(sizes["test"], sizes["also"])}


# What they tell


def _sizes(config: Config, problems: Sequence[Problem], also: Sequence[Problem]) -> dict[str, int]:
    found = Counter(problem.split for problem in problems)
    return {"train": found["train"], "dev": found["dev"], "test": len(evaluated(config, problems)), "also": len(also)}


def _measured(path: Path, config: Config, number: int, sizes: dict[str, int]) -> list[Work]:
    from selfimprove import solving

    run = store.Run(path) if configuration.learns(config) else solving.Folder(path)
    return measured(run, _small(config), sizes, number)


def forecast(found: Probe) -> tuple[Forecast, float]:
    """The whole run's cost, and the bytes of its folder at its end."""
    config, last = found.config, len(found.runs) - 1
    works = [
        work for number, (path, sizes, _) in enumerate(found.runs) for work in _measured(path, config, number, sizes)
    ]
    wanted = _wanted(found, [work for work in works if work.run == last])
    rounds = min(config.rounds, config.budget.rounds or config.rounds)
    cost = expect(works, wanted, rounds, _spread(found.runs[last][0]))
    around = found.start + found.runs[0][2] - sum(work.seconds + work.once for work in works if work.run == 0)
    factor = math.exp(Z * SPEED)
    edges = {"start and end": Expected(around, around / factor, around * factor)}
    return Forecast(cost.tokens, cost.seconds | edges), _disk(found, works)


def _wanted(found: Probe, works: Sequence[Work]) -> dict[Key, tuple[float | None, float]]:
    """The problems of a pass in the whole run, and how many passes there are, by stage and phase."""
    config, sizes = found.config, found.sizes
    most = config.budget.rounds or config.rounds
    passes = [step for step in plan(config) if step.round < most]
    rounds = len({step.round for step in passes})
    wanted: dict[Key, tuple[float | None, float]] = {}
    for key in dict.fromkeys(work.key for work in works):
        stage, phase = key
        if phase in SOLVING:
            wanted[key] = sizes["test"], 1
        elif phase in AFTER:
            asked = sizes["also" if phase == "also" else "test"]
            asked = min(config.eval.drift or 0, asked) if phase == "drift" else asked
            wanted[key] = asked, rounds + (phase != "drift")
        else:
            there = len({work.step.number for work in works if work.key[0] == stage and work.key[1] not in AFTER})
            share = sum(work.key == key for work in works) / there
            at = sizes["dev"] if phase == "adapt" else _in_a_pass(found, works, stage)
            wanted[key] = at, share * sum(step.stage == stage for step in passes)
    return wanted


def _in_a_pass(found: Probe, works: Sequence[Work], name: str) -> float:
    """The problems of a pass of this stage in the whole run."""
    stage, train = found.config.stages[name], found.sizes["train"]
    if stage.of is not None:
        of = found.config.stages[stage.of]
        return _in_a_pass(found, works, stage.of) * (1 if of.parts == stage.parts else of.parts)
    if stage.problems is None:
        return train / stage.parts
    here = [work.problems for work in works if work.key[0] == name and work.key[1] not in (*AFTER, "adapt")]
    grown = sum(here) / len(here) * train / found.runs[-1][1]["train"] if here else 0.0
    return min(grown, stage.problems.get("count") or math.inf)


def _spread(path: Path) -> float:
    """The relative error of the mean of problems' sampled tokens, in the run of this folder."""
    errors = []
    for file in [*path.glob("rounds/*/trajectories.parquet"), *path.glob("solver/trajectories.parquet")]:
        by_problem: Counter[str] = Counter()
        for trajectory in store.read_records(file, Trajectory):
            by_problem[trajectory.problem_id] += trajectory.sampled_tokens
        values = np.array(list(by_problem.values()), dtype=float)
        if len(values) > 1 and values.any():
            errors.append(float(values.std(ddof=1) / values.mean() / math.sqrt(len(values))))
    return max(errors, default=0.0)


def _disk(found: Probe, works: Sequence[Work]) -> float:
    """Bytes of the run folder at its end. Policies have one size, and tables grow with the problems."""
    config, (path, sizes, _) = found.config, found.runs[-1]
    size = {file: file.stat().st_size for file in path.rglob("*") if file.is_file()}
    if not configuration.learns(config):
        return sum(size.values()) * found.sizes["test"] / sizes["test"]
    disk = 0.0
    for stage, own in config.stages.items():
        passes = sum(step.stage == stage for step in plan(config))
        folders = {
            path / "rounds" / work.step.label
            for work in works
            if work.key[0] == stage and work.run == len(found.runs) - 1 and work.step.number >= 0
        }
        weights = max((sum(n for file, n in size.items() if f / "policy" in file.parents) for f in folders), default=0)
        state = max((sum(n for file, n in size.items() if f / "state" in file.parents) for f in folders), default=0)
        tables = sum(n for file, n in size.items() if file.parent in folders and file.suffix == ".parquet") / max(
            1, len(folders)
        )
        here = next((w.problems for w in works if w.run == len(found.runs) - 1 and w.key == (stage, "generate")), 0.0)
        grown = _in_a_pass(found, works, stage) / here if here else 1.0
        disk += weights * math.ceil(passes / (own.keep or 1)) + state + tables * grown * passes
    tested = sum(n for file, n in size.items() if file.parent == path / "base" / "evaluation")
    return disk + (config.rounds + 1) * tested * found.sizes["test"] / sizes["test"]


def show(found: Probe) -> None:
    """Print the forecast."""
    from rich.table import Table

    from selfimprove.report.display import standard_output

    console, (cost, disk) = standard_output(), forecast(found)
    time = {**cost.seconds, "all": total(cost.seconds.values())}
    for name, rows in (("tokens", cost.tokens), ("seconds", time)):
        table = Table("", f"{name} [95 %]", box=None, pad_edge=False)
        for key, each in rows.items():
            table.add_row(key, f"{each.value:,.0f} [{each.low:,.0f}, {each.high:,.0f}]")
        console.print(table)
        console.print()
    console.print(f"folder: {disk / 1e9:.2f} GB", highlight=False)
    if (price := found.config.hardware.price_per_hour) is None:
        console.print("cost: hardware.price_per_hour is not set", highlight=False)
    else:
        value, low, high = (price * each / 3600 for each in time["all"])
        console.print(f"cost at {price:g} an hour: {value:,.2f} [{low:,.2f}, {high:,.2f}]", highlight=False)
    small = ", ".join(f"{max(sizes['train'], sizes['test'])}" for _, sizes, _ in found.runs)
    console.print(f"From small runs of {small} problems on this machine.", highlight=False)
