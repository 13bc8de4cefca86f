"""A policy with set probabilities and no weights. It checks algorithms against closed forms.

It tells three kinds of prompt apart, by these rules in this order:

- verify: the last user turn contains VERIFY. The policy judges the last answer in the prompt with the true and false
  positive rates, and says YES or NO.
- refine: the prompt contains an earlier answer (ANSWER followed by a value), as an assistant's turn or quoted. If there
  are several, the last one is refined. A wrong answer becomes right with p_improve, a right one wrong with p_degrade;
  else the policy repeats it.
- solve: anything else. The answer is right with p_correct.

An answer is the text ANSWER + value. The problem is the one whose text the prompt contains (the longest, if several).
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
_ANSWERS = re.compile(re.escape(ANSWER) + rf"([^\s{END}]+)")


class ScriptedEngine:
    """Implements selfimprove.policy.Engine.

    `gold` maps a problem's text to its answer, which must contain no white space. `p_correct` is one probability for
    all problems, or maps a problem's text to its own. `wrong_values` is the number of wrong values, or maps a problem's
    text to them; all are equally likely. `p_improve` is one probability, or one for each wrong value in their order, so
    that some mistakes are nearer to the right answer; the last also covers values not in the list. Token ids are code
    points. A draw depends on the request's seed alone: temperature, top_p, top_k and stop change nothing.
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
        """Every possible completion of a rendered prompt, with its probability.

        Raises ValueError if the prompt contains no known problem, or asks for a verdict and contains no answer.
        """
        known = [prompt] if prompt in self.gold else (text for text in self.gold if text in prompt)
        problem = max(known, key=len, default=None)
        if problem is None:
            raise ValueError(f"the prompt holds none of the {len(self.gold)} problems: {prompt[:80]!r}")
        right = ANSWER + self.gold[problem]
        values = self.wrong_values
        others = wrong_answers(self.gold[problem], values) if isinstance(values, int) else values[problem]
        wrong = [ANSWER + value for value in others]
        earlier = _ANSWERS.findall(prompt.partition(problem)[2])
        last = ANSWER + earlier[-1] if earlier else None
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
        """One outcome, then END. Raises ValueError if the prompt follows none of the rules."""
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
        """The true log-probability of each token; -inf from the first token that leads to no outcome."""
        return _logprobs(self.outcomes("".join(map(chr, prompt_ids))), completion_ids)

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        """The outcome with the highest mean log-probability a token: the result of a search that is wide enough."""
        outcomes = self.outcomes("".join(map(chr, prompt_ids)))
        text = max((text for text, p in outcomes.items() if p > 0), key=lambda t: math.log(outcomes[t]) / len(t + END))
        return self._sample(outcomes, text, Request(tuple(prompt_ids), max_tokens, seed=0, temperature=0.0))

    async def lens(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], heads: Sequence[tuple[int, int]] = ()
    ) -> list[Sample]:
        raise ValueError("a script has no layers")

    def load(self, path: str) -> None:
        """Do nothing: there are no weights."""

    async def sleep(self) -> None:
        """Do nothing: there is no memory to free."""

    def close(self) -> None:
        """Do nothing."""


def wrong_answers(gold: str, count: int) -> list[str]:
    """`count` different values that are not `gold`: the next whole numbers if it is one, else wrong-0 and so on."""
    if re.fullmatch(r"-?\d+", gold):
        return [str(int(gold) + 1 + i) for i in range(count)]
    return [f"wrong-{i}" for i in range(count)]


def _ends(outcomes: Mapping[str, float]) -> list[tuple[str, float]]:
    """Each possible outcome with its cumulative probability. The last one is exactly 1, despite rounding."""
    possible = [(text, p) for text, p in outcomes.items() if p > 0]
    ends = np.cumsum([p for _, p in possible])
    return [(text, float(end)) for (text, _), end in zip(possible[:-1], ends[:-1], strict=True)] + [
        (possible[-1][0], 1.0)
    ]


def _logprobs(outcomes: Mapping[str, float], ids: Sequence[int]) -> list[float]:
    """log p(token | tokens before) of each token, from the share of outcomes that continue with it.

    They sum to log p(completion).
    """
    left = {text + END: p for text, p in outcomes.items() if p > 0}
    logprobs = []
    for i, token in enumerate(ids):
        total = sum(left.values())
        left = {text: p for text, p in left.items() if i < len(text) and ord(text[i]) == token}
        logprobs.append(math.log(sum(left.values()) / total) if left else -math.inf)
    return logprobs
