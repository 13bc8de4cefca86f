"""A run: rounds in order in one folder, from the start or from where an interrupted one was left."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from selfimprove import config as configuration
from selfimprove import memory, store
from selfimprove.attempt import attempts
from selfimprove.binding import function
from selfimprove.drift import drift, forgetting
from selfimprove.environment import environment
from selfimprove.errors import ConfigError
from selfimprove.handover import hand_over
from selfimprove.ready import also_heldout, prepare, require_engine, require_training, require_verifiers
from selfimprove.round import evaluate, run_round
from selfimprove.schema import Budget, Config
from selfimprove.session import Ending, Session, Weights, ending
from selfimprove.summary import PHASES, empty, ends_round, over_budget, round_metrics, summarize
from selfimprove.types import Problem

log = logging.getLogger("selfimprove")


def start(config: Config, path: Path) -> dict[str, Any]:
    """Begin a run in an empty folder. Returns its summary. Raises ConfigError before any model is loaded."""
    if (path / "config.yaml").exists():
        raise ConfigError(f"{path} already holds a run: continue it with `selfimprove resume {path}`")
    require_engine(config, trains=True)
    require_training(config)
    prepared = prepare(config)  # before anything is written
    also = also_heldout(config)
    if not any(problem.split == "train" for problem in prepared[0]):
        raise ConfigError(
            f"dataset={config.dataset.name} has no train problem left: it is for `selfimprove eval`, or give "
            "dataset.path a file of which a share is held out",
            "dataset.train_size",
        )
    if config.method.probe and not any(problem.split == "dev" for problem in prepared[0]):
        raise ConfigError(f"method={config.method.name} tunes itself on dev problems: set dataset.dev_size", "dataset")
    run = store.Run(path, config.method.refresh)
    with run.lock():
        store.write_text(path / "config.yaml", configuration.dump(config))  # with it the folder is a run
        _write_problems(run, prepared, also)
        return _run(config, run)


def resume(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Continue an interrupted run, with other budgets where `overrides` say so. A complete one is left as it is.

    Returns its summary.
    """
    from selfimprove.report.display import setup_logging

    config = with_budget(configuration.read(path / "config.yaml"), overrides)
    run = store.Run(path, config.method.refresh)
    setup_logging(None)
    with run.lock():
        return _resume(config, run, overrides)


def _resume(config: Config, run: store.Run, overrides: Sequence[str]) -> dict[str, Any]:
    path = run.path
    if overrides:
        store.write_text(path / "config.yaml", configuration.dump(config))
    if (path / "summary.json").exists():
        summary = store.read_json(path / "summary.json")
        if summary["status"] == "complete":
            log.info("%s is complete: nothing to do", path)
            return summary  # type: ignore[no-any-return]
    require_engine(config, trains=True)
    require_training(config)
    if (path / "problems.parquet").exists():
        known = store.read_json(path / "environment.json")
        known.setdefault("resumed", []).append(environment())
        store.write_json(path / "environment.json", known)
    else:  # killed before its problems were written
        _write_problems(run, prepare(config), also_heldout(config))
    run.trim_log()
    done = [
        f"{run.round(n).name}/{phase}" for n in range(-1, config.passes) for phase in PHASES if run.manifest(n, phase)
    ]
    log.info(
        "resuming %s: found %s; what follows is done again or for the first time", path, ", ".join(done) or "nothing"
    )
    return _run(config, run)


