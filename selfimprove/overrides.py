"""The KEY=VALUE words of a command line, in the form that Hydra wants. Hydra's long errors become one line here.

Hydra reads a value as a small language: a comma sweeps, and braces make mappings. So a path with `=`, a comma or
letters beyond ASCII needs quotes. The shell takes one pair of quotes away, so there have to be two.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

import yaml

from selfimprove.errors import ConfigError
from selfimprove.packaged import CONF
from selfimprove.schema import NAME, is_folder_name

NEEDED = ("method", "model", "dataset", "engine", "hardware", "tracker")  # groups that a run takes one choice of
OPTIONAL = ("generate", "verifier", "filter", "train", "experiment")  # groups that may be null: the method's own

_NAMES = ("name", "method.name", "model.name", "dataset.name")  # parts of a run folder's path

# Choices of hydra/launcher and hydra/sweeper that other packages bring, and the extra of ours that installs them.
EXTRAS = {"joblib": "sweeps", "submitit_local": "sweeps", "submitit_slurm": "sweeps", "optuna": "sweeps", "ray": "ray"}


def read(words: Sequence[str], sweeps: bool = False) -> list[str]:
    """The words in the form that Hydra wants. With `sweeps`, values may be sweeps, as behind `run -m`.

    Raises ConfigError for a word that Hydra could not read, or that would do nothing.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, found = OverridesParser.create(), []
    for word in words:
        key, _, value = word.partition("=")
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word}: has no value; KEY=VALUE is needed")
        if not key.lstrip("+~"):
            raise ConfigError(f"{word}: the key is missing before '='")
        try:
            parsed = parser.parse_override(word)
        except HydraException:
            said = f"{word}: cannot be read; a text with such letters is quoted twice: {quoted(key, value)}"
            raise ConfigError(said) from None
        if parsed.is_sweep_override():
            if not sweeps:
                raise ConfigError(_no_sweep(word, key, value))
            found.append(word)
            continue
        found.append(_chosen(word, key, parsed.value()))
    return found


def brought(words: Sequence[str]) -> list[str]:
    """The choices of other groups that the words' method brings, by `brings` in its file.

    What is typed wins, and so does an experiment. Raises ConfigError if a sweep's methods bring different ones.
    """
    typed = dict(word.partition("=")[::2] for word in words)
    if "method" not in typed or "experiment" in typed:
        return []
    found = dict[str, set[str | None]]()
    files = [CONF / "method" / f"{name.strip()}.yaml" for name in typed["method"].split(",")]
    own = [yaml.safe_load(file.read_text(encoding="utf-8")).get("brings", {}) for file in files if file.is_file()]
    for group in sorted({group for brings in own for group in brings} - typed.keys()):
        found[group] = {brings.get(group) for brings in own}
        if len(found[group]) > 1:
            raise ConfigError(f"method={typed['method']}: they bring different choices; give {group}=...", group)
    return [f"{group}={choice}" for group, choices in found.items() for choice in choices]


def _chosen(word: str, key: str, value: object) -> str:
    """The word. If it chooses an option of a group, the choice is checked."""
    if (key in NEEDED and value is None) or word.removeprefix("~") in NEEDED:
        more = "; tracker=none logs to files alone" if "tracker" in word else ""
        raise ConfigError(f"{word}: a run needs one; leave the word out for the default{more}")
    if key in OPTIONAL and value is None and not word.startswith("~"):
        return f"~{key}"
    if key in (*NEEDED, *OPTIONAL[:-1]) and "=" in word and not isinstance(value, str):
        raise ConfigError(f"{word}: the name of one choice is needed, a file of conf/{key}/")
    if key.lstrip("+") in _NAMES and not is_folder_name(value):
        raise ConfigError(f"{word}: {NAME}")  # before Hydra makes a folder of it
    if value == {} and not word.startswith("+"):
        raise ConfigError(f"{word}: an empty mapping is merged into what is there and changes nothing")
    return word


def _no_sweep(word: str, key: str, value: str) -> str:
    if re.match(r"\w+\(", value):
        return f"{word}: is a sweep, which takes `selfimprove run -m`"
    return (
        f"{word}: a comma sweeps, which takes `selfimprove run -m`; one text with a comma is quoted twice: "
        f"{quoted(key, value)}; a list is {key}=[{value}]"
    )


def quoted(key: str, value: str) -> str:
    """KEY='VALUE' with the shell's quotes around it."""
    inner = value.strip("'\"").replace("\\", "\\\\").replace("'", "\\'")
    word = f"{key}='{inner}'"
    return shlex.quote(word) if re.search(r'[$`"\\!]', word) else f'"{word}"'


def notes(words: Iterable[str]) -> list[str]:
    """A line for each word that can be read but probably does not say what was meant."""
    return [
        f"{word.partition('=')[0]}: \\n is a backslash and an n here, not a line break, which bash writes as $'\\n': "
        f"\"{word.partition('=')[0]}='one line\"$'\\n'\"another'\""
        for word in words
        if re.search(rf"=.*\\n(?!{_LATEX})", word, re.DOTALL)
    ]


_LATEX = "abla|atural|e[^a-z]|eq|eg|ot|u[^a-z]|less|leq|gtr|geq|mid|sim|cong|parallel|exists|subset|ew[cl]|oindent"


def one_line(problem: Exception) -> str:
    """Hydra's message in one line, without its lists and hints."""
    group, _, name = str(getattr(problem, "missing_cfg_file", None) or "").rpartition("/")
    if group.startswith("hydra/sweeper/"):  # a choice that depends on a sweeper
        group, name = "hydra/sweeper", "optuna"
    if group.startswith("hydra/") and name in EXTRAS:
        return f"{group}={name}: not installed; pip install 'selfimprove[{EXTRAS[name]}]'"
    if options := getattr(problem, "options", None):  # an unknown choice in a group
        return f"{group}={name}: no such choice; there are {', '.join(options)}"
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    if unknown := re.match(r"Could not override '(.+?)'", lines[0]):
        return f"{unknown[1]}: unknown key; selfimprove run --cfg job prints the keys there are"
    if key := getattr(problem, "full_key", None):
        return f"{key}: {lines[0]}"
    return " ".join(lines)
