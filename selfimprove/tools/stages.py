"""The stages of a data-science pipeline as a tool: model-written functions run in the sandbox, beside numpy and
scikit-learn, with their unit tests (`selfimprove.tools.pipeline`).

Hyper-parameters are searched from outside: the sandbox names its search space and gets one choice after another, by
optuna's tree-structured Parzen estimator (Bergstra et al. 2011) or at random. A stage that fails or hangs is an
observation. A fault of the sandbox, or of the file that runs there, is not: after a second try it stops the run.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any, Literal

from selfimprove.errors import ConfigError, RunError
from selfimprove.tools import pipeline as driver
from selfimprove.tools.pooled import Pooled
from selfimprove.types import Count, Seconds, Status
from selfimprove.verify import Outcome
from selfimprove.verify import sandbox as sandboxes
from selfimprove.verify.pool import Pool

KEEPS_TIME = True  # the sandbox ends what takes too long
OUTPUT_BYTES = 1 << 22
PACKAGES = ("scikit-learn",)  # with numpy and scipy, which it needs
STARTUP = 5  # random trials before the estimator chooses
MODULES = {"sklearn": "scikit-learn", "optuna": "optuna"}

Sandbox = Literal["bubblewrap", "unsafe_subprocess"]


def require_stages(*, sandbox: str = "bubblewrap", **options: Any) -> dict[str, str]:
    """What guards the programs, for the run's record. Raises ConfigError if sandbox or packages are not there."""
    for module, name in MODULES.items():
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"method.tools.stages: needs {name}: pip install 'selfimprove[tables]'", "method.tools")
    sandboxes.require(sandbox, where="method.tools.stages")
    limits: dict[str, Any] = {"seconds": 60, "memory_mb": 2048, "output_bytes": 1000, "sandbox": sandbox}
    try:
        result = sandboxes.run("import numpy, sklearn", packages=PACKAGES, **limits)
    except ConfigError as error:
        raise ConfigError(f"method.tools.stages: {error}", "method.tools") from None
    if result.status != "ok":
        said = result.stderr.rstrip().rpartition("\n")[2] or result.status
        raise ConfigError(f"method.tools.stages: the sandbox's Python cannot import scikit-learn: {said}")
    return sandboxes.describe(sandbox)


def stages(
    *,
    seconds: Seconds = 30.0,
    memory_mb: Count = 2048,
    workers: Count | None = None,
    sandbox: Sandbox = "bubblewrap",
) -> Stages:
    """Open the tool. seconds, memory_mb (MiB): limits of all stages together; workers: pipelines that run at once,
    None: one a core."""
    options = {"seconds": seconds, "memory_mb": memory_mb, "sandbox": sandbox}
    return Stages(Pool(f"{__name__}.ran", options, workers=workers or os.cpu_count() or 1, seconds=seconds))


class Stages(Pooled):
    """Runs a request and gives its result, both as JSON. `pipeline.Pipeline` has the request's keys; two more are
    `sampler` (tpe or random) and `seed`. The reply is {"done": ...}, or {"broken": stage, "said": ..., "status": ...}.
    """

    async def __call__(self, text: str) -> str:
        """Raises RunError if the sandbox, or the file that runs there, fails twice."""
        outcome = await self.tried(text)
        if outcome.status == "error" or outcome.extracted is None:
            raise RunError(f"the tool stages: {outcome.reason}")
        return outcome.extracted


