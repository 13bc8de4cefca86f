"""What the engines have in common that ask vLLM, be it a process of their own (`vllm`) or a server (`openai`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfimprove.errors import RunError
from selfimprove.policy import Request, chat, models, require_fit, require_plain, require_room
from selfimprove.types import Sample


class Answer(NamedTuple):
    ids: list[int]
    logprobs: list[float]  # of `ids`; empty where they were not asked for
    prompt: list[float]  # of each token of the prompt but the first; empty where they were not asked for
    stopped: bool  # by an end token or a stop string


class ServedEngine(chat.Speaker):
    """The part of selfimprove.policy.Engine that makes requests of vLLM's and reads its answers.

    `path` is a model folder, an adapter folder or a hub id; `max_length` the window in tokens. `name` is the engine's
    in conf/engine/.
    """

    name: str

    def __init__(self, path: str, max_length: int, trust_remote_code: bool) -> None:
        self.base = models.adapter_base(path) if models.is_adapter(path) else path
        self.tokenizer: Any = models.load_tokenizer(path, trust_remote_code=trust_remote_code)
        self.max_length = max_length
        self.ends = frozenset(_end_tokens(self.tokenizer, self.base))
        self._open = 0  # requests in flight

    async def sample(self, request: Request) -> Sample:
        """One completion. Raises ValueError for a request that does not fit the window, or asks for media, an adapter
        or a hook, and RunError when vLLM does not stay up."""
        require_plain(request, "vllm or openai")
        require_room(request, self.max_length)
        answer = await self._ask(
            request.prompt_ids,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            seed=request.seed % 2**63,
            stop=list(request.stop),
            include_stop_str_in_output=True,
            logprobs=0,
        )
        ids = answer.ids
        return Sample(
            prompt_ids=list(request.prompt_ids),
            completion_ids=ids,
            logprobs=answer.logprobs,
            text=chat.text(self.tokenizer, ids[:-1] if ids[-1] in self.ends else ids),
            finish="stop" if answer.stopped else "length",
            seed=request.seed,
            temperature=request.temperature,
        )

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Teacher-forced log pi of each completion token, in nats at temperature 1. Raises ValueError when too long."""
        if not completion_ids:
            return []
        require_fit(prompt_ids, completion_ids, self.max_length)
        ids = (*prompt_ids, *completion_ids)
        # A prompt whose log-probabilities are wanted is read from its start, past the prefix cache. So a single token
        # is scored as the only one that vLLM may sample next. That also scores the last one where the window is full,
        # since vLLM answers no request without sampling a token: greedily, which is the least work, and changes none of
        # the log-probabilities.
        only: dict[str, Any] = {"allowed_token_ids": [ids[-1]], "logprobs": 0}
        if len(completion_ids) == 1:
            return (await self._ask(ids[:-1], max_tokens=1, temperature=0.0, **only)).logprobs
        full = len(ids) == self.max_length
        answer = await self._ask(
            ids[:-1] if full else ids, max_tokens=1, temperature=0.0, prompt_logprobs=0, **(only if full else {})
        )
        return (answer.prompt + answer.logprobs)[len(prompt_ids) - 1 :]

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        raise RunError(f"engine={self.name} has no beam search: use engine=transformers")

    async def lens(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[Sample]:
        raise RunError(f"engine={self.name} shows no layers: use engine=transformers")

    def _require_idle(self) -> None:
        """Raises RuntimeError while requests are in flight."""
        if self._open:
            raise RuntimeError("the weights can neither change nor sleep while requests are in flight")

    async def _ask(self, ids: Sequence[int], **settings: Any) -> Answer:
        self._open += 1
        try:
            return await self._send(ids, **settings)
        finally:
            self._open -= 1

    async def _send(self, ids: Sequence[int], **settings: Any) -> Answer:
        """vLLM's answer to a prompt of these ids; `settings` are named as its SamplingParams are."""
        raise NotImplementedError


def absolute(path: str) -> str:
    """A folder's whole path, for another process; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _end_tokens(tokenizer: Any, path: str) -> set[int]:
    """Every id that vLLM ends a completion at: the tokenizer's end token, and those of the generation config."""
    from transformers import GenerationConfig

    try:
        more = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # a model without one
        more = None
    return {tokenizer.eos_token_id, *(more if isinstance(more, list) else [] if more is None else [more])}
