"""Does a policy that doubts answer better after learning from an example that it wrote itself?

Claims of Acikgoz et al. 2025 (arXiv 2510.07841), on requests in wordings that the shipped caller has seldom read. Its
margin and its first answer are the same in all arms, so they are computed once. An arm answers only the inputs that it
learns at. A check says that nothing changes at the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from selfimprove.studies import Claim, Lab, as_check, difference
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import ByProblem, solve
from selfimprove.studies.staged import DEV_SEED, bounded
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem, Trajectory
from selfimprove.verify.calls import check

COMMAND = "selfimprove study tt_si"
RATES = (1e-3, 3e-3, 1e-2)
TAUS = (0.95, 0.99, 0.999)
LEAST = 0.15  # share of dev requests that must be uncertain
MAX_TOKENS = 48

Found = dict[str, list[Trajectory]]  # by problem


@dataclass
class Arm:
    """One way to learn at the uncertain inputs."""

    options: dict[str, Any] = field(default_factory=dict)  # of tt_si.generate
    pooled: str = ""  # one adapter for all inputs, on examples that tt_si wrote (`own`) or on train problems (`gold`)


POOLED = "one adapter, the same examples", "one adapter, train problems"
ARMS = {
    "tt_si": Arm(),
    "tt_d": Arm({"teacher": similar}),
    "tt_icl": Arm({"learn": "context"}),
    POOLED[0]: Arm(pooled="own"),
    POOLED[1]: Arm(pooled="gold"),
}


def study(lab: Lab) -> Iterator[Claim]:
    size, dev = (40, 30) if lab.quick else (150, 60)
    engine = shipped(PACKAGED / "caller")
    sides = load(rare=1.0, prompt="{question}", train_size=200, dev_size=dev, heldout_size=size, seed=0)
    train, tried, heldout = ([p for p in sides if p.split == side] for side in ("train", "dev", "test"))
    first = begun(engine, tried)
    tau = next((t for t in TAUS if np.mean([u < t for u in margins(first).values()]) >= LEAST), TAUS[-1])
    shares = ", ".join(f"{t:g}: {100 * np.mean([u < t for u in margins(first).values()]):.0f} %" for t in TAUS)
    lab.note(f"dev requests that are uncertain, by tau: {shares}; chosen {tau:g}")
    doubtful = [p for p in tried if margins(first)[p.id] < tau]
    rates = {}
    for name, arm in ARMS.items():
        if arm.options.get("learn") == "context":
            continue
        scores = {rate: mean(learnt(engine, arm, doubtful, train, DEV_SEED, rate)) for rate in RATES}
        rates[name] = max(scores, key=lambda rate: (scores[rate], -rate))
        shown = ", ".join(f"{rate:g}: {100 * value:.1f} %" for rate, value in scores.items())
        lab.note(f"{name}: {len(doubtful)} uncertain dev requests right, by rate: {shown}; chosen {rates[name]:g}")
    first = begun(engine, heldout)
    before, u = answers(heldout, first), margins(first)
    uncertain = [p for p in heldout if u[p.id] < tau]
    yield gate(before, {p.id for p in uncertain})
    after = {
        name: [learnt(engine, arm, uncertain, train, seed, rates.get(name, RATES[0])) for seed in lab.seeds]
        for name, arm in ARMS.items()
    }
    drawn = [random.Random(seed).sample(heldout, len(uncertain)) for seed in lab.seeds]
    chance = [learnt(engine, Arm(), p, train, seed, rates["tt_si"]) for p, seed in zip(drawn, lab.seeds, strict=True)]
    lab.note(table(before, uncertain, after, chance))
    base = [{p.id: before[p.id] for p in uncertain} for _ in lab.seeds]
    everywhere = [[before | one for one in runs] for runs in (after["tt_si"], chance)]
    own, pooled, gold = (after[name] for name in ("tt_si", *POOLED))
    claims: list[tuple[str, list[ByProblem], list[ByProblem], str]] = [
        ("after learning from its own example, an uncertain input is right more often", own, base, "before"),
        (
            "learning where it doubts gains more than at inputs by chance",
            everywhere[0],
            everywhere[1],
            "as many by chance, all inputs",
        ),
        ("an adapter for each input beats one for all", own, pooled, POOLED[0]),
        ("it beats fine-tuning on as many train problems", own, gold, POOLED[1]),
        ("a perfect teacher's examples are better than its own", after["tt_d"], own, "tt_si"),
        ("training on the example beats showing it", own, after["tt_icl"], "tt_icl"),
    ]
    for claim, these, those, control in claims:
        yield bounded(claim, difference(these, those), 0.0, control, COMMAND)
    yield from map(as_check, checks(engine, heldout, first, tau, rates["tt_si"], lab.seeds[0]))


def solver(seed: int, **options: Any) -> Any:
    """TT-SI with these options, as `solve` takes it."""

    async def one(problem: Problem, policy: Policy) -> list[Trajectory]:
        own = seeds.derive(seed, problem.id)
        return await tt_si.generate(problem, policy, ask=ask(), roles={}, seed=own, **options)

    return one


@cache
def ask() -> str:
    """How the shipped configuration asks for an example."""
    node = compose(["method=rejection_sampling", "generate=tt_si", "dataset=toolcall", "model=caller"]).generate
    assert node is not None
    return str(node["ask"])


def run(engine: TransformersEngine, problems: Sequence[Problem], seed: int, **options: Any) -> Found:
    found = solve(solver(seed, **options), engine, problems, seed=seed, max_tokens=MAX_TOKENS)
    return {problem.id: group for problem, group in zip(problems, found, strict=True)}


def begun(engine: TransformersEngine, problems: Sequence[Problem]) -> Found:
    """First answers and margins: no input is uncertain."""
    return run(engine, problems, 0, tau=0.0)


def margins(found: Found) -> dict[str, float]:
    return {name: group[0].metadata["margin"] for name, group in found.items()}


def answers(problems: Sequence[Problem], found: Found) -> ByProblem:
    """Which last answers are right."""
    return {p.id: float(check(found[p.id][-1].text, p.gold, p.metadata).status == "correct") for p in problems}


def learnt(
    engine: TransformersEngine, arm: Arm, problems: Sequence[Problem], train: Sequence[Problem], seed: int, rate: float
) -> ByProblem:
    """Which of these problems are right after learning at each of them."""
    lora = tt_si.Lora(learning_rate=rate)
    everywhere: dict[str, Any] = {"gate": "chance", "rate": 1.0}  # the margin has been asked for already
    found = run(engine, problems, seed, lora=lora, **everywhere, **arm.options) if arm.pooled != "gold" else {}
    if not arm.pooled:
        return answers(problems, found)
    policy = Policy(engine, seed)
    if arm.pooled == "own":
        rows = [tt_si.row(p, pair, policy) for p in problems for pair in found[p.id][0].metadata["examples"]]
    else:
        chosen = random.Random(seed).sample(list(train), len(problems))
        rows = [tt_si.row(p, (p.metadata["request"], call(p.gold or "")), policy) for p in chosen]
    random.Random(seed).shuffle(rows)
    tuning = Tuning(tuple(rows), **vars(lora), seed=seed)

    async def with_it(problem: Problem, policy: Policy) -> list[Trajectory]:
        return [Trajectory(problem.id, await policy.sample(problem.prompt, temperature=0, adapter=tuning))]

    given = solve(with_it, engine, problems, seed=seed, max_tokens=MAX_TOKENS)
    return answers(problems, {p.id: group for p, group in zip(problems, given, strict=True)})


def mean(values: ByProblem) -> float:
    return float(np.mean(list(values.values())))


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
    count = len(uncertain)
    base = mean({p.id: before[p.id] for p in uncertain})
    rows: dict[str, tuple[float, float]] = {"before": (base, mean(before))}
    for name, runs in after.items():
        rows[name] = np.mean([mean(r) for r in runs]).item(), np.mean([mean(before | r) for r in runs]).item()
    rows["tt_si at inputs by chance"] = float("nan"), np.mean([mean(before | r) for r in chance]).item()
    whole = mean(before)
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
    engine: TransformersEngine, problems: Sequence[Problem], first: Found, tau: float, rate: float, seed: int
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
    found = run(engine, some, seed, tau=tau, lora=tt_si.Lora(learning_rate=rate))
    certain = [p for p in some if margins(first)[p.id] >= tau]
    same = sum(
        found[p.id][-1].samples[-1].completion_ids == first[p.id][-1].samples[-1].completion_ids for p in certain
    )
    text, value = "certain inputs keep their answers, to the token", f"{same} of {len(certain)}"
    yield Claim(text, same == len(certain), value, None, "their first answers", COMMAND)
    text = "log-probabilities after adapters are those before, to the bit"
    yield Claim(text, scores() == known, f"{len(known)} inputs", None, "before any adapter", COMMAND)
