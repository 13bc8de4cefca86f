"""Does a policy that doubts answer better after learning from an example that it wrote itself?

Claims of Acikgoz et al. 2025 (arXiv 2510.07841), on requests in wordings that the shipped caller has seldom read. Its
margin and its first answer are the same in all arms, so they are computed once. An arm answers only the inputs that it
learns at. A check says that nothing changes at the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove import seeds
from selfimprove.config import compose
from selfimprove.datasets.toolcall import call, load, similar
from selfimprove.methods import tt_si
from selfimprove.policy import Policy, Tuning
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import PACKAGED
from selfimprove.report.statistics import mean_over_problems
from selfimprove.studies import Claim, Lab, as_check, difference, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import ByProblem, Groups, Solver, attempts, grader, solve, solved
from selfimprove.studies.staged import DEV_SEED, best_rates, bounded, percent
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem, Trajectory
from selfimprove.verify.answers import last
from selfimprove.verify.calls import check

COMMAND = "selfimprove study tt_si"
RATES = (1e-3, 3e-3, 1e-2)
TAUS = (0.95, 0.99, 0.999)
LEAST = 0.15  # share of dev requests that must be uncertain
MAX_TOKENS = 48

POOLED, TRAINED = "one adapter, the same examples", "one adapter, train problems"  # one for all inputs
ARMS: dict[str, dict[str, Any]] = {  # ways to learn at the uncertain inputs: options of tt_si.generate
    "tt_si": {},
    "tt_d": {"teacher": similar},
    "tt_icl": {"learn": "context"},
    POOLED: {},
    TRAINED: {},
}


def study(lab: Lab) -> Iterator[Claim]:
    size, dev = (40, 30) if lab.quick else (150, 60)
    engine = shipped(PACKAGED / "caller")
    sides = load(rare=1.0, prompt="{question}", train_size=200, dev_size=dev, heldout_size=size, seed=0)
    train, tried, heldout = ([p for p in sides if p.split == side] for side in ("train", "dev", "test"))
    first = begun(engine, tried)
    below = {tau: np.mean([u < tau for u in margins(first).values()]) for tau in TAUS}
    tau = next((tau for tau in TAUS if below[tau] >= LEAST), TAUS[-1])
    shares = ", ".join(f"{t:g}: {100 * share:.0f} %" for t, share in below.items())
    lab.note(f"dev requests that are uncertain, by tau: {shares}; chosen {tau:g}")
    doubtful = [p for p in tried if margins(first)[p.id] < tau]

    def on_dev(arm: str, rate: float) -> float:
        return overall([learnt(engine, arm, doubtful, train, DEV_SEED, rate)])

    tuned = {arm: arm for arm in ARMS if arm != "tt_icl"}
    rates = best_rates(lab, tuned, RATES, on_dev, f"accuracy on {len(doubtful)} uncertain requests", percent)
    first = begun(engine, heldout)
    before, u = solved(first, last), margins(first)
    uncertain = [p for p in heldout if u[p.id] < tau]
    yield gate(before, {p.id for p in uncertain})
    after = {
        arm: [learnt(engine, arm, uncertain, train, seed, rates.get(arm, RATES[0])) for seed in lab.seeds]
        for arm in ARMS
    }
    drawn = [random.Random(seed).sample(heldout, len(uncertain)) for seed in lab.seeds]
    chance = [learnt(engine, "tt_si", p, train, seed, rates["tt_si"]) for p, seed in zip(drawn, lab.seeds, strict=True)]
    lab.note(table(before, uncertain, after, chance))
    base = [{p.id: before[p.id] for p in uncertain} for _ in lab.seeds]
    all_own, all_chance = ([before | one for one in runs] for runs in (after["tt_si"], chance))
    own, pooled, gold = (after[name] for name in ("tt_si", POOLED, TRAINED))
    text = "learning where it doubts gains more than at inputs by chance"
    for claim, these, those, control in (
        ("after learning from its own example, an uncertain input is right more often", own, base, "before"),
        (text, all_own, all_chance, "as many by chance, all inputs"),
        ("an adapter for each input beats one for all", own, pooled, POOLED),
        ("it beats fine-tuning on as many train problems", own, gold, TRAINED),
        ("a perfect teacher's examples are better than its own", after["tt_d"], own, "tt_si"),
        ("training on the example beats showing it", own, after["tt_icl"], "tt_icl"),
    ):
        yield bounded(claim, difference(these, those), 0.0, control, COMMAND)
    yield from map(as_check, checks(engine, heldout, first, tau, rates["tt_si"], lab.seeds[0]))


def asking(seed: int, **options: Any) -> Solver:
    """TT-SI with these options."""

    async def one(problem: Problem, policy: Policy) -> list[Trajectory]:
        own = seeds.derive(seed, problem.id)
        return await tt_si.generate(problem, policy, ask=ask(), roles={}, seed=own, **options)

    return one


@cache
def ask() -> str:
    """How the shipped configuration asks for an example."""
    return str(compose(["method=tt_si"], needs=False).solver["ask"])


def run(engine: TransformersEngine, problems: Sequence[Problem], seed: int, solver: Solver) -> Groups:
    return attempts(problems, solve(solver, engine, problems, seed=seed, max_tokens=MAX_TOKENS), grader(check))


def begun(engine: TransformersEngine, problems: Sequence[Problem]) -> Groups:
    """First answers and margins: no input is uncertain."""
    return run(engine, problems, 0, asking(0, tau=0.0))


def margins(groups: Groups) -> dict[str, float]:
    return {group[0].problem.id: group[0].trajectory.metadata["margin"] for group in groups}


def learnt(
    engine: TransformersEngine, arm: str, problems: Sequence[Problem], train: Sequence[Problem], seed: int, rate: float
) -> ByProblem:
    """Which of these problems are right after learning at each of them."""
    lora = tt_si.Lora(learning_rate=rate)
    everywhere: dict[str, Any] = {"gate": "chance", "rate": 1.0}  # the margin has been asked for already
    policy = Policy(engine, seed)
    if arm == TRAINED:
        chosen = random.Random(seed).sample(list(train), len(problems))
        rows = [tt_si.row(p, (p.metadata["request"], call(p.gold or "")), policy) for p in chosen]
    else:
        found = run(engine, problems, seed, asking(seed, lora=lora, **everywhere, **ARMS[arm]))
        if arm != POOLED:
            return solved(found, last)
        rows = [tt_si.row(g[0].problem, pair, policy) for g in found for pair in g[0].trajectory.metadata["examples"]]
    random.Random(seed).shuffle(rows)
    tuning = Tuning(tuple(rows), **vars(lora), seed=seed)

    async def with_it(problem: Problem, policy: Policy) -> list[Trajectory]:
        return [Trajectory(problem.id, await policy.sample(problem.prompt, temperature=0, adapter=tuning))]

    return solved(run(engine, problems, seed, with_it), last)


def gate(before: ByProblem, uncertain: set[str]) -> Claim:
    """Whether the inputs below tau are those that the policy gets wrong."""
    low, high = ([value for name, value in before.items() if (name in uncertain) is side] for side in (True, False))
    below, above = mean_over_problems(low), mean_over_problems(high)
    claim = "an uncertain input is right less often than a certain one"
    gap = above.value - below.value
    width = float(np.hypot(above.value - above.low, below.high - below.value))
    over = float(np.hypot(above.high - above.value, below.value - below.low))
    return Claim(claim, gap - width > 0, gap, (gap - width, gap + over), "certain inputs", COMMAND)


def table(
    before: ByProblem, uncertain: Sequence[Problem], after: Mapping[str, list[ByProblem]], chance: list[ByProblem]
) -> Table:
    count, whole = len(uncertain), overall([before])
    rows = {"before": (overall([{p.id: before[p.id] for p in uncertain}]), whole)}
    rows |= {name: (overall(runs), overall([before | one for one in runs])) for name, runs in after.items()}
    rows["tt_si at inputs by chance"] = float("nan"), overall([before | one for one in chance])
    return arms_table(
        f"Held-out requests in rare wordings: {len(before)}, of which {count} are uncertain; means over seeds",
        rows,
        {
            "uncertain inputs right": lambda arm: "" if np.isnan(arm[0]) else f"{100 * arm[0]:.1f} %",
            "all inputs right": lambda arm: f"{100 * arm[1]:.1f} %",
            "points for 100 examples": lambda arm: f"{100 * (arm[1] - whole) / count * 100:+.2f}",
        },
    )


def checks(
    engine: TransformersEngine, problems: Sequence[Problem], first: Groups, tau: float, rate: float, seed: int
) -> Iterator[Claim]:
    """What must hold for any policy: certain inputs keep their answers, and no adapter leaves a trace."""
    some = problems[:40]

    async def score(problem: Problem, policy: Policy) -> list[Trajectory]:
        ids = policy.render(problem.prompt)
        said = policy.encode(call(problem.gold or ""))
        return [Trajectory(problem.id, [], {"logprobs": await policy.logprobs(ids, said)})]

    def scores() -> list[list[float]]:
        return [group[0].metadata["logprobs"] for group in solve(score, engine, some)]

    known = scores()
    found = run(engine, some, seed, asking(seed, tau=tau, lora=tt_si.Lora(learning_rate=rate)))
    pairs = [(a[-1].trajectory, b[-1].trajectory) for a, b in zip(found, first, strict=False)]
    certain = [(now, then) for now, then in pairs if then.metadata["margin"] >= tau]
    same = sum(now.samples[-1].completion_ids == then.samples[-1].completion_ids for now, then in certain)
    text, value = "certain inputs keep their answers, to the token", f"{same} of {len(certain)}"
    yield Claim(text, same == len(certain), value, None, "their first answers", COMMAND)
    text = "log-probabilities after adapters are those before, to the bit"
    yield Claim(text, scores() == known, f"{len(known)} inputs", None, "before any adapter", COMMAND)
