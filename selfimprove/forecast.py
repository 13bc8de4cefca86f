"""What a run will cost in tokens and seconds, from passes that were measured.

`selfimprove doctor --probe` measures small runs (`probing.py`). A run measures its own first round, and keeps what it
expected of the rest in forecast.json.

A count of tokens grows with the number of problems, unless it hardly did between two small runs. Seconds are read in
two ways. Either each further problem costs as much as the extra problems of the larger small run did. Or it costs what
that run took on average. Batches get fuller with more problems, up to a point, so the truth lies between the two. The
forecast is the middle.

The interval begins with the two readings. It is widened for what nobody can know beforehand. The measured problems may
be short or long ones: their spread, over the root of their number. A round differs from the one before as the policy
learns: by CHANGE, and these differences add up like the steps of a random walk. The machine may be faster or slower
than it was: by SPEED. The squares of the three are added, and 1.96 times the root is taken. Phases are added up as if
all of them erred in the same direction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selfimprove import integrity, store
from selfimprove.plan import AFTER, BASE, PHASES, Pass, plan, sources
from selfimprove.report.expected import EVALUATED, KINDS, SOLVING, Expected, counted, total
from selfimprove.report.statistics import Z
from selfimprove.schema import Config

CHANGE = 0.2  # between two rounds, in the logarithm of a cost
SPEED = 0.1  # between two times on one machine, in the logarithm of seconds

Key = tuple[str, str]  # a stage and a phase; phases at the end of a round have no stage


@dataclass(frozen=True)
class Work:
    """One phase of one pass: over how many problems it went, and what it took."""

    key: Key
    run: int  # of several small runs, the smallest first
    step: Pass
    problems: float
    seconds: float
    tokens: dict[str, float]
    once: float = 0.0  # seconds that are not needed again, such as those of imports


@dataclass(frozen=True)
class Forecast:
    """tokens: by kind. seconds: by phase."""

    tokens: dict[str, Expected]
    seconds: dict[str, Expected]


# What was measured


def measured(run: store.Run, config: Config, sizes: Mapping[str, int], number: int = 0) -> list[Work]:
    """What the finished phases of a run took. `sizes`: the problems of each side, `test` and `also` being evaluated."""
    passes, found = plan(config), list[Work]()
    inside = not (config.hardware.training.own_process or config.hardware.training.processes > 1)
    for step in (BASE, *passes):
        for phase in PHASES if step.number >= 0 else (*AFTER, *SOLVING):
            if (manifest := run.manifest(step, phase)) is None:
                continue
            metrics, seconds = manifest["metrics"], manifest["seconds"]
            trains = phase == "train" and inside and "seconds" in metrics
            once = max(0.0, seconds - metrics["seconds"]) if trains else 0.0  # imports, in the first pass
            seconds += manifest.get("seconds_hashing", 0.0) - once
            key = ("" if phase in AFTER else step.stage, phase)
            at = _problems(run, config, passes, step, phase, sizes)
            found.append(Work(key, number, step, at, seconds, counted(phase, metrics), once))
    return found


def _problems(
    run: store.Run, config: Config, passes: Sequence[Pass], step: Pass, phase: str, sizes: Mapping[str, int]
) -> float:
    if phase in ("adapt", "also"):
        return sizes["dev" if phase == "adapt" else "also"]
    if phase == "drift":
        return min(config.eval.drift or 0, sizes["test"])
    if step.number < 0 or phase == "evaluate":
        return sizes["test"]
    return sum(_of_pass(run, each, sizes["train"]) for each in sources(config, passes, step))


def _of_pass(run: store.Run, step: Pass, train: int) -> int:
    if manifest := run.manifest(step, "problems"):
        return int(manifest["metrics"]["problems"])
    return (step.part + 1) * train // step.parts - step.part * train // step.parts


# What is expected


def expect(
    works: Sequence[Work], wanted: Mapping[Key, tuple[float | None, float]], rounds: int, spread: float = 0.0
) -> Forecast:
    """The cost of `wanted`: for each phase the problems of a pass (None: as measured), and the number of passes.

    `rounds`: how many rounds are forecast. `spread`: the relative error of a mean over the measured problems.
    """
    groups = defaultdict[Key, list[Work]](list)
    for work in works:
        groups[work.key].append(work)
    change = CHANGE * math.sqrt(rounds / 3)  # of the mean over a random walk of so many steps
    tokens, seconds = defaultdict[str, list[Expected]](list), defaultdict[str, list[Expected]](list)
    for key, (problems, times) in wanted.items():
        sizes = sorted({work.problems for work in groups[key]})[-2:]
        if problems is None:
            small, large = None, _mean(groups[key], sizes)
        else:
            small, large = _mean(groups[key], sizes[:1]) if len(sizes) > 1 else None, _mean(groups[key], sizes[-1:])
        at = large.problems if problems is None else problems
        counts = {kind: _count(small, large, kind, at) for kind in large.tokens}
        for kind, count in counts.items():
            tokens[kind].append(_widened(times * count, times * count, math.hypot(spread, change)))
        low, high = _seconds(small, large, at, counts)
        each = _widened(times * low, times * high, math.hypot(spread, change, SPEED))
        if problems is not None:  # else the run has begun, and what is done once is done
            first = groups[key][0]
            begin = max(0.0, first.seconds - _seconds(small, large, first.problems, first.tokens)[1]) + first.once
            each = Expected(*(begin + end for end in each))
        seconds[key[1]].append(each)
    by_kind = {kind: total(tokens[kind]) for kind in KINDS if kind in tokens}
    by_phase = {phase: total(seconds[phase]) for phase in (*PHASES, *SOLVING) if phase in seconds}
    return Forecast({kind: found for kind, found in by_kind.items() if found.value}, by_phase)


def _mean(works: Sequence[Work], sizes: Sequence[float]) -> Work:
    """The mean over the passes of these sizes.

    The very first one is left out if there are others, as it may have taken more.
    """
    chosen = [work for work in works if work.problems in sizes]
    chosen = [work for work in chosen if work is not works[0]] or chosen
    n, kinds = len(chosen), chosen[0].tokens
    tokens = {kind: sum(work.tokens.get(kind, 0.0) for work in chosen) / n for kind in kinds}
    problems, seconds = (sum(getattr(work, name) for work in chosen) / n for name in ("problems", "seconds"))
    return Work(chosen[0].key, chosen[0].run, chosen[0].step, problems, seconds, tokens)


def _count(small: Work | None, large: Work, kind: str, problems: float) -> float:
    """Tokens of a pass over so many problems."""
    count = large.tokens[kind]
    return count if not large.problems or _fixed(small, large, kind) else count * problems / large.problems


def _fixed(small: Work | None, large: Work, kind: str) -> bool:
    """Whether a count of tokens hardly grew with the number of problems: less than its root."""
    before = small.tokens.get(kind, 0.0) if small else 0.0
    if small is None or not before or small.problems >= large.problems:
        return False
    return large.tokens[kind] / before < math.sqrt(large.problems / small.problems)


def _seconds(small: Work | None, large: Work, problems: float, counts: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of a pass over so many problems, in the two ways. Training goes by its tokens."""
    wanted, most, least = problems, large.problems, small.problems if small else 0.0
    if "trained" in large.tokens:
        wanted, most, least = (
            each.get("trained", 0.0) for each in (counts, large.tokens, small.tokens if small else {})
        )
    sampled = next((kind for kind in ("sampled", EVALUATED) if kind in large.tokens), None)
    if wanted == most or not most or large.key[1] == "handover" or (sampled and _fixed(small, large, sampled)):
        return large.seconds, large.seconds
    average = large.seconds * wanted / most
    if small is None or least >= most:
        return min(average, large.seconds), max(average, large.seconds)
    slope = max(0.0, large.seconds - small.seconds) / (most - least)
    further = max(0.0, large.seconds + slope * (wanted - most))
    return (min(further, average), max(further, average)) if wanted > most else (further, further)


