"""The command line: run · resume · eval · compare · tune · report · verify · study · show · methods · doctor.

Importing this loads neither torch nor Hydra.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from selfimprove import trust
from selfimprove.errors import ConfigError, RunError, of_the_disk
from selfimprove.printable import one_line, printable

_COMMANDS = ("run", "resume", "eval", "compare", "tune", "report", "verify", "study", "show", "methods", "doctor")


def main() -> None:
    """Entry point. Exit code 0: done; 1: the run failed; 2: the user's input is wrong; 128 + n: stopped by signal n."""
    sys.excepthook = _unexpected
    sys.exit(_main(sys.argv[1:]))


def _unexpected(kind: type[BaseException], problem: BaseException, trace: Any) -> None:
    """A fault of ours, whose message may hold text of a model."""
    print(printable("".join(traceback.format_exception(kind, problem, trace))), file=sys.stderr, end="")


def _main(arguments: list[str]) -> int:
    if arguments[:1] and arguments[0] in ("-sc", "--shell-completion"):
        return _guarded(lambda: _complete(arguments))
    parser = _parser()
    if arguments[:1] == ["run"]:  # Hydra reads everything behind it, --help included
        return _guarded(lambda: _run(arguments[1:]))

    def command() -> Any:
        chosen = parser.parse_args(arguments)
        with trust.reading(chosen.allow) if getattr(chosen, "restricted", False) else nullcontext():
            return chosen.do(chosen)

    return _guarded(command)


_ALLOW: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "MODULE",
    "help": "a module of yours whose functions the folder may have called (docs/safety.md)",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all of ours are."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="selfimprove",
        description="Runs and compares methods by which language models improve on their own output.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser(
        "run", help="run an experiment: selfimprove run method=... model=... dataset=... (--help for more)"
    )

    resume = commands.add_parser("resume", help="continue an interrupted run, or what is missing of a sweep")
    resume.add_argument("run_dir", type=Path, metavar="RUN_DIR|SWEEP_DIR")
    resume.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="another budget, e.g. budget.seconds=7200")
    resume.add_argument("--allow", **_ALLOW)
    resume.set_defaults(do=_resume, restricted=True)

    evaluate = commands.add_parser(
        "eval", help="held-out accuracy of a run's last policy, or of a model; with method=NAME, of its solver"
    )
    evaluate.add_argument(
        "words",
        nargs="*",
        metavar="[RUN_DIR|MODEL] [KEY=VALUE]",
        help="a run folder, a name of conf/model, a folder or hub id; then e.g. method=dser dataset=asdiv",
    )
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    evaluate.add_argument(
        "--dir", type=Path, metavar="DIR", help="with method=...: the folder to keep it in; default: below outputs/eval"
    )
    evaluate.add_argument("--allow", **_ALLOW)
    evaluate.set_defaults(do=_eval)

    compare = commands.add_parser("compare", help="runs side by side: paired differences, cost, equal compute")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, or folders above them")
    compare.add_argument(
        "--by", metavar="KEY", help="one group for each value of a key, e.g. method or method.generate.n"
    )
    compare.add_argument(
        "--baseline", metavar="GROUP", help="a group's name or a part of it; default: rejection_sampling"
    )
    compare.add_argument("--baselines", action="store_true", help="sample the base policy's answers at equal compute")
    compare.add_argument(
        "--sealed", action="store_true", help="read the sealed problems, once, for the verdict; each look is noted"
    )
    compare.add_argument("--out", type=Path, metavar="report.html", help="write the report: tables, curves, answers")
    compare.add_argument(
        "--export", type=Path, metavar="DIR", help="write tables (CSV, LaTeX, JSON) and plots (PDF, PNG)"
    )
    compare.add_argument("--allow", **_ALLOW)
    compare.set_defaults(do=_compare, restricted=True)

    tune = commands.add_parser("tune", help="each method's learning rate, by the dev problems of a sweep")
    tune.add_argument("folder", type=Path, metavar="SWEEP_DIR", help="of `selfimprove run -m eval.side=dev ...`")
    tune.add_argument("--out", type=Path, metavar="FILE.yaml", help="write the rates, e.g. to conf/rates/NAME.yaml")
    tune.set_defaults(do=_tune, restricted=True, allow=[])

    report = commands.add_parser("report", help="one HTML file of a run: tables, curves, answers (of many: compare)")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the run folder")
    report.add_argument("--allow", **_ALLOW)
    report.set_defaults(do=_report, restricted=True)

    verify = commands.add_parser("verify", help="verdicts for a file of outputs: rows with id, gold, completion")
    verify.add_argument("file", type=Path, metavar="FILE.jsonl")
    verify.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. verifier=math verify.seconds=5")
    verify.add_argument("--out", type=Path, metavar="OUT.jsonl", help="where the verdicts go; default: standard output")
    verify.set_defaults(do=_verify)

    study = commands.add_parser("study", help="does what a paper claims show at tiny scale? a table of claims")
    study.add_argument("name", metavar="METHOD")
    study.add_argument("--quick", action="store_true", help="the small form: one seed, few problems")
    study.add_argument("--out", type=Path, metavar="FILE", help="write the claims as JSON")
    study.set_defaults(do=_study)

    show = commands.add_parser("show", help="the search tree of a problem, drawn in the terminal")
    show.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    show.add_argument("--problem", required=True, metavar="ID")
    show.add_argument("--round", type=int, metavar="N", help="default: the last one with a tree")
    show.set_defaults(do=_show)

    methods = commands.add_parser("methods", help="what can be chosen as method=...")
    methods.add_argument("--json", action="store_true", help="print JSON")
    methods.set_defaults(do=_methods)

    doctor = commands.add_parser(
        "doctor", help="versions against the tested ones, hardware, engines; with KEY=VALUE the memory that a run needs"
    )
    doctor.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. model=mistral7b hardware=gpu_24gb")
    doctor.set_defaults(do=_doctor)
    return parser


