"""A teacher: a stronger model whose words a learner imitates.

It is a method's tool or role of the name `teacher`. The tool is a model on a server, or a function that knows a data
set. The role is a policy of the run. The learner's tokenizer makes token ids of the teacher's words once, in a Sample
with the role `teacher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Policy, client
from selfimprove.schema import Config
from selfimprove.types import Count, Message, Sample

NAME = "teacher"  # of the tool or the role
RETRIES = 4  # if a server is busy or does not answer


class Say(Protocol):
    """Answers a chat that ends with the user's turn. `max_tokens` None: no limit."""

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str: ...


Teacher = Say | Policy


def require_teacher(config: Config) -> None:
    """Raises ConfigError for a method without a teacher."""
    if NAME not in config.method.tools and NAME not in config.method.roles:
        raise ConfigError(
            f"method={config.method.name} needs a teacher: teacher@method.tools.teacher=server for a model on a "
            "server, or +method.roles.teacher={} for the run's own base model",
            "method.tools",
        )


def teacher_of(tools: Mapping[str, Any], roles: Mapping[str, Policy]) -> Teacher:
    """The method's teacher: the tool, or if there is none, the role."""
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
    """A teacher's reply to a chat, as a sample whose prompt has the learner's ids of that chat.

    The sample's log-probabilities are the learner's. If a role was cut off, or the words do not fit the learner's
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
    """The reply of a teacher that is a tool to a chat. Its cost counts as the teacher's, in the learner's tokens."""
    words = await teacher(chat, temperature=temperature, max_tokens=max_tokens, seed=seed)
    learner.meter.count(NAME, calls=1, prompt=len(prompt_ids), sampled=len(learner.encode(words.strip())) + 1)
    return words


async def told(learner: Policy, prompt_ids: list[int], words: str, seed: int, *, ends: bool = True) -> Sample | None:
    """A teacher's words as a sample with these prompt ids, so that a dialogue goes on id for id. With `ends` the end
    token follows the words. None if the learner's window has no room for them."""
    ids = [*learner.encode(words), *([learner.engine.end] if ends else [])]
    if len(prompt_ids) + len(ids) > learner.engine.max_length:
        return None
    return Sample(prompt_ids, ids, await learner.logprobs(prompt_ids, ids), words, "stop", seed, role=NAME)


# On a server


def require_server(*, key_env: str | None = None, **options: Any) -> None:
    """Raises ConfigError if a key or the client library is missing."""
    client.require("method.tools.teacher", key_env)


class Server:
    """A teacher behind an OpenAI-compatible chat endpoint, with at most `concurrency` requests at once.

    A request raises ConfigError if the server refuses the key or does not have the model. It raises RunError if the
    server cannot be reached or refuses the chat.
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
    """The teacher at `url`. The environment variable `key_env` holds its key; None: it needs no key."""
    return Server(url, model, key_env, concurrency, timeout)
