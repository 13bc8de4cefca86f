"""The configuration of a run: composed from conf/, checked, written and read. Loads no model and no torch.

Sections with fixed keys are the models of `selfimprove.schema`. A mapping with `_target_` names a function of the
package, and `selfimprove.binding` checks its keys.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from selfimprove.binding import (
    Target,
    asks_for,
    bind,
    function,
    is_group,
    module_of,
    options_of,
    reason,
    require_supplies,
)
from selfimprove.errors import ConfigError
from selfimprove.schema import Config, Stage
from selfimprove.units import UNITS

_PACKAGED = Path(__file__).parent / "conf"
CONF = _PACKAGED if _PACKAGED.exists() else Path(__file__).parent.parent / "conf"
"""The configuration folder: inside an installed wheel, at the top level of a checkout."""

# Choices of hydra/launcher and hydra/sweeper that other packages bring, and the extra of ours that installs them.
EXTRAS = {"joblib": "sweeps", "submitit_local": "sweeps", "submitit_slurm": "sweeps", "optuna": "sweeps", "ray": "ray"}


def compose(overrides: Sequence[str], needs: bool = True) -> Config:
    """The configuration that these overrides make, checked as `config.check` does. Raises ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = hydra_compose("config", overrides=unnulled(overrides))
    except HydraException as problem:
        raise ConfigError(one_line(problem)) from None
    return check(composed, needs)


def one_line(problem: Exception) -> str:
    """Hydra's message without its lists and hints over several lines."""
    group, _, name = str(getattr(problem, "missing_cfg_file", None) or "").rpartition("/")
    if group.startswith("hydra/sweeper/"):  # what a sweeper's own choices hang on
        group, name = "hydra/sweeper", "optuna"
    if group.startswith("hydra/") and name in EXTRAS:
        return f"{group}={name}: not installed; pip install 'selfimprove[{EXTRAS[name]}]'"
    if options := getattr(problem, "options", None):  # an unknown choice in a group
        return f"{group}={name}: no such choice; there are {', '.join(options)}"
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    if unknown := re.match(r"Could not override '(.+?)'", lines[0]):
        return f"{unknown[1]}: unknown key; selfimprove run --cfg job prints the keys there are"
    if key := getattr(problem, "full_key", None):
        return f"{key}: {lines[0]}"
    return " ".join(lines)


def unnulled(words: Sequence[str]) -> list[str]:
    """Overrides with `filter=null` and its like as Hydra wants them, which is `~filter`."""
    return [re.sub(r"^(generate|verifier|filter|train|experiment)=null$", r"~\1", word) for word in words]


def check(composed: DictConfig | dict[str, Any], needs: bool = True) -> Config:
    """Validate a composed configuration. Raises ConfigError with one line that names the key.

    `needs=False` leaves out what the method needs, for commands that run no method.
    """
    raw = composed
    if isinstance(composed, DictConfig):
        try:
            raw = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        except OmegaConfBaseException as problem:
            key = getattr(problem, "full_key", None) or "?"
            said = str(problem.msg or problem).splitlines()[0]
            missing = "Missing mandatory value" in said
            raise ConfigError(f"{key}: needs a value, e.g. {key}=..." if missing else f"{key}: {said}", key) from None
    try:
        config = Config.model_validate(raw)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = _key(first["loc"], raw)
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{key}: unknown key", key) from None
        shown = "" if isinstance(first["input"], dict) else f"={first['input']}"
        raise ConfigError(f"{key}{shown}: {reason(problem)}", key) from None
    check_stages(config, needs)
    for name in ("evaluate", "baseline", "answer", "figures"):
        if node := getattr(config.method, name):
            bind(node, f"method.{name}")
            if name in ("evaluate", "baseline"):
                require_supplies(node, "generate", f"method.{name}")
    for name, node in config.method.tools.items():
        bind(node, f"method.tools.{name}")
    bind(config.dataset.verifier, "dataset.verifier")
    if config.verifier:
        bind(config.verifier, "verifier")
    bind(config.dataset.model_dump(by_alias=True), "dataset")
    bind(engine_options(config.engine), "engine")
    function(config.tracker, "tracker")
    if config.eval.consistency and "beam" not in gives(config):
        raise ConfigError(f"eval.consistency: needs beam search, which engine={config.engine['name']} does not give")
    asks = [stage.generate for stage in config.stages.values() if stage.generate]
    if config.control and any(asks_for(node) & {"check", "judge"} for node in asks):
        raise ConfigError(
            f"control={config.control}: the solver of method={config.method.name} asks its verifier as it goes, and "
            "those verdicts are not dealt out; the control would change little and prove nothing",
            "control",
        )
    if config.dataset.score not in UNITS:
        raise ConfigError(f"dataset.score={config.dataset.score}: is one of {', '.join(UNITS)}", "dataset.score")
    if needs:
        _require(config, f"method={config.method.name}", config.method.needs)
        check_solver(config)
    return config


