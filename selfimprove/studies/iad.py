"""Does feedback from the scores find more than as many samples without it? On a policy whose chances are known exactly,
and on the shipped model; and does a policy learn more from what the feedback found?"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove import seeds
from selfimprove.binding import options_of
from selfimprove.config import compose
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.generate.critique import fill
from selfimprove.methods.iad import Candidate, decode
from selfimprove.policy import Policy, Prompt
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.report.curve import Rule, curve, final
from selfimprove.report.statistics import Estimate, difference
from selfimprove.studies import Claim, Lab, Result, advantage, claim_above, gain
from selfimprove.studies.solving import Check, attempts, plain, solve, traces
from selfimprove.types import Attempt, Message, Problem, Trajectory
from selfimprove.verify import Outcome, arithmetic
from selfimprove.verify.answers import best

COMMAND = "selfimprove study iad"
ITERATIONS, N, TEMPERATURE = 3, 4, 0.7
FLIPS = (0.0, 0.1, 0.2, 0.3, 0.4)  # p_flip
Chances = Mapping[str, float]  # of the kinds of an answer: right, near, far
Groups = list[list[Attempt]]


def study(lab: Lab) -> Iterator[Claim]:
    yield from scripted(lab)
    yield from tiny(lab)
    yield from trained(lab)


# Arms: the method with other feedback, and what its answer is


async def arm(
    problem: Problem,
    policy: Policy,
    *,
    prompt: list[Message],
    donors: Mapping[str, Candidate] | None = None,
    blind: bool = False,
    check: Callable[[str, Problem], Awaitable[Outcome]],
) -> list[Trajectory]:
    """The method, shown another problem's candidate (`donors`, by problem), or going by scores drawn at random."""
    rng = np.random.default_rng(seeds.derive(policy.seed, "blind", problem.id))

    async def score(text: str) -> float:
        return float(rng.random()) if blind else (await check(text, problem)).reward

    def ask(top: Candidate, bottom: Candidate) -> Prompt:
        shown = donors[problem.id] if donors else top
        more = {"score": f"{shown.score:.2f}", "worst": bottom.text, "worst_score": f"{bottom.score:.2f}"}
        return fill(prompt, problem, shown.text, **more)

    return await decode(problem, policy, ask, score, ITERATIONS, N, TEMPERATURE)


def by_score(group: Sequence[Attempt]) -> int:
    """The candidate that the method itself would answer with: of the highest score that it saw."""
    return max(range(len(group)), key=lambda i: (group[i].trajectory.metadata["score"], -i))


def neighbours(groups: Groups) -> dict[str, Candidate]:
    """For each problem the best candidate of the next one."""
    found = {}
    for group, other in zip(groups, [*groups[1:], groups[0]], strict=True):
        chosen = other[best(other) or 0]
        found[group[0].problem.id] = Candidate(chosen.trajectory, chosen.verdict.reward)
    return found


def flipped(check: Check, p_flip: float, seed: int) -> Check:
    """`check` whose reward r is 1 - r with probability p_flip, each time it is asked."""
    asked: Counter[str] = Counter()

    def noisy(text: str, problem: Problem) -> Outcome:
        outcome = check(text, problem)
        asked[problem.id] += 1
        draw = np.random.default_rng(seeds.derive(seed, "flip", problem.id, asked[problem.id])).random()
        return replace(outcome, reward=1 - outcome.reward) if draw < p_flip else outcome

    return noisy


def scored(groups: Groups, check: Check) -> Groups:
    """Plain samples, their `score` now that which `check` gives them."""
    for group in groups:
        for attempt in group:
            attempt.trajectory.metadata["score"] = check(attempt.trajectory.text, attempt.problem).reward
    return groups


def solved(groups: Groups, rule: Rule = best) -> dict[str, float]:
    """Problem id -> 1 where its answer is right in the end, else 0."""
    ends = [float(final(steps)) for steps in traces(groups, rule)]
    return {group[0].problem.id: value for group, value in zip(groups, ends, strict=True)}


def tokens_of(groups: Groups) -> float:
    """Sampled tokens a problem, on average."""
    return curve(traces(groups, best))[-1]["tokens"]


def share(runs: Sequence[dict[str, float]]) -> float:
    return float(np.mean([np.mean(list(run.values())) for run in runs]))


