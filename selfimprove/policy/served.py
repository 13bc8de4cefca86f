"""What the two engines on vLLM share: `vllm`, which starts its own processes, and `openai`, which uses a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selfimprove.errors import RunError
from selfimprove.policy import Request, chat, models, require_fit, require_plain, require_room
from selfimprove.types import Sample


class Answer(NamedTuple):
    ids: list[int]
    logprobs: list[float]  # of `ids`; empty if not requested
    prompt: list[float]  # log-probabilities of the prompt's tokens but the first; empty if not requested
    stopped: bool  # by an end token or a stop string


class ServedEngine(chat.Speaker):
    """The part of selfimprove.policy.Engine that sends requests to vLLM and reads its answers.

    `path` is a model folder, an adapter folder or a hub id. `max_length` is the window in tokens. `name` is the
    engine's name in conf/engine/.
    """

    name: str

    def __init__(self, path: str, max_length: int, trust_remote_code: bool) -> None:
        self.base = models.adapter_base(path) if models.is_adapter(path) else path
        self.tokenizer: Any = models.load_tokenizer(path, trust_remote_code=trust_remote_code)
        self.max_length = max_length
        self.ends = frozenset(_end_tokens(self.tokenizer, self.base))
        self._open = 0  # requests in flight

    async def sample(self, request: Request) -> Sample:
        """One completion.

        Raises ValueError if the request does not fit the window or has media, an adapter or a hook, RunError when
        vLLM stops.
        """
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
        """Teacher-forced log pi of each completion token, in nats at temperature 1. Raises ValueError if too long."""
        if not completion_ids:
            return []
        require_fit(prompt_ids, completion_ids, self.max_length)
        ids = (*prompt_ids, *completion_ids)
        # vLLM reads a prompt without its prefix cache when its log-probabilities are requested. So a single token is
        # scored by allowing no other as the next sample. The last token is scored the same way when the window is full,
        # because every request samples a token. Sampling is greedy: the least work, and no log-probability changes.
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

    async def lens(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], heads: Sequence[tuple[int, int]] = ()
    ) -> list[Sample]:
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
        """vLLM's answer to a prompt of these ids. `settings` have the names of its SamplingParams."""
        raise NotImplementedError


def absolute(path: str) -> str:
    """The absolute path of a folder, for another process. A hub id is unchanged."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _end_tokens(tokenizer: Any, path: str) -> set[int]:
    """Every id that ends a completion in vLLM: the tokenizer's end token, and those of the generation config."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # the model has no generation config
        ends = None
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [] if ends is None else [ends])}
