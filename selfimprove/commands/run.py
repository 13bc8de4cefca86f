"""`selfimprove run`: Hydra's own application, so that its conventions hold; and shell completion."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from selfimprove.commands.common import Parser, guarded
from selfimprove.errors import ConfigError, RunError


def run(arguments: Sequence[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from selfimprove import config as configuration
    from selfimprove import overrides, sweep

    words, said = _words(arguments)
    results: list[int] = []  # the exit code of a single run
    begun: list[bool] = []  # whether anything of ours has: until then it is Hydra that reads the user's words

    def task(composed: DictConfig) -> float | None:
        begun.append(True)
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            return sweep.member(composed)
        path = Path(hydra_config.runtime.output_dir)
        if path.is_relative_to(Path.cwd()):  # short in what is printed
            path = path.relative_to(Path.cwd())

        def one() -> int:
            from selfimprove.run import start
            from selfimprove.summary import exit_code

            try:
                _require_folder(path, hydra_config.run.dir)
                return exit_code(start(configuration.check(composed), path, said))
            except ConfigError as problem:
                _remove_if_empty(path)
                where = configuration.origin(problem.key, hydra_config.runtime.choices)
                raise ConfigError(f"{problem}{where}") from None

        results.append(guarded(one))
        return None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here as they are, instead of a printed digest and exit 1
    sys.argv = ["selfimprove", *words]
    failure: ConfigError | RunError | None = None
    try:
        hydra.main(version_base="1.3", config_path=str(configuration.CONF), config_name="config")(task)()
    except sweep.Refused as refused:
        raise refused.problem from None
    except (HydraException, OmegaConfBaseException) as problem:
        failure = ConfigError(overrides.one_line(problem))
    except Exception as problem:
        if sweep.is_open():
            failure = RunError(f"the launcher failed: {type(problem).__name__}: {problem}")
        elif begun or not isinstance(problem, ValueError | OSError):
            raise
        elif isinstance(problem, OSError):  # Hydra makes the run's folder
            _remove_if_empty(Path(problem.filename or "."))
            failure = ConfigError(f"hydra.run.dir: {problem.filename!s:.120} cannot be made ({problem.strerror})")
        else:
            failure = ConfigError(overrides.one_line(problem))
    code = sweep.close(failed=failure is not None)
    if failure:
        raise failure
    return max(results, default=0) if code is None else code


def _words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of `run` as Hydra wants them, and lines to say about its KEY=VALUE words.

    Raises ConfigError for an argument that is neither such a word nor a flag of Hydra's.
    """
    from hydra._internal.utils import get_args_parser  # what hydra.main parses with

    from selfimprove import overrides

    flags = Parser(prog="selfimprove run", parents=[get_args_parser()], add_help=False).parse_args(arguments)
    if flags.experimental_rerun:
        raise ConfigError("--experimental-rerun: a run is continued by `selfimprove resume RUN_DIR`")
    if flags.shell_completion:
        return list(arguments), []
    sweeps = flags.multirun or any(word.startswith("hydra.mode=") for word in flags.overrides)
    read = dict(zip(flags.overrides, overrides.read(flags.overrides, sweeps), strict=True))
    said = overrides.notes(flags.overrides)
    if said and flags.cfg:
        print("\n".join(said), file=sys.stderr)
    brought = overrides.brought(flags.overrides)
    place = max((arguments.index(word) + 1 for word in flags.overrides), default=0) if brought else 0
    found = [read.get(word, word) for word in arguments]
    return [*found[:place], *brought, *found[place:]], said


def _require_folder(path: Path, asked: str) -> None:
    """Raises ConfigError if a new run's folder, which Hydra made, holds other files or cannot be written to."""
    if not asked.strip():
        raise ConfigError("hydra.run.dir: is empty; name a folder for the run, or leave the word out")
    if not (path / "config.yaml").exists() and (other := [p.name for p in path.iterdir() if p.name[0] != "."]):
        raise ConfigError(f"hydra.run.dir={asked}: holds {other[0]!r}, and a run needs a folder of its own")
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4096))
    except OSError as problem:
        raise ConfigError(f"hydra.run.dir={asked}: cannot be written to ({problem.strerror})") from None


def _remove_if_empty(path: Path) -> None:
    """Remove the folder that Hydra made for a run that was refused, so that nothing is left behind.

    Empty parents go too: up to the working directory, and elsewhere one level at most.
    """
    for folder in (path, *path.parents):
        if folder not in (path, path.parent) and Path.cwd() not in folder.absolute().parents:
            return
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


def complete(arguments: list[str], commands: Sequence[str]) -> int:
    """Shell completion: `eval "$(selfimprove -sc install=bash)"`. Behind `run` Hydra completes, before it we do."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split(" ")
    if arguments[1:2] and arguments[1].startswith("query") and words[1:2] != ["run"]:
        print("\n".join(c for c in commands if c.startswith(words[1] if len(words) > 1 else "")))
        return 0
    os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    return run(arguments)
