"""The configuration of a run: composed from conf/, checked, written and read. Loads no model and no torch.

Sections with fixed keys are the models of `selfimprove.schema`. A mapping with `_target_` names a function of the
package, and `selfimprove.binding` checks its keys.
"""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from selfimprove import trust
from selfimprove.binding import (
    Target,
    asks_for,
    bind,
    function,
    is_group,
    misread,
    module_of,
    options_of,
    reason,
    require_arguments,
    require_supplies,
)
from selfimprove.errors import ConfigError, Damaged
from selfimprove.files import read_config
from selfimprove.overrides import NEEDED, OPTIONAL, brought, one_line
from selfimprove.overrides import read as read_words
from selfimprove.packaged import CONF as CONF
from selfimprove.schema import Config, Stage
from selfimprove.units import UNITS


def compose(overrides: Sequence[str], needs: bool = True) -> Config:
    """The configuration that these overrides make, checked as `config.check` does. Raises ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    words = [*read_words(overrides), *brought(overrides)]
    running = GlobalHydra.instance().is_initialized()  # within `run`, by Hydra's own application
    try:
        with nullcontext() if running else initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = hydra_compose("config", overrides=words)
    except (HydraException, ValueError) as problem:  # ValueError: of a group that is given a number
        raise ConfigError(one_line(problem)) from None
    return check(composed, needs)


def compose_on(path: Path, overrides: Sequence[str]) -> Config:
    """The configuration of an existing run with overrides, for commands that run no method. `path` is its config.yaml.

    A choice of a group replaces the run's own choice as a whole. Raises ConfigError.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    raw, values = _literal(load(path)), []
    raw["defaults"] = ["_self_"]
    raw["hydra"] = {"searchpath": [f"file://{CONF}"]}
    for word in read_words(overrides):
        key, _, value = word.partition("=")
        group, _, package = key.lstrip("+").partition("@")
        if group == "experiment":
            raise ConfigError(f"{word}: is for `selfimprove run`; here it would change an existing run")
        if group not in (*NEEDED, *OPTIONAL):
            values.append(word)
            continue
        *above, last = (package or group).split(".")
        section = raw
        for name in above:
            section = section[name]
        section.pop(last, None)
        raw["defaults"].append({f"{group}@{package}" if package else group: value})
    try:
        with tempfile.TemporaryDirectory(prefix="selfimprove-") as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8")
            with initialize_config_dir(version_base="1.3", config_dir=folder):
                composed = hydra_compose("config", overrides=values)
    except (HydraException, ValueError) as problem:
        raise ConfigError(one_line(problem)) from None
    return check(composed, needs=False)


def _literal(value: Any) -> Any:
    """Plain data in which no text is an interpolation."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def check(composed: DictConfig | dict[str, Any], needs: bool = True) -> Config:
    """Validate a composed configuration. Raises ConfigError with one line that names the key.

    With `needs=False` the method's needs are not checked. That is for commands that run no method.
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
        shown = "" if isinstance(first["input"], dict) else f"={_WORDS.get(str(first['input']), first['input'])}"
        raise ConfigError(f"{key}{shown}: {reason(problem)}", key) from None
    for part, said in misread(raw, config.model_dump(by_alias=True)):
        raise ConfigError(f"{part[1:]}: {said}", part[1:])
    _require_text(raw)
    limits = {"model.max_tokens": config.model.max_tokens, "eval.max_tokens": config.eval.max_tokens}
    require_window(limits, config.model.max_length)
    check_stages(config, needs)
    for name in ("evaluate", "baseline", "answer", "figures"):
        if node := getattr(config.method, name):
            bind(node, f"method.{name}")
            if name in ("evaluate", "baseline"):
                require_supplies(node, "generate", f"method.{name}")
                require_tools(config, node)
    for name, node in config.method.tools.items():
        bind(node, f"method.tools.{name}")
    bind(config.dataset.verifier, "dataset.verifier")
    if config.verifier:
        bind(config.verifier, "verifier")
    bind(config.dataset.model_dump(by_alias=True), "dataset")
    if config.eval.also:
        bind(config.eval.also.model_dump(by_alias=True), "eval.also")
        bind(config.eval.also.verifier, "eval.also.verifier")
    bind(engine_options(config.engine), "engine")
    require_arguments(function(config.tracker, "tracker"), config.tracker, "tracker")
    if config.eval.consistency and "beam" not in gives(config):
        raise ConfigError(f"eval.consistency: needs beam search, which engine={config.engine['name']} does not give")
    look = config.eval.consistency
    if look and (look.layers or look.heads) and "lens" not in gives(config):
        said = f"needs to look into the model, which engine={config.engine['name']} does not let it"
        key = f"eval.consistency.{'layers' if look.layers else 'heads'}"
        raise ConfigError(f"{key}: {said}; use engine=transformers", "eval.consistency")
    asks = [stage.generate for stage in config.stages.values() if stage.generate]
    if config.control and any(asks_for(node) & {"check", "judge"} for node in asks):
        raise ConfigError(
            f"control={config.control}: the solver of method={config.method.name} asks its verifier as it goes, and "
            "those verdicts cannot be shuffled; the control would change little and prove nothing",
            "control",
        )
    if config.budget.cost is not None and config.hardware.price_per_hour is None:
        raise ConfigError(f"budget.cost={config.budget.cost:g}: needs hardware.price_per_hour", "hardware")
    if config.dataset.score not in UNITS:
        raise ConfigError(f"dataset.score={config.dataset.score}: is one of {', '.join(UNITS)}", "dataset.score")
    if needs:
        _require(config, f"method={config.method.name}", config.method.needs)
        check_solver(config)
    return config


