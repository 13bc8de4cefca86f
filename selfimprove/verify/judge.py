"""Asks a model whether a solution is right, and reads the probability of its verdict.

The judge is prompted with a template and answers with one of two verdict words. P(correct) is the probability of the
word `correct` divided by that of both, as in generative verifiers (Zhang et al. 2024, arXiv 2408.15240, eq. 4) and
self-evaluation (Kadavath et al. 2022, arXiv 2207.05221). With `reason` the judge writes its reasons first, and the
verdict is scored after them.

The judge is the policy, the run's first model, another model, or a server with OpenAI's chat interface. Another model
is opened once a phase. A server's `top_logprobs` give the probabilities. Without a readable verdict a solution is not
`wrong` but `unparseable`.
"""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from selfimprove import seeds
from selfimprove.errors import ConfigError
from selfimprove.generate.critique import fill
from selfimprove.policy import Engine, Policy, client
from selfimprove.types import Count, Message, NonNegative, Problem, Share, Trajectory
from selfimprove.verify import Context, Opening, Outcome

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion
    from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob

LEAST = 0.01  # if both verdict words together have less probability, the judge is about to say something else
TOP = 20  # alternatives a token to request from a server: the most that OpenAI and vLLM give
RETRIES = 4  # of the client library, with growing pauses, if a server is busy or does not answer


@dataclass(frozen=True, slots=True)
class Form:
    """The judge's prompt, the form of its answer, and how the answer is sampled."""

    prompt: list[Message]
    lead: str
    correct: str
    incorrect: str | None
    reason: bool
    temperature: float
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Said:
    """P(correct), None without a readable verdict, and the judge's text."""

    probability: float | None
    text: str


def require(
    *,
    model: str | None = "policy",
    server: str | None = None,
    key_env: str | None = None,
    prompt: list[Message] | None = None,
    incorrect: str | None = None,
    **options: Any,
) -> None:
    """Raises ConfigError if a server cannot be used as configured."""
    if server is None:
        return
    if model in (None, "policy", "base"):
        raise ConfigError("verifier.model: needs the server's name for its model", "verifier")
    client.require("verifier", key_env)
    if prompt and prompt[-1]["role"] == "assistant":
        raise ConfigError("verifier.prompt: must end with the user's turn: a server begins a new turn", "verifier")
    if incorrect is None:
        raise ConfigError("verifier.incorrect: a server's judge needs both verdict words", "verifier")


def resource(
    opening: Opening,
    *,
    model: str = "policy",
    server: str | None = None,
    key_env: str | None = None,
    concurrency: int = 16,
    trust_remote_code: bool = False,
    **options: Any,
) -> Engine | Server | None:
    """The judge: a server, a separate engine, or None for the policy. Raises ConfigError if it cannot be opened."""
    if server is not None:
        return Server(server, model, key_env, concurrency)
    if model == "policy":
        return None
    from selfimprove.policy.hf import TransformersEngine
    from selfimprove.policy.models import resolve

    base = opening.model
    opening.room()
    return TransformersEngine(
        resolve(base.name, base.path) if model == "base" else resolve("", model),
        device=opening.hardware.device,
        dtype=base.dtype,
        max_batch=opening.hardware.max_batch,
        trust_remote_code=base.trust_remote_code if model == "base" else trust_remote_code,
    )


def opens(*, model: str = "policy", server: str | None = None, **options: Any) -> list[str]:
    """The models that `resource` puts on the device."""
    return [] if server is not None or model == "policy" else [model]


