"""What is checked before a run begins.

Gold answers pass their verifier, and problems fit the model's window. Train and held-out problems do not overlap. The
model is complete, and this machine has what the run needs.
"""

from __future__ import annotations

import logging
from typing import Any

from selfimprove import fit, sides
from selfimprove.binding import Target, is_group, module_of, options_of
from selfimprove.errors import ConfigError
from selfimprove.memory import shape_of
from selfimprove.schema import Config
from selfimprove.session import open_pool
from selfimprove.types import Problem

log = logging.getLogger("selfimprove")


def prepare(
    config: Config, trains: bool = False, notes: list[str] | None = None
) -> tuple[list[Problem], dict[str, str]]:
    """The problems to use, and those that are dropped, with the reason.

    A problem is dropped if its gold answer fails its own verifier, or if its prompt does not fit the model's window. A
    train problem is also dropped if it is like a held-out one. `trains`: a run is going to learn from them. Warnings go
    to `notes`, or without it to the log. Raises ConfigError for data that cannot be used, or a model that lacks a file.
    """
    require_verifiers(config)
    require_heads(config)
    problems = sides.load(config.dataset, config.seed)
    require_arrays(config, problems)
    reader = fit.open_reader(config, trains)
    dropped: dict[str, str] = {}
    said: list[str] = []

    def left() -> list[Problem]:
        return [problem for problem in problems if problem.id not in dropped]

    dropped |= check_gold(config, problems, said)
    if trains:
        dropped |= check_training_gold(config, left(), said)
    if reader:
        dropped |= check_fit(config, left(), reader, said)
    dropped |= check_overlap(config, left(), said)
    said += repeated(left())
    require_sides(config, left(), dropped, trains)
    if notes is not None:
        notes += said
    else:
        for line in said:
            log.warning(line)
    return left(), dropped


def require_sides(config: Config, problems: list[Problem], dropped: dict[str, str], trains: bool) -> None:
    """Raises ConfigError if a side that is needed has no problem left."""
    there = {problem.split for problem in problems}
    why = f" (of {len(dropped)} left out, {next(iter(dropped))}: {next(iter(dropped.values()))})" if dropped else ""
    if trains and "train" not in there:
        raise ConfigError(
            f"dataset={config.dataset.name} has no train problem left{why}: it is for `selfimprove eval`, or give "
            "dataset.path a file of which a share is held out",
            "dataset.train_size",
        )
    if trains and any(stage.probe for stage in config.stages.values()) and "dev" not in there:
        raise ConfigError(f"method={config.method.name} tunes itself on dev problems: set dataset.dev_size", "dataset")
    if config.eval.side == "dev" and "dev" not in there:
        raise ConfigError(f"eval.side=dev: there is no dev problem{why}; set dataset.dev_size", "dataset.dev_size")
    if "test" not in there:
        raise ConfigError(f"dataset={config.dataset.name} has no held-out problem left{why}", "dataset.heldout_size")


def require_arrays(config: Config, problems: list[Problem]) -> None:
    """Raises ConfigError if problems have arrays that the engine cannot read, or lack arrays that it needs."""
    reads = "arrays" in config.engine["gives"]
    if any((problem.array is not None) != reads for problem in problems):
        what = "problems without arrays, which it needs" if reads else "problems with arrays, which it does not read"
        said = f"engine={config.engine['name']}: dataset={config.dataset.name} has {what}"
        raise ConfigError(said, "engine" if not reads else "dataset")


def require_heads(config: Config) -> None:
    """Raises ConfigError for an attention head in eval.consistency that the model does not have."""
    look = config.eval.consistency
    if look is None or not look.heads or (shape := shape_of(config.model)) is None:
        return
    for layer, head in look.heads:
        if layer >= shape.layers or head >= shape.heads:
            said = f"the model has {shape.layers} layers of {shape.heads} heads, counted from 0"
            raise ConfigError(f"eval.consistency.heads=[{layer}, {head}]: {said}", "eval.consistency")