# The policy whose chances are known

FIRST: Chances = {"right": 0.1, "near": 0.225, "far": 0.675}  # p_correct .1, four wrong values of which one is near
AFTER: Mapping[str, Chances] = {
    "right": {"right": 1.0},
    "near": {"right": 0.5, "near": 0.5},
    "far": {"right": 0.1, "far": 0.9},  # no better than to start again
}
GRADED: Chances = {"right": 1.0, "near": 0.5, "far": 0.0}
SPARSE: Chances = {"right": 1.0, "near": 0.0, "far": 0.0}


def chance(after: Mapping[str, Chances], scores: Chances, p_flip: float = 0.0, oracle: bool = False) -> float:
    """The probability that the answer is right, exactly: the best so far is a Markov chain over its kind and score.

    `after` are a candidate's chances by the kind of answer that it was to improve on; FIRST for each is best-of-n.
    With `oracle` the noisy scores are feedback alone, and the answer is right where any candidate is.
    """
    states: dict[tuple[float, str], float] = {(-math.inf, ""): 1.0}
    for _ in range(ITERATIONS):
        following: dict[tuple[float, str], float] = defaultdict(float)
        for (top, kind), p in states.items():
            one: dict[tuple[float, str], float] = defaultdict(float)  # a candidate's score and kind
            for k, weight in (after[kind] if kind else FIRST).items():
                if not (oracle and k == "right"):
                    one[scores[k], k] += weight * (1 - p_flip)
                    one[1 - scores[k], k] += weight * p_flip
            below = 0.0
            for value in sorted({s for s, _ in one}):
                here = sum(weight for (s, _), weight in one.items() if s == value)
                highest = (below + here) ** N - below**N  # that the best of n candidates has this score
                for (s, k), weight in one.items():
                    if s == value and here:
                        following[(value, k) if value > top else (top, kind)] += p * highest * weight / here
                below += here
        states = dict(following)
    total = sum(states.values()) if oracle else sum(p for (_, kind), p in states.items() if kind != "right")
    return 1 - total


SAMPLED: Mapping[str, Chances] = dict.fromkeys(AFTER, FIRST)  # best-of-n


def margin(scores: Chances = GRADED, p_flip: float = 0.0, oracle: bool = False) -> float:
    """What the method finds more than best-of-n, exactly."""
    noise = 0.0 if oracle else p_flip
    return chance(AFTER, scores, p_flip, oracle) - chance(SAMPLED, scores, noise, oracle)


def toy(count: int) -> tuple[list[Problem], ScriptedEngine]:
    """Problems with whole-number answers 100 apart, and the policy above."""
    problems = [Problem(f"q{i}", f"Question {i}?", str(100 * i)) for i in range(count)]
    gold = {str(p.prompt): str(p.gold) for p in problems}
    return problems, ScriptedEngine(gold, 0.1, p_improve=(0.5, 0.1, 0.1, 0.1), wrong_values=4)


def distance(text: str, problem: Problem) -> Outcome:
    """1 for the right value, 0.5 for the one above it, else 0."""
    off = int(text.removeprefix(ANSWER)) - int(str(problem.gold))
    return Outcome("wrong" if off else "correct", {0: 1.0, 1: 0.5}.get(off, 0.0), str(off))


