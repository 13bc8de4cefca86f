"""The tasks of an environment, from its module's function `tasks`. docs/environments.md has a whole example."""

from __future__ import annotations

from typing import Any, Unpack

from selfimprove.binding import function, module_of, options_of
from selfimprove.datasets import Generated, Row, finish, sizes_of
from selfimprove.errors import ConfigError
from selfimprove.types import Problem


def load(*, env: dict[str, Any], seed: int, **options: Unpack[Generated]) -> list[Problem]:
    """`env` names the environment's class. Raises ConfigError if there is no such class, its module has no `tasks`,
    this machine lacks something that it needs, or there are too few tasks."""
    function(env, "dataset.env")
    module = module_of(env)
    if not hasattr(module, "tasks"):
        raise ConfigError(
            f"dataset.env._target_={env['_target_']}: its module needs tasks(side, count, seed), which gives the rows",
            "dataset.env",
        )
    own = options_of(env)
    if hasattr(module, "require"):
        module.require(**own)
    rows: list[Row] = []
    for side, size in sizes_of(options).items():
        found = list(module.tasks(side, size, seed, **own)) if size else []
        if len(found) < size:
            key = f"dataset.{'heldout' if side == 'test' else side}_size"
            raise ConfigError(f"{key}={size}: there are only {len(found)} such tasks", key)
        rows += found
    return finish(rows, name=module.__name__.rpartition(".")[2], seed=seed, **options)
