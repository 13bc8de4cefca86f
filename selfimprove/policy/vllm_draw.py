"""Draws the next token on a CPU with a seed for each request, where vLLM's own sampler is slow.

For each request vLLM 0.31 makes a random number for every token of the vocabulary, twice. Without that, a model of 135M
parameters sampled 1.8 times as many tokens a second. Here a token takes one random number.

This runs in vLLM's worker process, as a logits processor. It draws a token and rules out all others. The request itself
asks for greedy decoding.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from selfimprove.seeds import derive

HOW = ("seed", "temperature", "top_k", "top_p")  # the settings that a request carries in `extra_args`


def drawn(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a request, changed so that `Draw` draws its tokens."""
    others = {name: value for name, value in settings.items() if name not in HOW}
    return others | {"temperature": 0.0, "extra_args": {name: settings[name] for name in HOW}}


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws for requests whose settings `drawn` has changed. vLLM samples the others."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.rows: dict[int, tuple[dict[str, Any], list[int]]] = {}  # row of the batch -> how, the tokens so far

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(
            self.rows, batch_update, lambda asked, prompt, ids: (asked.extra_args, ids) if asked.extra_args else None
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.rows:
            return logits
        rows = torch.tensor(list(self.rows), device=self.device)
        how = {name: torch.tensor([asked[name] for asked, _ in self.rows.values()]) for name in HOW[1:]}
        points = [derive(asked["seed"], len(ids)) / 2**63 for asked, ids in self.rows.values()]
        tokens = draw(logits[rows], torch.tensor(points, dtype=torch.float64), **how)
        logits[rows] = -torch.inf
        logits[rows, tokens] = 0.0
        return logits


def draw(
    logits: torch.Tensor, points: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """The first token of each row at which the cumulative probability exceeds that row's point.

    `logits` is (n, vocabulary). The others are (n,), and points are in [0, 1). top_k 0 and top_p 1 truncate nothing.
    Returns token ids, (n,).
    """
    logits = logits / temperature[:, None]
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        every = logits.shape[1]
        logits = apply_top_k_top_p(logits, top_k.where(top_k > 0, every), top_p.to(logits.dtype))
    reached = logits.softmax(-1, dtype=torch.float32).cumsum(-1, dtype=torch.float64)
    # Rounding may take a point to the very end of the sum, where the last token may have no probability.
    end = torch.nextafter(reached[:, -1], torch.zeros_like(points))
    return torch.searchsorted(reached, torch.minimum(points * reached[:, -1], end)[:, None], right=True)[:, 0]