def scripted(lab: Lab) -> Iterator[Claim]:
    problems, engine = toy(200 if lab.quick else 1200)
    prompt = compose(["method=iad", "model=other", "model.path=none"], needs=False).solver["prompt"]

    def run(seed: int, check: Check = distance, **options: object) -> Groups:
        solver = partial(arm, prompt=prompt, **options)  # type: ignore[arg-type]
        return attempts(problems, solve(solver, engine, problems, seed=seed, check=check), distance)

    samples = partial(best_of_n, n=N * ITERATIONS, temperature=TEMPERATURE)
    bon = attempts(problems, solve(samples, engine, problems, seed=9), distance)
    real = run(0)
    shown = solved(real)
    base = solved(bon)

    exact = chance(AFTER, GRADED)
    found = difference([shown], [dict.fromkeys(shown, 0.0)])
    text = f"scripted policy: solved with feedback, {exact:.3f} by the closed form"
    yield Claim(text, found.low <= exact <= found.high, found.value, (found.low, found.high), "closed form", COMMAND)
    control = f"best-of-{N * ITERATIONS}, the same calls; by the closed form {margin():+.3f}"
    yield claim_above("scripted policy: more than best-of-n", difference([shown], [base]), control, COMMAND)
    other = run(1, donors=neighbours(real))
    nothing = difference([solved(other)], [base])
    text = "scripted policy: with another problem's feedback, as best-of-n"
    holds = nothing.low <= 0 <= nothing.high
    yield Claim(text, holds, nothing.value, (nothing.low, nothing.high), "best-of-n", COMMAND)

    table = Table("p_flip", "measured", "exact", "exact, answer by the true scores", title="Scripted: IAD - best-of-n")
    drawn, kept = [], []
    for p_flip in FLIPS:
        noisy = flipped(distance, p_flip, 2)
        ours = run(2, noisy)
        plainly = scored(bon, flipped(distance, p_flip, 3))
        gap = difference([solved(ours, by_score)], [solved(plainly, by_score)])
        drawn.append(margin(p_flip=p_flip))
        kept.append(margin(p_flip=p_flip, oracle=True))
        measured = f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        table.add_row(f"{p_flip}", measured, f"{drawn[-1]:+.3f}", f"{kept[-1]:+.3f}")
    lab.note(table)
    steps = ", ".join(f"{value:+.3f}" for value in drawn)
    text = f"scripted policy: the margin shrinks steadily as scores are flipped with p = {FLIPS}: {steps}"
    falls = all(np.diff(drawn) < 0)
    yield Claim(text, falls, drawn[-1] - drawn[0], None, "closed form; best-of-n has the same verifier", COMMAND)
    steps = ", ".join(f"{value:+.3f}" for value in kept)
    text = f"and as they are in the feedback alone: {steps}"
    control = "closed form; both answer by the true scores"
    yield Claim(text, all(np.diff(kept) < 0), kept[-1] - kept[0], None, control, COMMAND)
    less = margin(SPARSE)
    text = f"scripted policy: the margin is smaller where a verifier only tells right from wrong: {less:+.3f}"
    yield Claim(text, less < margin(), less - margin(), None, f"graded scores, {margin():+.3f}", COMMAND)


# The shipped model


def lines(text: str, problem: Problem) -> Outcome:
    """1 for a right answer, else the share of lines that are right."""
    return arithmetic.check(text, problem.gold, problem.metadata, partial=True)


def zero_one(text: str, problem: Problem) -> Outcome:
    return arithmetic.check(text, problem.gold, problem.metadata)


