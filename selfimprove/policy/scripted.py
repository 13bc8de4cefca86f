"""A policy of set probabilities and no weights, for checks of algorithms against closed forms.

It reads three kinds of prompt by plain rules, in this order:

- verify: the last user turn holds VERIFY. It judges the last answer in the prompt with the true and false positive
  rates, and says YES or NO.
- refine: the prompt holds an answer (ANSWER followed by a value) from before, whether as an assistant's turn or quoted.
  A wrong one becomes right with p_improve, a right one wrong with p_degrade; else the same value is said again. The
  last answer counts: of several that are shown, it is the one to refine.
- solve: anything else. The answer is right with p_correct.

An answer is the text ANSWER + value. The problem is the one whose text the prompt holds (the longest, if several).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from selfimprove import seeds
from selfimprove.policy import Request, require_plain
from selfimprove.types import Message, Sample

ANSWER = "The answer is "  # what every verifier reads
VERIFY = "Is the answer correct?"
YES, NO = "Yes", "No"
TURN = "\n\n"  # between the messages of a rendered prompt
END = "\x03"  # the end token
_SAID = re.compile(re.escape(ANSWER) + rf"([^\s{END}]+)")


class ScriptedEngine:
    """Implements selfimprove.policy.Engine.

    `gold` maps a problem's text to its answer, which must hold no white space. `p_correct` is one probability or one a
    problem's text. `p_improve` is one, or one for each wrong value, in their order, so that some mistakes are nearer to
    the right answer than others; the last of them is for values that are none of the problem's. A wrong answer is one
    of `wrong_values`, all as likely: how many there are, or which of a problem's text. Token ids are code points. A
    draw depends on the request's seed alone; temperature, top_p, top_k and stop change nothing.
    """

    def __init__(
        self,
        gold: Mapping[str, str],
        p_correct: float | Mapping[str, float] = 0.5,
        *,
        p_improve: float | Sequence[float] = 0.0,
        p_degrade: float = 0.0,
        tpr: float = 1.0,
        fpr: float = 0.0,
        wrong_values: int | Mapping[str, Sequence[str]] = 1,
        max_length: int = 100_000,
    ) -> None:
        self.gold, self.p_correct = dict(gold), p_correct
        self.p_improve, self.p_degrade, self.tpr, self.fpr = p_improve, p_degrade, tpr, fpr
        self.wrong_values, self.max_length = wrong_values, max_length

    def render(self, prompt: str | list[Message]) -> list[int]:
        """The code points of the messages' texts, joined by TURN."""
        text = prompt if isinstance(prompt, str) else TURN.join(message["content"] for message in prompt)
        return self.encode(text)

    def turn(self, text: str, ended: bool) -> list[int]:
        return self.encode(TURN + text)

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    @property
    def end(self) -> int:
        return ord(END)

    def outcomes(self, prompt: str) -> dict[str, float]:
        """Every completion that may follow a rendered prompt, with its probability."""
        known = [prompt] if prompt in self.gold else (text for text in self.gold if text in prompt)
        problem = max(known, key=len, default=None)
        if problem is None:
            raise ValueError(f"the prompt holds none of the {len(self.gold)} problems: {prompt[:80]!r}")
        right = ANSWER + self.gold[problem]
        values = self.wrong_values
        others = wrong_answers(self.gold[problem], values) if isinstance(values, int) else values[problem]
        wrong = [ANSWER + value for value in others]
        said = _SAID.findall(prompt.partition(problem)[2])
        last = ANSWER + said[-1] if said else None
        if VERIFY in prompt.split(TURN)[-1]:
            if last is None:
                raise ValueError(f"a verdict is asked for, but the prompt holds no answer: {prompt[:80]!r}")
            p_yes = self.tpr if last == right else self.fpr
            return {YES: p_yes, NO: 1 - p_yes}
        if last is None:
            p = self.p_correct if isinstance(self.p_correct, int | float) else self.p_correct[problem]
        elif last == right:
            p = 1 - self.p_degrade
        else:
            improve = self.p_improve
            if not isinstance(improve, int | float):
                improve = improve[wrong.index(last)] if last in wrong else improve[-1]
            return {right: improve, last: 1 - improve}
        return {right: p} | {text: (1 - p) / len(wrong) for text in wrong}

    async def sample(self, request: Request) -> Sample:
        """One outcome, then END. Raises ValueError for a prompt that follows none of the rules."""
        require_plain(request, "scripted")
        outcomes = self.outcomes("".join(map(chr, request.prompt_ids)))
        draw = np.random.default_rng(seeds.derive(request.seed, "scripted")).random()
        return self._sample(outcomes, next(text for text, p in _ends(outcomes) if draw < p), request)

    def _sample(self, outcomes: Mapping[str, float], text: str, request: Request) -> Sample:
        ids = [ord(char) for char in text + END][: request.max_tokens]
        ended = ids[-1] == ord(END)
        return Sample(
            prompt_ids=list(request.prompt_ids),
            completion_ids=ids,
            logprobs=_logprobs(outcomes, ids),
            text="".join(map(chr, ids[:-1] if ended else ids)),
            finish="stop" if ended else "length",
            seed=request.seed,
            temperature=request.temperature,
        )

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """The true log-probability of each token; -inf from the first that no outcome has."""
        return _logprobs(self.outcomes("".join(map(chr, prompt_ids))), completion_ids)

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        """The outcome of the highest mean log-probability a token: what a beam of any size that holds it would find."""
        outcomes = self.outcomes("".join(map(chr, prompt_ids)))
        text = max((text for text, p in outcomes.items() if p > 0), key=lambda t: math.log(outcomes[t]) / len(t + END))
        return self._sample(outcomes, text, Request(tuple(prompt_ids), max_tokens, seed=0, temperature=0.0))

    async def lens(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[Sample]:
        raise ValueError("a script has no layers")

    def load(self, path: str) -> None:
        """Nothing to do: there are no weights."""

    async def sleep(self) -> None:
        """Nothing to let go of."""

    def close(self) -> None:
        """Nothing to free."""


def wrong_answers(gold: str, count: int) -> list[str]:
    """`count` different values that are not `gold`: whole numbers above it where it is one, else wrong-0 and so on."""
    if re.fullmatch(r"-?\d+", gold):
        return [str(int(gold) + 1 + i) for i in range(count)]
    return [f"wrong-{i}" for i in range(count)]


def _ends(outcomes: Mapping[str, float]) -> list[tuple[str, float]]:
    """Each outcome with the cumulative probability at its end; the last possible one ends at 1, whatever rounding."""
    possible = [(text, p) for text, p in outcomes.items() if p > 0]
    ends = np.cumsum([p for _, p in possible])
    return [(text, float(end)) for (text, _), end in zip(possible[:-1], ends[:-1], strict=True)] + [
        (possible[-1][0], 1.0)
    ]


def _logprobs(outcomes: Mapping[str, float], ids: Sequence[int]) -> list[float]:
    """log p(token | tokens before), from the share of the outcomes that go on so: they sum to log p(completion)."""
    left = {text + END: p for text, p in outcomes.items() if p > 0}
    logprobs = []
    for i, token in enumerate(ids):
        total = sum(left.values())
        left = {text: p for text, p in left.items() if i < len(text) and ord(text[i]) == token}
        logprobs.append(math.log(sum(left.values()) / total) if left else -math.inf)
    return logprobs
