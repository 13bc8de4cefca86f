"""A sweep: one folder of runs, called its members. One of Hydra's launchers starts them.

    <sweep>/
      sweep.json       the arguments, and the overrides of each member, written before the first one starts
      <number>_.../    a member: a run folder, and member.json with its number, overrides and, if it failed, why

Each member runs in a process of its own, whichever launcher starts it. So a crash stops no other member, and its memory
is free afterwards. A member's result is read from its folder, so it does not matter where it ran. A resumed sweep goes
through Hydra again with the same arguments. A member that is done answers at once, an interrupted one is continued, and
one that never began is started. An Optuna sampler with a seed asks for the same members again, since their results are
the same.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from selfimprove import config as configuration
from selfimprove import store, trust
from selfimprove.errors import ConfigError, RunError
from selfimprove.printable import one_line, printable
from selfimprove.schema import Config
from selfimprove.units import unit_of

MANIFEST, MEMBER, STOP, OUTPUT = "sweep.json", "member.json", "stop", "console.log"

_opened: list[Path] = []  # the sweep that this process drives, once Hydra knows its folder
_held = ExitStack()  # its lock: two processes must not drive one sweep


class Refused(BaseException):
    """A ConfigError on its way through Hydra's callbacks, which would make a warning of it."""

    def __init__(self, problem: ConfigError) -> None:
        self.problem = problem


# In the process that was started by the user


class Recorder(Callback):
    """Hydra's callback by which a sweep's folder gets its manifest; conf/config.yaml names it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            _open(config)
        except ConfigError as problem:
            raise Refused(problem) from None
        except OSError as problem:
            raise Refused(ConfigError(f"hydra.sweep.dir={config.hydra.sweep.dir}: {problem}")) from None


def _open(config: DictConfig) -> None:
    """Write the manifest, or find that it is this very sweep's. Signals from here on stop the members."""
    hydra = config.hydra
    folder = Path(hydra.sweep.dir).absolute()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers about each use
    members = _members(config)
    _require_one(members or [])
    _held.enter_context(store.Run(folder).lock())
    manifest = configuration.redact({"arguments": sys.argv[1:], "members": members})
    if (folder / MANIFEST).exists():
        if _same(store.read_json(folder / MANIFEST), manifest):
            (folder / STOP).unlink(missing_ok=True)
        else:
            raise ConfigError(f"{folder} holds another sweep: `selfimprove resume {folder}`, or choose another folder")
    else:
        store.write_sealed(folder / MANIFEST, manifest)
    _opened.append(folder)
    _stop_on_signals(folder)