def _widened(low: float, high: float, spread: float) -> Expected:
    factor = math.exp(Z * spread)
    return Expected((low + high) / 2, low / factor, high * factor)


# What a run expects of itself


def due(config: Config) -> int | None:
    """The number of passes after which a run says what is left; None: never.

    That is after the first round. A run of one round says it after a tenth of its passes, and three at least, if every
    stage that is left has had one.
    """
    passes = _to_come(config, 0)
    if passes and passes[-1].round:
        return next(step.number + 1 for step in passes if step.ends_round)
    for count in range(max(3, math.ceil(len(passes) / 10)), len(passes)):
        if {step.stage for step in passes[count:]} <= {step.stage for step in passes[:count]}:
            return count
    return None


def _to_come(config: Config, done: int) -> list[Pass]:
    """The passes of a run that its budget of rounds allows, without the first ones."""
    most = config.budget.rounds or config.rounds
    return [step for step in plan(config)[done:] if step.round < most]


def left(run: store.Run, config: Config, sizes: Mapping[str, int], done: int) -> dict[str, Any]:
    """What the passes of a run behind the first ones are expected to take, for forecast.json."""
    works = [work for work in measured(run, config, sizes) if work.step.number < done]
    there, to_come = plan(config)[:done], _to_come(config, done)
    ends = sum(step.ends_round for step in to_come)
    wanted = dict[Key, tuple[float | None, float]]()
    for key in dict.fromkeys(work.key for work in works):
        if key[1] in AFTER:
            wanted[key] = None, ends
            continue
        share = sum(work.key == key for work in works) / sum(step.stage == key[0] for step in there)
        wanted[key] = None, share * sum(step.stage == key[0] for step in to_come)
    found = expect(works, wanted, max(1, ends))
    unseen = sorted({step.stage for step in to_come} - {step.stage for step in there})
    after = f"round {there[-1].round}" if there[-1].ends_round else f"pass {done}"
    rounded = {
        name: {key: [round(end, 3) for end in each] for key, each in rows.items()}
        for name, rows in asdict(found).items()
    }
    return {"passes": [done, to_come[-1].number + 1], "after": after, "unseen": unseen, **rounded}


def keep(run: store.Run, config: Config, sizes: Mapping[str, int], done: int) -> dict[str, Any] | None:
    """Write forecast.json once the run is so far. Returns what is new in it; None: nothing."""
    if done != due(config) or store.read_or_none(run.path / integrity.FORECAST) is not None:
        return None
    found = left(run, config, sizes, done)
    store.write_sealed(run.path / integrity.FORECAST, found)
    return found
