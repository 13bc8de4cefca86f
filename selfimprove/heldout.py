"""The held-out evaluation of a policy: evaluation/, with a score for each problem."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from selfimprove import scores as scoring
from selfimprove import store
from selfimprove.attempt import collect, pair
from selfimprove.binding import bind
from selfimprove.errors import RunError
from selfimprove.generate.decodings import by_head, by_layer, decodings
from selfimprove.grading import grade
from selfimprove.phase import once, policy_key, problems_key, version
from selfimprove.plan import BASE, Pass
from selfimprove.policy import Policy
from selfimprove.report import metrics as measure
from selfimprove.report.consistency import consistency
from selfimprove.report.curve import Rule
from selfimprove.report.revisions import revisions
from selfimprove.report.statistics import Estimate, mean, mean_over_problems
from selfimprove.schema import Config
from selfimprove.scores import Scores
from selfimprove.session import Policies, Session
from selfimprove.supplies import key as supplies_key
from selfimprove.supplies import key_of_roles
from selfimprove.types import Attempt, Problem, Trajectory
from selfimprove.units import UNITS, Unit
from selfimprove.verify.answers import stage

OUTPUTS = ("evaluation/trajectories.parquet", "evaluation/verdicts.parquet")


def evaluate(session: Session, step: Pass, policies: Policies) -> dict[str, Any]:
    """Evaluate the policy on the held-out problems, by the data set's own verifier: evaluation/. Returns the metrics.

    The solver is `method.evaluate`. Without it the policy gives one greedy answer and `eval.samples` sampled ones.
    """
    config, method = session.config, session.config.method
    node, options, own = config.dataset.verifier, config.eval, method.evaluate
    folder = session.run.folder(step) / "evaluation"

    def work(key: str) -> dict[str, Any]:
        path = folder / "trajectories.parquet"
        solver = own or plain(config)
        cost = collect(session, step, "evaluate", path, key, session.heldout, solver, policies, verifier=node)
        verdicts = grade(session, step, "grade", folder, key, session.heldout, node, policies)
        found = score(config, session.heldout, pair(folder, session.heldout))
        with store.new_file(folder / scoring.FILE) as temporary:
            scoring.write(temporary, found)
        return {**_figures(session, step, found), **verdicts, **cost}

    aside = {"drift", "also", "side", *(() if options.by else ("by",))}  # other phases, or part of the problems' hash
    asked = options.model_dump(exclude=aside)
    for name in ("layers", "heads"):
        if options.consistency and not getattr(options.consistency, name):
            del asked["consistency"][name]  # so that runs of earlier versions keep their keys
    depends: list[Any] = [node, asked, policy_key(config), policies["policy"].digest, problems_key(session.heldout)]
    if own:
        depends += [own, method.answer, *supplies_key(session, step, own, node), *key_of_roles(config, policies)]
    if config.dataset.score != "accuracy" or method.figures:
        depends += [config.dataset.score, method.figures, version(node)]
    if step.number >= 0:
        made = session.run.made(BASE, "evaluate")
        depends.append({name: made[name] for name in OUTPUTS})
    return once(session, step, "evaluate", depends, [*OUTPUTS, f"evaluation/{scoring.FILE}"], work)


def plain(config: Config) -> Any:
    """One greedy answer, and sampled ones and other decodings if the configuration asks for them."""
    options = config.eval

    async def solver(problem: Problem, policy: Policy) -> list[Trajectory]:
        asked = [await policy.sample(problem.prompt, temperature=0, max_tokens=options.max_tokens)]
        if options.samples:
            heat, limit = options.temperature, options.max_tokens
            asked.append(await policy.sample(problem.prompt, options.samples, temperature=heat, max_tokens=limit))
        found = [
            Trajectory(problem.id, [sample], {"decoding": decoding})
            for decoding, samples in zip(("greedy", "sampled"), asked, strict=False)
            for sample in samples
        ]
        if (more := options.consistency) is not None:
            found += await decodings(problem, policy, more.samples, more.temperature, options.max_tokens)
            found += await by_layer(problem, policy, asked[0][0]) if more.layers else []
            found += await by_head(problem, policy, asked[0][0], more.heads) if more.heads else []
        return found

    return solver


def score(config: Config, problems: list[Problem], groups: Iterator[list[Attempt]]) -> Scores:
    """The score of each held-out problem: that of the attempt that `method.answer` chooses, or of the first one.

    Raises RunError if a problem has no answer and its unit has no worst score.
    """
    unit, rule = unit_of(config), answer_rule(config)
    by_problem = {group[0].problem.id: group for group in groups}
    values, answers = list[float](), list[str | None]()
    for problem in problems:
        group = by_problem.get(problem.id, [])
        chosen = rule(group) if config.method.evaluate else (0 if group else None)
        if chosen is None and unit.scale is None:
            raise RunError(f"evaluate: problem {problem.id} has no answer, and {unit.label} has no worst value")
        attempt = None if chosen is None else group[chosen]
        values.append(value_of(attempt, unit))
        answers.append(attempt.verdict.extracted if attempt else None)
    key = config.eval.by
    shown = [_text(p.metadata.get(key)) if key else None for p in problems]
    return Scores([p.id for p in problems], values, answers, shown)


def value_of(attempt: Attempt | None, unit: Unit) -> float:
    """The score of a problem's answer. Without an answer: the worst score of the unit."""
    if attempt is None:
        assert unit.scale is not None
        return unit.scale[0]
    return float(attempt.verdict.status == "correct") if unit.name == "accuracy" else attempt.verdict.reward