def _members(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each member; None if they depend on results (Optuna)."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    sweeper = config.hydra.sweeper
    if not sweeper["_target_"].endswith(".BasicSweeper"):
        if "direction" in sweeper and getattr(sweeper.direction, "name", sweeper.direction) != "maximize":
            raise ConfigError("hydra.sweeper.direction: the objective is the score; hydra/sweeper=tune maximizes it")
        sampler = sweeper.get("sampler") or {}
        if sampler.get("seed") is None:
            raise ConfigError(
                "hydra.sweeper.sampler.seed: needs a number, or the sweep could not be resumed; the sampler "
                f"{sampler.get('_target_', '?')} {'has none set' if 'seed' in sampler else 'takes none'}"
            )
        if OmegaConf.select(config, "eval.side") != "dev":
            raise ConfigError(
                "eval.side: what chooses must not see the held-out problems; give eval.side=dev dataset.dev_size=200"
            )
        return None
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides([*words, *config.hydra.overrides.task])
        return BasicSweeper.split_arguments(overrides, None)[0]
    except HydraException as problem:
        raise ConfigError(f"{problem}: hydra/sweeper=tune takes intervals") from None


def _require_one(members: Sequence[Sequence[str]]) -> None:
    """Raises ConfigError if every member would be refused."""
    first: ConfigError | None = None
    for words in members:
        try:
            configuration.compose(words)
        except ConfigError as problem:
            first = first or problem
        else:
            return
    if first:
        raise first


def _same(known: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether two manifests ask for the same members. The spelling of the folder does not matter."""

    def asked(manifest: dict[str, Any]) -> list[str]:
        return [word for word in manifest["arguments"] if not word.startswith(("hydra.sweep.dir=", "hydra/launcher"))]

    return known["members"] == ours["members"] if known["members"] else asked(known) == asked(ours)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / MANIFEST).exists()


def arguments(folder: Path) -> list[str]:
    """The arguments of `selfimprove run` that continue a sweep."""
    known: list[str] = store.read_json(folder / MANIFEST)["arguments"]
    trust.require_words(known, folder / MANIFEST)
    quoted = str(folder.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return [*(word for word in known if not word.startswith("hydra.sweep.dir=")), f"hydra.sweep.dir='{quoted}'"]


def is_open() -> bool:
    """Whether this process drives a sweep."""
    return bool(_opened)


def close(failed: bool) -> int | None:
    """End the sweep that this process drives: its table, report.html, and the exit code. None if it drives none.

    `failed`: the launcher or sweeper ended before its time.
    """
    if not _opened:
        return None
    folder = _opened.pop()
    _held.close()
    (folder / "multirun.yaml").unlink(missing_ok=True)  # a copy of the configuration by Hydra, secrets and all
    if failed and not any(folder.glob(f"*/{MEMBER}")):  # refused as a whole: leave nothing behind
        (folder / MANIFEST).unlink()
        for name in (STOP, ".lock"):
            (folder / name).unlink(missing_ok=True)
        for empty in (*folder.iterdir(), folder, folder.parent):
            _remove_if_empty(empty)
        return None
    stopped = (folder / STOP).read_text() if (folder / STOP).exists() else ""
    (folder / STOP).unlink(missing_ok=True)
    found = members(folder)
    _show(folder, found)
    begun = [member.folder for member in found if member.folder and member.summary.get("final")]
    if begun:
        _write_report(begun, folder / "report.html")
    if stopped:
        return 128 + signal.Signals[stopped]
    return max([member.code for member in found] + [1 if failed else 0])


def _write_report(runs: Sequence[Path], path: Path) -> None:
    from selfimprove.report.html import write_report
    from selfimprove.report.runs import RunData

    try:
        write_report([RunData(run) for run in runs], path)
    except ConfigError as problem:  # the members' results are there anyway
        say(f"{_shown(path)} is not written: {problem}")
    else:
        print(f"report        {printable(_shown(path))}")


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


# A sweep's results, from its folder alone


@dataclass
class Member:
    """One run of a sweep, as its folder has it."""

    number: int
    overrides: list[str]
    folder: Path | None = None
    failure: str = ""
    code: int = 1  # an exit code; 0: done
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """complete, stopped (by a budget, on_empty, or a signal), failed, interrupted (killed), or not started."""
        if self.failure:
            return "failed"
        known = str(self.summary.get("status", "running" if self.folder else "not started"))
        return "interrupted" if known == "running" else known


def members(folder: Path) -> list[Member]:
    """The members of a sweep in order, with those that never began."""
    manifest = store.read_json(folder / MANIFEST)
    found = {number: Member(number, overrides) for number, overrides in enumerate(manifest["members"] or [])}
    for path in folder.glob(f"*/{MEMBER}"):
        known = store.read_or_none(path)
        if known is None:
            continue
        member = Member(known["number"], known["overrides"], path.parent, known["failure"] or "", known["code"])
        member.summary = _summary(path.parent)
        found[member.number] = member
    return [found[number] for number in sorted(found)]


def _show(folder: Path, found: Sequence[Member]) -> None:
    """Print the table of members, then what failed and why, and what to do next."""
    from rich.table import Table
    from rich.text import Text

    from selfimprove.report.display import short, standard_output

    asked = store.read_json(folder / MANIFEST)["arguments"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "member", "status"):
        table.add_column(name, overflow="fold")
    for name in ("final score\n[95 %]", "change\n[95 %]", "sampled\ntokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for member in found:
        final, change = member.summary.get("final"), member.summary.get("change")
        unit = unit_of(member.summary)
        sampled = sum(row["tokens"]["sampled"] for row in member.summary.get("rounds", []))
        reason = member.summary.get("reason") if member.status == "stopped" else ""
        table.add_row(
            str(member.number),
            Text(printable(_label(member.overrides, asked))),
            Text(printable(f"{member.status}: {reason.split('=')[0]}" if reason else member.status)),
            Text(unit.headline(final) if final else "-"),
            Text(unit.headline(change, signed=True) if change else "-"),
            short(sampled) if sampled else "-",
        )
    done = sum(member.code == 0 for member in found)
    lines = [f"{done} of {len(found)} members are done"]
    lines += [f"failed: {m.number}: {m.failure} ({_shown(m.folder)})" for m in found if m.failure]
    lines.append(f"sweep folder  {_shown(folder)}")
    name, command = ("compare", "compare") if done == len(found) else ("continue", "resume")
    lines.append(f"{name:<12}  selfimprove {command} {shlex.quote(_shown(folder))}")
    console = standard_output()
    console.print("", table, "", sep="\n")
    console.print(printable("\n".join(lines)), markup=False, highlight=False, soft_wrap=True)


def _label(overrides: Sequence[str], asked: Sequence[str]) -> str:
    """What distinguishes a member: its overrides without those in the sweep's own arguments."""
    return " ".join(word for word in overrides if word not in asked) or "-"


def _shown(path: Path | None) -> str:
    """Short in what is printed."""
    if path is None:
        return "-"
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# In a launcher's process, which can be this one, a worker, or one on another machine


def member(composed: DictConfig) -> float | None:
    """Hydra's task function in a sweep: run one member to its end.

    Returns the held-out accuracy of its final policy (with a budget: at that budget), which is Optuna's objective. None
    if there is none. It raises nothing, whatever happens to a member.
    """
    from selfimprove.summary import exit_code

    hydra = HydraConfig.get()
    folder, path = Path(hydra.sweep.dir).absolute(), Path(hydra.runtime.output_dir)
    (folder / "multirun.yaml").unlink(missing_ok=True)  # a copy of the configuration by Hydra, secrets and all
    if (folder / STOP).exists():
        _remove_if_empty(path)
        return None
    slurm = hydra.launcher["_target_"].endswith(".SlurmLauncher")
    if not slurm:  # Slurm signals a job when its time is up or its node is needed, and submitit queues it again
        _stop_on_signals(folder)
    number, overrides = int(hydra.job.num), list(hydra.overrides.task)
    record = {"number": number, "overrides": configuration.redact(overrides), "failure": None, "code": 1}
    manifest = store.read_json(folder / MANIFEST)
    title = f"member {number} ({_label(overrides, manifest['arguments'])})"
    begin = time.monotonic()
    summary = _summary(path)
    if known := store.read_or_none(path / MEMBER):
        if known["overrides"] != record["overrides"]:
            say(f"{title} is not run: {_shown(path)} holds another one")
            return None
        if known["failure"] and manifest["members"] is None:  # tried again, it might change what the sampler asks next
            return None
    try:
        store.write_sealed(path / MEMBER, record)
        if summary.get("status") in ("complete", "stopped") and exit_code(summary) == 0:
            code, failure = 0, None
        else:
            say(f"{title} {'goes on' if summary else 'begins'}: {_shown(path)}")
            config = configuration.check(composed)
            trust.require(config.model_dump(by_alias=True), folder / MANIFEST)
            config = config.model_copy(update={"group": config.group or folder.name})
            quiet = not hydra.launcher["_target_"].endswith(".BasicLauncher")
            choices = {str(group): choice for group, choice in hydra.runtime.choices.items()}
            code, failure = _run_apart(config, path, folder, ["selfimprove", "run", *overrides], choices, quiet)
    except ConfigError as problem:
        code, failure = 2, f"{problem}{configuration.origin(problem.key, hydra.runtime.choices)}"
    summary = _summary(path)
    store.write_sealed(path / MEMBER, record | {"failure": failure, "code": code})
    if code > 128 and not slurm and not (folder / STOP).exists():  # stopped by a signal, which means the whole sweep
        _stop(folder, signal.Signals(code - 128).name)
    say(f"{title} {_outcome(summary, failure)} after {time.monotonic() - begin:.0f} s")
    final = summary.get("final")
    return float(final[unit_of(summary).name]) if final and code == 0 else None


def say(text: str) -> None:
    print(f"selfimprove: {one_line(text)}", file=sys.stderr, flush=True)


def _summary(path: Path) -> dict[str, Any]:
    return store.read_or_none(path / "summary.json") or {}


def _outcome(summary: Mapping[str, Any], failure: str | None) -> str:
    if failure:
        return f"failed: {failure}"
    final = summary.get("final")
    said = f"{summary['status']} ({summary['reason']})" if summary.get("reason") else summary["status"]
    unit = unit_of(summary)
    return f"{said}, {unit.label} {unit.show(final[unit.name])}," if final else said


def _stop(folder: Path, name: str) -> None:
    """Ask all members to stop as by this signal. Several processes may ask at once, each by a file of its own."""
    temporary = folder / f".{STOP}.{os.getpid()}"
    temporary.write_text(name)
    os.replace(temporary, folder / STOP)


def _stop_on_signals(folder: Path) -> None:
    """SIGINT and SIGTERM ask all members to stop, by a file that every launcher's processes see; a second one ends
    this process as usual."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _stop(folder, signal.Signals(number).name)

    if threading.current_thread() is threading.main_thread():  # elsewhere, as in Ray's workers, signals are not ours
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)


PRELOADED = ["selfimprove.run", "selfimprove.train.own"]  # seconds of imports, paid once; the latter imports torch


def _run_apart(
    config: Config, path: Path, sweep: Path, command: list[str], choices: dict[str, str | None], quiet: bool
) -> tuple[int, str | None]:
    """Run in a new process, and wait for it. Returns an exit code, and the reason of a failure."""
    # The new process is a fork of one that has only imported modules. But a library may ask CUDA something while it is
    # imported, and then CUDA does not work in a fork.
    multiprocessing.set_start_method(None, force=True)  # joblib's workers have one that no other process knows
    more = ["selfimprove.policy.hf", "selfimprove.train.trainers"] if config.engine["name"] == "transformers" else []
    multiprocessing.set_forkserver_preload([*PRELOADED, *more])
    context: Any = multiprocessing.get_context("forkserver" if config.hardware.device == "cpu" else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, config, path, command, choices, quiet))
    process.start()
    theirs.close()
    worker, parent, told = not is_open(), os.getppid(), False  # who drives a sweep may outlive the user's shell
    while process.is_alive():
        process.join(0.2)
        if worker and os.getppid() != parent and not (sweep / STOP).exists():  # whoever drives it is gone
            _stop(sweep, "SIGTERM")
        if (sweep / STOP).exists() and not told and process.pid:
            told = True
            os.kill(process.pid, signal.Signals[(sweep / STOP).read_text()])
    try:
        code, failure = ours.recv()
        return code, failure
    except EOFError:  # it ended without a word
        process.join()
    ended = process.exitcode or 0
    what = f"by {signal.Signals(-ended).name}" if ended < 0 else f"with exit code {ended}"
    if ended < 0 and told:
        return 128 - ended, None
    hint = "; was memory short?" if ended == -signal.SIGKILL else ""
    return 1, f"its process was ended {what}{hint}"


# In the member's own process


def _child(
    pipe: Connection, config: Config, path: Path, command: list[str], choices: dict[str, str | None], quiet: bool
) -> None:
    from selfimprove import run
    from selfimprove.summary import exit_code

    os.setpgrp()  # Ctrl-C reaches the whole foreground group, but a member gets it once, from the waiting process
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    sys.orig_argv = [*command, f"hydra.run.dir={path}"]  # for environment.json: this very run, without the sweep
    if quiet:  # several members at once: each to a file of its own
        output = os.open(path / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    failure = None
    try:
        code = exit_code(run.resume(shown) if (path / "config.yaml").exists() else run.start(config, shown))
    except ConfigError as problem:
        code, failure = 2, f"{problem}{configuration.origin(problem.key, choices)}"
    except RunError as problem:
        code, failure = 1, str(problem)
    except Exception as problem:
        traceback.print_exc()
        code, failure = 1, f"{type(problem).__name__}: {problem}"
    pipe.send((code, failure))


def _end_with(pipe: Connection) -> None:
    """Stop this process when the one that waits for it is gone. The other end of the pipe closes then."""
    pipe.poll(None)
    os.kill(os.getpid(), signal.SIGTERM)