def _guarded(command: Any) -> int:
    """Run a command; a ConfigError, a RunError or an error of the disk is one line on standard error, no traceback."""
    try:
        return int(command() or 0)
    except ConfigError as problem:
        return _fail(problem, 2)
    except RunError as problem:
        return _fail(problem, 1)
    except BrokenPipeError:  # the reader of our output went away, as in `selfimprove methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        said = of_the_disk(problem)
        if said is None:
            raise
        return _fail(said, 1 if isinstance(said, RunError) else 2)


def _fail(problem: Exception, code: int) -> int:
    print(f"selfimprove: {one_line(problem)}", file=sys.stderr)
    return code


# run: Hydra's own application, so that its conventions hold


def _run(arguments: Sequence[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from selfimprove import config as configuration
    from selfimprove import overrides, sweep

    words, said = _words(arguments)
    results: list[int] = []  # the exit code of a single run
    begun: list[bool] = []  # whether anything of ours has: until then it is Hydra that reads the user's words

    def task(composed: DictConfig) -> float | None:
        begun.append(True)
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            return sweep.member(composed)
        path = Path(hydra_config.runtime.output_dir)
        if path.is_relative_to(Path.cwd()):  # short in what is printed
            path = path.relative_to(Path.cwd())

        def one() -> int:
            from selfimprove import run
            from selfimprove.summary import exit_code

            try:
                _require_folder(path, hydra_config.run.dir)
                return exit_code(run.start(configuration.check(composed), path, said))
            except ConfigError as problem:
                _remove_if_empty(path)
                where = configuration.origin(problem.key, hydra_config.runtime.choices)
                raise ConfigError(f"{problem}{where}") from None

        results.append(_guarded(one))
        return None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here as they are, instead of a printed digest and exit 1
    sys.argv = ["selfimprove", *words]
    failure: ConfigError | RunError | None = None
    try:
        hydra.main(version_base="1.3", config_path=str(configuration.CONF), config_name="config")(task)()
    except sweep.Refused as refused:
        raise refused.problem from None
    except (HydraException, OmegaConfBaseException) as problem:
        failure = ConfigError(overrides.one_line(problem))
    except Exception as problem:
        if sweep.is_open():
            failure = RunError(f"the launcher failed: {type(problem).__name__}: {problem}")
        elif begun or not isinstance(problem, ValueError | OSError):
            raise
        elif isinstance(problem, OSError):  # Hydra makes the run's folder
            _remove_if_empty(Path(problem.filename or "."))
            failure = ConfigError(f"hydra.run.dir: {problem.filename!s:.120} cannot be made ({problem.strerror})")
        else:
            failure = ConfigError(overrides.one_line(problem))
    code = sweep.close(failed=failure is not None)
    if failure:
        raise failure
    return max(results, default=0) if code is None else code


def _words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of `run` as Hydra wants them, and lines to say about its KEY=VALUE words.

    Raises ConfigError for an argument that is neither such a word nor a flag of Hydra's.
    """
    from hydra._internal.utils import get_args_parser  # what hydra.main parses with

    from selfimprove import overrides

    flags = _Parser(prog="selfimprove run", parents=[get_args_parser()], add_help=False).parse_args(arguments)
    if flags.experimental_rerun:
        raise ConfigError("--experimental-rerun: a run is continued by `selfimprove resume RUN_DIR`")
    if flags.shell_completion:
        return list(arguments), []
    sweeps = flags.multirun or any(word.startswith("hydra.mode=") for word in flags.overrides)
    read = dict(zip(flags.overrides, overrides.read(flags.overrides, sweeps), strict=True))
    said = overrides.notes(flags.overrides)
    if said and flags.cfg:
        print("\n".join(said), file=sys.stderr)
    brought = overrides.brought(flags.overrides)
    place = max((arguments.index(word) + 1 for word in flags.overrides), default=0) if brought else 0
    found = [read.get(word, word) for word in arguments]
    return [*found[:place], *brought, *found[place:]], said


def _require_folder(path: Path, asked: str) -> None:
    """Raises ConfigError where a new run's folder, which Hydra made, holds other files or cannot be written to."""
    if not asked.strip():
        raise ConfigError("hydra.run.dir: is empty; name a folder for the run, or leave the word out")
    if not (path / "config.yaml").exists() and (other := [p.name for p in path.iterdir() if p.name[0] != "."]):
        raise ConfigError(f"hydra.run.dir={asked}: holds {other[0]!r}, and a run needs a folder of its own")
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4096))
    except OSError as problem:
        raise ConfigError(f"hydra.run.dir={asked}: cannot be written to ({problem.strerror})") from None