def with_budget(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with other budgets, e.g. `budget.seconds=7200` or `budget.rounds=null`.

    Raises ConfigError for any other key: nothing else of a run may change on its way.
    """
    for word in overrides:
        if not re.fullmatch(r"budget\.\w+=.+", word):
            budgets = ", ".join(f"budget.{name}=..." for name in Budget.model_fields)
            raise ConfigError(f"{word}: resume takes {budgets} only; whatever else is to be different is a new run")
    given = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(given, dict)
    budget = config.budget.model_dump() | given.get("budget", {})
    return configuration.check(config.model_dump(by_alias=True) | {"budget": budget}) if overrides else config


def _write_problems(run: store.Run, prepared: tuple[list[Problem], dict[str, str]], also: list[Problem]) -> None:
    problems, dropped = prepared
    if also:
        store.write_records(run.path / "also.parquet", also, Problem)
    if dropped:
        store.write_json(run.path / "dropped_problems.json", dropped)
    verifiers = require_verifiers(configuration.read(run.path / "config.yaml"))
    store.write_json(run.path / "environment.json", {**environment(), **verifiers})
    store.write_records(run.path / "problems.parquet", problems, Problem)


def _run(config: Config, run: store.Run) -> dict[str, Any]:
    from selfimprove.policy.models import resolve
    from selfimprove.report.display import Display, setup_logging

    setup_logging(run.path)
    if said := memory.warning(config):
        log.warning(said)
    problems = list(store.read_records(run.path / "problems.parquet", Problem))
    train = [p for p in problems if p.split == "train"]
    dev = [p for p in problems if p.split == "dev"]
    heldout = [p for p in problems if p.split == "test"]
    if (run.path / "dropped_problems.json").exists():
        dropped = store.read_json(run.path / "dropped_problems.json")
        log.warning("%d problems are left out, listed with the reason in dropped_problems.json", len(dropped))
    base_path = resolve(config.model.name, config.model.path)
    base = Weights(base_path, 0, store.digest([config.model.name, config.model.path]))
    display = Display(run.path, config)
    display.start(train=len(train), heldout=len(heldout))
    tracker = function(config.tracker, "tracker")(config.tracker, run.path, config)
    session = Session(config, run, display, train, heldout, base, dev)
    if config.eval.also:
        session.also = list(store.read_records(run.path / "also.parquet", Problem))
    session.log_step = tracker.step
    session.phase_done = lambda: summarize(config, run, "running")
    end = Ending()
    try:
        with ending(session, end, "run"):
            summarize(config, run, "running")
            _evaluate(session, -1, base)
            _after_round(config, run, session, tracker, -1)
            weights = base
            for number in range(config.passes):
                weights = run_round(session, number, weights)
                hand_over(session, number, weights)
                if ends_round(config, number):
                    _evaluate(session, number, weights)
                    _after_round(config, run, session, tracker, number)
                    if number + 1 < config.passes and (said := over_budget(config, run, number)):
                        end.reason = said
                        break
                if empty(run, number):
                    said = f"round {run.prefix(number)[1:]}: no example was left after the filter"
                    log.warning("%s; the policy is kept (on_empty=%s)", said, config.on_empty)
                    if config.on_empty == "stop":
                        end.reason = said
                        break
    finally:
        summary = summarize(config, run, end.status, end.reason)
        display.finish(summary)
        tracker.finish(summary)
        session.close()
        _write_report(run.path)
    return summary


def _write_report(path: Path) -> None:
    """report.html in the run folder, of whatever the run came to. A report that fails is no failure of the run."""
    from selfimprove.report.html import write_report
    from selfimprove.report.runs import RunData

    try:
        write_report([RunData(path)], path / "report.html")
    except Exception as problem:
        log.warning("report.html is not written: %s: %s", type(problem).__name__, problem)


def _evaluate(session: Session, number: int, weights: Weights) -> None:
    evaluate(session, number, weights)
    drift(session, number, weights)
    forgetting(session, number, weights)


def _after_round(config: Config, run: store.Run, session: Session, tracker: Any, number: int) -> None:
    summary = summarize(config, run, "running")
    round_number = number if number < 0 else number // config.method.refresh
    session.display.round(summary, round_number)
    metrics = round_metrics(config, run, number)
    if number >= 0:
        store.write_json(run.round(number) / "metrics.json", metrics)
        tracker.table(round_number, attempts(session, number))
    tracker.round(round_number, metrics)