def tiny(lab: Lab) -> Iterator[Claim]:
    from selfimprove.datasets.arithmetic import load
    from selfimprove.policy.hf import TransformersEngine
    from selfimprove.policy.models import PACKAGED

    problems = load(seed=0, train_size=0, heldout_size=20 if lab.quick else 200)
    engine = TransformersEngine(str(PACKAGED / "tiny"), device="cpu", max_batch=256)
    options = options_of(compose(["method=iad", "model=tiny"], needs=False).solver)
    solver = partial(arm, prompt=options["prompt"])

    def run(seed: int, check: Check = lines, **more: object) -> Groups:
        return attempts(problems, solve(partial(solver, **more), engine, problems, seed=seed, check=check), lines)

    def every(**more: object) -> list[Groups]:
        return [run(seed, **more) for seed in lab.seeds]  # type: ignore[arg-type]

    real = every()
    tokens = float(np.mean([tokens_of(groups) for groups in real]))
    samples = partial(best_of_n, n=N * ITERATIONS, temperature=TEMPERATURE)
    arms = {
        "feedback": real,
        "random scores": every(blind=True),
        "another problem's": [
            run(seed, donors=neighbours(groups)) for seed, groups in zip(lab.seeds, real, strict=True)
        ],
        "right or wrong only": every(check=zero_one),
        f"best-of-{N * ITERATIONS}": [
            attempts(problems, solve(samples, engine, problems, seed=seed), lines) for seed in lab.seeds
        ],
        "best-of-n, equal tokens": [
            plain(engine, problems, lines, tokens, seed=seed, temperature=TEMPERATURE) for seed in lab.seeds
        ],
    }
    right = {name: [solved(g) for g in runs] for name, runs in arms.items()}
    lab.note(_table(arms, right))
    ours, calls = right["feedback"], right[f"best-of-{N * ITERATIONS}"]
    for name, control in (
        (f"best-of-{N * ITERATIONS}", "the same number of calls"),
        ("best-of-n, equal tokens", f"{tokens:.0f} sampled tokens a problem"),
        ("random scores", "a candidate chosen at random is shown as the best"),
    ):
        claimed = difference(ours, right[name])
        yield claim_above(f"shipped model: feedback finds more than {name}", claimed, control, COMMAND)
    blind = difference(right["random scores"], calls)
    text = "shipped model: with random scores, as best-of-n"
    holds = blind.low <= 0 <= blind.high
    yield Claim(text, holds, blind.value, (blind.low, blind.high), "the same number of calls", COMMAND)

    gaps = [_noisy(lab, run, arms[f"best-of-{N * ITERATIONS}"], p_flip) for p_flip in FLIPS[::2]]
    steps = ", ".join(f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" for gap in gaps)
    values = [gap.value for gap in gaps]
    text = f"shipped model: the margin shrinks as scores are flipped with p = {FLIPS[::2]}: {steps}"
    control = "best-of-n, the same calls and verifier"
    yield Claim(text, all(np.diff(values) < 0), values[-1] - values[0], None, control, COMMAND)


def _noisy(lab: Lab, run: Callable[..., Groups], samples: Sequence[Groups], p_flip: float) -> Estimate:
    ours, plainly = [], []
    for seed, groups in zip(lab.seeds, samples, strict=True):
        found = run(seed, flipped(lines, p_flip, seed))
        ours.append(solved(found, by_score))
        known = scored(groups, flipped(lines, p_flip, seed + 100))
        plainly.append(solved(known, by_score))
    return difference(ours, plainly)


def _table(arms: Mapping[str, Sequence[Groups]], right: Mapping[str, Sequence[dict[str, float]]]) -> Table:
    table = Table("arm", "solved, %", "after each iteration, %", "tokens a problem", title="Shipped model, held out")
    for name, runs in arms.items():
        stages = np.mean([[row["accuracy"] for row in curve(traces(groups, best))] for groups in runs], axis=0)
        tokens = np.mean([tokens_of(groups) for groups in runs])
        along = ", ".join(f"{100 * value:.1f}" for value in stages) if len(stages) > 1 else ""
        table.add_row(name, f"{100 * share(right[name]):.1f}", along, f"{tokens:.0f}")
    return table


# Training on what was found


def trained(lab: Lab) -> Iterator[Claim]:
    size = [f"dataset.train_size={20 if lab.quick else 150}", f"dataset.heldout_size={20 if lab.quick else 200}"]
    rounds = f"rounds={1 if lab.quick else 2}"
    method = "method=rejection_sampling"
    graded = ["verifier=arithmetic", "verifier.partial=true"]
    ours = lab.over_seeds(method, "generate=iad", "generate.temperature=1.0", *graded, *size, rounds)
    plainly = lab.over_seeds(method, "method.generate.n=14", *size, rounds)
    lab.note(_trained_table({"generate=iad": ours, "14 plain samples": plainly}))
    gained = gain(ours)
    yield claim_above("training on what the feedback found raises accuracy", gained, "start", ours[0].command)
    edge = advantage(ours, plainly)
    control = f"plain samples, about as many tokens: {gain(plainly).value:+.3f} over the start"
    holds = None if edge.low < 0 < edge.high else edge.low >= 0
    text = "more than training on plain samples does"
    yield Claim(text, holds, edge.value, (edge.low, edge.high), control, plainly[0].command)


def _trained_table(arms: Mapping[str, Sequence[Result]]) -> Table:
    table = Table("generate", "base", "after", "examples a round", "sampled tokens", title="Held out, means over seeds")
    for name, runs in arms.items():
        base, after = (np.mean([r.summary[key]["accuracy"] for r in runs]) for key in ("base", "final"))
        kept = np.mean([row["examples"] for r in runs for row in r.summary["rounds"]])
        tokens = np.mean([r.sampled_tokens for r in runs])
        table.add_row(name, f"{100 * base:.1f} %", f"{100 * after:.1f} %", f"{kept:.0f}", f"{tokens:,.0f}")
    return table