def _remove_if_empty(path: Path) -> None:
    """Remove the folder that Hydra made for a run that was refused, so that nothing is left behind.

    Empty parents go too: up to the working directory, and elsewhere one level at most.
    """
    for folder in (path, *path.parents):
        if folder not in (path, path.parent) and Path.cwd() not in folder.absolute().parents:
            return
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


def _complete(arguments: list[str]) -> int:
    """Shell completion: `eval "$(selfimprove -sc install=bash)"`. Behind `run` Hydra completes, before it we do."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split(" ")
    if arguments[1:2] and arguments[1].startswith("query") and words[1:2] != ["run"]:
        print("\n".join(c for c in _COMMANDS if c.startswith(words[1] if len(words) > 1 else "")))
        return 0
    os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    return _run(arguments)


# The other commands


def _resume(chosen: argparse.Namespace) -> int:
    from selfimprove import run, solving, sweep
    from selfimprove.summary import exit_code

    if solving.is_evaluation(chosen.run_dir):
        return exit_code(solving.resume(chosen.run_dir))
    if not sweep.is_sweep(chosen.run_dir):
        return exit_code(run.resume(chosen.run_dir, chosen.overrides))
    if chosen.overrides:
        raise ConfigError(
            f"{chosen.overrides[0]}: a sweep goes on as it is; resume one of its runs with another budget"
        )
    return _run(sweep.arguments(chosen.run_dir))


def _require_out(*paths: Path | None) -> None:
    """Raises ConfigError for a file or folder that cannot be written to. Asked first, before hours go by."""
    for path in filter(None, paths):
        there = next(folder for folder in path.absolute().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{path}: cannot be written, for {there} is no folder that can be written to")


def _require_out_file(path: Path | None) -> None:
    _require_out(path)
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ConfigError(
            f"{path}: cannot be written, {'it is a folder' if path.is_dir() else 'its folder is not there'}"
        )


def _eval(chosen: argparse.Namespace) -> int:
    _require_out_file(chosen.out)
    _require_out(chosen.dir)
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
        own = [name for word in overrides for name in re.findall(r"_target_=([\w.]+)", word)]
        with trust.reading([*chosen.allow, *own]):
            figures, code = _evaluated(policy, overrides, given, chosen.dir)
    if chosen.out:
        from selfimprove.store import write_json

        write_json(chosen.out, figures)
    return code


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


def _compare(chosen: argparse.Namespace) -> int:
    _require_out_file(chosen.out)
    _require_out(chosen.export)
    from selfimprove.evaluation import base_answers
    from selfimprove.report import compare
    from selfimprove.report.display import setup_logging

    setup_logging(None)
    found = compare.compare(chosen.runs, chosen.by, chosen.baseline, base_answers if chosen.baselines else None)
    if chosen.sealed:
        from selfimprove.evaluation import evaluate_sealed
        from selfimprove.report import verdict

        found = verdict.with_sealed(found, evaluate_sealed, shlex.join(["selfimprove", *sys.argv[1:]]))
    compare.print_tables(found)
    if chosen.export:
        from selfimprove.report.export import export

        for path in export(found, chosen.export):
            print(printable(path))
    if chosen.out:
        from selfimprove.report.html import write_report

        runs = [run for group in found.groups for run in group.runs]
        print(printable(write_report(runs, chosen.out, comparison=found.as_json(runs))))
    return 0


def _tune(chosen: argparse.Namespace) -> int:
    _require_out_file(chosen.out)
    from selfimprove import tune

    choices, unit = tune.choose(chosen.folder)
    tune.show(choices, unit)
    if chosen.out:
        tune.write(choices, unit, chosen.folder, chosen.out)
        print(printable(chosen.out))
    return 0


def _report(chosen: argparse.Namespace) -> int:
    _require_out_file(chosen.out)
    from selfimprove.report.html import write_report
    from selfimprove.report.runs import RunData

    if not (chosen.run_dir / "config.yaml").exists():
        raise ConfigError(f"{chosen.run_dir}: no run folder (it has no config.yaml); of many runs: selfimprove compare")
    run = RunData(chosen.run_dir)
    if run.kind != "run":
        raise ConfigError(f"{chosen.run_dir}: a report is of a run of rounds, and this is of another kind ({run.kind})")
    print(printable(write_report([run], chosen.out or chosen.run_dir / "report.html")))
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    _require_out_file(chosen.out)
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


def _study(chosen: argparse.Namespace) -> int:
    _require_out_file(chosen.out)
    from selfimprove.studies import run_study

    run_study(chosen.name, chosen.quick, chosen.out)
    return 0


def _show(chosen: argparse.Namespace) -> int:
    from selfimprove.report.tree import show

    show(chosen.run_dir, chosen.problem, chosen.round)
    return 0


def _methods(chosen: argparse.Namespace) -> int:
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


def _doctor(chosen: argparse.Namespace) -> int:
    from selfimprove import doctor

    return doctor.memory(chosen.overrides) if chosen.overrides else doctor.report()
