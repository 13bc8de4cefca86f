"""A run: rounds in order in one folder, from the start or from where an interrupted one was left."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from selfimprove import config as configuration
from selfimprove import doctor, memory, store
from selfimprove.config import Budget, Config, bind, function, is_group, module_of, options_of
from selfimprove.drift import drift, forgetting
from selfimprove.errors import ConfigError, RunError, Stopped
from selfimprove.handover import hand_over
from selfimprove.round import Session, Weights, attempts, evaluate, open_pool, run_round
from selfimprove.types import STATUSES, Problem

log = logging.getLogger("selfimprove")

PHASES = ("adapt", "generate", "verify", "filter", "train", "handover", "evaluate", "drift", "also")
_OPTIONAL = ("adapt", "handover", "drift", "also")  # phases that many runs do not have


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


def over_budget(config: Config, run: store.Run, number: int) -> str | None:
    """The reason to stop after pass `number`, which ends a round: which budget is reached. None: go on."""
    done = [(phase, m) for n in range(-1, number + 1) for phase in PHASES if (m := run.manifest(n, phase))]
    spent = {
        "sampled_tokens": sum(m["metrics"].get("tokens/sampled", 0) for phase, m in done if phase in ASKING),
        "seconds": round(sum(m["seconds"] for _, m in done)),
        "rounds": (number + 1) // config.method.refresh,
    }
    for name, limit in config.budget:
        if limit is not None and spent[name] >= limit:
            return f"budget.{name}={limit} is reached: {spent[name]:,} after round {run.prefix(number)[1:]}"
    return None


def prepare(config: Config) -> tuple[list[Problem], dict[str, str]]:
    """The problems to use, and those dropped, with the reason: their gold answer fails its own verifier, or they are
    train problems that are like a held-out one.

    Raises ConfigError for data that cannot be used.
    """
    require_verifiers(config)
    problems: list[Problem] = list(bind(config.dataset.model_dump(by_alias=True), "dataset")(seed=config.seed))
    dropped = check_gold(config, problems)
    dropped |= check_overlap(config, [p for p in problems if p.id not in dropped])
    return [p for p in problems if p.id not in dropped], dropped


def require_verifiers(config: Config) -> dict[str, Any]:
    """What the verifiers' modules say of this machine. Raises ConfigError when it lacks what a check needs."""
    said: dict[str, Any] = {}
    for node in (config.training_verifier, config.dataset.verifier):
        module = module_of(node)
        if hasattr(module, "require"):
            said |= module.require(**options_of(node)) or {}
    return said


def require_engine(config: Config, trains: bool) -> None:
    """Raises ConfigError where this machine, or a server, lacks what the engine needs; `trains`: the policy is going to
    get new weights. That is what `require_<name>` says, beside the engine's function."""
    own = getattr(module_of(config.engine), f"require_{config.engine['_target_'].rpartition('.')[2]}", None)
    if own:
        own(config, trains)


def require_training(config: Config) -> None:
    """Raises ConfigError where this machine cannot train as configured."""
    from selfimprove import train

    how, lora = config.hardware.training, config.model.lora
    train.require(lora.model_dump() if lora else None, how, config.hardware.device)
    train.require_shares(config.slot("train").get("batch_size", train.BATCH_SIZE), how.processes)


def also_heldout(config: Config) -> list[Problem]:
    """The held-out problems of eval.also, prepared as those of the run are; none without it."""
    if config.eval.also is None:
        return []
    problems, _ = prepare(config.model_copy(update={"dataset": config.eval.also}))
    heldout = [problem for problem in problems if problem.split == "test"]
    if not heldout:
        raise ConfigError(f"eval.also={config.eval.also.name} has no held-out problems", "eval.also")
    return heldout


def _write_problems(run: store.Run, prepared: tuple[list[Problem], dict[str, str]], also: list[Problem]) -> None:
    problems, dropped = prepared
    if also:
        store.write_records(run.path / "also.parquet", also, Problem)
    if dropped:
        store.write_json(run.path / "dropped_problems.json", dropped)
    verifiers = require_verifiers(configuration.read(run.path / "config.yaml"))
    store.write_json(run.path / "environment.json", {**environment(), **verifiers})
    store.write_records(run.path / "problems.parquet", problems, Problem)


