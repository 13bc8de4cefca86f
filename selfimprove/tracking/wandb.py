"""Weights & Biases. Without credentials it logs offline, into <run folder>/wandb, and says how to upload.

Two files in the run folder make resuming safe. `wandb_id` has the id of the W&B run, and `wandb_logged` has a line for
each row that was sent. A row is noted before it is sent. If the run is killed in between, W&B lacks that row, but it
never has one twice. Offline, W&B may also lose the rows of the last second.

The thread that uses wandb imports it. So a configuration that names this tracker does not load it. If wandb is missing,
the run goes on.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfimprove.config import redact
from selfimprove.tracking import Background, Ledger, Tracker, identity

if TYPE_CHECKING:
    import wandb

    from selfimprove.binding import Target
    from selfimprove.schema import Config

log = logging.getLogger(__name__)


def start(node: Target, run_dir: Path, config: Config) -> Tracker:
    """Track a run in `tracker.project` (of `tracker.entity`, if set). A folder that was tracked before goes on."""
    return Background(lambda: Run(node, run_dir.resolve(), config))


class Run:
    """One W&B run, as a `selfimprove.tracking.Backend`. Raises what wandb raises."""

    def __init__(self, node: Target, run_dir: Path, config: Config) -> None:
        self._folder = run_dir
        self._ledger = Ledger(run_dir / "wandb_logged")
        self._run = _init(
            dir=str(run_dir),
            id=identity(run_dir / "wandb_id", lambda: secrets.token_hex(4)),
            resume="allow",
            project=node.get("project"),
            entity=node.get("entity"),
            name=run_dir.name,
            group=config.group,
            job_type=config.method.name,
            config=redact(config.model_dump(by_alias=True)),
        )
        self._defined: set[str] = set()
        for axis in ("round", "train/step"):
            self._run.define_metric(axis, hidden=True)

    def round(self, number: int, metrics: dict[str, Any]) -> None:
        self._write("round", number, 0, {k: v for k, v in metrics.items() if k != "round"}, {"round": number})

    def step(self, number: int, record: dict[str, Any]) -> None:
        step = int(record["step"])
        before = self._ledger.steps_before(number)
        values = {f"train/{name}": value for name, value in record.items() if name != "step"}
        self._write("step", number, step, values, {"train/step": before + step, "round": number})

    def table(self, number: int, rows: list[dict[str, Any]]) -> None:
        import wandb

        if rows:
            table = wandb.Table(columns=[*rows[0]], allow_mixed_types=True)
            for row in rows:  # given all at once, wandb would read them with pandas, which takes a second to import
                table.add_data(*row.values())
            self._write("table", number, 0, {"attempts": table}, {"round": number})

    def finish(self, summary: dict[str, Any]) -> None:
        import wandb

        offline = self._run.offline
        self._run.summary.update({key: summary[key] for key in ("status", "base", "final") if key in summary})
        self._run.finish(exit_code=1 if summary["status"] == "failed" else 0)
        wandb.teardown()  # waits for the service: offline, finish returns before the file is complete
        if offline:
            # There is one folder for each time the run was resumed. sync uploads them in order, into one W&B run.
            folders = sorted((self._folder / "wandb").glob(f"offline-run-*-{self._run.id}"))
            waiting = [str(folder) for folder in folders if not any(folder.glob("*.wandb.synced"))]
            log.info("W&B logged offline. To upload: wandb sync %s", shlex.join(waiting))

    def _write(self, kind: str, number: int, step: int, values: dict[str, Any], axes: dict[str, int]) -> None:
        """Send a row, unless it was logged before. `axes` are its x values. It is drawn over the first of them."""
        row = len(self._ledger)
        if not self._ledger.add(kind, number, step, values):
            return
        for name in values.keys() - self._defined:
            self._run.define_metric(name, step_metric=next(iter(axes)))
            self._defined.add(name)
        # W&B's own step must rise in a resumed run too, or the row is dropped.
        self._run.log({**values, **axes}, step=row, commit=True)


def _init(**options: Any) -> wandb.Run:
    """A W&B run that asks nothing and prints nothing. It is offline if it cannot be online."""
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    # No console capture and no messages, since the run has its own log. No command line, code or git state either:
    # environment.json has them without secrets.
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=15,
        finish_timeout=60,
        x_transaction_log_flush_interval=1,
        x_disable_meta=True,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
    )
    known = wandb.setup(settings).settings
    key = known.api_key or known.identity_token_file or read_netrc_auth(host=known.base_url)
    mode: Literal["offline"] | None = None  # as WANDB_MODE or W&B's own settings say
    if known.mode == "online" and not key:
        mode = "offline"
        if os.environ.get("WANDB_MODE") == "online":
            log.warning("WANDB_MODE=online, but there is no API key: W&B logs offline")
    # create_new: a separate run, which no other library in this process can find and log to.
    options |= {"settings": settings, "reinit": "create_new"}
    try:
        return wandb.init(**options, mode=mode)
    except wandb.Error as error:
        if mode or known.mode != "online":
            raise
        log.warning("W&B cannot be reached or refuses the key (%s): it logs offline", str(error).splitlines()[0])
        wandb.teardown()  # its service still holds the run id
        return wandb.init(**options, mode="offline")
