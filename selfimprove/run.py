"""A run: rounds in order in one folder, from the start or from the point where it was interrupted."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from selfimprove import config as configuration
from selfimprove import forecast, integrity, memory, store
from selfimprove.attempt import pair
from selfimprove.binding import function
from selfimprove.collapse import collapsed
from selfimprove.drift import drift, forgetting
from selfimprove.environment import environment, note_resume
from selfimprove.errors import ConfigError, Damaged
from selfimprove.handover import hand_over
from selfimprove.heldout import evaluate
from selfimprove.phase import problems_key
from selfimprove.plan import BASE, PHASES, Pass, plan
from selfimprove.ready import also_heldout, prepare, require_engine, require_training, require_verifiers
from selfimprove.report import expected
from selfimprove.round import attempts, run_pass
from selfimprove.schema import Budget, Config
from selfimprove.session import Ending, Policies, Session, base_policies, ending
from selfimprove.sides import evaluated
from selfimprove.summary import Summary, round_metrics
from selfimprove.types import Problem
from selfimprove.update import restore
from selfimprove.variety import alarm, variety

log = logging.getLogger("selfimprove")


def start(config: Config, path: Path, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Begin a run in an empty folder. Returns its summary. Raises ConfigError before any model is loaded.

    `notes` are logged once it is sure that the run begins.
    """
    if (path / "config.yaml").exists():
        raise ConfigError(f"{path} already holds a run: continue it with `selfimprove resume {path}`")
    config = configuration.absolute(config)
    require_engine(config, trains=True)
    require_training(config)
    said = [*notes]
    prepared = prepare(config, trains=True, notes=said)  # before anything is written
    return begin(config, path, prepared, also_heldout(config), said)


