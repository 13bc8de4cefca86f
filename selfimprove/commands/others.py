"""The commands beside `run`, each in a few lines: options in, a part of the package called, what came of it out."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfimprove import trust
from selfimprove.commands.common import require_out, require_out_file
from selfimprove.errors import ConfigError
from selfimprove.printable import printable


def resume(chosen: argparse.Namespace) -> int:
    from selfimprove import run, solving, sweep
    from selfimprove.commands.run import run as begin
    from selfimprove.summary import exit_code

    if solving.is_evaluation(chosen.run_dir):
        return exit_code(solving.resume(chosen.run_dir))
    if not sweep.is_sweep(chosen.run_dir):
        return exit_code(run.resume(chosen.run_dir, chosen.overrides))
    if chosen.overrides:
        raise ConfigError(
            f"{chosen.overrides[0]}: a sweep goes on as it is; resume one of its runs with another budget"
        )
    return begin(sweep.arguments(chosen.run_dir))


def eval(chosen: argparse.Namespace) -> int:
    require_out_file(chosen.out)
    require_out(chosen.dir)
    policy, overrides = None, chosen.words
    if overrides and (not re.search("=|^~", overrides[0]) or Path(overrides[0]).exists()):  # ~key takes a key out
        policy, *overrides = overrides
    given = [word.partition("=")[0] for word in overrides]
    if policy is None and not {"method", "model"} & set(given):
        raise ConfigError("eval: of what? a run folder, a model, or method=NAME model=NAME")
    if chosen.dir and "method" not in given:
        raise ConfigError("eval --dir: only where a method's solver is evaluated (method=NAME)")
    if policy is None or not (Path(policy) / "config.yaml").exists():
        figures, code = _evaluated(policy, overrides, given, chosen.dir)
    else:  # what the user's own words name is what the user wants
        with trust.reading([*chosen.allow, *_named(overrides)]):
            figures, code = _evaluated(policy, overrides, given, chosen.dir)
    if chosen.out:
        from selfimprove.store import write_json

        write_json(chosen.out, figures)
    return code


def _named(overrides: Sequence[str]) -> list[str]:
    """The functions that the user's own words name, which may be called."""
    return [name for word in overrides for name in re.findall(r"_target_=([\w.]+)", word)]


def _evaluated(
    policy: str | None, overrides: Sequence[str], given: Sequence[str], folder: Path | None
) -> tuple[dict[str, Any], int]:
    """The figures, and the exit code."""
    if "method" not in given:
        from selfimprove.evaluation import evaluate_policy

        return evaluate_policy(policy, overrides), 0
    from selfimprove.solving import evaluate_solver
    from selfimprove.summary import exit_code

    figures = evaluate_solver(policy, overrides, folder)
    return figures, exit_code(figures)


def compare(chosen: argparse.Namespace) -> int:
    require_out_file(chosen.out)
    require_out(chosen.export)
    from selfimprove.evaluation import base_answers
    from selfimprove.report import compare, logs
    from selfimprove.report.display import setup_logging

    setup_logging(None)
    if any(map(logs.is_log, chosen.runs)):
        for option in ("by", "baselines", "sealed", "plan", "out"):
            if getattr(chosen, option):
                raise ConfigError(f"--{option}: is for run folders, and these are logs of answers")
        found = logs.compare(chosen.runs, chosen.baseline)
    else:
        found = compare.compare(chosen.runs, chosen.by, chosen.baseline, base_answers if chosen.baselines else None)
    if chosen.sealed:
        from selfimprove.evaluation import evaluate_sealed
        from selfimprove.report import verdict

        found = verdict.with_sealed(found, evaluate_sealed, shlex.join(["selfimprove", *sys.argv[1:]]))
    if chosen.plan:
        from selfimprove.report.planning import with_plan

        found = with_plan(found)
    compare.print_tables(found)
    if chosen.export:
        from selfimprove.report.export import export

        for path in export(found, chosen.export):
            print(printable(path))
    if chosen.out and chosen.out.suffix == ".md":
        from selfimprove.report.board import write_board

        command = shlex.join(["selfimprove", *sys.argv[1:]])
        print(printable(write_board(found, chosen.out, command)))
    elif chosen.out:
        from selfimprove.report.html import write_report

        runs = [run for group in found.groups for run in group.runs]
        print(printable(write_report(runs, chosen.out, comparison=found.as_json(runs))))
    return 0