def check_stages(config: Config, needs: bool) -> None:
    """Raises ConfigError for stages that do not fit together, or a slot whose function cannot be called as it stands.

    `needs`: the method is going to be run, so that one that changes no weights is refused.
    """
    own = config.method.name
    if needs and not any(stage.train and stage.filter for stage in config.stages.values()):
        raise ConfigError(
            f"method={own} changes no weights: `selfimprove eval method={own}` evaluates it, "
            f"`selfimprove run method=rejection_sampling generate={own}` trains on what it finds",
            "method.filter",
        )
    for i, (name, stage) in enumerate(config.stages.items()):
        where = f"method.stages.{name}" if name else "method"
        if name and not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigError(f"{where}: a stage's name is small letters, digits and _, e.g. rl", where)
        for key in ("role", "by"):
            role = getattr(stage, key)
            if role is not None and role not in config.roles:
                raise ConfigError(f"{where}.{key}={role}: no such role; there are {', '.join(config.roles)}", where)
        if stage.of is not None and stage.of not in list(config.stages)[:i]:
            raise ConfigError(f"{where}.of={stage.of}: is no stage before this one", where)
        if needs and stage.of is None and stage.generate is None:
            raise ConfigError(f"{where}.generate: needs a solver", where)
        if needs and stage.train and not stage.filter:
            raise ConfigError(f"{where}.filter: needs a function that chooses what is trained on", where)
        if stage.probe and not stage.adapt:
            raise ConfigError(f"{where}.probe: is of no use without {where}.adapt", f"{where}.adapt")
        given = config.method.stages[name].model_fields_set if name else set()
        for slot in ("problems", "probe", "adapt", "generate", "verifier", "make", "filter", "remember", "train"):
            node = getattr(stage, slot)
            chosen = getattr(config, slot, None)
            if chosen and slot in given:
                raise ConfigError(
                    f"{slot}: method={own} has one for its stage {name}: set {where}.{slot} instead", slot
                )
            if node is not None:
                label = slot if chosen else (f"{where}.{slot}" if slot in given else f"method.{slot}")
                bind(node, label)
                require_supplies(node, "generate" if slot == "probe" else slot, label)
        if stage.train and stage.train.get("carry"):
            check_carry(config, stage, where)
        if stage.train and stage.role and needs:
            fits = getattr(inspect.getmodule(function(stage.train, where)), "require_stage", None)
            if fits:  # what a train function's module asks of the stage that it stands in
                fits(config, stage, where)


def check_carry(config: Config, stage: Stage, where: str) -> None:
    """Raises ConfigError where training cannot go on from the last phase's moments."""
    if stage.start == "base":
        raise ConfigError(
            f"{where}.train.carry=true: goes on from the last policy, and {where}.start=base does not", where
        )
    how = config.hardware.training
    if how.processes > 1 and how.strategy != "ddp":
        raise ConfigError(
            f"hardware.training.strategy={how.strategy}: {where}.train.carry=true needs ddp, or false",
            "hardware.training.strategy",
        )