def begin(
    config: Config,
    path: Path,
    prepared: tuple[list[Problem], dict[str, str]],
    also: list[Problem],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Begin a run that was checked, on problems that `prepare` and `also_heldout` gave. Returns its summary."""
    run = store.Run(path)
    with run.lock():
        store.write_config(path / "config.yaml", configuration.dump(config))  # with it the folder is a run
        _write_problems(run, prepared, also)
        return _run(config, run, notes)


def resume(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Continue an interrupted run. `overrides` may set other budgets. A complete run is left as it is.

    Returns its summary.
    """
    from selfimprove.report.display import setup_logging

    config = with_budget(configuration.read(path / "config.yaml"), overrides)
    run = store.Run(path)
    setup_logging(None)
    with run.lock():
        return _resume(config, run, overrides)


def _resume(config: Config, run: store.Run, overrides: Sequence[str]) -> dict[str, Any]:
    path = run.path
    if overrides:
        store.write_config(path / "config.yaml", configuration.dump(config))
    whole = integrity.mend(path, PHASES)
    if whole and (path / "summary.json").exists():
        summary = store.read_json(path / "summary.json")
        if summary["status"] == "complete":
            log.info("%s is complete: nothing to do", path)
            return summary  # type: ignore[no-any-return]
    require_engine(config, trains=True)
    require_training(config)
    _have_problems(config, run)
    note_resume(path)
    steps = {step.number: step for step in (BASE, *plan(config))}
    done = [
        f"{run.folder(step).name}/{phase}" for step in steps.values() for phase in PHASES if run.manifest(step, phase)
    ]
    run.trim_log(lambda line: line["pass"] in steps and run.manifest(steps[line["pass"]], line["phase"]) is not None)
    log.info(
        "resuming %s: found %s; what follows is done again or for the first time", path, ", ".join(done) or "nothing"
    )
    summary = _run(config, run)
    integrity.mend_log(path, PHASES)  # phases that were done again have their lines at the end
    return summary


def with_budget(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with other budgets, e.g. `budget.seconds=7200` or `budget.rounds=null`.

    Raises ConfigError for any other key, because nothing else of a run may change after its start.
    """
    for word in overrides:
        if not re.fullmatch(r"budget\.\w+=.+", word):
            budgets = ", ".join(f"budget.{name}=..." for name in Budget.model_fields)
            raise ConfigError(f"{word}: resume takes {budgets} only; any other change needs a new run")
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
    if not (run.path / "environment.json").exists():
        store.write_sealed(run.path / "environment.json", {**environment(), **verifiers})
    store.write_records(run.path / "problems.parquet", problems, Problem)
    integrity.seal(run.path, store.digest([problems_key(problems), problems_key(also)]))


def _have_problems(config: Config, run: store.Run) -> None:
    """Make a missing file of the run's problems again. It was damaged, or the run was killed before writing it.

    Raises Damaged if the data set gives other problems by now.
    """
    key, whole = integrity.sealed(run.path)
    if whole and key is not None:
        return
    if whole:
        made = [list(store.read_records(file, Problem)) for file in integrity.problem_files(run.path)]
        integrity.seal(run.path, store.digest([*map(problems_key, made), *[problems_key([])] * (2 - len(made))]))
        return
    prepared, also = prepare(config, trains=True), also_heldout(config)
    if key not in (None, store.digest([problems_key(prepared[0]), problems_key(also)])):
        said = "is damaged or missing, and the data set gives other problems than when the run began"
        raise Damaged(run.path / "problems.parquet", said)
    _write_problems(run, prepared, also)


def _run(config: Config, run: store.Run, notes: Sequence[str] = ()) -> dict[str, Any]:
    from selfimprove.report.display import Display, setup_logging

    setup_logging(run.path)
    for line in notes:
        log.warning(line)
    if said := memory.warning(config):
        log.warning(said)
    problems = list(store.read_records(run.path / "problems.parquet", Problem))
    train = [p for p in problems if p.split == "train"]
    dev = [p for p in problems if p.split == "dev"]
    heldout = evaluated(config, problems)
    if (run.path / "dropped_problems.json").exists():
        dropped = store.read_json(run.path / "dropped_problems.json")
        log.warning("%d problems are left out, listed with the reason in dropped_problems.json", len(dropped))
    base = _base(config, run)
    display = Display(run.path, config)
    display.start(len(train), len(heldout), len(plan(config)))
    tracker = function(config.tracker, "tracker")(config.tracker, run.path, config)
    session = Session(config, run, display, train, heldout, base, dev)
    session.apart = [p for p in problems if p.split != "train"]
    if config.eval.also:
        session.also = list(store.read_records(run.path / "also.parquet", Problem))
    session.log_step = tracker.step
    session.restore = partial(restore, session)
    summary, end = Summary(config, run), Ending()
    try:
        with ending(session, end, "run"):
            end.reason = _passes(session, summary, tracker)
    finally:
        with closing(session):
            written = summary.write(end.status, end.reason)
            display.finish(written | _came_of_it(run.path))
            tracker.finish(written)
        _write_report(run.path)
    return store.read_json(run.path / "summary.json")  # type: ignore[no-any-return]


def _base(config: Config, run: store.Run) -> Policies:
    """The policies that a run begins with, known by the content of their files."""
    found = base_policies(config)
    digests = integrity.base_digests(run.path, {role: weights.path for role, weights in found.items()})
    return {role: replace(weights, digest=digests[role]) for role, weights in found.items()}


def _passes(session: Session, summary: Summary, tracker: Any) -> str | None:
    """All passes of a run, in order. Returns why it stopped early; None: it did not."""
    run = session.run
    summary.write("running")
    _evaluate(session, BASE, session.base)
    _base(session.config, run)  # now all its files are on this machine
    _after_round(session, summary, tracker, [BASE])
    policies, tells = session.base, forecast.due(session.config)
    this_round: list[Pass] = []
    for step in session.passes:
        this_round = [*this_round, step] if this_round and this_round[0].round == step.round else [step]
        summary.begin(step)
        policies = run_pass(session, step, policies)
        hand_over(session, step, policies)
        if empty(run, step):
            log.warning("round %s: no example was left after the filter; the policy is kept", run.prefix(step)[1:])
        for line in collapsed(run, session.passes, step):
            log.warning("round %s: %s", run.prefix(step)[1:], line)
        reached = summary.over_budget() if step is not session.passes[-1] else None
        if step.ends_round or reached:
            _evaluate(session, step, policies)
            if session.config.eval.samples and (lost := _variety(session, step)):
                log.warning("round %s: %s", run.prefix(step)[1:], lost)
            _after_round(session, summary, tracker, this_round)
            reached = summary.over_budget() if step is not session.passes[-1] else None
        else:
            summary.write("running")
        if reached:
            return reached
        if step.number + 1 == tells:
            _say_what_is_left(session, step)
    return None


def _say_what_is_left(session: Session, step: Pass) -> None:
    """One line with the forecast of the rest, once the run is far enough for it."""
    config = session.config
    sizes = {
        "train": len(session.train_problems),
        "dev": len(session.dev),
        "test": len(session.heldout),
        "also": len(session.also),
    }
    if found := forecast.keep(session.run, config, sizes, step.number + 1):
        log.info(expected.line(found, config.hardware.price_per_hour))


def _variety(session: Session, step: Pass) -> str | None:
    """A warning if this evaluation's samples have lost variety compared with the base policy's; None if not."""
    folders = [session.run.folder(at) / "evaluation" for at in (BASE, step)]
    return alarm(*(variety(pair(folder, session.heldout)) for folder in folders))


def _came_of_it(path: Path) -> dict[str, str]:
    """The forecast beside what was spent, for the run's last table."""
    found = expected.compared(path)
    return {"forecast": expected.summed_up(found)} if found else {}


def _write_report(path: Path) -> None:
    """Write report.html, however the run ended. If this fails, the run does not fail."""
    from selfimprove.report.html import write_report
    from selfimprove.report.runs import RunData

    try:
        write_report([RunData(path)], path / "report.html")
    except Exception as problem:
        log.warning("report.html is not written: %s: %s", type(problem).__name__, problem)


def _evaluate(session: Session, step: Pass, policies: Policies) -> None:
    evaluate(session, step, policies)
    drift(session, step, policies)
    forgetting(session, step, policies)


def empty(run: store.Run, step: Pass) -> bool:
    """Whether a pass's filter kept nothing."""
    manifest = run.manifest(step, "filter")
    return manifest is not None and not manifest["metrics"]["examples"]


def _after_round(session: Session, summary: Summary, tracker: Any, passes: list[Pass]) -> None:
    run, step = session.run, passes[-1]
    session.display.round(summary.write("running"), step.round)
    metrics = round_metrics(session.config, run, passes)
    if step.number >= 0:
        store.write_sealed(run.folder(step) / "metrics.json", metrics)
        tracker.table(step.round, attempts(session, step))
    tracker.round(step.round, metrics)
