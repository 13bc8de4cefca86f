"""Which functions a run folder may call. A command that reads a folder does not run what is in it.

A configuration names functions. A configuration that the user composes names what the user wants. One in a run folder
may be a stranger's. So commands that read a folder work in `reading`. There, and in processes started there, only two
kinds of function can be called: those that this package's own configurations name, and those of modules that the user
names (`--allow`). docs/safety.md says what else a folder can do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selfimprove.errors import ConfigError
from selfimprove.packaged import CONF

_VARIABLE = "SELFIMPROVE_ALLOW"  # environment variable: what the user allows, with commas; not set: everything
REMOTE_CODE, NO_SANDBOX, HYDRA = "trust_remote_code", "unsafe_subprocess", "hydra"  # words of --allow besides modules


@contextmanager
def reading(allow: Sequence[str]) -> Iterator[None]:
    """In this block, configurations can call only this package's functions and those of the modules in `allow`."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = ",".join(allow)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def allowed(name: str) -> bool:
    """Whether the user allows `what`: a module, something in it, or a word such as `trust_remote_code`."""
    if _VARIABLE not in os.environ:
        return True
    return any(name == own or name.startswith(f"{own}.") for own in os.environ[_VARIABLE].split(","))


def may_call(target: str) -> bool:
    """Whether the function of this name, the `_target_` of a node, may be called."""
    return allowed(target) or target in _own()


_SHARED = (  # parts for users' own methods, which no configuration of the package names
    *(f"selfimprove.datasets.passes.{name}" for name in ("part", "drawn", "made_by", "fold")),
    *(f"selfimprove.generate.turns.{name}" for name in ("turns", "by_turn")),
    "selfimprove.verify.turns.each",
    *(f"selfimprove.tools.python.{name}" for name in ("python", "cell")),
    "selfimprove.tools.stages.ran",
    *(f"selfimprove.env.worlds.{name}" for name in ("worlds", "play")),
    "selfimprove.filter.advantages.advantages",
    "selfimprove.train.policy_gradient.policy_gradient",
    *(f"selfimprove.train.reward.{name}" for name in ("reward", "classifier")),
)


@cache
def _own() -> frozenset[str]:
    """The functions that this package's configurations name, and shared ones.

    Not all functions of the package are among them, since some call what they are given.
    """
    texts = (path.read_text(encoding="utf-8") for path in sorted(CONF.rglob("*.yaml")))
    return frozenset(name for text in texts for name in re.findall(r"\b_target_: *([\w.]+)", text)).union(_SHARED)


def refusal(value: Any, where: str = "") -> str:
    """Why a part of a configuration may not be used, in a line that says what would allow it. "" if it may be used."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, Mapping):
        return ""
    for key, item in value.items():
        name = f"{where}.{key}" if where else str(key)
        if said := refusal(item, name) or _refused(value, str(key), item, name):
            return said
    return ""


def _refused(section: Mapping[str, Any], key: str, value: Any, name: str) -> str:
    if key == "_target_" and not may_call(str(value)):
        return f"{name}={value}: not a function of this package's own methods; --allow {_module(str(value))} calls it"
    if key == REMOTE_CODE and value and not allowed(REMOTE_CODE):
        return f"{name}={value}: the model's own code would run; --allow {REMOTE_CODE} lets it"
    if value == NO_SANDBOX and not allowed(NO_SANDBOX):
        return f"{name}={value}: model-written code would run as you; --allow {NO_SANDBOX} lets it"
    if key == "key_env" and value and os.environ.get(str(value)):
        host = urlsplit(str(section.get("url"))).hostname or "?"
        if host not in ("localhost", "127.0.0.1", "::1") and not allowed(host):
            return f"{name}={value}: this key of yours would be sent to {host}; --allow {host} sends it"
    return ""


def _module(target: str) -> str:
    return target.rpartition(".")[0] or target


def require(config: Mapping[str, Any], path: Path) -> None:
    """Raises ConfigError, with one line, for a folder's configuration that may not be used as it is."""
    if said := refusal(config):
        raise ConfigError(f"{path}: {said}")


# A sweep's folder has arguments for Hydra, and Hydra calls what its own section of them names

_HARMLESS = re.compile(
    r"(hydra\.sweep\.(dir|subdir)|hydra/(launcher|sweeper|sweeper/sampler)"
    r"|hydra\.sweeper\.(n_trials|n_jobs|direction|study_name|sampler\.seed|params\..+|max_failure_rate)"
    r"|hydra\.job\.env_set\.(OMP|MKL)_NUM_THREADS|hydra\.launcher\.(n_jobs|partition|account|qos|constraint|nodes|tasks_per_node|cpus_per_task|gpus_per_node"
    r"|mem_gb|timeout_min|signal_delay_s|max_num_timeout|array_parallelism|name|verbose))=(?!.*\$\{).*",
    re.DOTALL,
)


def require_words(words: Sequence[str], path: Path) -> None:
    """Raises ConfigError for a word of a sweep's arguments by which the folder would choose what Hydra runs."""
    for word in words if not allowed(HYDRA) else ():
        own = word.lstrip("+~").startswith("hydra")
        if word not in ("-m", "--multirun") and (word.startswith("-") or (own and not _HARMLESS.fullmatch(word))):
            raise ConfigError(f"{path}: {word}: it chooses what Hydra runs; --allow {HYDRA} lets it")
