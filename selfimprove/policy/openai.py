"""The engine for other machines: a server with OpenAI's completions interface that takes and returns token ids.

Prompts are sent as ids. Completions come back as ids with log-probabilities, which `vllm serve` adds to OpenAI's
fields. The tokenizer is loaded here. The server is started with the base model. It reads new weights from their folder,
which must have the same path there: an adapter gets a new name for each version, whole weights replace the current
ones. A server that takes whole weights first reads the base again, for another run may have left its own.

Not supported: beam search.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import client, models
from selfimprove.policy.client import Client, Refused
from selfimprove.policy.served import Answer, ServedEngine, absolute
from selfimprove.schema import Model

log = logging.getLogger("selfimprove")

ADAPTERS = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank {rank}"
WEIGHTS = (
    "start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls selfimprove.policy.vllm_worker.Extension, or "
    "train an adapter (model.lora)"
)
# Without these, a server would take the values of the model's generation config.
PLAIN = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}


def require(
    model: Model,
    trains: bool,
    *,
    url: str,
    name: str | None,
    key_env: str | None,
) -> None:
    """Raises ConfigError if the server cannot be used as configured, does not serve the model, or gives no token ids.

    Also when it takes no new weights and the run `trains`.
    """
    client.require("engine", key_env)
    if urlsplit(url).password:
        raise ConfigError("engine.url: leave the password out; engine.key_env names the variable of a key", "engine")
    server = _client(url, key_env)
    try:
        _require_ids(server, find(server, name)["id"])
        if trains:
            _require_handover(server, model)
    except RunError as problem:
        raise ConfigError(str(problem), "engine") from None


def find(server: Client, name: str | None) -> dict[str, Any]:
    """The server's card of the model `name`, or of its only model if `name` is None.

    A card has `id`; vLLM adds `root`, the path the model was loaded from, and `max_model_len`, its window in tokens.
    Raises ConfigError if there is no such model, or none of several is named.
    """
    try:
        cards = {card["id"]: card for card in server.ask_now("/models")["data"] if not card.get("parent")}
    except (Refused, TypeError, KeyError) as problem:
        raise ConfigError(
            f"engine=openai: {server.url} lists no models ({problem}); engine.url ends with /v1, as a rule", "engine"
        ) from None
    names = ", ".join(cards) or "none"
    if name is None and len(cards) != 1:
        raise ConfigError(f"engine.model: name the one to use; {server.url} serves {names}", "engine")
    chosen = next(iter(cards)) if name is None else name
    if chosen not in cards:
        raise ConfigError(f"engine.model={chosen}: {server.url} does not serve it; it serves {names}", "engine")
    card: dict[str, Any] = cards[chosen]
    return card


def _require_ids(server: Client, name: str) -> None:
    body = {"model": name, "prompt": [1, 2], "max_tokens": 1, "prompt_logprobs": 0, "logprobs": 0}
    try:
        choice = server.ask_now("/completions", body | {"return_token_ids": True})["choices"][0]
        lacking = [key for key in ("token_ids", "logprobs", "prompt_logprobs") if not choice.get(key)]
    except Refused as problem:
        if problem.status == 429 or problem.status >= 500:
            raise ConfigError(f"engine=openai: {server.url} does not answer: {problem}", "engine") from None
        lacking = [str(problem)]
    except (TypeError, LookupError) as problem:
        lacking = [str(problem)]
    if lacking:
        raise ConfigError(
            f"engine=openai: {server.url} does not complete token ids with token ids and log-probabilities "
            f"({', '.join(lacking)}), which training needs; use `vllm serve`",
            "engine",
        )


def _require_handover(server: Client, model: Model) -> None:
    if model.lora is None:
        takes, way = _takes_weights(server), WEIGHTS
    else:
        takes, way = _takes_adapters(server), ADAPTERS.format(rank=model.lora.r)
    if not takes:
        raise ConfigError(f"engine=openai: {server.url} takes no new weights: {way}", "engine")


def _takes_adapters(server: Client) -> bool:
    """Whether the server can load adapters. If so, its answer to an empty request is neither 404 nor 405."""
    try:
        server.ask_now("/load_lora_adapter", {})
    except Refused as problem:
        return problem.status not in (404, 405)
    return True


def _takes_weights(server: Client) -> bool:
    """Whether the server can replace its weights."""
    try:
        server.ask_now(f"{_address(server.url)}/collective_rpc", {"method": "takes_weights"})
    except Refused:
        return False
    return True


def _address(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _client(url: str, key_env: str | None, concurrency: int = 1, timeout: float = 60.0, retries: int = 0) -> Client:
    return Client("engine=openai", "engine", url, key_env, concurrency=concurrency, timeout=timeout, retries=retries)


class OpenAIEngine(ServedEngine):
    """Implements selfimprove.policy.Engine with a server.

    `path` is the base model, whose tokenizer is used. `name` is the server's name for it; None: the only one it serves.
    Raises ConfigError if the server has no such model, RunError when it cannot be reached.
    """

    name = "openai"

    def __init__(
        self,
        path: str,
        model: Model,
        *,
        url: str,
        name: str | None = None,
        key_env: str | None = None,
        concurrency: int = 256,
        timeout: float = 600.0,
        retries: int = 6,
    ) -> None:
        self._server = _client(url, key_env, concurrency, timeout, retries)
        card = find(self._server, name)
        window = card.get("max_model_len") or model.max_length
        super().__init__(path, min(model.max_length, window), model.trust_remote_code)
        self._model = model
        self._served, self._root = card["id"], card.get("root")
        self._wanted = path  # the policy for the next request
        # The policy that the server has now, and the whole weights below it; "": unknown.
        self._current = self._weights = "" if _takes_weights(self._server) else self.base
        self._adapter: str | None = None  # the server's name of our adapter
        self._run, self._versions = uuid.uuid4().hex[:8], itertools.count(1)
        self._change = asyncio.Lock()

    def load(self, path: str) -> None:
        """Have the server load a checkpoint or adapter folder before the next request.

        Raises RuntimeError while requests are in flight, ConfigError when an adapter has another base.
        """
        self._require_idle()
        if models.is_adapter(path):
            models.check_base(path, self.base)
        self._wanted = path

    async def sleep(self) -> None:
        """Do nothing: there is no memory to free here."""

    def close(self) -> None:
        """Have the server unload our adapter, and close the connections."""
        if self._adapter is not None:
            try:
                self._server.ask_now("/unload_lora_adapter", {"lora_name": self._adapter})
            except (ConfigError, RunError, Refused) as problem:
                log.warning("the adapter %s stays on the server: %s", self._adapter, problem)
            self._adapter = None
        self._server.close()

    async def _send(self, ids: Sequence[int], **settings: Any) -> Answer:
        await self._ready()
        body = PLAIN | settings | {"model": self._adapter or self._served, "prompt": list(ids)}
        reply = await self._server.post("/completions", body | {"return_token_ids": True})
        choice = reply["choices"][0]
        prompt = choice.get("prompt_logprobs")
        return Answer(
            choice["token_ids"],
            [float(score) for score in choice["logprobs"]["token_logprobs"]] if choice.get("logprobs") else [],
            [float(p[str(token)]["logprob"]) for token, p in zip(ids[1:], prompt[1:], strict=True)] if prompt else [],
            choice["finish_reason"] == "stop",
        )

    async def _ready(self) -> None:
        """Have the server load the wanted policy, if it has another."""
        if self._current != self._wanted:
            async with self._change:
                if self._current != self._wanted:
                    await self._take()

    async def _take(self) -> None:
        path, old = self._wanted, self._adapter
        if models.is_adapter(path):
            await self._take_whole(self.base)
            name = f"selfimprove-{self._run}-{next(self._versions)}"
            await self._tell("/load_lora_adapter", {"lora_name": name, "lora_path": absolute(path)})
            self._adapter = name
        else:
            await self._take_whole(path)
            self._adapter = None
        if old is not None:
            await self._tell("/unload_lora_adapter", {"lora_name": old})
        self._current = path

    async def _take_whole(self, path: str) -> None:
        if path == self._weights:
            return
        server = _address(self._server.url)
        await self._tell(f"{server}/pause?mode=keep", {})
        try:
            folder = self._root if path == self.base and self._root else absolute(path)
            await self._tell(f"{server}/collective_rpc", {"method": "take_weights", "args": [folder]})
            await self._tell(f"{server}/reset_prefix_cache", {})
        finally:
            await self._tell(f"{server}/resume", {})
        self._weights = path

    async def _tell(self, where: str, body: dict[str, Any]) -> None:
        try:
            await self._server.post(where, body)
        except Refused as problem:
            lora = self._model.lora
            raise RunError(
                f"engine=openai: {self._server.url} did not take the weights of {self._wanted} ({problem}); the folder "
                "must have the same path on the server; if it takes no weights at all: "
                + (ADAPTERS.format(rank=lora.r) if lora else WEIGHTS)
            ) from None
