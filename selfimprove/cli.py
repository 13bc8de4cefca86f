"""The command line: each command's arguments, and the function that carries it out.

Importing this loads neither torch nor Hydra.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from selfimprove import trust
from selfimprove.commands import others, push, serve
from selfimprove.commands.common import Parser, guarded
from selfimprove.commands.run import complete, run
from selfimprove.printable import printable

_COMMANDS = (
    "run",
    "resume",
    "eval",
    "compare",
    "tune",
    "report",
    "verify",
    "push",
    "serve",
    "study",
    "show",
    "methods",
    "doctor",
)


def main() -> None:
    """Entry point. Exit code 0: done; 1: the run failed; 2: the user's input is wrong; 128 + n: stopped by signal n."""
    sys.excepthook = _unexpected
    sys.exit(_main(sys.argv[1:]))


def _unexpected(kind: type[BaseException], problem: BaseException, trace: Any) -> None:
    """A fault of ours, whose message may hold text of a model."""
    print(printable("".join(traceback.format_exception(kind, problem, trace))), file=sys.stderr, end="")


def _main(arguments: list[str]) -> int:
    if arguments[:1] and arguments[0] in ("-sc", "--shell-completion"):
        return guarded(lambda: complete(arguments, _COMMANDS))
    parser = _parser()
    if arguments[:1] == ["run"]:  # Hydra reads everything behind it, --help included
        return guarded(lambda: run(arguments[1:]))

    def command() -> Any:
        chosen = parser.parse_args(arguments)
        with trust.reading(chosen.allow) if getattr(chosen, "restricted", False) else nullcontext():
            return chosen.do(chosen)

    return guarded(command)


_ALLOW: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "MODULE",
    "help": "a module of yours whose functions the folder may have called (docs/safety.md)",
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="selfimprove",
        description="Runs and compares methods by which language models improve on their own output.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "run", help="run an experiment: selfimprove run method=... model=... dataset=... (--help for more)"
    )
    _add_resume(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_tune(commands)
    _add_report(commands)
    _add_verify(commands)
    push.add(commands, _ALLOW)
    serve.add(commands)
    _add_study(commands)
    _add_show(commands)
    _add_methods(commands)
    _add_doctor(commands)
    return parser


def _add_resume(commands: Any) -> None:
    resume = commands.add_parser("resume", help="continue an interrupted run, or what is missing of a sweep")
    resume.add_argument("run_dir", type=Path, metavar="RUN_DIR|SWEEP_DIR")
    resume.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="another budget, e.g. budget.seconds=7200")
    resume.add_argument("--allow", **_ALLOW)
    resume.set_defaults(do=others.resume, restricted=True)


def _add_evaluate(commands: Any) -> None:
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
    evaluate.set_defaults(do=others.eval)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="runs side by side: paired differences, cost, equal compute")
    compare.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR|LOG",
        help="run folders, or folders above; or logs of answers (lm-eval, JSON lines)",
    )
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
    compare.add_argument("--plan", action="store_true", help="the difference that more problems and seeds would show")
    compare.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the report (.html: with curves and answers) or a leaderboard (.md)",
    )
    compare.add_argument(
        "--export", type=Path, metavar="DIR", help="write tables (CSV, LaTeX, JSON) and plots (PDF, PNG)"
    )
    compare.add_argument("--allow", **_ALLOW)
    compare.set_defaults(do=others.compare, restricted=True)


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser("tune", help="each method's learning rate, by the dev problems of a sweep")
    tune.add_argument("folder", type=Path, metavar="SWEEP_DIR", help="of `selfimprove run -m eval.side=dev ...`")
    tune.add_argument("--out", type=Path, metavar="FILE.yaml", help="write the rates, e.g. to conf/rates/NAME.yaml")
    tune.set_defaults(do=others.tune, restricted=True, allow=[])


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="one HTML file of a run: tables, curves, answers (of many: compare)")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the run folder")
    report.add_argument("--allow", **_ALLOW)
    report.set_defaults(do=others.report, restricted=True)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify", help="verdicts for a file of outputs (rows with id, gold, completion), or anew for a run's answers"
    )
    verify.add_argument("file", type=Path, metavar="FILE.jsonl|RUN_DIR")
    verify.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. verifier=math verify.seconds=5")
    verify.add_argument(
        "--out", type=Path, metavar="OUT.jsonl", help="the verdicts (default: standard output); of a run, what changed"
    )
    verify.add_argument("--allow", **_ALLOW)
    verify.set_defaults(do=others.verify)


def _add_study(commands: Any) -> None:
    study = commands.add_parser("study", help="does what a paper claims show at tiny scale? a table of claims")
    study.add_argument("name", metavar="METHOD")
    study.add_argument("--quick", action="store_true", help="the small form: one seed, few problems")
    study.add_argument("--out", type=Path, metavar="FILE", help="write the claims as JSON")
    study.set_defaults(do=others.study)


def _add_show(commands: Any) -> None:
    show = commands.add_parser("show", help="the search tree of a problem, drawn in the terminal")
    show.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    show.add_argument("--problem", required=True, metavar="ID")
    show.add_argument("--round", type=int, metavar="N", help="default: the last one with a tree")
    show.set_defaults(do=others.show)


def _add_methods(commands: Any) -> None:
    methods = commands.add_parser("methods", help="what can be chosen as method=...")
    methods.add_argument("--json", action="store_true", help="print JSON")
    methods.set_defaults(do=others.methods)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor", help="versions against the tested ones, hardware, engines; with KEY=VALUE the memory that a run needs"
    )
    doctor.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. model=mistral7b hardware=gpu_24gb")
    doctor.add_argument(
        "--probe", action="store_true", help="tokens, time, disk and cost, by a probe of a minute at most"
    )
    doctor.set_defaults(do=others.doctor)
