"""TensorBoard: event files in <run folder>/tensorboard, which `tensorboard --logdir outputs` shows for all runs.

A resumed run writes another event file into the same folder, and TensorBoard shows them as one run. The file
`tensorboard_logged` of the run folder has a line for each row that was written, so that no row is written twice.

The writer is PyTorch's. The thread that uses it imports it. If the package is missing, the run goes on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selfimprove.config import redact
from selfimprove.tracking import Background, Ledger, Tracker

if TYPE_CHECKING:
    from selfimprove.binding import Target
    from selfimprove.schema import Config

log = logging.getLogger(__name__)


def start(node: Target, run_dir: Path, config: Config) -> Tracker:
    """Track a run in its own folder. A folder that was tracked before goes on as the same run."""
    return Background(lambda: Run(run_dir.resolve(), config))


class Run:
    """One TensorBoard run, as a `selfimprove.tracking.Backend`."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._ledger = Ledger(run_dir / "tensorboard_logged")
        self._folder = run_dir / "tensorboard"
        self._writer = SummaryWriter(str(self._folder))
        if self._ledger.add("config", -1, 0, ()):
            plain = yaml.safe_dump(redact(config.model_dump(by_alias=True)), sort_keys=False, allow_unicode=True)
            self._text("config", plain, 0)

    def round(self, number: int, metrics: dict[str, Any]) -> None:
        if self._ledger.add("round", number, 0, metrics):
            self._scalars({name: value for name, value in metrics.items() if name != "round"}, number)

    def step(self, number: int, record: dict[str, Any]) -> None:
        step = int(record["step"])
        at = self._ledger.steps_before(number) + step
        if self._ledger.add("step", number, step, record):
            self._scalars({f"train/{name}": value for name, value in record.items() if name != "step"}, at)

    def table(self, number: int, rows: list[dict[str, Any]]) -> None:
        if rows and self._ledger.add("table", number, 0, ()):
            self._text("attempts", yaml.safe_dump(rows, sort_keys=False, allow_unicode=True), number)

    def finish(self, summary: dict[str, Any]) -> None:
        self._writer.close()
        log.info("TensorBoard has this run in %s. To look at it: tensorboard --logdir %s", self._folder, self._folder)

    def _scalars(self, values: dict[str, Any], at: int) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, at)
        self._writer.flush()

    def _text(self, name: str, text: str, at: int) -> None:
        """Write a text. TensorBoard shows Markdown, and four leading blanks make a block that is shown unchanged."""
        self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), at)
