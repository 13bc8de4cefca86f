"""The trainer's log-probabilities of a few fixed answers, before and after training.

The sampler must have the same ones once it has taken the new weights (`selfimprove.handover`). This module is imported
only when training starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from selfimprove import store
from selfimprove.train.probed import HANDOVER, Answer


class Probe(TrainerCallback):
    """Keeps log pi of each completion token, in nats at temperature 1, by the weights before and after training.

    Each answer is a forward pass by itself, in every process, because a model that is spread over processes needs that.
    The values before the first step go to the file `kept`. Each checkpoint has a copy of it. Training that goes on from
    a checkpoint reads that copy, `known`.
    """

    def __init__(
        self, answers: Sequence[Answer], dtype: str, kept: Path | None = None, known: Path | None = None
    ) -> None:
        self.answers, self.dtype, self.kept, self.known = answers, dtype, kept, known
        self.before: list[list[float]] = []
        self.after: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = store.read_json(self.known)["before"] if self.known else self._score(kwargs["model"])
        if self.kept is not None and state.is_world_process_zero:
            store.write_sealed(self.kept, {"before": self.before})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after = self._score(kwargs["model"])

    def write(self, folder: Path) -> None:
        """handover.json in a policy's folder: `answers`, and nats a token `before` and `after`."""
        store.write_json(folder / HANDOVER, {"answers": self.answers, "before": self.before, "after": self.after})

    def _score(self, model: Any) -> list[list[float]]:
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            scores = [logprobs(model, prompt, completion, device) for prompt, completion in self.answers]
        model.train(training)
        return scores


def logprobs(model: Any, prompt_ids: Sequence[int], completion_ids: Sequence[int], device: Any) -> list[float]:
    """log pi of each completion token, in nats at temperature 1, shape (len(completion_ids),)."""
    ids = torch.tensor([[*prompt_ids, *completion_ids]], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
    chosen = torch.tensor(list(completion_ids), device=device)
    found: list[float] = logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
    return found
