"""`selfimprove eval method=NAME`: a method's solver on held-out problems, compared with plain samples at equal tokens.

The folder is like a small run folder. Its phases have keys, and its parts survive a kill.

    solver/    what the solver found, with verdicts by the training verifier, and with grades by the data set's own
               verifier if that is another one
    baseline/  plain samples of the same policy: for each problem the fewest with the solver's mean sampled tokens

A problem's answer is what `method.answer` chooses. Only the data set's own verifier says whether it is right.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from selfimprove import config as configuration
from selfimprove import integrity, store
from selfimprove.attempt import collect, pair
from selfimprove.binding import Target, asks_for, bind, is_group
from selfimprove.config import reads_gold
from selfimprove.environment import environment, note_resume
from selfimprove.errors import ConfigError, Damaged
from selfimprove.evaluation import choose
from selfimprove.grading import grade
from selfimprove.heldout import answer_rule
from selfimprove.phase import once, policy_key, problems_key, version
from selfimprove.plan import BASE, Pass
from selfimprove.ready import prepare, require_engine, require_verifiers
from selfimprove.report.curve import Rule, Trace, baselines, curve, final, row, trace
from selfimprove.report.display import Display, setup_logging
from selfimprove.report.metrics import mean_over_problems, paired_difference
from selfimprove.report.solving import show
from selfimprove.schema import Config
from selfimprove.session import Ending, Policies, Session, Weights, base_policies, ending
from selfimprove.sides import evaluated
from selfimprove.types import Attempt, Problem, Verdict
from selfimprove.verify.answers import vote

log = logging.getLogger("selfimprove")

PHASES = ("solver", "baseline")


class Folder(store.Run):
    """The folder of an evaluation: its phases lie at the top."""

    def folder(self, step: Pass) -> Path:
        return self.path

    def prefix(self, step: Pass) -> str:
        return "eval"


def evaluate_solver(policy: str | None, overrides: Sequence[str], path: Path | None) -> dict[str, Any]:
    """Begin an evaluation in `path`, or a new folder below outputs/eval. Returns its summary.

    `policy` and `overrides` are as in `evaluation.choose`. Raises ConfigError before any model is loaded.
    """
    setup_logging(None)
    chosen = choose(policy, overrides, solver=True)
    config = chosen.config
    if path is None:
        name = f"{config.method.name}_{config.model.name}_{config.dataset.name}_s{config.seed}"
        path = Path("outputs") / "eval" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    if (path / "config.yaml").exists():
        raise ConfigError(f"{path} already holds a run or an evaluation: `selfimprove resume {path}` continues it")
    problems = [problem for problem in chosen.problems if problem.split in ("dev", "test")]
    return begin(config, path, problems, chosen.policies["policy"])


def begin(config: Config, path: Path, problems: list[Problem], weights: Weights) -> dict[str, Any]:
    """Begin an evaluation of these weights that was checked. Returns its summary."""
    verifiers = require_verifiers(config)
    folder = Folder(path)
    with folder.lock():
        if Path(weights.path).exists():  # so that it is found again from elsewhere
            weights = replace(weights, path=str(Path(weights.path).resolve()))
        store.write_records(path / "problems.parquet", problems, Problem)
        store.write_sealed(path / "environment.json", {**environment(), **verifiers, **_identity(weights)})
        store.write_sealed(path / "summary.json", _head(config, weights, "running"))
        integrity.seal(path, problems_key(problems))
        store.write_config(path / "config.yaml", configuration.dump(config))  # with it the folder is an evaluation
        return _run(config, folder, problems, weights)


def is_evaluation(path: Path) -> bool:
    """Whether a folder is that of an evaluation."""
    return any(known.get("kind") == "eval" for known in _known(path))


def _identity(weights: Weights) -> dict[str, Any]:
    """Fields that mark a folder as an evaluation's and say what is evaluated: in environment.json and summary.json."""
    return {"kind": "eval", "policy": asdict(weights)}


def _known(path: Path) -> Iterator[dict[str, Any]]:
    for name in ("environment.json", "summary.json"):
        with suppress(Damaged):
            yield store.read_json(path / name)


def resume(path: Path) -> dict[str, Any]:
    """Continue an interrupted evaluation, or show a complete one again. Returns its summary."""
    config = configuration.read(path / "config.yaml", needs=False)
    folder = Folder(path)
    setup_logging(None)
    with folder.lock():
        return _resume(config, folder)


