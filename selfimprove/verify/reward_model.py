"""A score by a reward model: a Hugging Face sequence classifier that reads problem and answer.

Such models are trained on preferences with a Bradley-Terry loss, so that the sigmoid of a score's distance to another
answer's is the probability to be preferred (Ouyang et al. 2022, arXiv 2203.02155, eq. 1). The scale has no zero of its
own: choose `threshold` by looking at scores.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Literal

from selfimprove.errors import ConfigError
from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Context, Opening, Outcome

if TYPE_CHECKING:
    from selfimprove.verify.scoring import Scorer


def resource(opening: Opening, *, model: str, trust_remote_code: bool = False, **options: Any) -> Scorer:
    """The reward model. Raises ConfigError when it cannot be loaded, or has more than two labels."""
    from transformers import AutoModelForSequenceClassification

    from selfimprove.verify.scoring import Scorer

    scorer = Scorer(AutoModelForSequenceClassification, model, opening, trust_remote_code=trust_remote_code)
    if scorer.labels not in (1, 2):
        raise ConfigError(f"verifier.model={model}: has {scorer.labels} labels; a reward model has one or two")
    return scorer


async def verify(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    model: str,
    reward: Literal["sigmoid", "raw"] = "sigmoid",
    threshold: float = 0.5,
    trust_remote_code: bool = False,
) -> list[Outcome]:
    """The reward of each answer; it is `correct` from `threshold` on, and an `error` where it is longer than `model`
    can read.

    The score is the one label's logit, or of two labels how far the second's is above the first's. `sigmoid` maps it
    to (0, 1). The text is read through the model's own chat template, where it has one.
    """
    scorer: Scorer = context.resource

    async def judge(trajectory: Trajectory) -> Outcome:
        ids = tokens(scorer.tokenizer, problem, trajectory.text)
        try:
            ((*others, score),) = await scorer.logits(ids)
        except ValueError as error:
            return Outcome("error", 0.0, reason=f"reward model: {error}")
        context.policy.meter.count("reward_model", calls=1, prompt=0, scored=len(ids))
        score -= sum(others)
        value = score if reward == "raw" else 0.5 * (1 + math.tanh(score / 2))  # the sigmoid, without overflow
        return Outcome("correct" if value >= threshold else "wrong", value)

    return await asyncio.gather(*map(judge, trajectories))


def tokens(tokenizer: Any, problem: Problem, text: str) -> list[int]:
    """Problem and answer as the reward model reads them: by its chat template, or one text behind the other."""
    from selfimprove.verify.scoring import prompt_text

    prompt = problem.prompt
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        chat = [*messages, {"role": "assistant", "content": text}]
        ids: list[int] = tokenizer.apply_chat_template(chat, return_dict=False)
        return ids
    ids = tokenizer(prompt_text(prompt) + text).input_ids
    return ids
