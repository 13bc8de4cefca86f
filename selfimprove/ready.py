"""What has to hold before a run begins: problems whose gold answers pass, no overlap, and what this machine needs."""

from __future__ import annotations

import logging
from typing import Any

from selfimprove.binding import bind, is_group, module_of, options_of
from selfimprove.errors import ConfigError
from selfimprove.schema import Config
from selfimprove.session import open_pool
from selfimprove.types import Problem

log = logging.getLogger("selfimprove")


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
    nodes = [config.verifier_of(stage) for stage in config.stages.values()]
    for node in (*nodes, config.dataset.verifier):
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

    how = config.hardware.training
    for stage in config.stages.values():
        if stage.role and stage.train:
            lora = config.model_of(stage.role).lora
            train.require(lora.model_dump() if lora else None, how, config.hardware.device)
            train.require_shares(stage.train.get("batch_size", train.BATCH_SIZE), how.processes)


def also_heldout(config: Config) -> list[Problem]:
    """The held-out problems of eval.also, prepared as those of the run are; none without it."""
    if config.eval.also is None:
        return []
    problems, _ = prepare(config.model_copy(update={"dataset": config.eval.also}))
    heldout = [problem for problem in problems if problem.split == "test"]
    if not heldout:
        raise ConfigError(f"eval.also={config.eval.also.name} has no held-out problems", "eval.also")
    return heldout


def check_gold(config: Config, problems: list[Problem]) -> dict[str, str]:
    """The problems whose gold answer fails its own verifier, with the reason: they are dropped.

    Raises ConfigError when they are a larger share than `verify.drop_gold_above`.
    """
    failing = failing_gold(config, problems)
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


def failing_gold(config: Config, problems: list[Problem]) -> dict[str, str]:
    """Problem id -> why the data set's own verifier does not accept its gold answer."""
    from selfimprove.verify.file import check_gold

    if is_group(config.dataset.verifier) or not problems:
        return {}  # it reads no gold answer
    with open_pool(config, config.dataset.verifier) as pool:
        return {p.id: f"{o.status}: {o.reason or o.extracted}" for p, o in check_gold(problems, pool)}


def like_heldout(config: Config, own: list[Problem], heldout: list[Problem]) -> dict[str, str]:
    """Problem id -> which held-out problem it is like."""
    from selfimprove.datasets.overlap import overlap

    options = config.overlap
    found = overlap(own, heldout, options.ngram, options.share)
    return {name: f"like held-out {other}: {100 * share:.0f} % of n-grams" for name, (other, share) in found.items()}


def check_overlap(config: Config, problems: list[Problem]) -> dict[str, str]:
    """The train and dev problems that are like a held-out one, with the reason; none where they are only reported.

    Raises ConfigError where they are to be refused.
    """
    options = config.overlap
    own = [p for p in problems if p.split != "test"]
    like = like_heldout(config, own, [p for p in problems if p.split == "test"])
    if not like:
        return {}
    shown = "; ".join(f"{name} is {why}" for name, why in list(like.items())[:3])
    said = f"{len(like)} of {len(own)} train and dev problems nearly equal a held-out one, e.g. {shown}"
    if options.action == "refuse":
        raise ConfigError(f"dataset={config.dataset.name}: {said} (overlap.action=refuse)", "overlap.action")
    log.warning("%s; they are %s", said, "left out" if options.action == "drop" else "kept (overlap.action=report)")
    return like if options.action == "drop" else {}
