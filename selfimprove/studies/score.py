"""Does SCoRe teach a policy to correct itself where fine-tuning on corrections and plain two-turn RL do not?

Claims of Kumar et al. 2024 (arXiv 2409.12917), on chains of arithmetic, for a policy that has unlearnt most of its
skill of refining. The arms of RL have as many dialogues and optimizer steps. Each arm has the learning rate that is
best on dev after one round; the control of order has that of SCoRe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.drift import kl
from selfimprove.generate.turns import by_turn
from selfimprove.report.statistics import ratio
from selfimprove.studies import Claim, Lab, Result, difference
from selfimprove.studies.arms import arms_table, run_arms, tuned
from selfimprove.studies.made import anew
from selfimprove.studies.solving import ByProblem, Solver, solve, solved, waiting
from selfimprove.studies.staged import (
    GRADE,
    MAX_TOKENS,
    answers_of,
    at_stage,
    below,
    bounded,
    chosen_rates,
    heldout_attempts,
    heldout_problems,
    minus,
    votes,
)
from selfimprove.studies.tiny import shipped
from selfimprove.types import Sample
from selfimprove.verify.answers import last

COMMAND = "selfimprove study score"
RATES = (1e-4, 3e-4)
ORDER = "I once, II once"
PROBLEMS = 12  # of an optimizer step
CORRECTS = 0.03  # a second answer that gains less is no correction


def arms(parts: int) -> dict[str, list[str]]:
    """What each arm changes, where SCoRe has two rounds of `parts` steps of stage I and as many of stage II."""

    def steps(n: int) -> list[str]:
        return [f"method.stages.one.parts={n}", f"method.stages.two.parts={n}", f"method.keep={n}"]

    imitation = ["~method.stages.one", "~method.stages.two", "filter=corrections", "train=sft"]
    return {
        "SCoRe": steps(parts),
        ORDER: [*steps(2 * parts), "rounds=1"],
        "plain RL": ["~method.stages.one", *steps(2 * parts)[1:], "method.stages.two.filter.shape.alpha=0"],
        "imitation": [*imitation, "train.learning_rate=${method.train.learning_rate}",
                      f"method.problems.count={2 * parts * PROBLEMS}"],
    }  # fmt: skip


def study(lab: Lab) -> Iterator[Claim]:
    train, dev, heldout, parts = (64, 20, 30, 1) if lab.quick else (500, 200, 240, 4)
    start = str(anew.make(lab.folder, *([60] if lab.quick else [])).absolute())
    common = ["method=score", f"model.path={start}", "rounds=2", f"dataset.train_size={train}",
              f"method.problems.count={PROBLEMS}",
              f"dataset.levels=[{','.join(map(str, anew.LEVELS))}]"]  # fmt: skip
    solver = partial(by_turn, turns=2, ask=anew.ASK, check=waiting(GRADE))
    own = arms(parts)
    trials = {name: overrides for name, overrides in own.items() if name != ORDER}
    chosen = dict.fromkeys(own, RATES[0])
    if not lab.quick:
        chosen |= chosen_rates(lab, [*common, "rounds=1"], trials, RATES, solver, last, dev, anew.LEVELS)
    chosen[ORDER] = chosen["SCoRe"]
    runs = run_arms(lab, [*common, f"dataset.heldout_size={heldout}"], tuned(own, chosen))
    lab.note(table(runs))
    first = {arm: [at_stage(r, 1) for r in found] for arm, found in runs.items()}
    second = {arm: [at_stage(r, 2) for r in found] for arm, found in runs.items()}
    gained = {arm: [minus(b, a) for a, b in zip(first[arm], second[arm], strict=True)] for arm in runs}
    base = {turn: [at_stage(r, turn, "base") for r in runs["SCoRe"]] for turn in (1, 2)}
    held = [after_stage_one(r, start, solver) for r in runs["SCoRe"]]
    for arm, name in (("imitation", "fine-tuning on corrections"), ("plain RL", "plain two-turn RL")):
        claim = f"after {name} second answers gain less than {100 * CORRECTS:.0f} points on first ones"
        yield below(claim, difference(second[arm], first[arm]), CORRECTS, "its first answers", COMMAND)
    away = ratio(np.concatenate([nats for _, nats, _ in held]), np.concatenate([tokens for _, _, tokens in held]))
    for claim, estimate, least, control in (
        (
            "plain two-turn RL says more than 80 % of its answers a second time, word for word",
            difference([repeated(r) for r in runs["plain RL"]], [minus(one, one) for one in first["plain RL"]]),
            0.8,
            "",
        ),
        (
            f"after SCoRe second answers are at least {100 * CORRECTS:.0f} points above first ones",
            difference(second["SCoRe"], first["SCoRe"]),
            CORRECTS,
            "its first answers",
        ),
        (
            "this gain is above that after plain two-turn RL",
            difference(gained["SCoRe"], gained["plain RL"], (-1.0, 1.0)),
            0.0,
            "plain RL: equal dialogues and steps",
        ),
        (
            "second answers are better than after plain two-turn RL",
            difference(second["SCoRe"], second["plain RL"]),
            0.0,
            "plain RL: equal dialogues and steps",
        ),
        (
            "second answers are better than after fine-tuning on corrections",
            difference(second["SCoRe"], second["imitation"]),
            0.0,
            "imitation: equal dialogues",
        ),
        (
            "first answers are not more than 1 point below those of the start",
            difference(first["SCoRe"], base[1]),
            -0.01,
            "base policy, turn 1",
        ),
        (
            "second answers have risen when the first stage I ends",
            difference([right for right, _, _ in held], base[2]),
            0.0,
            "base policy, turn 2",
        ),
        (
            "stages that take turns give better second answers than stage I once, then stage II",
            difference(second["SCoRe"], second[ORDER]),
            0.0,
            "as many steps of both stages",
        ),
    ):
        yield bounded(claim, estimate, least, control, COMMAND)
    yield below(
        "first answers are within .05 nats a token of the base policy's when the first stage I ends",
        away,
        0.05,
        "base policy",
        COMMAND,
    )


def after_stage_one(result: Result, base: str, solver: Solver) -> tuple[ByProblem, np.ndarray, np.ndarray]:
    """The policy with which the first stage I ends: the held-out problems that its second answers solve, and of first
    answers to 100 of them the nats between it and the base policy, and the tokens."""
    path = str(max(result.path.glob("rounds/000.0_one*/policy"), key=lambda folder: folder.parent.name))
    problems = heldout_problems(result)
    answers = answers_of(path, problems, solver)
    drawn = solve(votes(1), shipped(path), problems[:100], max_tokens=MAX_TOKENS)
    samples = [trajectory.samples[0] for (trajectory,) in drawn]
    nats = [kl(s.logprobs, b) for s, b in zip(samples, scored(base, samples), strict=True)]
    return solved(answers, last), np.array(nats), np.array([float(len(s.completion_ids)) for s in samples])


def scored(path: str, samples: Sequence[Sample]) -> list[list[float]]:
    """The log-probabilities that a policy gives to the tokens of samples."""
    engine = shipped(path)

    async def everything() -> list[list[float]]:
        return await asyncio.gather(*(engine.logprobs(s.prompt_ids, s.completion_ids) for s in samples))

    return asyncio.run(everything())


def repeated(result: Result) -> ByProblem:
    """Of which held-out problems the second answer has the words of the first."""
    groups = heldout_attempts(result)
    return {g[0].problem.id: float(g[0].trajectory.text == g[1].trajectory.text) for g in groups}


def table(runs: dict[str, list[Result]]) -> Table:
    rows = {"start": (runs["SCoRe"], "base")} | {arm: (found, "final") for arm, found in runs.items()}

    def mean(row: tuple[list[Result], str], name: str) -> float:
        return float(np.mean([r.summary[row[1]][name] for r in row[0]]))

    def percent(name: str) -> Callable[[tuple[list[Result], str]], str]:
        return lambda row: f"{100 * mean(row, name):.1f} %"

    def trained(cell: Callable[[Result], float]) -> Callable[[tuple[list[Result], str]], str]:
        return lambda row: "" if row[1] == "base" else f"{np.mean([cell(r) for r in row[0]]):,.0f}"

    columns = {"turn 1": "accuracy@t1", "turn 2": "accuracy@t2", "i to c": "i_to_c@t2", "c to i": "c_to_i@t2"}
    return arms_table(
        "Held-out, means over seeds",
        rows,
        {name: percent(figure) for name, figure in columns.items()}
        | {
            "same words": percent("same@t2"),
            "edit distance": lambda row: f"{mean(row, 'edit@t2'):.3f}",
            "rows": trained(lambda r: sum(one["examples"] for one in r.summary["rounds"])),
            "sampled tokens": trained(lambda r: r.sampled_tokens),
        },
    )
