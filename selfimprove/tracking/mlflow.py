"""MLflow. By default it writes files to `mlruns` in the working folder, so that no server has to run.

Two files in the run folder make resuming safe. `mlflow_id` has the id of the MLflow run, and `mlflow_logged` has a line
for each row that was sent. MLflow allows no `@` in names, so `pass@4` is `pass_at_4` there. The table of attempts is
not sent, since it is in the run folder.

The thread that uses mlflow imports it, with its usage statistics off. If it is missing, the run goes on.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.config import redact
from selfimprove.tracking import Background, Ledger, Tracker, identity

if TYPE_CHECKING:
    from selfimprove.binding import Target
    from selfimprove.schema import Config

log = logging.getLogger(__name__)

_ENDS = {"complete": "FINISHED", "stopped": "KILLED"}


def start(node: Target, run_dir: Path, config: Config) -> Tracker:
    """Track a run in the experiment `tracker.project`. A folder that was tracked before goes on as the same run."""
    return Background(lambda: Run(node, run_dir.resolve(), config))


class Run:
    """One MLflow run, as a `selfimprove.tracking.Backend`. Raises what mlflow raises."""

    def __init__(self, node: Target, run_dir: Path, config: Config) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it refuses the store that needs no database
        from mlflow.tracking import MlflowClient

        self._ledger = Ledger(run_dir / "mlflow_logged")
        self._uri = node.get("uri") or os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").resolve().as_uri()
        self._client = MlflowClient(tracking_uri=self._uri)
        tags = {"method": config.method.name, "group": config.group or config.method.name}
        self._id = identity(run_dir / "mlflow_id", lambda: self._new(node["project"], run_dir.name, tags))
        self._client.update_run(self._id, status="RUNNING")
        if self._ledger.add("config", -1, 0, ()):
            self._client.log_dict(self._id, redact(config.model_dump(by_alias=True)), "config.yaml")

    def _new(self, project: str, name: str, tags: dict[str, str]) -> str:
        known = self._client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self._client.create_experiment(project)
        return str(self._client.create_run(experiment, run_name=name, tags=tags).info.run_id)

    def round(self, number: int, metrics: dict[str, Any]) -> None:
        values = {name: value for name, value in metrics.items() if name != "round"}
        self._write("round", number, 0, number, values)

    def step(self, number: int, record: dict[str, Any]) -> None:
        step = int(record["step"])
        values = {f"train/{name}": value for name, value in record.items() if name != "step"}
        self._write("step", number, step, self._ledger.steps_before(number) + step, values)

    def table(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Does nothing: MLflow's tables need pandas, and the rows are in the run folder."""

    def finish(self, summary: dict[str, Any]) -> None:
        self._client.set_terminated(self._id, _ENDS.get(str(summary.get("status")), "FAILED"))
        log.info("MLflow has this run in %s", self._uri)

    def _write(self, kind: str, number: int, step: int, at: int, values: dict[str, Any]) -> None:
        """One row at step `at` of MLflow's axis, unless it was logged before."""
        from mlflow.entities import Metric

        if self._ledger.add(kind, number, step, values):
            now = int(1000 * time.time())
            numbers = {name.replace("@", "_at_"): v for name, v in values.items() if isinstance(v, int | float)}
            self._client.log_batch(self._id, metrics=[Metric(n, float(v), now, at) for n, v in numbers.items()])
