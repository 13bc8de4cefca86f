"""Decides whether runs can be compared: refuses unfair comparisons, and warns of what a reader must know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfimprove import store
from selfimprove.errors import ConfigError
from selfimprove.report.runs import RunData

BLOCKS, BLOCK = 16, 1 << 16  # number and bytes of the blocks of a weights file that identify it


def refuse(runs: Sequence[RunData], other_models: bool) -> None:
    """Raises ConfigError, one line, when the accuracies of runs cannot be compared.

    `other_models`: the base policies may differ, because the comparison is about them, as in `--by model`.
    """
    first = runs[0]
    heldout = first.evaluated
    for run in runs[1:]:
        if run.side != first.side:
            raise ConfigError(
                f"{first.path} was evaluated on {first.side} problems and {run.path} on {run.side} ones (eval.side): "
                "compare runs of one side"
            )
        same_problems(first, run, heldout, run.evaluated)
        if run.config["dataset"]["verifier"] != first.config["dataset"]["verifier"]:
            raise ConfigError(
                f"{first.path} and {run.path} grade held-out answers differently: dataset.verifier differs"
            )
        if not other_models and base_of(run) != base_of(first):
            raise ConfigError(
                f"{first.path} and {run.path} start from different base policies ({first.config['model']['path']} and "
                f"{run.config['model']['path']}): compare them with --by model"
            )
    for run in runs:
        seen(run, heldout | run.prompts("sealed"))


def same_problems(one: RunData, other: RunData, mine: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Raises ConfigError unless two runs have the same held-out problems and prompts: `mine` and `theirs`, by id."""
    if missing := mine.keys() ^ theirs.keys():
        raise ConfigError(
            f"{one.path} and {other.path} have different held-out problems: {len(missing)} are in one of them only, "
            f"e.g. {min(missing)}; give both the same dataset settings"
        )
    if changed := sorted(name for name in mine if mine[name] != theirs[name]):
        raise ConfigError(
            f"{one.path} and {other.path} ask the held-out problems in different words: {len(changed)} prompts differ, "
            f"e.g. that of {changed[0]}; give both the same prompt and examples"
        )


def seen(run: RunData, heldout: Mapping[str, str]) -> None:
    """Raises ConfigError if a run learned from a held-out problem, or an earlier run did whose policy it starts from.

    A problem is identified by its prompt, and by its id if both data sets have the same name.
    """
    held_out = {_words(prompt) for prompt in heldout.values()}
    for trained in (run, *ancestors(run)):
        learned = trained.prompts("train") | ({} if run.side == "dev" else trained.prompts("dev"))
        same_set = trained.config["dataset"]["name"] == run.config["dataset"]["name"]
        leaked = sorted(p for p, prompt in learned.items() if _words(prompt) in held_out or (same_set and p in heldout))
        if leaked:
            who = f"{trained.path}" if trained is run else f"{trained.path}, whose policy {run.path} starts from,"
            raise ConfigError(f"{who} trained on {len(leaked)} of {len(heldout)} held-out problems, e.g. {leaked[0]}")


def _words(prompt: str) -> str:
    return " ".join(str(json.loads(prompt)).split())


def ancestors(run: RunData) -> Iterator[RunData]:
    """The earlier runs that made the starting policy of a run, the nearest first."""
    met = {run.path.resolve()}
    while run.base_folder is not None:
        above = (p for p in run.base_folder.resolve().parents if (p / "problems.parquet").is_file())
        folder = next(above, None)
        if folder is None or folder in met:
            return
        met.add(folder)
        run = RunData(folder)
        yield run


def base_of(run: RunData) -> str:
    """A digest that identifies a run's base policy: of some blocks of its weights files.

    If the files are not on this machine, it is of the model's name and path.
    """
    model = run.config["model"]
    if run.base_folder is None:
        return store.digest([model["name"], model["path"]])
    weights = sorted(run.base_folder.glob("*.safetensors"))
    return store.digest([[path.name, _known_by(path)] for path in weights] or str(run.base_folder))


def _known_by(path: Path) -> list[str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        digests = [str(size)]
        for i in range(BLOCKS):
            file.seek(i * max(0, size - BLOCK) // (BLOCKS - 1))
            digests.append(store.digest(file.read(BLOCK).hex()))
    return digests


def warnings(groups: Mapping[str, Sequence[RunData]], pooled: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines on what does not forbid a comparison but must be said. `pooled`: keys in which a group's runs differ."""
    lines = [
        f"{name}: its runs differ in {', '.join(keys)}, and are one group" for name, keys in pooled.items() if keys
    ]
    seeds = {name: sorted({run.seed for run in runs}) for name, runs in groups.items()}
    if len({tuple(numbers) for numbers in seeds.values()}) > 1:
        by_group = "; ".join(f"{name}: {', '.join(map(str, numbers))}" for name, numbers in seeds.items())
        lines.append(f"seeds differ ({by_group}): differences between groups are over the seeds that both have")
    for name, runs in groups.items():
        twice = [str(seed) for seed, count in sorted(Counter(run.seed for run in runs).items()) if count > 1]
        if twice:
            lines.append(f"{name}: several runs of seed {', '.join(twice)}, whose mean is used")
    every = [run for runs in groups.values() for run in runs]
    for what, of in _SAME.items():
        values = sorted({str(of(run)) for run in every})
        if len(values) > 1:
            lines.append(f"{what} differs between runs: {', '.join(values)}")
    lines += [
        f"{run.path} stopped after {len(run.tokens)} of {run.config['rounds']} rounds: {run.summary.get('reason')}"
        for run in every
        if not run.complete
    ]
    return lines


def _limit(run: RunData) -> Any:
    return run.config["eval"].get("max_tokens") or run.config["model"]["max_tokens"]


_SAME: dict[str, Callable[[RunData], Any]] = {
    "tokens of a held-out answer (eval.max_tokens, model.max_tokens)": _limit,
    "the engine": lambda run: run.config["engine"]["name"],
    "number format (model.dtype)": lambda run: run.config["model"]["dtype"],
    "the code's commit": lambda run: run.environment.get("git_commit"),
}