def tune(chosen: argparse.Namespace) -> int:
    require_out_file(chosen.out)
    from selfimprove import tune

    choices, unit = tune.choose(chosen.folder)
    tune.show(choices, unit)
    if chosen.out:
        tune.write(choices, unit, chosen.folder, chosen.out)
        print(printable(chosen.out))
    return 0


def report(chosen: argparse.Namespace) -> int:
    require_out_file(chosen.out)
    from selfimprove.report.html import write_report
    from selfimprove.report.runs import RunData

    if not (chosen.run_dir / "config.yaml").exists():
        raise ConfigError(f"{chosen.run_dir}: no run folder (it has no config.yaml); of many runs: selfimprove compare")
    run = RunData(chosen.run_dir)
    if run.kind != "run":
        raise ConfigError(f"{chosen.run_dir}: a report is of a run of rounds, and this is of another kind ({run.kind})")
    print(printable(write_report([run], chosen.out or chosen.run_dir / "report.html")))
    return 0


def verify(chosen: argparse.Namespace) -> int:
    require_out_file(chosen.out)
    if chosen.file.is_dir():
        return _regrade(chosen)
    from selfimprove.config import compose
    from selfimprove.ready import require_verifiers
    from selfimprove.verify.file import verify_file

    if not any(word.startswith("verifier=") for word in chosen.overrides):
        raise ConfigError("verify: which verifier? e.g. verifier=math")
    config = compose(chosen.overrides, needs=False)
    node, limits = config.training_verifier, config.verify
    require_verifiers(config)
    options = {key: value for key, value in node.items() if key != "_target_"}
    counts = verify_file(
        chosen.file,
        node["_target_"],
        options,
        out=chosen.out,
        workers=limits.workers or os.cpu_count() or 1,
        seconds=limits.seconds,
        memory_mb=limits.memory_mb,
    )
    print(" ".join(f"{status}={count}" for status, count in counts.items()), file=sys.stderr)
    return 0


def _regrade(chosen: argparse.Namespace) -> int:
    from selfimprove.regrade import regrade, show
    from selfimprove.report.display import setup_logging

    setup_logging(None)
    with trust.reading([*chosen.allow, *_named(chosen.overrides)]):
        results, said = regrade(chosen.file, chosen.overrides, chosen.out)
    show(results)
    for line in said:
        print(printable(line), file=sys.stderr)
    return 0


def study(chosen: argparse.Namespace) -> int:
    require_out_file(chosen.out)
    from selfimprove.studies import run_study

    run_study(chosen.name, chosen.quick, chosen.out)
    return 0


def show(chosen: argparse.Namespace) -> int:
    from selfimprove.report.tree import show

    show(chosen.run_dir, chosen.problem, chosen.round)
    return 0


def methods(chosen: argparse.Namespace) -> int:
    from selfimprove.config import methods

    found = methods()
    if chosen.json:
        print(json.dumps(found, indent=2))
        return 0
    from rich.table import Table

    from selfimprove.report.display import standard_output

    table = Table("method", "paper", "kind", "what it does", box=None, pad_edge=False)
    for method in found:
        table.add_row(method["name"], method["paper"], method["kind"], method["summary"])
    standard_output().print(table)
    return 0


def doctor(chosen: argparse.Namespace) -> int:
    from selfimprove import doctor

    if chosen.probe:
        return _forecast(chosen.overrides)
    return doctor.memory(chosen.overrides) if chosen.overrides else doctor.report()


def _forecast(overrides: Sequence[str]) -> int:
    from selfimprove.config import compose
    from selfimprove.probing import probe, show

    compose(overrides, needs=False)  # so that a wrong word is said at once
    with tempfile.TemporaryDirectory(prefix="selfimprove-probe-") as scratch:
        show(probe(overrides, Path(scratch)))
    return 0