def ran(
    text: str, gold: str | None, metadata: dict[str, Any], *, seconds: float, memory_mb: int, sandbox: str
) -> Outcome:
    """A check of `selfimprove.verify.pool`: the result of a request is in `extracted`. `error` is a fault of ours."""
    request, word = json.loads(text), secrets.token_hex(16)
    search = Search(request.pop("sampler"), request.pop("seed"), word)
    if "space" in request["codes"]:
        search.sampler()  # importing it takes long, and is no part of the program's time
    result = sandboxes.run(
        _source(),
        stdin=f"{word}\n",
        files={"request.json": json.dumps(request)},
        seconds=seconds,
        memory_mb=memory_mb,
        output_bytes=OUTPUT_BYTES,
        sandbox=sandbox,
        packages=PACKAGES,
        answer=search,
    )
    said = [line for text in result.stdout.splitlines() if (line := _read(text, word))]
    if result.status == "error" or not said or "fault" in said[-1]:
        why = said[-1]["fault"] if said and "fault" in said[-1] else result.stderr.strip()[-300:] or result.status
        return Outcome("error", 0.0, reason=f"the sandbox failed: {why}")
    last = said[-1]
    if result.status == "ok" and "done" in last:
        return Outcome("correct", 0.0, json.dumps(last))
    if result.status == "ok" and "broken" in last:
        return Outcome("wrong", 0.0, json.dumps({**last, "status": "failed"}))
    begun = [line["begin"] for line in said if "begin" in line] or [next(iter(request["codes"]))]
    why = {
        "timeout": f"TimeoutError: took more than {seconds:g} s",
        "memory": f"MemoryError: needs more than {memory_mb} MiB",
        "output": f"OSError: printed more than {OUTPUT_BYTES} bytes",
    }.get(result.status, "OSError: the program ended itself")
    status: Status = "timeout" if result.status == "timeout" else "wrong"
    return Outcome(status, 0.0, json.dumps({"broken": begun[-1], "said": why, "status": result.status}))


def _read(line: str, word: str) -> dict[str, Any] | None:
    """A line of `pipeline`'s, which begins with its word; None for any other, which model-written code has written."""
    if not line.startswith(word):
        return None
    try:
        found: dict[str, Any] = json.loads(line.removeprefix(word))
    except ValueError:  # model-written code wrote into the line
        return None
    return found


@functools.cache
def _source() -> str:
    return Path(driver.__file__).read_text(encoding="utf-8")


class Search:
    """Answers a pipeline's lines `{"ask": space, "last": score}`, each behind `word`, with hyper-parameters. Higher
    scores are better.

    A space maps a name to ["float", low, high], ["log", low, high], ["int", low, high] or ["choice", [values]].
    """

    def __init__(self, sampler: str, seed: int, word: str) -> None:
        self._name, self._seed, self._word = sampler, seed % 2**32, word
        self._study: Any = None
        self._trial: Any = None

    def sampler(self) -> Any:
        import optuna

        optuna.logging.set_verbosity(logging.ERROR)
        if self._name == "random":
            return optuna.samplers.RandomSampler(seed=self._seed)
        return optuna.samplers.TPESampler(seed=self._seed, n_startup_trials=STARTUP)

    def __call__(self, line: bytes) -> bytes:
        said = _read(line.decode(errors="replace"), self._word)
        if not said or "ask" not in said:
            return b""
        try:
            reply = self.next(said["ask"], said.get("last"))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:  # of the space
            reply = {"refused": f"the search space cannot be used: {error}"[:300]}
        return json.dumps(reply).encode() + b"\n"

    def next(self, space: dict[str, list[Any]], last: float | None) -> dict[str, Any]:
        """The next choice; `last` is the score of the one before. Raises ValueError for what is no space."""
        import optuna

        if self._study is None:
            self._study = optuna.create_study(direction="maximize", sampler=self.sampler())
        elif self._trial is not None and last is not None:
            self._study.tell(self._trial, last)
        self._trial = self._study.ask()
        return {name: self._suggested(name, *what) for name, what in space.items()}

    def _suggested(self, name: str, kind: str, *ends: Any) -> Any:
        if kind == "choice":
            return self._trial.suggest_categorical(name, *ends)
        if kind not in ("float", "log", "int") or not len(ends) == 2 or not ends[0] < ends[1]:
            raise ValueError(f"{name}: [kind, low, high] with a kind of float, log, int or choice")
        if kind == "int":
            return self._trial.suggest_int(name, *ends)
        return self._trial.suggest_float(name, *ends, log=kind == "log")
