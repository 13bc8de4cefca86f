"""A model's own word on whether a solution is right, as a probability.

The judge is asked with a template and answers with one of two verdict words; P(correct) is the share that `correct` has
of their probability, as in generative verifiers (Zhang et al. 2024, arXiv 2408.15240, eq. 4) and self-evaluation
(Kadavath et al. 2022, arXiv 2207.05221). With `reason` it writes first and the verdict is scored behind what it wrote.

It is the policy itself, the model that the run began with, another model that is opened once a phase, or a server with
OpenAI's chat interface, whose `top_logprobs` give the probabilities. A solution is never blamed for a judge that does
not say: without a readable verdict it is `unparseable`.
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

LEAST = 0.01  # probability of both verdict words together, below which the judge is about to say something else
TOP = 20  # alternatives a token that are asked of a server: as many as OpenAI and vLLM give
RETRIES = 4  # of the client library, with growing pauses, where a server is busy or does not answer


@dataclass(frozen=True, slots=True)
class Form:
    """How the judge is asked, and what it answers with."""

    prompt: list[Message]
    lead: str
    correct: str
    incorrect: str | None
    reason: bool
    temperature: float
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Said:
    """P(correct), None where there is no readable verdict, and the judge's text."""

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
    """Raises ConfigError where a server cannot be asked as configured."""
    if server is None:
        return
    if model in (None, "policy", "base"):
        raise ConfigError("verifier.model: needs the name that the server has for its model", "verifier")
    client.require("verifier", key_env)
    if prompt and prompt[-1]["role"] == "assistant":
        raise ConfigError("verifier.prompt: must end with the user's turn, for a server begins a new one", "verifier")
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
    """What answers: a server, an engine of its own, or None for the policy. Raises ConfigError."""
    if server is not None:
        return Server(server, model, key_env, concurrency)
    if model == "policy":
        return None
    from selfimprove.policy.hf import TransformersEngine
    from selfimprove.policy.models import resolve

    own = opening.model
    opening.room()
    return TransformersEngine(
        resolve(own.name, own.path) if model == "base" else resolve("", model),
        device=opening.hardware.device,
        dtype=own.dtype,
        max_batch=opening.hardware.max_batch,
        trust_remote_code=own.trust_remote_code if model == "base" else trust_remote_code,
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
    """P(correct) of each solution as its reward, or with `reward: verdict` 1 from `threshold` on and else 0; `correct`
    from `threshold` on. The judge's text is the outcome's `reason`.

    {question}, {options}, {solution} and {gold} are replaced in `prompt`, which ends with the user's turn. The answer
    is `lead` and one of the two words; with `reason`, what it writes up to `max_tokens` at `temperature`, in which the
    last `lead` is where the verdict stands. `incorrect` None: P(correct) is the probability of `correct` itself, and
    not its share. A prompt that does not fit the judge's window is an `error`, as is {gold} where the problem has none.
    """
    form = Form(prompt, lead, correct, incorrect, reason, temperature, max_tokens)
    asked = context.resource
    judge = context.policy.through(
        context.policy.engine if asked is None or isinstance(asked, Server) else asked, "judge"
    )

    async def one(trajectory: Trajectory, number: int) -> Outcome:
        try:
            chat = fill(form.prompt, problem, trajectory.text)
            if isinstance(asked, Server):
                said = await asked.ask(judge, chat, form, number)
            else:
                said = await ask(judge, chat, form)
        except ValueError as error:
            return Outcome("error", 0.0, reason=f"judge: {error}")
        if said.probability is None:
            return Outcome("unparseable", 0.0, reason=f"no readable verdict: {said.text}")
        right = said.probability >= threshold
        return Outcome(
            "correct" if right else "wrong",
            said.probability if reward == "probability" else float(right),
            reason=said.text,
        )

    return await asyncio.gather(*(one(trajectory, i) for i, trajectory in enumerate(trajectories)))


# A judge in an engine


async def ask(judge: Policy, chat: list[Message], form: Form) -> Said:
    """The verdict of an engine's model. Raises ValueError when the prompt does not fit its window."""
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
    """(P(correct), P of either word) behind an assistant's turn that has begun with `opened`; the second is 1 where
    there is but one word.

    Two words are compared from the first token in which they differ, as the tokenizer makes them in their place.
    """
    ids = [judge.render(closing(chat, opened + word)) for word in (correct, incorrect) if word is not None]
    other = ids[1] if len(ids) > 1 else judge.render(closing(chat, opened) if opened else chat)
    most = min(len(other), *(len(row) - 1 for row in ids))  # a token of each word is left to score
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
    """The chat with an assistant's turn that has begun with `text`."""
    if chat[-1]["role"] == "assistant":
        return [*chat[:-1], {"role": "assistant", "content": chat[-1]["content"] + text}]
    return [*chat, {"role": "assistant", "content": text}]


def verdict_start(text: str, form: Form) -> int | None:
    """Where the verdict word may begin: behind the last lead. A reply that gives no reason need not repeat the lead."""
    at = text.rfind(form.lead)
    if at < 0:
        return None if form.reason else 0
    start = at + len(form.lead) if form.lead else 0
    return start + len(text[start:]) - len(text[start:].lstrip())


def verdict_of(text: str, form: Form) -> bool | None:
    """Which verdict word `text` begins with, whatever its case and the marks before it; None: neither."""
    said = text.lstrip(" \t\n*_`\"'([").lower()
    words = sorted((form.correct, form.incorrect or ""), key=len, reverse=True)
    found = next((word for word in words if word and re.match(rf"{re.escape(word.strip().lower())}(?!\w)", said)), None)
    return (False if form.incorrect is None else None) if found is None else found == form.correct


# A judge on a server


class Server:
    """An OpenAI-compatible chat endpoint, asked at most `concurrency` times at once.

    Raises ConfigError for a model it does not know, a refused key, or log-probabilities it does not give, and RunError
    when it cannot be reached.
    """

    def __init__(self, url: str, model: str, key_env: str | None, concurrency: int, timeout: float = 120.0) -> None:
        self.url, self.model = url, model
        self._client = client.Client(
            "judge", "verifier", url, key_env, concurrency=concurrency, timeout=timeout, retries=RETRIES
        )

    async def ask(self, judge: Policy, chat: list[Message], form: Form, number: int) -> Said:
        """The verdict on a problem's solution `number`. Raises ValueError when the server refuses this request."""
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
            f"judge: {self.url} gives no log-probabilities for {self.model!r}, from which P(correct) is made; choose a "
            "model or server that does"
        )


def verdict_probability(tokens: list[ChatCompletionTokenLogprob], form: Form) -> float | None:
    """P(correct) from the alternatives of the token with which the verdict word begins; None without such a token.

    An alternative counts for the word that it begins, and for neither where both begin so.
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
        begun = [bool(_bare(other.token)) and word.startswith(_bare(other.token)) for word in words]
        if sum(begun) == 1:
            masses[begun.index(True)] += math.exp(other.logprob)
    return masses[0] / sum(masses) if sum(masses) >= LEAST else None


def _bare(token: str) -> str:
    return token.strip(" \t\n*_`\"'([").lower()
