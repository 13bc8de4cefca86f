"""Baselines of equal compute: the base policy spends the compute of learning on the held-out problems instead.

best of n: at least one of n answers is correct, which best-of-n with a perfect verifier would reach. majority of n: the
most common answer is correct. For each method, n is chosen so that n answers to every held-out problem cost as much as
the method has cost so far.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfimprove import config as configuration
from selfimprove import store
from selfimprove.errors import Damaged
from selfimprove.report import metrics as measure
from selfimprove.report.runs import RunData, flops
from selfimprove.report.statistics import Estimate
from selfimprove.schema import Config
from selfimprove.sides import evaluated
from selfimprove.types import Problem, Verdict

# Samples and grades n answers to each problem by a config's base policy, in the columns of `RunData.answers`.
Sampler = Callable[[Config, list[Problem], int], pa.Table]

FILE = "base_samples.parquet"  # in a run folder: answers of its base policy, sampled for a comparison


def samples(run: RunData) -> pa.Table | None:
    """The sampled answers of a run's base policy to its held-out problems, in the columns of `RunData.answers`.

    They come from eval.samples or from an earlier comparison, whichever has more. None if there are none. Raises
    Damaged when a file is.
    """
    table = run.answers(0) if run.evaluations else None
    evaluated = table.filter(pc.field("decoding") == "sampled") if table else None
    kept = _kept(run.path / FILE)
    tables = [t for t in (evaluated, kept) if t is not None and t.num_rows]
    return max(tables, key=lambda t: t.num_rows, default=None)


def sample(run: RunData, n: int, sampler: Sampler) -> pa.Table:
    """At least n answers of a run's base policy to each held-out problem.

    If there are fewer, `sampler` makes them, and they are kept in the run folder. Raises ConfigError if the run's
    config or its model cannot be used.
    """
    table = samples(run)
    if table is None or per_problem(table) < n:
        config = configuration.read(run.path / "config.yaml")
        path = run.files.file(run.path / "problems.parquet")
        heldout = evaluated(config, list(store.read_records(path, Problem)))
        table = sampler(config, heldout, n)
        marked = table.replace_schema_metadata({"checksum": store.digest(table.to_pydict())})
        with store.new_file(run.path / FILE) as temporary:
            pq.write_table(marked, temporary, compression="zstd")
    return table


def _kept(path: Path) -> pa.Table | None:
    """The answers that an earlier comparison kept; None if there are none. Raises Damaged if the file is."""
    if not path.exists():
        return None
    remove = "remove it, and `compare --baselines` makes it again"
    with store.opened(path) as file:
        try:
            table = file.read(use_threads=False)
            fits = (table.schema.metadata or {}).get(b"checksum") in (None, store.digest(table.to_pydict()).encode())
        except (OSError, ValueError, pa.ArrowException):
            fits = False
    if not fits:
        raise Damaged(path, f"is damaged: {remove}")
    return table


def per_problem(table: pa.Table) -> int:
    """The number of answers to each problem."""
    return int(table.num_rows) // max(1, len(pc.unique(table["problem_id"])))


class Base:
    """The accuracy of the base policy's answers, for any n up to the number of answers to each problem."""

    def __init__(self, table: pa.Table, parameters: int | None = None) -> None:
        order = table.sort_by("problem_id")
        self.n = per_problem(table)
        self._size = parameters
        self._spent = {kind: pc.sum(table[f"{kind}_tokens"]).as_py() / self.n for kind in ("prompt", "sampled")}
        rows = zip(order["status"].to_pylist(), order["extracted"].to_pylist(), strict=True)
        verdicts = [Verdict("", status, float(status == "correct"), answer) for status, answer in rows]
        self._problems = [verdicts[i : i + self.n] for i in range(0, len(verdicts), self.n)]
        self._known: dict[tuple[str, int], Estimate] = {}

    def cost(self, kind: str) -> float:
        """The cost of one answer to every problem, in `sampled` tokens or `flops`."""
        if kind == "sampled":
            return float(self._spent["sampled"])
        if self._size is None:
            raise ValueError("the size of the policy is not known")
        return sum(flops(self._size, kind, count) for kind, count in self._spent.items())

    def best(self, n: int) -> Estimate:
        return self._once("best", n)

    def majority(self, n: int) -> Estimate:
        """Majority of n. For two answers it is that of one, which is the same in expectation."""
        return self._once("majority", n)

    def _once(self, name: str, n: int) -> Estimate:
        if (name, n) not in self._known:
            if name == "majority" and n > 2:
                self._known[name, n] = measure.maj_at_k(self._problems, n)
            else:
                self._known[name, n] = measure.pass_at_k_over(self._problems, n if name == "best" else 1)
        return self._known[name, n]


def greedy_tokens(run: RunData) -> int:
    """Sampled tokens of the base policy's greedy answers to the held-out problems."""
    table = run.answers(0)
    return int(np.sum(table.filter(pc.field("decoding") == "greedy")["sampled_tokens"].to_numpy()))