async def verify(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    prompt: list[Message],
    correct: str,
    incorrect: str | None,
    lead: str = "",
    reason: bool = False,
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
    reward: Literal["probability", "verdict"] = "probability",
    threshold: Share = 0.5,
    model: str = "policy",
    server: str | None = None,
    key_env: str | None = None,
    concurrency: Count = 16,
    trust_remote_code: bool = False,
) -> list[Outcome]:
    """The judge's verdict on each solution: `correct` if P(correct) >= `threshold`.

    The reward is P(correct), or with `reward: verdict` 1 for `correct` and 0 else. The outcome's `reason` is the
    judge's text.

    {question}, {options}, {solution} and {gold} are replaced in `prompt`, which ends with the user's turn. The judge's
    answer is `lead` and one of the two words. With `reason` the judge writes up to `max_tokens` at `temperature`, and
    the verdict follows the last `lead` in that text. With `incorrect` None, P(correct) is the probability of `correct`
    itself, not its share. A prompt that does not fit the judge's window is an `error`, as is {gold} for a problem that
    has none.
    """
    form = Form(prompt, lead, correct, incorrect, reason, temperature, max_tokens)
    opened = context.resource
    judge = context.policy.through(
        context.policy.engine if opened is None or isinstance(opened, Server) else opened, "judge"
    )

    async def one(trajectory: Trajectory, number: int) -> Outcome:
        try:
            chat = fill(form.prompt, problem, trajectory.text)
            if isinstance(opened, Server):
                verdict = await opened.ask(judge, chat, form, number)
            else:
                verdict = await ask(judge, chat, form)
        except ValueError as error:
            return Outcome("error", 0.0, reason=f"judge: {error}")
        if verdict.probability is None:
            return Outcome("unparseable", 0.0, reason=f"no readable verdict: {verdict.text}")
        right = verdict.probability >= threshold
        return Outcome(
            "correct" if right else "wrong",
            verdict.probability if reward == "probability" else float(right),
            reason=verdict.text,
        )

    return await asyncio.gather(*(one(trajectory, i) for i, trajectory in enumerate(trajectories)))


# A judge in an engine


async def ask(judge: Policy, chat: list[Message], form: Form) -> Said:
    """The verdict of a model in an engine. Raises ValueError if the prompt does not fit its window."""
    written = ""
    if form.reason:
        (sample,) = await judge.sample(chat, temperature=form.temperature, max_tokens=form.max_tokens)
        written = sample.text
        start = verdict_start(written, form)
        if start is None or verdict_of(written[start:], form) is None:
            return Said(None, written)
        opened = written[:start]
    else:
        opened = form.lead
    probability, mass = await share(judge, chat, opened, form.correct, form.incorrect)
    if mass < LEAST:
        return Said(None, written or f"{form.correct!r} and {form.incorrect!r} together have probability {mass:.2g}")
    return Said(probability, written or opened + (form.correct if probability >= 0.5 else form.incorrect or "..."))


async def share(
    judge: Policy, chat: list[Message], opened: str, correct: str, incorrect: str | None
) -> tuple[float, float]:
    """(P(correct), P of either word) after an assistant's turn that begins with `opened`.

    The second is 1 if there is only one word. Two words are compared from the first token in which they differ, when
    tokenized in place. Raises ValueError if the prompt does not fit the window.
    """
    ids = [judge.render(closing(chat, opened + word)) for word in (correct, incorrect) if word is not None]
    other = ids[1] if len(ids) > 1 else judge.render(closing(chat, opened) if opened else chat)
    most = min(len(other), *(len(row) - 1 for row in ids))  # leaves a token of each word to score
    start = next((i for i in range(most) if ids[0][i] != other[i]), most)
    if (longest := max(map(len, ids))) > judge.engine.max_length:
        raise ValueError(f"{longest} tokens do not fit its window of {judge.engine.max_length}")
    scores = await asyncio.gather(*(judge.logprobs(ids[0][:start], row[start:]) for row in ids))
    masses = [math.exp(sum(score)) for score in scores]
    if len(masses) == 1:
        return masses[0], 1.0
    best = max(map(sum, scores))
    if best == -math.inf:
        return 0.0, 0.0
    weights = [math.exp(sum(score) - best) for score in scores]
    return weights[0] / sum(weights), sum(masses)


def closing(chat: list[Message], text: str) -> list[Message]:
    """The chat with an open assistant's turn that begins with `text`."""
    if chat[-1]["role"] == "assistant":
        return [*chat[:-1], {"role": "assistant", "content": chat[-1]["content"] + text}]
    return [*chat, {"role": "assistant", "content": text}]


