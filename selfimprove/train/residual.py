"""Regression of a policy's log-ratios on rewards: the offline form of KL-regularised reward maximisation.

For a pair (y, y') with the difference of rewards m = r(y) - r(y'), the loss is

    (beta [log pi/pi_ref (y) - log pi/pi_ref (y')] - m)^2,

It is 0 for every pair exactly if pi ~ pi_ref exp(r / beta), which maximises E_pi[r] - beta KL(pi | pi_ref) (Huang et
al. 2024, arXiv 2412.01951; also REBEL, Gao et al. 2024, arXiv 2404.16767, with beta = 1 / eta). DPO's losses use only
which response is better. This one also uses by how much. It does full fine-tuning and LoRA, in one process or several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

from selfimprove.errors import ConfigError
from selfimprove.train import Optimization, TrainContext
from selfimprove.train.dpo import prefer, row
from selfimprove.types import Example, Positive


def squared_residual(chosen: Any, rejected: Any, margin: Any, beta: float) -> Any:
    """The loss of each pair, from the log-ratios log pi/pi_ref of its two responses and its difference of rewards."""
    return (beta * (chosen - rejected) - margin) ** 2


def residual(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    beta: Positive = 0.1,
    reference: Literal["start", "base"] = "base",
    **options: Unpack[Optimization],
) -> dict[str, float]:
    """Train on pairs with a `margin` in their metadata and save the policy in `context.out`.

    A step's loss is the mean over its pairs. Returns `loss` (mean over steps), `steps`, `seconds`, `tokens` (read) and
    `loss_tokens`. Raises ValueError for empty rows or pairs without a margin, ConfigError and RunError as
    `selfimprove.train` does.
    """
    if not rows or any("margin" not in example.metadata for example in rows):
        raise ValueError("there are no rows to train on, or pairs without a margin of rewards")
    if any(example.weight != 1 for example in rows):
        raise ConfigError("train=residual does not support pairs with a weight: use a filter that makes plain pairs")
    table = [row(example) | {"margin": float(example.metadata["margin"])} for example in rows]
    return prefer(rows, table, context, options, config={"beta": beta}, reference=reference, classes=_classes)


def _classes() -> tuple[Any, Any]:
    """TRL's DPO trainer and collator with this loss and the pairs' margins."""
    import torch

    from selfimprove.train.trainers import PreferenceCollator, PreferenceTrainer

    class Collator(PreferenceCollator):
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            return super().torch_call(examples) | {"margin": torch.tensor([row["margin"] for row in examples])}

    class Trainer(PreferenceTrainer):
        def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
            inputs = {key: value for key, value in inputs.items() if key != "margin"}  # the rest goes to the model
            return super().compute_ref_log_probs(model, inputs)  # type: ignore[no-untyped-call]

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            margin, counts, seen = inputs.pop("margin"), inputs["counts"], list[Any]()

            def recorded(**kwargs: Any) -> Any:
                seen.append(model(**kwargs))
                return seen[-1]

            super().compute_loss(recorded, inputs)  # the forward pass, and the figures that TRL logs
            chosen, rejected = seen[0].log_probs.sum(dim=1).chunk(2)
            chosen, rejected = chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"]
            loss = (counts * squared_residual(chosen, rejected, margin, self.beta)).sum()
            return loss * self.current_gradient_accumulation_steps / self.pairs  # a mean over the step's pairs

    return Trainer, Collator
