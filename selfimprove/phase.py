"""A phase is done once. Its key is a hash of all that it depends on."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from selfimprove import config as configuration
from selfimprove import store
from selfimprove import verify as verifying
from selfimprove.binding import Target, module_of
from selfimprove.plan import Pass
from selfimprove.report.display import Phase
from selfimprove.schema import Config
from selfimprove.session import Session
from selfimprove.types import Problem


def once(
    session: Session, step: Pass, name: str, depends: list[Any], outputs: list[str], work: Callable[[str], Any]
) -> dict[str, Any]:
    """The metrics of a phase.

    They come from its manifest if that still fits, and else from `work`, which is done now.
    """
    run, key = session.run, store.digest(depends)
    if (manifest := run.done(step, name, key)) is not None:
        return manifest["metrics"]  # type: ignore[no-any-return]
    run.discard(step, name)
    begin = time.monotonic()
    metrics = work(key)
    seconds = time.monotonic() - begin
    run.log({**run.where(step), "phase": name, **metrics, "seconds": round(seconds, 3)})
    run.finish(step, name, key, outputs, metrics, seconds)
    session.phase_done()
    return metrics  # type: ignore[no-any-return]


def policy_key(config: Config) -> list[Any]:
    """What decides a policy's samples besides its weights. Batch size and device are not part of it."""
    return [config.seed, configuration.engine_options(config.engine), config.model.max_length, config.model.max_tokens]


def problems_key(problems: list[Problem]) -> str:
    arrays = [[p.array.shape, p.array.data] if p.array else None for p in problems]
    rows = [[p.id, p.prompt, p.gold, p.metadata] for p in problems]
    return store.digest([*rows, *(arrays if any(arrays) else ())])


def version(node: Target) -> str:
    """A hash of the verifiers' code. Verdicts of another version are not used again."""
    code = sorted(Path(verifying.__file__ or "").parent.glob("*.py"))
    return store.digest([*map(store.file_digest, code), inspect.getsource(module_of(node))])


def progress(session: Session, step: Pass, name: str, total: int, unit: str) -> AbstractContextManager[Phase]:
    """Shows how far a phase is. Its name has the stage, and the part of the round."""
    shown = f"{step.stage} {name}" if step.stage else name
    if step.parts > 1:
        shown = f"part {step.part + 1} of {step.parts} {shown}"
    return session.display.phase(step.round, session.config.rounds, shown, total, unit)