def verdict_start(text: str, form: Form) -> int | None:
    """Where the verdict word may begin: after the last lead. A reply without reasons need not repeat the lead."""
    at = text.rfind(form.lead)
    if at < 0:
        return None if form.reason else 0
    start = at + len(form.lead) if form.lead else 0
    return start + len(text[start:]) - len(text[start:].lstrip())


def verdict_of(text: str, form: Form) -> bool | None:
    """Whether `text` begins with `correct` or `incorrect`, ignoring case and marks before it; None: with neither.

    With `incorrect` None, anything but `correct` is False.
    """
    bare = text.lstrip(" \t\n*_`\"'([").lower()
    words = sorted((form.correct, form.incorrect or ""), key=len, reverse=True)
    first = next((word for word in words if word and re.match(rf"{re.escape(word.strip().lower())}(?!\w)", bare)), None)
    return (False if form.incorrect is None else None) if first is None else first == form.correct


# A judge on a server


class Server:
    """An OpenAI-compatible chat endpoint, with at most `concurrency` requests at once.

    Raises ConfigError if it does not know the model, refuses the key or gives no log-probabilities, and RunError when
    it cannot be reached.
    """

    def __init__(self, url: str, model: str, key_env: str | None, concurrency: int, timeout: float = 120.0) -> None:
        self.url, self.model = url, model
        self._client = client.Client(
            "judge", "verifier", url, key_env, concurrency=concurrency, timeout=timeout, retries=RETRIES
        )

    async def ask(self, judge: Policy, chat: list[Message], form: Form, number: int) -> Said:
        """The verdict on a problem's solution `number`. Raises ValueError if the server refuses this request."""
        seed = seeds.derive(judge.seed, judge.role, *judge.scope, number) % 2**31
        reply = await self._create(chat, form, seed)
        read = reply.usage.prompt_tokens if reply.usage else 0
        written = reply.usage.completion_tokens if reply.usage else 0
        judge.meter.count(judge.role, calls=1, prompt=read, sampled=written)
        choice = reply.choices[0]
        if choice.logprobs is None or not choice.logprobs.content:
            raise self._silent()
        return Said(verdict_probability(choice.logprobs.content, form), choice.message.content or "")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    async def _create(self, chat: list[Message], form: Form, seed: int) -> ChatCompletion:
        import openai

        limit: Any = form.max_tokens if form.reason else 8 + len(form.lead)
        sampling: Any = {"temperature": form.temperature} | ({"seed": seed} if form.temperature else {})
        messages: Any = chat
        try:
            return await self._client.ask(
                lambda server: server.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    max_tokens=limit or openai.omit,
                    logprobs=True,
                    top_logprobs=TOP,
                    **sampling,
                )
            )
        except client.Refused as refused:
            if refused.status == 404:
                raise ConfigError(
                    f"judge: {self.url} has no model {self.model!r}, or no chat interface at this address "
                    f"({refused}); see verifier.model and verifier.server"
                ) from None
            if refused.status in (400, 422) and "logprobs" in str(refused):
                raise self._silent() from None
            raise

    def _silent(self) -> ConfigError:
        return ConfigError(
            f"judge: {self.url} gives no log-probabilities for {self.model!r}, which P(correct) is computed from; "
            "choose a model or server that does"
        )


def verdict_probability(tokens: list[ChatCompletionTokenLogprob], form: Form) -> float | None:
    """P(correct) from the alternatives of the verdict word's first token; None if there is no such token.

    An alternative counts for the word that begins with it, or for neither if both do.
    """
    whole = "".join(token.token for token in tokens)
    start = verdict_start(whole, form)
    if start is None or verdict_of(whole[start:], form) is None:
        return None
    end = 0
    for token in tokens:
        end += len(token.token)
        if end > start and _bare(token.token):
            break
    words = [form.correct.strip().lower(), (form.incorrect or "").strip().lower()]
    masses = [0.0, 0.0]
    for other in token.top_logprobs:
        begins = [bool(_bare(other.token)) and word.startswith(_bare(other.token)) for word in words]
        if sum(begins) == 1:
            masses[begins.index(True)] += math.exp(other.logprob)
    return masses[0] / sum(masses) if sum(masses) >= LEAST else None


def _bare(token: str) -> str:
    return token.strip(" \t\n*_`\"'([").lower()