def _resume(config: Config, folder: Folder) -> dict[str, Any]:
    path = folder.path
    policy = next((known["policy"] for known in _known(path) if "policy" in known), None)
    if policy is None:
        raise Damaged(path / "summary.json", "does not say which policy is evaluated")
    whole = integrity.mend(path, PHASES)
    if whole and (summary := store.read_json(path / "summary.json"))["status"] == "complete":
        log.info("%s is complete: nothing to do", path)
        show(summary)
        return summary  # type: ignore[no-any-return]
    weights = Weights(**policy)
    require_engine(config, trains=weights.version > 0)
    problems = _problems(config, path)
    note_resume(path, _identity(weights))
    folder.trim_log(lambda line: folder.manifest(BASE, line["phase"]) is not None)
    return _run(config, folder, problems, weights)


def _problems(config: Config, path: Path) -> list[Problem]:
    """The evaluation's problems. If their file is damaged, it is made again. Raises Damaged if they are others now."""
    key, whole = integrity.sealed(path)
    file = path / "problems.parquet"
    if not whole:
        problems = [problem for problem in prepare(config)[0] if problem.split in ("dev", "test")]
        if key not in (None, problems_key(problems)):
            raise Damaged(file, "is damaged or missing, and the data set gives other problems than it did")
        store.write_records(file, problems, Problem)
        integrity.seal(path, problems_key(problems))
    return list(store.read_records(file, Problem))


def _head(config: Config, weights: Weights, status: str, reason: str | None = None) -> dict[str, Any]:
    return {
        **_identity(weights),
        "status": status,
        "reason": reason,
        "method": config.method.name,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "selection": selection(config),
    }


def _run(config: Config, folder: Folder, problems: list[Problem], weights: Weights) -> dict[str, Any]:
    setup_logging(folder.path)
    log.info("evaluation folder: %s", folder.path)
    integrity.base_digests(folder.path, {"policy": weights.path})
    base = base_policies(config)
    heldout, dev = evaluated(config, problems), [p for p in problems if p.split == "dev"]
    session = Session(config, folder, Display(folder.path, config, outside="evaluation"), [], heldout, base, dev)
    end, figures = Ending(), dict[str, Any]()
    try:
        with ending(session, end, "evaluation"):
            figures = compare(session, {**session.base, "policy": weights})
    finally:
        session.close()
        summary = _head(config, weights, end.status, end.reason) | figures
        store.write_sealed(folder.path / "summary.json", summary | {"phases": integrity.phases(folder.path)})
    if end.status == "complete":
        show(summary)
    else:
        log.info("stopped: `selfimprove resume %s` goes on", folder.path)
    return summary


def compare(session: Session, policies: Policies) -> dict[str, Any]:
    """Run the solver and the baseline at equal tokens. Returns their figures, for summary.json."""
    config, problems = session.config, session.heldout
    node = config.solver
    mine = attempt(session, "solver", node, policies)
    spent = mine["tokens"]["sampled"] / len(problems)
    sampling: Target = {key: node[key] for key in ("temperature", "max_tokens") if key in node}
    plain: Target = {"_target_": "selfimprove.generate.until.until", "tokens": spent, **sampling}
    theirs = attempt(session, "baseline", config.method.baseline or plain, policies)

    rule = answer_rule(config)
    traces = [trace(group, right, rule) for group, right in candidates(session, "solver")]
    solved = [final(steps) for steps in traces]
    return {
        "n": len(problems),
        **mean_over_problems(solved).named("accuracy"),
        **mine,
        "curve": curve(traces),
        "baseline": {
            "temperature": sampling.get("temperature", 1.0),
            **theirs,
            **_beside(session, traces, solved, spent),
        },
    }


def attempt(session: Session, name: str, solver: Target, policies: Policies) -> dict[str, Any]:
    """One phase: what a solver finds for each held-out problem, with verdicts and grades. Returns what it cost.

    Tokens and calls are those of the solver and of a verifier that asks a model.
    """
    config, problems = session.config, session.heldout
    folder = session.run.path / name
    nodes = graders(config)

    def work(key: str) -> dict[str, Any]:
        path = folder / "trajectories.parquet"
        verifier = config.training_verifier
        cost = collect(session, BASE, name, path, key, problems, solver, policies, verifier=verifier)
        counts = [
            grade(session, BASE, f"{name} {file}", folder, key, problems, node, policies, name=file)
            for file, node in nodes.items()
        ]
        asked = {k: cost[k] + counts[0].get(k, 0) for k in ("calls", "tokens/prompt", "tokens/sampled")}
        verdicts = {k: v for count in counts for k, v in count.items() if k.startswith("verdicts/")}
        return cost | verdicts | asked | {"memory": session.memory}

    limits = config.verify
    depends: list[Any] = [
        solver,
        policy_key(config),
        policies["policy"].digest,
        problems_key(problems),
        problems_key(session.dev),
    ]
    depends += [[[node, version(node)] for node in nodes.values()], limits.seconds, limits.memory_mb]
    outputs = [f"{name}/{file}.parquet" for file in ("trajectories", *nodes)]
    made = once(session, BASE, name, depends, outputs, work)
    manifest = session.run.manifest(BASE, name)
    assert manifest is not None
    return {
        "trajectories": made["trajectories"],
        "calls": made["calls"],
        "tokens": {"prompt": made["tokens/prompt"], "sampled": made["tokens/sampled"]},
        "truncated": made["completion/truncated"],
        "unparseable": made["verdicts/unparseable"],
        "seconds": manifest["seconds"],
        "memory": made["memory"],
    }