def require_verifiers(config: Config) -> dict[str, Any]:
    """Facts about this machine that verifiers and tools report.

    Raises ConfigError if a check or a tool of the method lacks what it needs. A verifier's module says so by `require`,
    and a tool by `require_<name>` beside its function.
    """
    said: dict[str, Any] = {}
    nodes = [config.verifier_of(stage) for stage in config.stages.values()]
    for node in (*nodes, config.dataset.verifier):
        module = module_of(node)
        if hasattr(module, "require"):
            said |= module.require(**options_of(node)) or {}
    for tool in config.method.tools.values():
        if own := getattr(module_of(tool), f"require_{tool['_target_'].rpartition('.')[2]}", None):
            said |= own(**options_of(tool)) or {}
    return said


def require_engine(config: Config, trains: bool) -> None:
    """Raises ConfigError if this machine or a server lacks what the engine needs. `require_<name>` beside the
    engine's function says so.

    `trains`: the policy is going to get new weights.
    """
    own = getattr(module_of(config.engine), f"require_{config.engine['_target_'].rpartition('.')[2]}", None)
    if own:
        own(config, trains)


def require_training(config: Config) -> None:
    """Raises ConfigError if this machine cannot train as configured."""
    from selfimprove import train

    how = config.hardware.training
    for stage in config.stages.values():
        if stage.role and stage.train:
            lora = config.model_of(stage.role).lora
            train.require(lora.model_dump() if lora else None, how, config.hardware.device)
            train.require_shares(stage.train.get("batch_size", train.BATCH_SIZE), how.processes)


def also_heldout(config: Config) -> list[Problem]:
    """The held-out problems of eval.also, prepared like the run's own. Empty without eval.also."""
    if config.eval.also is None:
        return []
    problems, _ = prepare(config.model_copy(update={"dataset": config.eval.also}))
    heldout = [problem for problem in problems if problem.split == "test"]
    if not heldout:
        raise ConfigError(f"eval.also={config.eval.also.name} has no held-out problems", "eval.also")
    return heldout


def check_gold(config: Config, problems: list[Problem], said: list[str]) -> dict[str, str]:
    """The problems whose gold answer fails its own verifier, with the reason. They are dropped.

    Raises ConfigError if their share is above `verify.drop_gold_above`.
    """
    own = f"dataset={config.dataset.name}: {{}} of {{}} gold answers fail their own verifier"
    found = _failing(config, config.dataset.verifier, problems, own, said)
    node = config.dataset.verifier["_target_"].removeprefix("selfimprove.verify.")
    several = sum(isinstance(p.metadata.get("answers"), list) and len(p.metadata["answers"]) > 1 for p in problems)
    if several and not node.startswith("text."):
        said.append(
            f"{several} problems have several gold answers, and {node} reads the first; exact and f1 accept any: "
            "verifier@dataset.verifier=exact"
        )
    return found


def check_training_gold(config: Config, problems: list[Problem], said: list[str]) -> dict[str, str]:
    """The same for train and dev problems, by a training verifier that the user chose. It may need fields that the data
    lack, such as unit tests or options."""
    node, own = config.verifier, config.dataset.verifier
    if not node or node["_target_"] == own["_target_"] or is_group(node):
        return {}
    name, other = (target["_target_"].removeprefix("selfimprove.verify.") for target in (node, own))
    if not is_group(own):
        said.append(
            f"training is verified by {name}, and held-out accuracy by {other}, the data set's own; "
            "for one in both places: verifier@dataset.verifier=NAME"
        )
    ours = [problem for problem in problems if problem.split in ("train", "dev")]
    return _failing(config, node, ours, f"verifier={name}: {{}} of {{}} gold answers of training fail it", said)


def _failing(config: Config, node: Target, problems: list[Problem], what: str, said: list[str]) -> dict[str, str]:
    failing = failing_gold(config, problems, node)
    return _limited(failing, len(problems), what, "drop_gold_above", config, said)


