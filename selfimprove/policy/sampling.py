"""Samples tokens from logits by inverting the cdf, with one uniform number for each (seed, position)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selfimprove.policy import Request

UInts = npt.NDArray[np.uint64]


def uniforms(seeds: UInts, positions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A number in [0, 1) for each (seed, position), shape (rows,), float32 with 24 random bits.

    The generator is counter-based: a number depends only on its seed and position. It is output number `position` of
    splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", fig. 17), started at the
    seed's own output. This first pass keeps the streams of neighbouring seeds apart.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        state = _mix(seeds.astype(np.uint64)) + (positions.astype(np.uint64) + np.uint64(1)) * golden
        return (_mix(state) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mix(z: UInts) -> UInts:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(slots=True)
class Settings:
    """The sampling settings of a batch, one entry a row. None and `all_greedy` mark work that no row needs."""

    seeds: UInts
    temperature: torch.Tensor | None  # None: 1 everywhere
    greedy: torch.Tensor | None  # bool; None: nowhere
    all_greedy: bool
    truncated: torch.Tensor | None  # indices of rows with top_k or top_p; None: no row
    top_k: torch.Tensor
    top_p: torch.Tensor

    @classmethod
    def of(cls, requests: list[Request], vocabulary: int, device: torch.device) -> Settings:
        greedy = [r.temperature == 0 for r in requests]
        warm = [1.0 if r.temperature == 0 else r.temperature for r in requests]
        cut = [i for i, r in enumerate(requests) if r.temperature and (r.top_k > 0 or r.top_p < 1)]
        top_k = [min(requests[i].top_k or vocabulary, vocabulary) for i in cut]
        return cls(
            seeds=np.array([r.seed for r in requests], dtype=np.uint64),
            temperature=torch.tensor(warm, device=device)[:, None] if any(t != 1 for t in warm) else None,
            greedy=torch.tensor(greedy, device=device) if any(greedy) else None,
            all_greedy=all(greedy),
            truncated=torch.tensor(cut, device=device) if cut else None,
            top_k=torch.tensor(top_k, device=device)[:, None],
            top_p=torch.tensor([requests[i].top_p for i in cut], device=device)[:, None],
        )


def choose(
    logits: torch.Tensor, settings: Settings, positions: npt.NDArray[Any], hooked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each row and its log-probability at temperature 1 without truncation, in nats.

    `logits` is (rows, vocabulary) in float32; `positions` is the index of each row's next token in its completion.
    `hooked` is the logits after hooks: tokens are drawn from it, and log-probabilities come from `logits`.
    """
    if settings.all_greedy:
        tokens = hooked.argmax(-1)
    else:
        probs = torch.softmax(hooked if settings.temperature is None else hooked / settings.temperature, -1)
        if settings.truncated is not None:
            probs[settings.truncated] = truncate(probs[settings.truncated], settings.top_k, settings.top_p)
        # A GPU sums in parallel: in float32 the order shows, and the sum may fall by a rounding where p is 0.
        cdf = probs.cumsum(-1, dtype=torch.float64 if probs.is_cuda else None)
        total = cdf[:, -1:]
        draw = torch.from_numpy(uniforms(settings.seeds, positions)).to(logits.device, non_blocking=True)[:, None]
        # Rounding never lifts the target to the total. The first entry above it is where the cdf rises, so p > 0.
        target = torch.minimum(draw * total, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(cdf, target, right=True)[:, 0]
        if settings.greedy is not None:
            tokens = torch.where(settings.greedy, hooked.argmax(-1), tokens)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens, logprobs


def truncate(probs: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Set to zero what top_k and top_p exclude in `probs` (rows, vocabulary), without renormalising.

    The top_k most probable tokens remain, and of those the smallest set whose share reaches top_p. top_k and top_p are
    (rows, 1).
    """
    ranked, order = probs.sort(-1, descending=True)
    ranked = ranked.masked_fill(torch.arange(probs.shape[-1], device=probs.device) >= top_k, 0.0)
    before = ranked.cumsum(-1) - ranked
    beyond = (before >= top_p * ranked.sum(-1, keepdim=True)) & (top_p < 1)
    beyond[:, 0] = False
    ranked = ranked.masked_fill(beyond, 0.0)
    return torch.zeros_like(probs).scatter_(-1, order, ranked)