def check_solver(config: Config) -> None:
    """Raises ConfigError where a solver, or a training verifier, needs what engine and data set do not give. Of a
    solver that is what `NEEDS` of its module says, or `needs` there, of the solver's options."""
    for stage in config.stages.values():
        verifier = config.verifier_of(stage)
        if reads_gold(verifier) and "gold" not in gives(config):
            raise ConfigError(
                f"verifier={verifier['_target_']} compares with gold answers, which dataset={config.dataset.name} "
                "does not give: use one that needs none, e.g. verifier=consensus or verifier=judge",
                "verifier",
            )
        for where, node in (("generate", stage.generate), ("method.probe", stage.probe)):
            if node:
                own = getattr(module_of(node), "needs", None)
                needs = own(**options_of(node)) if own else getattr(module_of(node), "NEEDS", ())
                _require(config, f"{where}={node['_target_']}", needs)


def gives(config: Config) -> set[str]:
    """What the engine and the data set give; a loader's module can say of its options what more there is."""
    own = getattr(module_of(config.dataset.model_dump(by_alias=True)), "gives", None)
    more = own(**(config.dataset.model_extra or {})) if own else ()
    return {*config.engine["gives"], *config.dataset.gives, *more}


def _require(config: Config, who: str, needs: Iterable[str]) -> None:
    given = gives(config)
    if lacking := [need for need in needs if need not in given]:
        raise ConfigError(
            f"{who} needs {', '.join(lacking)}, which engine={config.engine['name']} with "
            f"dataset={config.dataset.name} does not give (they give {', '.join(sorted(given)) or 'nothing'})"
        )


def reads_gold(verifier: Target) -> bool:
    """Whether a verifier compares with gold answers: a check does, unless its module says otherwise; a group verifier
    where it shows them to a model."""
    if is_group(verifier):
        return "{gold}" in str(options_of(verifier))
    return bool(getattr(module_of(verifier), "NEEDS_GOLD", True))


def _key(loc: Sequence[str | int], raw: Any) -> str:
    """The key of a validation error: its path as far as the configuration goes, without the tags of a union's parts."""
    parts = []
    for part in loc:
        if not isinstance(raw, dict | list):
            break
        parts.append(str(part))
        raw = raw.get(part) if isinstance(raw, dict) else raw[int(part)]
    return ".".join(parts)


def engine_options(node: Target) -> Target:
    return {key: value for key, value in node.items() if key != "gives"}


def origin(key: str, choices: Mapping[str, str | None]) -> str:
    """Where a key stands, to be added to an error: the file of its group's chosen option, or the main one."""
    if not key:
        return ""
    group = key.split(".")[0]
    file = f"{group}/{choices[group]}" if choices.get(group) else "config"
    return f" (conf/{file}.yaml, or the command line)"


_SECRET_NAME = re.compile(r"(^|_)(api_?key|access_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)


def _secret_values() -> list[str]:
    return [v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 8]


def redact(value: Any) -> Any:
    """A copy with secrets replaced: values of keys such as `api_key`, and what such environment variables hold."""
    secrets = _secret_values()

    def clean(item: Any) -> Any:
        if isinstance(item, dict):
            return {k: "<removed>" if _SECRET_NAME.search(str(k)) and v else clean(v) for k, v in item.items()}
        if isinstance(item, list):
            return [clean(v) for v in item]
        if isinstance(item, str):
            for secret in secrets:
                item = item.replace(secret, "<removed>")
        return item

    return clean(value)


def dump(config: Config) -> str:
    plain = redact(config.model_dump(by_alias=True))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def read(path: Path, needs: bool = True) -> Config:
    """The configuration of an existing run, checked as `check` does. Raises ConfigError when the folder is no run's."""
    try:
        return check(_renamed(yaml.safe_load(path.read_text(encoding="utf-8"))), needs)
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: no run folder (it has no config.yaml)") from None


def _renamed(raw: Any) -> Any:
    """The configuration of a run of an earlier version, with the names that its keys have now."""
    if isinstance(raw, dict) and isinstance(raw.get("method"), dict):
        raw.pop("on_empty", None)
        if "refresh" in raw["method"]:
            raw["method"]["parts"] = raw["method"].pop("refresh")
    return raw


def methods() -> list[dict[str, Any]]:
    """What conf/method/*.yaml say of each method: name, title, paper, kind, summary, needs."""
    found = []
    for path in sorted((CONF / "method").glob("*.yaml")):
        method = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = ("name", "title", "paper", "kind", "summary", "needs")
        found.append({key: method[key] for key in keys if key in method})
    return found