def graders(config: Config) -> dict[str, Target]:
    """File -> verifier of an evaluation.

    The training verifier gives the rewards for the choice of an answer, and the data set's own says what is right. If
    they are the same, there is one file.
    """
    nodes = {"verdicts": config.training_verifier, "grades": config.dataset.verifier}
    return nodes if nodes["verdicts"] != nodes["grades"] else {"verdicts": nodes["verdicts"]}


def candidates(session: Session, name: str) -> Iterator[tuple[list[Attempt], list[bool]]]:
    """Each held-out problem's attempts and whether they are right, streamed; two empty lists if there is none.

    If the training verifier reads no answer, a verdict has the one that the data set's own verifier read.
    """
    folder = session.run.path / name
    graded = folder / ("grades.parquet" if "grades" in graders(session.config) else "verdicts.parquet")
    grades = store.read_records(graded, Verdict)
    groups = pair(folder, session.heldout)
    group = next(groups, [])
    for problem in session.heldout:
        if not group or group[0].problem.id != problem.id:
            yield [], []
            continue
        own = list(itertools.islice(grades, len(group)))
        read = [
            a if a.verdict.extracted else replace(a, verdict=replace(a.verdict, extracted=grade.extracted))
            for a, grade in zip(group, own, strict=True)
        ]
        yield read, [grade.status == "correct" for grade in own]
        group = next(groups, [])


def selection(config: Config) -> str:
    """How a problem's answer is chosen, and whether that looks at gold answers."""
    node, solver = config.method.answer, config.solver
    rule = node["_target_"].rpartition(".")[2] if node else "first"
    asks = [] if rule in ("first", "vote", "last") else [reads_gold(config.training_verifier)]  # others go by rewards
    asked = asks_for(solver)
    checker = config.training_verifier
    if "check" in asked:
        asks.append(reads_gold(config.dataset.verifier if is_group(checker) else checker))
    if "judge" in asked:
        asks.append(reads_gold(checker))
    if "prepared" in asked and (config.dataset.model_extra or {}).get("dev_size", 0) != 0:
        asks.append(reads_gold(config.training_verifier))  # of the dev problems, on which it is prepared
    gold = any(asks) or "{gold}" in str(solver)
    return f"{rule}; reads gold answers" if gold else f"{rule}; reads no gold answer"


def _beside(session: Session, traces: list[Trace], solved: list[bool], spent: float) -> dict[str, Any]:
    """The accuracy of plain samples at the tokens of each stage, and at all of them, next to the solver's."""
    node = session.config.method.answer
    rules: dict[str, Rule] = {"maj": vote}
    if node and node["_target_"].endswith(".best"):
        rules["best"] = bind(node, "method.answer")
    marks = [point["tokens"] for point in curve(traces)]
    single, counts, used, ends = [], [], [], []
    steps: list[list[dict[str, bool]]] = [[] for _ in marks]
    for group, right in candidates(session, "baseline"):
        single.append(sum(right) / max(1, len(right)))
        counts.append(len(group))
        used.append(sum(attempt.trajectory.sampled_tokens for attempt in group))
        ends.append(baselines(group, right, spent, rules))
        for step, tokens in zip(steps, marks, strict=True):
            step.append(baselines(group, right, tokens, rules))
    figures: dict[str, Any] = {"n": float(np.mean(counts)), "tokens_used": float(np.mean(used))}
    figures |= mean_over_problems(single).named("single")
    for name in (*rules, "pass"):
        values = [end[name] for end in ends]
        figures[name] = {
            **mean_over_problems(values).named("accuracy"),
            **paired_difference(values, solved).named("difference"),  # the solver's accuracy minus this
            "curve": [row([t], [one[name] for one in step]) for t, step in zip(marks, steps, strict=True)],
        }
    return figures
