"""What tools share that run their calls in a pool of processes: a second try, and how calls ended."""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfimprove.verify import Outcome
from selfimprove.verify.pool import Pool

ENDED = {"correct": "ok", "wrong": "failed"}  # outcome -> its name in figures; `timeout` and `error` keep their names


class Pooled:
    """A tool on a pool, which it opens and closes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool.__enter__()
        self._ended: Counter[str] = Counter()  # calls by how they ended, since `take`

    async def tried(self, text: str, metadata: dict[str, Any] | None = None) -> Outcome:
        """The outcome of a call. After an `error` it is made once more: perhaps the machine was too busy."""
        outcome = await self._pool.check_one(text, None, metadata or {})
        if outcome.status == "error":
            outcome = await self._pool.check_one(text, None, metadata or {})
        self._ended[ENDED.get(outcome.status, outcome.status)] += 1
        return outcome

    def take(self) -> dict[str, int]:
        """Calls since the last `take`, by how they ended: `ok`, `failed`, `timeout` or `error`."""
        taken = dict(self._ended)
        self._ended.clear()
        return taken

    def close(self) -> None:
        self._pool.__exit__()
