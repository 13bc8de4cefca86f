"""`selfimprove eval`: a policy on a data set's held-out problems, outside of a run."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove import config as configuration
from selfimprove import integrity, store
from selfimprove.config import CONF
from selfimprove.errors import ConfigError
from selfimprove.schema import Config
from selfimprove.sides import evaluated
from selfimprove.types import Problem

if TYPE_CHECKING:
    import pyarrow as pa

    from selfimprove.session import Policies


@dataclass(frozen=True)
class Chosen:
    """What is evaluated, and on which problems. `base` is the model before any training."""

    config: Config
    problems: list[Problem]
    base: Policies
    policies: Policies


def choose(policy: str | None, overrides: Sequence[str], solver: bool = False) -> Chosen:
    """What to evaluate. `policy` is a run folder, a name of conf/model, a model folder or a hub id. None: as
    `overrides` say.

    Of a run folder it is the last policy, on the run's own held-out problems unless a data set is named. `solver`: the
    method's solver is going to be run. Raises ConfigError if possible before the data set is read.
    """
    from selfimprove.policy.models import is_adapter
    from selfimprove.ready import prepare, require_engine
    from selfimprove.session import base_policies
    from selfimprove.summary import last_policies

    chosen = [word.partition("=")[0] for word in overrides]
    folder = Path(policy or "")
    if policy and (folder / "config.yaml").exists():
        trained = configuration.read(folder / "config.yaml")
        for word in overrides:
            if re.match(r"\+*model(\.path|\.name)?=", word):
                raise ConfigError(f"{word}: {policy} is a run, and its own policy is evaluated; leave the word out")
        config = configuration.compose_on(folder / "config.yaml", overrides)
        if solver:
            configuration.check_solver(config)
        base = base_policies(trained)
        policies = last_policies(store.Run(folder), trained, base)
        _require_whole(folder, base, policies)
        began, last = Path(base["policy"].path), policies["policy"]
        if began.is_absolute() and not began.exists() and not is_adapter(last.path):
            base = base | {"policy": last}  # the policy that the run began with is gone, and not needed any more
        require_engine(config, trains=policies != base)
        if any(key.split(".")[0] == "dataset" for key in chosen):
            problems, _ = prepare(config)
        else:
            problems = list(store.read_records(folder / "problems.parquet", Problem))
        return Chosen(config, problems, base, policies)
    named: list[str] = []
    if policy:
        known = (CONF / "model" / f"{policy}.yaml").exists()
        named = [f"model={policy}"] if known else ["model=other", f"model.path={policy}"]
    config = configuration.compose([*named, *overrides], needs=False)
    if solver:
        configuration.check_solver(config)
    require_engine(config, trains=False)
    problems, _ = prepare(config)
    base = base_policies(config)
    return Chosen(config, problems, base, base)


def _require_whole(folder: Path, base: Policies, policies: Policies) -> None:
    """Raises Damaged if the policy or the problems of a run folder are not what the run wrote."""
    files = integrity.Checked(folder)
    summary = folder / "summary.json"
    files.require(store.read_json(summary) if summary.exists() or integrity.begun(folder) else {})
    files.file(folder / "problems.parquet")
    for role, weights in policies.items():
        if weights == base[role]:
            integrity.require_base(folder, role, weights.path)
        else:
            files.file(Path(weights.path))


def evaluate_policy(policy: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Greedy accuracy, and mean@k, pass@k and maj@k of `eval.samples` (8 unless said otherwise), printed and returned.

    The arguments are those of `choose`.
    """
    from selfimprove.report.display import setup_logging

    setup_logging(None)
    if not any(word.startswith("eval.samples=") for word in overrides):
        overrides = [*overrides, "eval.samples=8"]
    chosen = choose(policy, overrides)
    with tempfile.TemporaryDirectory(prefix="selfimprove-eval-") as scratch:
        return _evaluate(
            chosen.config,
            evaluated(chosen.config, chosen.problems),
            chosen.base,
            chosen.policies,
            Path(scratch),
            show=True,
        )


def base_answers(config: Config, heldout: list[Problem], n: int) -> pa.Table:
    """n sampled answers of a configuration's base policy to each problem, graded: the columns of `RunData.answers`."""
    import pyarrow.compute as pc

    from selfimprove.report.runs import answers
    from selfimprove.session import base_policies

    base = base_policies(config)
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"samples": n, "consistency": None})})
    with tempfile.TemporaryDirectory(prefix="selfimprove-eval-") as scratch:
        _evaluate(config, heldout, base, base, Path(scratch), show=False)
        table = answers(Path(scratch) / "base" / "evaluation")
    return table.filter(pc.field("decoding") == "sampled")


def evaluate_sealed(path: Path) -> None:
    """The base and the last policy of a finished run on its sealed problems: `sealed/` in the run folder."""
    from selfimprove.report.verdict import FINAL, FOLDER, START

    chosen = choose(str(path), ["eval.samples=0", "eval.consistency=null"])
    problems = [problem for problem in chosen.problems if problem.split == "sealed"]
    for name, policies in ((START, chosen.base), (FINAL, chosen.policies)):
        _evaluate(chosen.config, problems, chosen.base, policies, path / FOLDER / name, show=False)


def _evaluate(
    config: Config, heldout: list[Problem], base: Policies, policies: Policies, folder: Path, show: bool
) -> dict[str, Any]:
    from selfimprove.heldout import evaluate
    from selfimprove.plan import BASE
    from selfimprove.report.display import Display
    from selfimprove.session import Session

    display = Display(folder, config)
    session = Session(config, store.Run(folder), display, [], heldout, base)
    try:
        figures = evaluate(session, BASE, policies)
    finally:
        session.close()
    if show:
        display.evaluation(figures, config, policies["policy"].path)
    return figures
