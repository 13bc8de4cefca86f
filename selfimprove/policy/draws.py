"""Policies that are not language models: each sample is one draw from a distribution, whatever the prompt.

A distribution is a function from requests to draws. `selfimprove.policy.categorical` and `selfimprove.policy.flow` read
one from a policy folder. A draw goes through the same rounds as text: it has ids if it is discrete, an array if it is
not, and a text for checks to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from selfimprove.policy import Request
from selfimprove.types import Message, Sample


class Draw(NamedTuple):
    text: str
    logprob: float  # log-probability of the outcome, or log density at the point, in nats
    ids: tuple[int, ...] = ()
    array: tuple[float, ...] | None = None


Distribution = Callable[[list[Request]], list[Draw]]  # one draw for each request


class DrawsEngine:
    """Implements selfimprove.policy.Engine for the distribution that `read` finds in a policy folder.

    A draw depends on the request alone; for tables and flows, on its seed alone. Temperature 0 does not pick the mode,
    so held-out accuracy is the share of fresh draws that are correct. Waiting requests are drawn in one batch. Scoring
    and beam search are not supported.
    """

    max_length = 1

    def __init__(self, read: Callable[[str], Distribution], path: str) -> None:
        self._read = read
        self._draw = read(path)
        self._waiting: list[tuple[Request, asyncio.Future[Draw]]] = []

    def render(self, prompt: str | list[Message]) -> list[int]:
        """No tokens."""
        return []

    def turn(self, text: str, ended: bool) -> list[int]:
        raise ValueError("a policy of draws holds no dialogue")

    def encode(self, text: str) -> list[int]:
        raise ValueError("a policy of draws holds no dialogue")

    @property
    def end(self) -> int:
        raise ValueError("a policy of draws holds no dialogue")

    async def sample(self, request: Request) -> Sample:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._answer)  # after all requests that are about to come
        future: asyncio.Future[Draw] = loop.create_future()
        self._waiting.append((request, future))
        draw = await future
        return Sample(
            prompt_ids=[],
            completion_ids=list(draw.ids),
            logprobs=[draw.logprob] if draw.ids else [],
            text=draw.text,
            finish="stop",
            seed=request.seed,
            array=None if draw.array is None else list(draw.array),
        )

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            draws = self._draw([request for request, _ in waiting])
        except Exception as problem:  # whoever waits gets it, else they would wait for ever
            for _, future in waiting:
                if not future.done():
                    future.set_exception(problem)
            return
        for (_, future), draw in zip(waiting, draws, strict=True):
            if not future.done():
                future.set_result(draw)

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        raise ValueError("a policy of draws scores no text")

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        raise ValueError("a policy of draws has no beam search")

    async def lens(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], heads: Sequence[tuple[int, int]] = ()
    ) -> list[Sample]:
        raise ValueError("a policy of draws has no layers")

    def load(self, path: str) -> None:
        self._draw = self._read(path)

    async def sleep(self) -> None:
        """Do nothing: there is no memory to free."""

    def close(self) -> None:
        """Do nothing."""
