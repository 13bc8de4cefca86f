"""How the next token is drawn where vLLM's own sampler is slow: on a CPU, with a seed for each request.

There vLLM 0.31 makes a random number for every token of the vocabulary, one after the other and twice, for each
request; a model of 135M parameters sampled 1.8 times as many tokens a second without. Here a token takes one number.
Runs in vLLM's worker process, as a logits processor: it leaves a request only the token that was drawn, and the request
itself asks for greedy decoding.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from selfimprove.seeds import derive

HOW = ("seed", "temperature", "top_k", "top_p")  # of a request, which has them in `extra_args`


def drawn(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a request, changed so that its tokens are drawn here."""
    others = {name: value for name, value in settings.items() if name not in HOW}
    return others | {"temperature": 0.0, "extra_args": {name: settings[name] for name in HOW}}


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws for the requests that say how; the others are left to vLLM."""

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
    """The token of each row at which the distribution function first exceeds that row's point.

    logits: (n, vocabulary); the others: (n,), points in [0, 1). top_k 0 and top_p 1 truncate nothing. Returns (n,).
    """
    logits = logits / temperature[:, None]
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        every = logits.shape[1]
        logits = apply_top_k_top_p(logits, top_k.where(top_k > 0, every), top_p.to(logits.dtype))
    reached = logits.softmax(-1, dtype=torch.float32).cumsum(-1, dtype=torch.float64)
    # Not the last of all tokens where rounding takes a point to the end of the sum, for it may have no probability.
    end = torch.nextafter(reached[:, -1], torch.zeros_like(points))
    return torch.searchsorted(reached, torch.minimum(points * reached[:, -1], end)[:, None], right=True)[:, 0]