_WORDS = {"None": "null", "True": "true", "False": "false"}  # as they are written in YAML


def _require_text(value: Any, key: str = "") -> None:
    """Raises ConfigError for a text that config.yaml cannot hold: one with half a surrogate pair.

    Bytes of a command line that are not UTF-8 are read as such halves.
    """
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _require_text(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            shown = value.encode(errors="backslashreplace").decode()
            raise ConfigError(f"{key}={shown}: is not Unicode text, so no file can hold it", key) from None


def require_window(limits: Mapping[str, Any], window: int) -> None:
    """Raises ConfigError if a completion may have more tokens than the model's window. `limits`: key -> tokens."""
    for key, limit in limits.items():
        if isinstance(limit, int) and limit > window:
            said = f"is more than the window of prompt and answer, model.max_length={window}"
            raise ConfigError(f"{key}={limit}: {said}", key)


def learns(config: Config) -> bool:
    """Whether the method changes weights or remembers, so that it has rounds."""
    return any((stage.train and stage.filter) or stage.remember for stage in config.stages.values())


def check_stages(config: Config, needs: bool) -> None:
    """Raises ConfigError for stages that do not fit together, or a slot whose function cannot be called as configured.

    `needs` says that the method is going to run. Then one that neither changes weights nor remembers is refused.
    """
    own = config.method.name
    if needs and not learns(config):
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
            raise ConfigError(f"{where}.of={stage.of}: there is no such stage before this one", where)
        if stage.start not in ("last", "base") and getattr(config.stages.get(stage.start), "role", None) != stage.role:
            raise ConfigError(f"{where}.start={stage.start}: must be last, base or a stage of the same role", where)
        other = config.stages[stage.of] if stage.of else stage
        if other.parts not in (1, stage.parts) and config.verifier_of(stage) != config.verifier_of(other):
            raise ConfigError(
                f"{where}.verifier: checks attempts of {stage.of} again, so {where}.parts must be {other.parts}", where
            )
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
                require_tools(config, node)
                together = getattr(inspect.getmodule(function(node, label)), "require_options", None)
                if slot == "train" and together:  # which of its options do not go together
                    together(**options_of(node))
                limits = {f"{label}.{key}": value for key, value in node.items() if key.endswith("max_tokens")}
                require_window(limits, config.model_of(stage.by or stage.role or "policy").max_length)
        if stage.train and stage.train.get("carry"):
            check_carry(config, stage, where)
        if stage.train:
            from selfimprove.train import schedules  # the list of methods needs no training

            schedules.require(stage.train, f"{where}.train")
        if stage.train and stage.role and needs:
            fits = getattr(inspect.getmodule(function(stage.train, where)), "require_stage", None)
            if fits:  # what a train function's module requires of its stage
                fits(config, stage, where)
        if stage.verifier:
            fits = getattr(module_of(stage.verifier), "require_stage", None)
            if fits:
                fits(config, stage.verifier, f"{where}.verifier")


def require_tools(config: Config, node: Target) -> None:
    """Raises ConfigError if the method lacks a tool that a function calls: one of `TOOLS` of its module."""
    called = getattr(module_of(node), "TOOLS", ()) if "tools" in asks_for(node) else ()
    for name in called:
        if name not in config.method.tools:
            key = f"method.tools.{name}"
            raise ConfigError(f"{key}: needs a tool of this name, which {node['_target_']} calls", key)


def check_carry(config: Config, stage: Stage, where: str) -> None:
    """Raises ConfigError if training cannot go on from the last phase's moments."""
    if stage.start == "base":
        raise ConfigError(
            f"{where}.train.carry=true: goes on from the last policy, and {where}.start=base does not", where
        )
    how = config.training_of(stage.role or "policy")
    if how.processes > 1 and how.strategy != "ddp":
        raise ConfigError(
            f"hardware.training.strategy={how.strategy}: {where}.train.carry=true needs ddp, or false",
            "hardware.training.strategy",
        )


def check_solver(config: Config) -> None:
    """Raises ConfigError if engine and data set do not give what a solver or a training verifier needs.

    A solver's needs are `NEEDS` of its module, or what the module's `needs` returns for the solver's options. A
    module's `require_verifier` may refuse a training verifier.
    """
    for name, tool in config.method.tools.items():
        _require(config, f"method.tools.{name}={tool['_target_']}", getattr(module_of(tool), "NEEDS", ()))
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
                if fits := getattr(module_of(node), "require_verifier", None):  # verifiers that it can ask for scores
                    fits(verifier)


def gives(config: Config) -> set[str]:
    """What the engine and the data set give. A loader's module can add to it, by its options."""
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
    """Whether a verifier compares with gold answers.

    A check does, unless its module says otherwise. A group verifier does if it shows them to a model, or if its
    module's `reads_gold` says so for its options.
    """
    if is_group(verifier):
        own = getattr(module_of(verifier), "reads_gold", None)
        return bool(own(**options_of(verifier))) if own else "{gold}" in str(options_of(verifier))
    return bool(getattr(module_of(verifier), "NEEDS_GOLD", True))


def _key(loc: Sequence[str | int], raw: Any) -> str:
    """The key of a validation error: its path in the configuration, without the tags of a union's members."""
    parts = []
    for part in loc:
        if not isinstance(raw, dict | list):
            break
        parts.append(str(part))
        raw = raw.get(part) if isinstance(raw, dict) else dict(enumerate(raw)).get(int(part))
    return ".".join(parts)


def engine_options(node: Target) -> Target:
    return {key: value for key, value in node.items() if key != "gives"}


def origin(key: str, choices: Mapping[str, str | None]) -> str:
    """Where a key is set, for an error message: the file of the group's chosen option, or the main file."""
    if not key:
        return ""
    group = key.split(".")[0]
    file = f"{group}/{choices[group]}" if choices.get(group) else "config"
    return f" (conf/{file}.yaml, or the command line)"


_SECRET_NAME = re.compile(r"(^|_)(api_?key|access_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)


def _secret_values() -> list[str]:
    return [v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= 8]


def redact(value: Any) -> Any:
    """A copy with secrets replaced: values of keys such as `api_key`, and the values of such environment variables."""
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
    """The configuration of an existing run, checked as `check` does.

    Raises ConfigError if the folder is not a run's, or if its configuration may not be used as it is
    (`selfimprove.trust`).
    """
    raw = load(path)
    trust.require(raw, path)
    return check(raw, needs)


_SECTIONS = {"method": dict, "model": dict, "dataset": dict, "eval": dict, "seed": int, "rounds": int}


def load(path: Path) -> dict[str, Any]:
    """A run's config.yaml as plain data. Raises ConfigError if it is missing or no configuration."""
    found = _renamed(read_config(path))
    for key, kind in _SECTIONS.items():
        if not isinstance(found.get(key), kind):
            raise Damaged(path, f"is not the configuration of a run: it has no {key}")
    return found  # type: ignore[no-any-return]


def absolute(config: Config) -> Config:
    """The same configuration with absolute paths of the model, the data, and the models that verifiers ask.

    So a run folder means the same from any working folder.
    """
    raw = config.model_dump(by_alias=True)
    for section in ("model", "dataset", "verifier", "method", "generate", "eval"):
        _make_absolute(raw[section])
    return config.model_validate(raw)


def _make_absolute(node: Any) -> None:
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            _make_absolute(value)
        elif isinstance(value, str) and (key in ("path", "model") or key.endswith("_path")):
            local = Path(value).expanduser()
            if (
                value
                and value not in ("package", "made", "policy", "base")
                and not node.get("server")
                and local.exists()
            ):
                node[key] = str(local.absolute())


def _renamed(raw: Any) -> Any:
    """The configuration of an earlier version's run, with the current names of its keys."""
    if isinstance(raw, dict) and isinstance(raw.get("method"), dict):
        raw.pop("on_empty", None)
        if "refresh" in raw["method"]:
            raw["method"]["parts"] = raw["method"].pop("refresh")
        generate = raw["method"].get("generate")
        own = isinstance(generate, dict) and generate.get("_target_") == "selfimprove.methods.mcts_dpo.generate"
        if own and "search" not in generate:
            for noun, keys in _NOUNS.items():
                generate[noun] = {key: generate.pop(key) for key in keys if key in generate}
    return raw


_NOUNS = {  # the options of mcts_dpo's solver, which once stood side by side
    "search": (
        *("iterations", "first_iterations", "depth", "candidates", "first_candidates", "exploration", "discount"),
        *("prior", "length_penalty", "least_visits", "recount"),
    ),
    "worth": ("confidence", "outcome", "late", "early", "bonus"),
    "steps": ("stop", "temperature", "step_tokens", "max_tokens", "similarity", "finish_at"),
}


def methods() -> list[dict[str, Any]]:
    """What conf/method/*.yaml say of each method: name, title, paper, kind, summary, needs."""
    found = []
    for path in sorted((CONF / "method").glob("*.yaml")):
        method = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = ("name", "title", "paper", "kind", "summary", "needs")
        found.append({key: method[key] for key in keys if key in method})
    return found
