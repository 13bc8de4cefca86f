"""trackio: a dashboard on this machine, `trackio show`. It needs no account and no network.

Its data are in trackio's own folder (TRACKIO_DIR, else trackio/ in Hugging Face's cache), so that one dashboard shows
all runs. Two files in the run folder make resuming safe. `trackio_name` has the run's name there, and `trackio_logged`
has a line for each row that was sent. The table of attempts is not sent, since it is in the run folder.

The thread that uses trackio imports it. If it is missing, the run goes on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.config import redact
from selfimprove.tracking import Background, Ledger, Tracker, identity

if TYPE_CHECKING:
    from selfimprove.binding import Target
    from selfimprove.schema import Config

log = logging.getLogger(__name__)


def start(node: Target, run_dir: Path, config: Config) -> Tracker:
    """Track a run in `tracker.project`. A folder that was tracked before goes on as the same run."""
    return Background(lambda: Run(node, run_dir.resolve(), config))


class Run:
    """One trackio run, as a `selfimprove.tracking.Backend`. Raises what trackio raises."""

    def __init__(self, node: Target, run_dir: Path, config: Config) -> None:
        self._ledger = Ledger(run_dir / "trackio_logged")
        self._project = node["project"]
        with _quiet():
            import trackio

            self._run = trackio.init(
                project=self._project,
                name=identity(run_dir / "trackio_name", lambda: f"{run_dir.name}-{secrets.token_hex(2)}"),
                group=config.group or config.method.name,
                resume="allow",
                config=redact(config.model_dump(by_alias=True)),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def round(self, number: int, metrics: dict[str, Any]) -> None:
        self._write("round", number, 0, number, metrics)

    def step(self, number: int, record: dict[str, Any]) -> None:
        step = int(record["step"])
        values = {f"train/{name}": value for name, value in record.items() if name != "step"}
        self._write("step", number, step, self._ledger.steps_before(number) + step, values)

    def table(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Does nothing: trackio's tables need pandas, and the rows are in the run folder."""

    def finish(self, summary: dict[str, Any]) -> None:
        with _quiet():
            self._run.finish()  # type: ignore[no-untyped-call]
        log.info("trackio has this run. To look at it: trackio show --project %s", self._project)

    def _write(self, kind: str, number: int, step: int, at: int, values: dict[str, Any]) -> None:
        """One row at `at` of trackio's axis, unless it was logged before."""
        if self._ledger.add(kind, number, step, values):
            self._run.log({**values, "round": number}, step=at)


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Hide what trackio prints. The run waits meanwhile, so no other output is lost."""
    return contextlib.redirect_stdout(io.StringIO())
