"""`selfimprove doctor --probe KEY=VALUE...`: what a run will cost, from a small run on this machine.

The small run has the same configuration, a few problems and two rounds. The first round shows the cost of what is done
once, such as loading weights. The second shows the cost of each problem. Both are scaled to the whole run's problems.

The figures do not know that answers get longer or shorter as the policy learns. Nor do they know that batches are
fuller in the whole run, so the seconds are rather too high. Methods with stages have no forecast.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfimprove import store
from selfimprove.errors import ConfigError, RunError
from selfimprove.report.runs import RunData, answers
from selfimprove.report.statistics import Estimate, mean
from selfimprove.schema import Config
from selfimprove.types import Example

PROBLEMS = 16  # of each side, in the small run
SECONDS = 60.0  # limit of the whole probe
PHASES = ("generate", "verify", "filter", "train", "handover", "evaluate")
_WORDS = {
    "dataset.train_size": PROBLEMS,
    "dataset.heldout_size": PROBLEMS,
    "rounds": 2,
    "tracker": "none",
    "method.parts": 1,
    "eval.drift": "null",
    "hydra.run.dir": "",
}


@dataclass(frozen=True)
class Forecast:
    """tokens: sampled, read and trained on. seconds: by phase. disk: bytes of the run folder at its end."""

    tokens: dict[str, Estimate]
    seconds: dict[str, Estimate]
    disk: float

    def price(self, an_hour: float) -> tuple[float, float, float]:
        """The price of the seconds, with the ends of its interval."""
        ends = ([getattr(e, end) for e in self.seconds.values()] for end in ("value", "low", "high"))
        value, low, high = (an_hour * sum(each) / 3600 for each in ends)
        return value, low, high


def probe(overrides: Sequence[str], folder: Path, seconds: float = SECONDS) -> RunData:
    """The small run. Raises ConfigError if it is refused, and RunError if it does not end in time."""
    given = [word for word in overrides if word.partition("=")[0] not in _WORDS]
    words = [*given, *(f"{key}={value or folder}" for key, value in _WORDS.items())]
    program = [sys.executable, "-c", "from selfimprove.cli import main; main()", "run", *words]
    with subprocess.Popen(
        program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            what = f"two rounds of {PROBLEMS} problems"
            raise RunError(f"the probe ({what}) did not end within {seconds:g} s: this machine is too slow") from None
    if process.returncode:
        last = said.strip().splitlines()[-1:] or ["?"]
        raise ConfigError(f"the probe was refused: {last[0].removeprefix('selfimprove: ')}")
    return RunData(folder)


def forecast(run: RunData, config: Config, train: int, heldout: int) -> Forecast:
    """The whole run's cost, by the small one's. `train` and `heldout`: the whole run's problems of each side.

    Raises ConfigError for a method with stages.
    """
    if config.method.stages:
        raise ConfigError(f"method={config.method.name} has stages, and there is no forecast for stages")
    rounds, last = config.rounds, run.passes[1][0]
    here = answers(last)
    own = run.prompts("train")
    sampled = _by_problem(here["problem_id"].to_pylist(), here["sampled_tokens"].to_pylist(), own)
    read = _by_problem(here["problem_id"].to_pylist(), here["prompt_tokens"].to_pylist(), own)
    rows = list(store.read_records(run.files.file(last / "examples.parquet"), Example))
    epochs = int(config.method.train.get("epochs", 1)) if config.method.train else 1
    trained = _by_problem([row.problem_id for row in rows], [epochs * row.tokens for row in rows], own)
    tokens = {
        "sampled": _scaled(sampled, train * rounds),
        "prompt": _scaled(read, train * rounds),
        "trained": _scaled(trained, train * rounds),
    }
    if scored := run.tokens[1]["scored"]:  # only known for the whole round, so as uncertain as the sampled tokens
        all_of_it, share = scored * train / PROBLEMS * rounds, _shares(sampled)
        tokens["scored"] = Estimate(all_of_it, share[0] * all_of_it, share[1] * all_of_it, PROBLEMS)
    evaluated = answers(run.evaluations[-1])
    tested = _by_problem(
        evaluated["problem_id"].to_pylist(), evaluated["sampled_tokens"].to_pylist(), run.prompts("test")
    )
    tokens["sampled in evaluations"] = _scaled(tested, heldout * (rounds + 1))
    seconds = {}
    for phase in PHASES:
        first, second = (each.get(phase, 0.0) for each in run.seconds)
        per = {"evaluate": tested, "train": trained}.get(phase, sampled)
        count, times = (heldout, rounds + 1) if phase == "evaluate" else (train, rounds)
        share = _shares(per)
        once, each = max(0.0, first - second), second * (1 if phase == "handover" else count / PROBLEMS) * times
        seconds[phase] = Estimate(once + each, once + share[0] * each, once + share[1] * each, PROBLEMS)
    return Forecast(tokens, seconds, _disk(run, rounds, train, heldout))


def _by_problem(ids: Sequence[str], values: Sequence[float], problems: Sequence[str] | dict[str, str]) -> np.ndarray:
    """The sum for each problem, 0 for one without any."""
    total: Counter[str] = Counter()
    for name, value in zip(ids, values, strict=True):
        total[name] += int(value)
    return np.array([total[name] for name in problems], dtype=float)


def _scaled(values: np.ndarray, count: int) -> Estimate:
    one = mean(values, None)
    return Estimate(count * one.value, count * one.low, count * one.high, len(values))


def _shares(values: np.ndarray) -> tuple[float, float]:
    """The ends of a mean's interval, as shares of the mean."""
    one = mean(values, None)
    return (one.low / one.value, one.high / one.value) if one.value else (1.0, 1.0)


def _disk(run: RunData, rounds: int, train: int, heldout: int) -> float:
    """Bytes of the run folder at its end. All policies have one size, and answers grow with the problems."""
    last = run.passes[1][0]
    policy = sum(file.stat().st_size for file in (last / "policy").rglob("*") if file.is_file())
    learned = sum(file.stat().st_size for file in last.glob("*.parquet"))
    tested = sum(file.stat().st_size for file in (last / "evaluation").glob("*.parquet"))
    return rounds * (policy + learned * train / PROBLEMS) + (rounds + 1) * tested * heldout / PROBLEMS


def show(found: Forecast, config: Config) -> None:
    """Print the forecast."""
    from rich.table import Table

    from selfimprove.report.display import standard_output

    console = standard_output()
    for name, rows in (("tokens", found.tokens), ("seconds", found.seconds)):
        table = Table("", f"{name} [95 %]", box=None, pad_edge=False)
        for key, each in rows.items():
            table.add_row(key, f"{each.value:,.0f} [{each.low:,.0f}, {each.high:,.0f}]")
        if name == "seconds":
            total = [sum(getattr(e, end) for e in rows.values()) for end in ("value", "low", "high")]
            table.add_row("all", f"{total[0]:,.0f} [{total[1]:,.0f}, {total[2]:,.0f}]")
        console.print(table)
        console.print()
    console.print(f"run folder: {found.disk / 1e9:.2f} GB", highlight=False)
    if (price := config.hardware.price_per_hour) is None:
        console.print("cost: hardware.price_per_hour is not set", highlight=False)
    else:
        value, low, high = found.price(price)
        console.print(f"cost at {price:g} an hour: {value:,.2f} [{low:,.2f}, {high:,.2f}]", highlight=False)
    console.print(
        f"From a probe of {PROBLEMS} problems and two rounds on this machine. Intervals are over its problems alone.",
        highlight=False,
    )