def _limited(found: dict[str, str], of: int, what: str, limit: str, config: Config, said: list[str]) -> dict[str, str]:
    """Problems to leave out. Raises ConfigError if their share is above `verify.<limit>`."""
    most = getattr(config.verify, limit)
    line = what.format(len(found), of)
    if len(found) > most * of:
        reasons = {why: name for name, why in reversed(found.items())}  # each once
        shown = "; ".join(f"{name}: {why}" for why, name in list(reversed(reasons.items()))[:3])
        raise ConfigError(f"{line} (more than verify.{limit}={most}), e.g. {shown}")
    if found:
        said.append(f"{line}; their problems are left out")
    return found


def check_fit(config: Config, problems: list[Problem], reader: fit.Reader, said: list[str]) -> dict[str, str]:
    """The problems whose prompt leaves no room for an answer in the model's window, with the reason. They are dropped.

    Raises ConfigError if their share is above `verify.drop_long_above`.
    """
    most = max(config.model.max_tokens, config.eval.max_tokens or 0)
    found, tight = fit.unfit(reader, problems, most)
    if not reader.ends:
        said.append(f"model {reader.name} has no token that ends an answer: each goes on up to its limit of tokens")
    if tight:
        said.append(
            f"{tight} of {len(problems)} prompts leave less than max_tokens={most} in the window of {reader.window}: "
            "their answers are cut off sooner"
        )
    what = f"dataset={config.dataset.name}: {{}} of {{}} prompts do not fit the model's window"
    return _limited(found, len(problems), what, "drop_long_above", config, said)


def failing_gold(config: Config, problems: list[Problem], node: Target | None = None) -> dict[str, str]:
    """Problem id -> why a verifier refuses its gold answer. Default: the data set's own verifier."""
    from selfimprove.verify.file import check_gold

    node = node or config.dataset.verifier
    if is_group(node) or not problems:
        return {}  # it reads no gold answer
    with open_pool(config, node) as pool:
        return {p.id: f"{o.status}: {o.reason or o.extracted}" for p, o in check_gold(problems, pool)}


def like_heldout(config: Config, own: list[Problem], heldout: list[Problem]) -> dict[str, str]:
    """Problem id -> the held-out problem that it is like, and how much."""
    from selfimprove.datasets.overlap import overlap

    options = config.overlap
    found = overlap(own, heldout, options.ngram, options.share)
    return {name: f"like held-out {other}: {100 * share:.0f} % of n-grams" for name, (other, share) in found.items()}


def repeated(problems: list[Problem]) -> list[str]:
    """A line for each side that holds a question more than once."""
    lines = []
    for side, called in (("train", "train"), ("dev", "dev"), ("test", "held-out"), ("sealed", "sealed")):
        ours = [p for p in problems if p.split == side and "question" in p.metadata]
        first: dict[tuple[str, str], Problem] = {}
        pairs = []
        for problem in ours:
            whole = f"{problem.prompt} {problem.metadata['question']}"
            asked = " ".join(whole.split()), str(problem.metadata.get("options"))
            if (known := first.setdefault(asked, problem)) is not problem:
                pairs.append((known, problem))
        if pairs:
            a, b = pairs[0]
            other = sum(known.gold != problem.gold for known, problem in pairs)
            more = f", {other} of them with another gold answer" if other else ""
            lines.append(f"{len(pairs)} of {len(ours)} {called} problems repeat another ({a.id} and {b.id}, ...){more}")
    return lines


def check_overlap(config: Config, problems: list[Problem], said: list[str]) -> dict[str, str]:
    """The train and dev problems that are like a held-out one, with the reason. Empty if they are only reported.

    Raises ConfigError if the configuration refuses such problems.
    """
    options = config.overlap
    kept = sides.apart(config, problems)
    names = {problem.id for problem in kept}
    own = [p for p in problems if p.id not in names]
    like = like_heldout(config, own, kept)
    if not like:
        return {}
    shown = "; ".join(f"{name} is {why}" for name, why in list(like.items())[:3])
    line = f"{len(like)} of {len(own)} train and dev problems nearly equal a held-out one, e.g. {shown}"
    if options.action == "refuse":
        raise ConfigError(f"dataset={config.dataset.name}: {line} (overlap.action=refuse)", "overlap.action")
    said.append(f"{line}; they are {'left out' if options.action == 'drop' else 'kept (overlap.action=report)'}")
    return like if options.action == "drop" else {}