def check_gold(config: Config, problems: list[Problem]) -> dict[str, str]:
    """The problems whose gold answer fails its own verifier, with the reason: they are dropped.

    Raises ConfigError when they are a larger share than `verify.drop_gold_above`.
    """
    from selfimprove.verify.file import check_gold

    if is_group(config.dataset.verifier):
        return {}  # it reads no gold answer
    with open_pool(config, config.dataset.verifier) as pool:
        failing = {p.id: f"{o.status}: {o.reason or o.extracted}" for p, o in check_gold(problems, pool)}
    if len(failing) > config.verify.drop_gold_above * len(problems):
        shown = "; ".join(f"{name}: {why}" for name, why in list(failing.items())[:3])
        raise ConfigError(
            f"dataset={config.dataset.name}: {len(failing)} of {len(problems)} gold answers fail their own verifier "
            f"(more than verify.drop_gold_above={config.verify.drop_gold_above}), e.g. {shown}"
        )
    if failing:
        said = "%d of %d gold answers fail their own verifier; their problems are left out"
        log.warning(said, len(failing), len(problems))
    return failing


def check_overlap(config: Config, problems: list[Problem]) -> dict[str, str]:
    """The train and dev problems that are like a held-out one, with the reason; none where they are only reported.

    Raises ConfigError where they are to be refused.
    """
    from selfimprove.datasets.overlap import overlap

    options = config.overlap
    own = [p for p in problems if p.split != "test"]
    found = overlap(own, [p for p in problems if p.split == "test"], options.ngram, options.share)
    like = {name: f"like held-out {other}: {100 * share:.0f} % of n-grams" for name, (other, share) in found.items()}
    if not like:
        return {}
    shown = "; ".join(f"{name} is {why}" for name, why in list(like.items())[:3])
    said = f"{len(like)} of {len(own)} train and dev problems nearly equal a held-out one, e.g. {shown}"
    if options.action == "refuse":
        raise ConfigError(f"dataset={config.dataset.name}: {said} (overlap.action=refuse)", "overlap.action")
    log.warning("%s; they are %s", said, "left out" if options.action == "drop" else "kept (overlap.action=report)")
    return like if options.action == "drop" else {}


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


@dataclass
class Ending:
    """How a session's work came to its end, as summary.json has it."""

    status: str = "failed"
    reason: str | None = None


@contextmanager
def ending(session: Session, end: Ending, what: str) -> Iterator[None]:
    """Notes in `end` how the work below ends: `complete`; `stopped` by a signal, or where the work set a reason; or
    `failed`, and then what it raised is raised on."""
    try:
        with _signals(session):
            yield
        end.status = "stopped" if end.reason else "complete"
    except Stopped as stop:
        end.status, end.reason = "stopped", str(stop)
    except (RunError, ConfigError) as problem:
        end.reason = str(problem)
        raise
    except Exception as problem:
        end.reason = f"{type(problem).__name__}: {problem}"
        log.exception("the %s failed", what)
        raise


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


def last_weights(run: store.Run, config: Config, base: Weights) -> Weights:
    """The newest policy of a run; the base where no round has trained one."""
    for number in reversed(range(config.passes)):
        if run.manifest(number, "train"):
            return Weights(str(run.round(number) / "policy"), number + 1, run.made(number, "train")["policy"])
    return base


def empty(run: store.Run, number: int) -> bool:
    manifest = run.manifest(number, "filter")
    return manifest is not None and not manifest["metrics"]["examples"]


def ends_round(config: Config, number: int) -> bool:
    return (number + 1) % config.method.refresh == 0


def _after_round(config: Config, run: store.Run, session: Session, tracker: Any, number: int) -> None:
    summary = summarize(config, run, "running")
    round_number = number if number < 0 else number // config.method.refresh
    session.display.round(summary, round_number)
    metrics = round_metrics(config, run, number)
    if number >= 0:
        store.write_json(run.round(number) / "metrics.json", metrics)
        tracker.table(round_number, attempts(session, number))
    tracker.round(round_number, metrics)


