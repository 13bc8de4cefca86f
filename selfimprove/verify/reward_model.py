"""Scores answers with a reward model: a Hugging Face sequence classifier that reads problem and answer.

Such models are trained on preferences with a Bradley-Terry loss. The sigmoid of the difference of two answers' scores
is the probability that the first is preferred (Ouyang et al. 2022, arXiv 2203.02155, eq. 1). The scale has no natural
zero: choose `threshold` by looking at scores.

The model is a folder or hub id, which reads text, or one of the method's roles of `kind: sequence`. Such a role reads
the token ids of the last sample as they were sampled, because it was trained on them.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Literal

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy.chat import messages_of
from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Context, Opening, Outcome

if TYPE_CHECKING:
    from selfimprove.binding import Target
    from selfimprove.schema import Config
    from selfimprove.verify.scoring import Scorer


def require_stage(config: Config, verifier: Target, where: str) -> None:
    """Raises ConfigError unless the verifier names either a model or a reward model of the method."""
    model, role = verifier.get("model"), verifier.get("role")
    if (model is None) == (role is None):
        raise ConfigError(
            f"{where}.model={model} with {where}.role={role}: give one of them, a folder or hub id, or a role of the "
            "method",
            where,
        )
    if role is not None:
        require_role(config, role, f"{where}.role")


def require_role(config: Config, role: str, where: str) -> None:
    """Raises ConfigError if `role` is not a reward model of the method."""
    reward_models = [name for name, options in config.roles.items() if options.kind == "sequence"]
    if role not in reward_models:
        raise ConfigError(
            f"{where}={role}: no such reward model; the method's roles of `kind: sequence` are "
            f"{', '.join(reward_models) or 'none'}",
            where,
        )


def resource(
    opening: Opening,
    *,
    model: str | None = None,
    role: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Scorer:
    """The reward model. Raises ConfigError if it cannot be loaded, or has more than two labels."""
    if role is not None:
        return open_role(opening, role)
    assert model is not None
    return open_model(opening, model, trust_remote_code)


def opens(*, model: str | None = None, role: str | None = None, **options: Any) -> list[str]:
    """The models that `resource` puts on the device."""
    return [name for name in (model, role) if name]


def open_role(opening: Opening, role: str) -> Scorer:
    """The newest weights of a reward model of the method. Raises RunError if they cannot be read."""
    try:
        return open_model(opening, opening.paths[role])
    except ConfigError as problem:
        hint = "if its filter left no row, no pass has trained it"
        raise RunError(f"the reward model of the role {role} cannot be read ({hint}): {problem}") from None


def open_model(opening: Opening, model: str, trust_remote_code: bool = False) -> Scorer:
    """A sequence classifier with one or two labels. Raises ConfigError if the model is not one."""
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
    model: str | None = None,
    role: str | None = None,
    reward: Literal["sigmoid", "raw"] = "sigmoid",
    threshold: float = 0.5,
    trust_remote_code: bool = False,
) -> list[Outcome]:
    """The reward of each answer. It is `correct` from `threshold` on, and an `error` if it is too long for the model.

    With one label the score is its logit; with two, the second logit minus the first. `sigmoid` maps it to (0, 1).
    `model` reads text, by its own chat template if it has one; `role` reads token ids.
    """
    scorer: Scorer = context.resource

    async def judge(trajectory: Trajectory) -> Outcome:
        last = trajectory.samples[-1]
        ids = tokens(scorer.tokenizer, problem, last.text) if role is None else [*last.prompt_ids, *last.completion_ids]
        try:
            ((*others, score),) = await scorer.logits(ids)
        except ValueError as error:
            return Outcome("error", 0.0, reason=f"reward model: {error}")
        context.policy.meter.count(role or "reward_model", calls=1, prompt=0, scored=len(ids))
        score -= sum(others)
        value = score if reward == "raw" else sigmoid(score)
        return Outcome("correct" if value >= threshold else "wrong", value)

    return await asyncio.gather(*map(judge, trajectories))


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)), without overflow."""
    return 0.5 * (1 + math.tanh(score / 2))


def tokens(tokenizer: Any, problem: Problem, text: str) -> list[int]:
    """Token ids of problem and answer, by the model's chat template, or joined as one text."""
    from selfimprove.verify.scoring import prompt_text

    prompt = problem.prompt
    if tokenizer.chat_template:
        chat = [*messages_of(prompt), {"role": "assistant", "content": text}]
        ids: list[int] = tokenizer.apply_chat_template(chat, return_dict=False)
        return ids
    ids = tokenizer(prompt_text(prompt) + text).input_ids
    return ids
