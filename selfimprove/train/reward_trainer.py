"""TRL's RewardTrainer with rows in a planned order. Losses are means over an optimizer step.

Imported only when training starts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from selfimprove.train.trainers import _Planned

LABEL = "label"  # the column of a row's label


class _Shares(_Planned):
    """A loss that is a mean over an optimizer step, however it is split into device steps."""

    def get_batch_samples(self, *args: Any) -> Any:
        batches, items = super().get_batch_samples(*args)
        self.whole = sum(self._size(batch) for batch in batches)
        return batches, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        size = self._size(inputs)
        loss: Any = self._mean_loss(model, inputs)
        # The trainer divides by the number of device steps.
        return loss * size * self.current_gradient_accumulation_steps / self.whole

    def _size(self, inputs: dict[str, Any]) -> int:
        """How many items the mean is over."""
        raise NotImplementedError

    def _mean_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The mean over a device step."""
        raise NotImplementedError


class PairTrainer(_Shares, RewardTrainer):
    """TRL's Bradley-Terry loss. A device step's mean becomes its part of the optimizer step's mean."""

    def _size(self, inputs: dict[str, Any]) -> int:
        return len(inputs["input_ids"]) // 2

    def _mean_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        return RewardTrainer.compute_loss(self, model, inputs)  # type: ignore[no-untyped-call]


class LabelCollator(DataCollatorForPreference):
    """TRL's collator for rows of one side with a label. Shapes are (rows, longest) and (rows,)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        both: dict[str, Any] = super().torch_call(examples)
        one = {key: value[: len(examples)] for key, value in both.items()}
        return one | {LABEL: torch.tensor([row[LABEL] for row in examples])}


class LabelTrainer(PairTrainer):
    """The binary cross-entropy of rows with a label, instead of TRL's loss on pairs."""

    def __init__(self, **kwargs: Any) -> None:
        padding = kwargs["model"].config.get_text_config().pad_token_id
        super().__init__(data_collator=LabelCollator(pad_token_id=padding), **kwargs)

    def _size(self, inputs: dict[str, Any]) -> int:
        return len(inputs["input_ids"])

    def _mean_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        label = inputs.pop(LABEL)
        scores = model(**inputs, use_cache=False).logits.squeeze(-1)
        self._metrics["train"]["accuracy"].append(((scores > 0) == (label > 0.5)).float().mean().item())
        return F.binary_cross_entropy_with_logits(scores.float(), label)


class StepCollator(DataCollatorForPreference):
    """TRL's collator for rows of one side with labels of steps.

    A step's label is at its last token, (rows, longest).
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        both: dict[str, Any] = super().torch_call(examples)
        one = {key: value[: len(examples)] for key, value in both.items()}
        width = one["input_ids"].shape[1]
        labels = [row["labels"] + [-100] * (width - len(row["labels"])) for row in examples]
        return one | {"labels": torch.tensor(labels)}


class StepTrainer(_Shares, Trainer):
    """The cross-entropy of labelled steps. TRL's reward trainer takes no model with two outputs."""

    def __init__(self, **kwargs: Any) -> None:
        padding = kwargs["model"].config.get_text_config().pad_token_id
        super().__init__(data_collator=StepCollator(pad_token_id=padding), **kwargs)
        self.model_accepts_loss_kwargs = False  # else the trainer would not divide by the number of device steps
        self.right: list[float] = []  # the share of steps on the right side, of each device step since the last log

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.right:
            logs["accuracy"] = sum(self.right) / len(self.right)
            self.right = []
        super().log(logs, *args, **kwargs)

    def _size(self, inputs: dict[str, Any]) -> int:
        return int((inputs["labels"] != -100).sum())

    def _mean_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        labels = inputs.pop("labels")
        marked = labels != -100
        logits = model(**inputs, use_cache=False).logits[marked].float()  # (steps, 2)
        self.right.append((logits.argmax(-1) == labels[marked]).float().mean().item())
        return F.cross_entropy(logits, labels[marked])