def round_metrics(config: Config, run: store.Run, number: int) -> dict[str, Any]:
    """Everything measured in the round that pass `number` ends, flat: `<phase>/<metric>`, and `seconds/<phase>`.

    Where a round has several passes, counts, tokens and seconds are sums over them, other figures are means.
    """
    first = number if number < 0 else number - number % config.method.refresh
    gathered: dict[str, list[float]] = {}
    for phase in PHASES:
        for manifest in (m for n in range(first, number + 1) if (m := run.manifest(n, phase))):
            for name, value in {**manifest["metrics"], "seconds": manifest["seconds"]}.items():
                for key, figure in _flat(f"seconds/{phase}" if name == "seconds" else f"{phase}/{name}", value):
                    gathered.setdefault(key, []).append(figure)
    merged = {key: _merged(key, values) for key, values in gathered.items()}
    return {"round": number if number < 0 else number // config.method.refresh, **merged}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A metric's name and value; of a mapping, those of its entries: `adapt/generate.temperature`."""
    if not isinstance(value, dict):
        yield name, value
        return
    head = name.removesuffix("/overrides")
    for key, inner in value.items():
        yield from _flat(f"{head}.{key}" if "." in head or head == name else f"{head}/{key}", inner)


_COUNTED = ("tokens", "verdicts", "seconds", "dropped", "trajectories", "examples", "calls", "steps", "tokens_trained")


def _merged(name: str, values: list[Any]) -> Any:
    if len(values) == 1 or not all(isinstance(value, int | float) for value in values):
        return values[-1]
    return sum(values) if any(part in _COUNTED for part in name.split("/")) else sum(values) / len(values)


def summarize(config: Config, run: store.Run, status: str, reason: str | None = None) -> dict[str, Any]:
    """Write summary.json from the manifests of the phases that are done, and return it."""
    rounds: list[dict[str, Any]] = []
    refresh = config.method.refresh
    for number in range(config.rounds):
        passes = range(number * refresh, (number + 1) * refresh)
        done = [(phase, m) for n in passes for phase in PHASES if (m := run.manifest(n, phase))]
        if not done:
            break

        def total(phase: str, name: str, done: list[tuple[str, Any]] = done) -> int:
            return int(sum(m["metrics"].get(name, 0) for p, m in done if p == phase))

        seconds = {phase: round(sum(m["seconds"] for p, m in done if p == phase), 3) for phase in PHASES}
        evaluation: list[dict[str, Any]] = [m["metrics"] for phase, m in done if phase == "evaluate"]
        verdicts = [f"verdicts/{s}" for s in STATUSES] if any(phase == "verify" for phase, _ in done) else []
        rounds.append(
            {
                "round": number,
                "trajectories": total("generate", "trajectories"),
                "verdicts": {name.removeprefix("verdicts/"): total("verify", name) for name in verdicts},
                "examples": total("filter", "examples"),
                "tokens": {
                    **{k: sum(total(p, f"tokens/{k}") for p in ASKING) for k in ("prompt", "sampled", "scored")},
                    "trained": total("train", "tokens"),
                },
                "seconds": {phase: spent for phase, spent in seconds.items() if spent or phase not in _OPTIONAL},
                "evaluation": evaluation[-1] if evaluation else None,
                **{phase: m["metrics"] for phase, m in done if phase in ("handover", "drift", "also")},
            }
        )
    base = run.manifest(-1, "evaluate")
    evaluated: list[dict[str, Any]] = [r["evaluation"] for r in rounds if r["evaluation"]]
    last = evaluated[-1] if evaluated else None
    summary = {
        "status": status,
        "reason": reason,
        "method": config.method.name,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "control": config.control,
        "base": base and base["metrics"],
        "final": last or (base and base["metrics"]),
        "change": last and {f"accuracy{end}": last[f"change{end}"] for end in ("", "_low", "_high")},
        "rounds": rounds,
    }
    store.write_json(run.path / "summary.json", summary)
    return summary


def exit_code(summary: Mapping[str, Any]) -> int:
    """0: the run is done, or stopped by a rule of its own (a budget, on_empty); 128 + n: by signal n."""
    reason = summary["reason"] or ""
    return 128 + signal.Signals[reason] if reason in signal.Signals.__members__ else 0


ASKING = ("adapt", "generate", "verify")  # the phases of a round that spend tokens of a model on learning


@contextmanager
def _signals(session: Session) -> Iterator[None]:
    """SIGINT and SIGTERM interrupt the session, once; a second one ends the process as usual."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        session.interrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment() -> dict[str, Any]:
    """Versions, git commit, hardware and the exact command, for environment.json."""
    return configuration.redact(  # type: ignore[no-any-return]
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join(sys.orig_argv),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "versions": {name: doctor.installed(name) for name in ("selfimprove", *doctor.PACKAGES, "vllm", "numpy")},
            "git_commit": _git_commit(),
        }
    )


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None when it is installed from a wheel."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