def unit_of(config: Config) -> Unit:
    return UNITS[config.dataset.score]


def answer_rule(config: Config) -> Rule:
    """The rule of `method.answer`. Without a rule it takes the first candidate."""
    node = config.method.answer
    return bind(node, "method.answer") if node else lambda group: 0 if group else None


def estimate(values: list[float] | np.ndarray, unit: Unit) -> Estimate:
    """The mean score over problems with its interval."""
    return mean_over_problems(values) if unit.scale == (0.0, 1.0) else mean(np.asarray(values, float), unit.scale)


def change(before: Scores, after: Scores, unit: Unit) -> Estimate:
    """The paired difference of two evaluations. Raises ValueError unless they are of the same problems."""
    first, second = before.by_problem, after.by_problem
    if first.keys() != second.keys():
        raise ValueError(f"evaluations of {len(first)} and {len(second)} problems, not the same ones")
    differences = np.array([second[name] - value for name, value in first.items()])
    span = unit.scale and unit.scale[1] - unit.scale[0]
    return mean(differences, None if span is None else (-span, span))


def _figures(session: Session, step: Pass, found: Scores) -> dict[str, Any]:
    """All that an evaluation measures."""
    config, unit = session.config, unit_of(session.config)
    folder = session.run.folder(step) / "evaluation"

    def groups() -> Iterator[list[Attempt]]:
        return pair(folder, session.heldout)

    if config.method.evaluate is None and unit.name == "accuracy":
        figures: dict[str, Any] = measure.evaluation(groups())
    else:
        figures = {**estimate(list(found.values), unit).named(unit.name), "n": len(found.values)}
        figures |= _by_stage(groups(), unit)
    if config.eval.by:
        figures |= _by_group(found, unit, config.eval.by)
    if config.eval.consistency:
        figures |= consistency(groups())
    if step.number >= 0:
        base = scoring.read(session.run.folder(BASE) / "evaluation" / scoring.FILE)
        figures |= change(base, found, unit).named("change")
    if config.method.figures:
        earlier = [BASE, *(p for p in session.passes[: step.number] if p.ends_round)] if step.number >= 0 else []
        read = [scoring.read(session.run.folder(p) / "evaluation" / scoring.FILE) for p in earlier]
        figures |= bind(config.method.figures, "method.figures")([*read, found])
    return figures


def _by_stage(groups: Iterator[list[Attempt]], unit: Unit) -> dict[str, float]:
    """NAME@tK: the mean score of the first candidate of stage K, if a solver's candidates have stages.

    For an accuracy, also how each stage changed the one before (`report.revisions`). All figures are over the same
    problems: if a problem has no candidate of stage K, the one of the stage before counts.
    """
    firsts: list[dict[int, Attempt]] = []
    for group in groups:
        firsts.append({})
        for attempt in group:
            firsts[-1].setdefault(stage(attempt), attempt)
    stages = sorted({number for first in firsts for number in first})
    found: dict[str, float] = {}
    before: list[Attempt] = []
    for number in stages if len(stages) > 1 else ():
        there = [first[max((k for k in first if k <= number), default=min(first))] for first in firsts]
        found |= estimate([value_of(attempt, unit) for attempt in there], unit).named(f"{unit.name}@t{number}")
        if before and unit.name == "accuracy":
            found |= revisions(list(zip(before, there, strict=True)), number)
        before = there
    return found


def _by_group(found: Scores, unit: Unit, name: str) -> dict[str, float]:
    """NAME/KEY=VALUE for each value of a key of the problems' metadata."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for group, value in zip(found.groups, found.values, strict=True):
        groups[str(group)].append(value)
    return {
        key: value
        for group, values in sorted(groups.items())
        for key, value in estimate(values, unit).named(f"{unit.name}/{name}={group}").items()
    }


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
