"""Policy gradients on sampled completions with advantages, through the loss of TRL's GRPOTrainer.

For token t of row i, with the ratio rho = pi / pi_old, the advantage A and the reference pi_ref,

    l_it = -min(rho A, clip(rho, 1 - clip, 1 + clip_high) A) + beta (pi_ref / pi - log(pi_ref / pi) - 1)

The loss of an optimizer step with R rows and T tokens is

    grpo      1/R  sum_i  1/|o_i|  sum_t l_it      (Shao et al. 2024, arXiv 2402.03300, eq. 3)
    dapo      1/T  sum_it l_it                     (Yu et al. 2025, arXiv 2503.14476, eq. 8)
    dr_grpo   1/(R max_tokens)  sum_it l_it        (Liu et al. 2025, arXiv 2503.20783; RLOO, except for scale)

pi_old is the policy as the phase begins. With one optimizer step the ratio is 1; with more, log pi_old is computed
before the first. Full fine-tuning and LoRA, one process or several by DDP; without dropout.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

from selfimprove.binding import function
from selfimprove.errors import ConfigError
from selfimprove.train import BATCH_SIZE, Optimization, TrainContext, arguments, planned
from selfimprove.train.fitting import run
from selfimprove.types import Count, Example, NonNegative, Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfimprove.schema import Config, Stage

Loss = Literal["grpo", "dapo", "dr_grpo"]


def require_stage(config: Config, stage: Stage, where: str) -> None:
    """Raises ConfigError for a stage that policy gradients cannot train. Called before anything loads.

    Its samples must have temperature 1, its dialogues at most as many turns as `beta` has values, and its processes
    must share training by DDP.
    """
    source = config.stages[stage.of] if stage.of else stage
    beta, turns = (stage.train or {}).get("beta"), (source.generate or {}).get("turns", 0)
    if isinstance(beta, list) and len(beta) < turns:
        raise ConfigError(
            f"{where}.train.beta has {len(beta)} values, one a turn, and there are {turns} turns", "method"
        )
    if source.generate:
        parameter = inspect.signature(function(source.generate, "generate")).parameters.get("temperature")
        default = parameter.default if parameter else 1.0
        temperature = source.generate.get("temperature", default)
        if temperature != 1:
            raise ConfigError(
                f"{where}.generate.temperature={temperature}: {where}.train is a policy gradient, whose ratios are of "
                "the policy at temperature 1: set it to 1",
                "method",
            )
    how = config.training_of(stage.role or "policy")
    if how.processes > 1 and how.strategy != "ddp":
        raise ConfigError(
            f"hardware.training.strategy={how.strategy}: policy gradients are shared by ddp only",
            "hardware.training.strategy",
        )


def row(example: Example, beta: float | Sequence[float]) -> dict[str, Any]:
    """Token ids of one example, and for each token four figures, which are 0 on the prompt.

    They are its advantage, whether it bears loss, the sampler's log-probability (nan: unknown), and the coefficient of
    its KL term. `clip_high` is the row's own upper clip (nan: it has none).

    Raises ValueError for a row without advantages or prompt, ConfigError for a weight or a second completion.
    """
    n = len(example.completion_ids)
    if example.advantages is None or len(example.advantages) != n or not example.prompt_ids or not n:
        raise ValueError(f"a row of problem {example.problem_id} has no advantage for each of its {n} tokens")
    if example.weight != 1 or example.rejected_ids is not None:
        raise ConfigError(
            f"a row of problem {example.problem_id} has a weight or is a pair, which policy gradients do not take: use "
            "filter=advantages or another filter that gives advantages"
        )
    turn = int(example.metadata.get("turn", 0))
    if not isinstance(beta, int | float) and turn >= len(beta):
        raise ConfigError(f"train.beta has {len(beta)} values, and there is a turn {turn + 1}: give one a turn")
    coefficient = float(beta if isinstance(beta, int | float) else beta[turn])
    mask = example.mask or [1] * n
    before = [0.0] * len(example.prompt_ids)
    return {
        "input_ids": [*example.prompt_ids, *example.completion_ids],
        "bears": [*(0 for _ in before), *mask],
        "advantages": [*before, *example.advantages],
        "logprobs": [*before, *(example.logprobs or [float("nan")] * n)],
        "kl": [*before, *([coefficient] * n)],
        "clip_high": float(example.metadata.get("clip_high", "nan")),
        "counts": 1.0,
    }


BLANK = {"input_ids": [0, 0], "bears": [0, 0], "clip_high": float("nan"), "counts": 0.0} | {
    key: [0.0, 0.0] for key in ("advantages", "logprobs", "kl")
}


def require_options(*, loss: Loss = "dapo", max_tokens: int | None = None, **options: Any) -> None:
    """Raises ConfigError for options that do not go together. The runner calls this before it begins."""
    if (max_tokens is None) == (loss == "dr_grpo"):
        raise ConfigError(f"train.max_tokens={max_tokens}: loss=dr_grpo needs it, and the other losses take none")


def policy_gradient(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    loss: Loss = "dapo",
    clip: Share = 0.2,
    clip_high: NonNegative | None = None,
    beta: NonNegative | list[NonNegative] = 0.0,
    reference: Literal["start", "base"] = "base",
    max_tokens: Count | None = None,
    **options: Unpack[Optimization],
) -> dict[str, float]:
    """Train on rows with `advantages` and save the policy in `context.out`.

    `clip_high` is `clip` by default. A row can have its own, in `Example.metadata["clip_high"]`. `beta` is the weight
    of the KL term from `reference`, which is the base model or the policy as the phase starts. A list has one weight
    for each turn (`Example.metadata["turn"]`), and 0 means no term. `max_tokens` is the length of the longest possible
    completion, by which `dr_grpo` divides.

    Returns `loss` (mean over steps), `steps`, `seconds`, `tokens` (read), `loss_tokens`, and means over steps of these:
    `entropy` (nats a token), `clipped` (share of tokens whose ratio was clipped), `kl` (nats a token, if beta is above
    0), `sampler_ratio` (min(2, pi_old / pi of the sampler) a token, which is 1 if both agree), and `idle` (share of
    rows whose advantages are all 0). Raises ValueError for empty rows, ConfigError and RunError as `selfimprove.train`
    does.
    """
    if not rows:
        raise ValueError("there are no rows to train on")
    require_options(loss=loss, max_tokens=max_tokens)
    table = [row(example, beta) for example in rows]
    bearing = [sum(r["bears"]) for r in table]
    if not sum(bearing):
        raise ValueError("there is no token to train on: all are masked out")
    lengths = [len(r["input_ids"]) for r in table]
    order = planned(lengths, context, options)

    def make(folder: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig

        from selfimprove.train.gradient_trainer import GradientTrainer, collate

        shared = arguments(context, folder, len(order), options)
        del shared["max_length"]
        config = GRPOConfig(
            loss_type=loss,
            epsilon=clip,
            epsilon_high=clip_high,
            beta=0.0,  # the KL term is our own, with a coefficient a token
            max_completion_length=max_tokens or 1,
            num_generations=2,  # TRL forms no groups here, but requires that a group fits into a batch
            steps_per_generation=2 * shared["gradient_accumulation_steps"],
            disable_dropout=True,
            **shared,
        )
        return GradientTrainer(
            reference=reference,
            several=len(order) > options.get("batch_size", BATCH_SIZE),
            order=order,
            blank=len(table),
            context=context,
            model=model,
            args=config,
            train_dataset=Dataset.from_list(
                [r | {"row": i} for i, r in enumerate(table if context.training.processes == 1 else [*table, BLANK])]
            ),
            processing_class=tokenizer,
            collator=lambda found: collate(found, tokenizer.pad_token_id or 0),
        )

    result = run(make, context)
    result["tokens"] = float(sum(lengths[i] for i in order))
    result["loss_tokens"] = float(sum(bearing[i] for i in order))
    result["idle"] = sum(not any(example.advantages or ()) for example in rows) / len(rows)
    return result
