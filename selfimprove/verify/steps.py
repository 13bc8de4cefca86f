"""A score for every step of a solution, from the data set's own check or from a process reward model.

A step is a line that is not blank. Two kinds of model can be read. Each is read in the way in which it is trained:

- `token_classifier`: as TRL's PRMTrainer (trl 0.16) and `train/steps.py` train. The problem and each step are tokenised
  separately, and `separator` follows each step. At the separator's last token, the second of two labels means that the
  step is right.
- `causal`: as Math-Shepherd (Wang et al. 2023, arXiv 2312.08935, and the card of its released model). Each step ends
  with a tag. There the language model's logits of `good` and `bad` give the probability that the step is right.

The reward of a solution is the least score of its steps (Math-Shepherd, section 3.4), their product (Lightman et al.
2023, arXiv 2305.20050, section 2.6), the last one, or their mean.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Literal

from selfimprove.errors import ConfigError
from selfimprove.types import Problem, Share, Trajectory
from selfimprove.verify import Context, Opening, Outcome

if TYPE_CHECKING:
    from selfimprove.verify.scoring import Scorer

Kind = Literal["token_classifier", "causal"]
Aggregate = Literal["min", "last", "product", "mean"]


def reads_gold(*, model: str | None = None, **options: Any) -> bool:
    """Whether gold answers are read. They are if there is no model, since the data set's own check reads them."""
    return model is None


def require(*, model: str | None = None, gives: list[str] | None = None, **options: Any) -> None:
    """Raises ConfigError if there is no model and the data set's check, which `gives` these, gives no `steps`."""
    if model is None and "steps" not in (gives or []):
        raise ConfigError(
            "verifier=steps: the data set's own check gives no scores of steps, so set verifier.model to a process "
            "reward model",
            "verifier",
        )


def resource(
    opening: Opening,
    *,
    model: str | None = None,
    kind: Kind = "token_classifier",
    trust_remote_code: bool = False,
    **options: Any,
) -> Scorer | None:
    """The process reward model, or None if the data set's check gives the scores.

    Raises ConfigError for a model that cannot be loaded or does not have two labels a token.
    """
    if model is None:
        return None
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    from selfimprove.verify.scoring import Scorer

    auto = AutoModelForTokenClassification if kind == "token_classifier" else AutoModelForCausalLM
    scorer = Scorer(auto, model, opening, trust_remote_code=trust_remote_code)
    if kind == "token_classifier" and scorer.labels != 2:
        raise ConfigError(f"verifier.model={model}: has {scorer.labels} labels a token; a PRM has two, wrong and right")
    return scorer


def opens(*, model: str | None = None, **options: Any) -> list[str]:
    """The models that `resource` puts on the device."""
    return [model] if model else []


async def verify(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    aggregate: Aggregate = "min",
    threshold: Share = 0.5,
    model: str | None = None,
    kind: Kind = "token_classifier",
    separator: str = "\n",
    tag: str = "ки",
    good: str = "+",
    bad: str = "-",
    trust_remote_code: bool = False,
) -> list[Outcome]:
    """The steps' scores, and their aggregate as the reward. An answer is `correct` if that is at least `threshold`.

    Without `model` the data set's own check gives the scores, and its `unparseable`, `timeout` and `error` are kept.
    With a model, an answer without a line is `unparseable`, and an answer that the model cannot read is an `error`.
    """

    async def judge(trajectory: Trajectory) -> Outcome:
        if context.resource is None:
            checked = await context.check(trajectory.text, problem)
            if checked.status in ("unparseable", "timeout", "error"):
                return checked
            if not checked.step_rewards:
                return Outcome("error", 0.0, checked.extracted, reason="the data set's check gave no scores of steps")
            return _outcome(checked.step_rewards, checked.extracted)
        steps = lines(trajectory.text)
        if not steps:
            return Outcome("unparseable", 0.0, reason="there is no step")
        scorer: Scorer = context.resource
        question = bare_question(problem)
        try:
            if kind == "token_classifier":
                ids, ends = separated(scorer.tokenizer, question, steps, separator)
                columns = [1, 0]
            else:
                ids, ends = tagged(scorer.tokenizer, question, steps, tag)
                columns = [_last(scorer.tokenizer, good), _last(scorer.tokenizer, bad)]
            rows = await scorer.logits(ids, ends)
        except ValueError as error:
            return Outcome("error", 0.0, reason=f"process reward model: {error}")
        context.policy.meter.count("process_reward_model", calls=1, prompt=0, scored=len(ids))
        # A softmax over two logits is the sigmoid of their difference.
        return _outcome([0.5 * (1 + math.tanh((row[columns[0]] - row[columns[1]]) / 2)) for row in rows])

    def _outcome(scores: list[float], extracted: str | None = None) -> Outcome:
        value = combine(scores, aggregate)
        return Outcome("correct" if value >= threshold else "wrong", value, extracted, step_rewards=scores)

    return await asyncio.gather(*map(judge, trajectories))


def lines(text: str) -> list[str]:
    """The steps of a solution."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def combine(scores: list[float], aggregate: Aggregate) -> float:
    """One reward from a solution's scores. There has to be at least one score."""
    if aggregate == "min":
        return min(scores)
    if aggregate == "last":
        return scores[-1]
    return math.prod(scores) if aggregate == "product" else sum(scores) / len(scores)


def bare_question(problem: Problem) -> str:
    """The question without the policy's prompt template, if the data set has it; else the last message."""
    last = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
    return str(problem.metadata.get("question", last))


def separated(tokenizer: Any, question: str, steps: list[str], separator: str) -> tuple[list[int], list[int]]:
    """TRL's token ids, and the index at which each step's separator ends."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += encode(question)
    ends = []
    for step in steps:
        ids += [*encode(step), *encode(separator)]
        ends.append(len(ids) - 1)
    return ids, ends


def tagged(tokenizer: Any, question: str, steps: list[str], tag: str) -> tuple[list[int], list[int]]:
    """Math-Shepherd's token ids, and the index of each tag. Raises ValueError if there is not exactly one a step."""
    ids: list[int] = tokenizer(f"{question} " + "\n".join(f"{step} {tag}" for step in steps)).input_ids
    mark = _last(tokenizer, tag)
    ends = [i for i, token in enumerate(ids) if token == mark][-len(steps) :]
    if ids.count(mark) != len(steps) or tag in question or any(tag in step for step in steps):
        raise ValueError(f"the tag {tag!r} is not only at the ends of the steps")
    return ids, ends


def _last(tokenizer: Any, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"its tokenizer has no token for {text!r}")
    return int(ids[-1])
