"""A teacher: a stronger source of words, which a learner then learns from.

It is one of three: a method's tool of the name `teacher`, which is a model on a server or a function that knows a data
set, or a method's role of that name, which is a policy of the run. Its words become token ids once, by the learner's
tokenizer, in a Sample with the role `teacher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Policy, client
from selfimprove.schema import Config
from selfimprove.types import Count, Message, Sample

NAME = "teacher"  # of the tool or the role
RETRIES = 4  # where a server is busy or does not answer


class Say(Protocol):
    """Answers a chat that ends with the user's turn. `max_tokens` None: as long as it likes."""

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str: ...


Teacher = Say | Policy


def require_teacher(config: Config) -> None:
    """Raises ConfigError for a method without a teacher."""
    if NAME not in config.method.tools and NAME not in config.method.roles:
        raise ConfigError(
            f"method={config.method.name} needs a teacher: teacher@method.tools.teacher=server for a model on a "
            "server, or +method.roles.teacher={} for the run's own model as it began",
            "method.tools",
        )


def teacher_of(tools: Mapping[str, Any], roles: Mapping[str, Policy]) -> Teacher:
    """The method's teacher; a tool goes before a role."""
    found: Teacher = tools[NAME] if NAME in tools else roles[NAME]
    return found


async def hear(
    teacher: Teacher,
    learner: Policy,
    chat: list[Message],
    *,
    temperature: float,
    max_tokens: int | None,
    seed: int,
) -> Sample:
    """What a teacher says to a chat, as a sample behind the learner's own ids of that chat.

    The sample's log-probabilities are the learner's. If a role was cut off, or its words do not fit the learner's
    window, the sample ends as `length`. Raises ValueError if the chat leaves no room for a single token.
    """
    whole, prompt = True, learner.render(chat)
    if isinstance(teacher, Policy):
        (sample,) = await teacher.sample(chat, temperature=temperature, max_tokens=max_tokens)
        words, whole = sample.text.strip(), sample.finish == "stop"
    else:
        options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        words = (await asked(teacher, learner, chat, prompt, **options)).strip()
    room = learner.engine.max_length - len(prompt)
    if room < 1:
        raise ValueError(f"a chat of {len(prompt)} tokens leaves no room in a window of {learner.engine.max_length}")
    said = [*learner.encode(words), learner.engine.end]
    finish: Literal["stop", "length"] = "stop" if whole and len(said) <= room else "length"
    said = said[:room] if whole else said[:-1][:room]
    scores = await learner.logprobs(prompt, said)
    return Sample(prompt, said, scores, words, finish, seed, temperature, NAME)


async def asked(
    teacher: Say,
    learner: Policy,
    chat: list[Message],
    prompt_ids: Sequence[int],
    *,
    temperature: float,
    max_tokens: int | None,
    seed: int,
) -> str:
    """What a teacher that is no role says to a chat. The cost counts as the teacher's, in the learner's tokens."""
    words = await teacher(chat, temperature=temperature, max_tokens=max_tokens, seed=seed)
    learner.meter.count(NAME, calls=1, prompt=len(prompt_ids), sampled=len(learner.encode(words.strip())) + 1)
    return words


async def told(learner: Policy, prompt_ids: list[int], words: str, seed: int, *, ends: bool = True) -> Sample | None:
    """A teacher's words as a sample behind these ids, so that a dialogue goes on id for id. With `ends` the end token
    follows them. None if the learner's window has no room for them."""
    ids = [*learner.encode(words), *([learner.engine.end] if ends else [])]
    if len(prompt_ids) + len(ids) > learner.engine.max_length:
        return None
    return Sample(prompt_ids, ids, await learner.logprobs(prompt_ids, ids), words, "stop", seed, role=NAME)


# On a server


def require_server(*, key_env: str | None = None, **options: Any) -> None:
    """Raises ConfigError if a server cannot be asked: no key, or no client library."""
    client.require("method.tools.teacher", key_env)


class Server:
    """A teacher behind an OpenAI-compatible chat endpoint, asked at most `concurrency` times at once.

    Asking raises ConfigError for a refused key or a model that the server does not have, and RunError if it cannot
    be reached or refuses the chat.
    """

    def __init__(self, url: str, model: str, key_env: str | None, concurrency: int, timeout: float) -> None:
        self.url, self.model = url, model
        self._client = client.Client(
            "teacher",
            "method.tools.teacher",
            url,
            key_env,
            concurrency=concurrency,
            timeout=timeout,
            retries=RETRIES,
        )

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
        body = {"model": self.model, "messages": chat, "temperature": temperature, "seed": seed % 2**31}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        try:
            reply = await self._client.post("/chat/completions", body)
        except client.Refused as refused:
            if refused.status == 404:
                raise ConfigError(
                    f"method.tools.teacher.model={self.model}: {self.url} has no such model, or no chat interface at "
                    f"this address ({refused})",
                    "method.tools.teacher",
                ) from None
            raise RunError(f"teacher: {self.url}: {refused}") from None
        try:
            return str(reply["choices"][0]["message"]["content"] or "")
        except (LookupError, TypeError):
            raise RunError(f"teacher: {self.url} does not answer as a chat interface does") from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def server(
    *, url: str, model: str, key_env: str | None = None, concurrency: Count = 16, timeout: float = 120.0
) -> Server:
    """The teacher at `url`. The environment variable `key_env` holds its key; None: it needs none."""
    return Server(url, model, key_env, concurrency, timeout)
