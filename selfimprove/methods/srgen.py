"""SRGen: where the next token is uncertain, decoding stops to correct its own hidden state, and goes on.

Self-Reflective Generation at Test Time (Mu, Zhang, Shi et al. 2025, arXiv 2510.02919).

    at each token t
        H_t = entropy of softmax(lm_head(h_t) / T)
        threshold = max(mean + k max(std, s_min), H_min)   over the last N entropies; H_first before there are N
        if H_t > threshold, and there were fewer than `most` reflections:
            delta = 0 in R^d, added to the last hidden state of every token of prompt and prefix
            S times:  L = (1 - lam) CE(the prefix's own next tokens) + lam H(next token)
                      delta <- AdamW(delta, dL / d delta)
            y_t ~ softmax(lm_head(h_t + delta) / T), and delta is forgotten
        else
            y_t ~ softmax(lm_head(h_t) / T)
    answer     the majority of n samples

A sample's log-probabilities are those of the policy itself, without delta.

What of this is the paper's and what is our own choice is said in docs/methods/srgen.md.

*Wrong when* the policy is sure of its errors: it is only stopped where it doubts. One vector for all tokens that lowers
the entropy makes the likely token likelier. It teaches nothing that is not in the prefix already.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from selfimprove.policy import Policy
from selfimprove.policy.hooks import Rows
from selfimprove.types import Count, NonNegative, Problem, Trajectory

NEEDS = ("hooks",)

LOGITS = 2**26  # of a batch of reflections: 256 MiB in float32, a few times over

Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True)
class Reflection:
    """The hook. `found` gets (position in the completion, H before, H after) of each reflection."""

    window: int  # N
    k: float
    least_std: float  # s_min
    least: float  # H_min, nats
    first: float  # H_first, nats
    steps: int  # S
    learning_rate: float
    weight: float  # lam
    most: int
    found: list[tuple[int, float, float]] = field(default_factory=list, compare=False)
    reads = True

    def threshold(self, entropies: Sequence[float]) -> float:
        """Above which entropy the next token is reflected on, in nats, given those of the tokens before it."""
        if len(entropies) < self.window:
            return self.first
        last = entropies[-self.window :]
        mean = sum(last) / len(last)
        spread = math.sqrt(sum((value - mean) ** 2 for value in last) / max(len(last) - 1, 1))
        return max(mean + self.k * max(spread, self.least_std), self.least)

    def logits(self, rows: Rows) -> torch.Tensor:
        before = entropy(rows.logits, rows.temperatures)
        chosen = []
        for i, (note, now) in enumerate(zip(rows.notes, before.tolist(), strict=True)):
            known = note.setdefault("entropies", [])
            if now > self.threshold(known) and note.get("reflections", 0) < self.most:
                chosen.append(i)
                note["reflections"] = note.get("reflections", 0) + 1
            known.append(now)
        if not chosen or not self.steps:
            return rows.logits
        logits = rows.logits.clone()
        for part in parts(chosen, [len(ids) for ids in rows.ids], logits.shape[-1]):
            temperatures = [rows.temperatures[i] for i in part]
            logits[part] = self.reflect(rows, part, temperatures)
            for i, after in zip(part, entropy(logits[part], temperatures).tolist(), strict=True):
                own = rows.hooks[i]
                assert isinstance(own, Reflection)
                own.found.append((rows.positions[i], float(before[i]), after))
        return logits

    def reflect(self, rows: Rows, chosen: Sequence[int], temperatures: Sequence[float]) -> torch.Tensor:
        """Logits of the next token behind h + delta, shape (chosen, vocabulary).

        The rows are optimised as one batch. Each has a delta of its own, and no loss has a gradient to another's. The
        head is linear, so W (h + delta) is W h, made once, and W delta.
        """
        with torch.inference_mode(False), torch.enable_grad():
            states = pad_sequence(rows.hidden(chosen), batch_first=True)
            said = [torch.tensor(rows.ids[i][1:], dtype=torch.long, device=states.device) for i in chosen]
            labels = pad_sequence(said, batch_first=True, padding_value=-100)
            counts = torch.tensor([len(ids) for ids in said], device=states.device)
            each = torch.arange(len(chosen), device=states.device)
            delta = torch.zeros(len(chosen), 1, states.shape[-1], device=states.device, requires_grad=True)
            optimizer = torch.optim.AdamW([delta], lr=self.learning_rate, weight_decay=1e-8, eps=1e-5)
            with torch.no_grad():
                still, bias = rows.head(states), rows.head(torch.zeros_like(delta))
            for _ in range(self.steps):
                moved = rows.head(delta) - bias  # W delta
                loss = self.weight * entropy(still[each, counts] + moved[:, 0], temperatures).sum()
                logits = (still[:, :-1] + moved).flatten(0, 1)
                ce = functional.cross_entropy(logits, labels.flatten(), reduction="none").view_as(labels)
                loss = loss + (1 - self.weight) * (ce.sum(1) / counts.clamp(min=1)).sum()
                (delta.grad,) = torch.autograd.grad(loss, delta)
                optimizer.step()
            last = (states[each, counts] + delta[:, 0]).detach()
        return rows.head(last).detach()


def parts(chosen: Sequence[int], lengths: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """The rows in batches whose logits, padded to the longest row, are at most LOGITS numbers, or of one row."""
    part: list[int] = []
    for i in sorted(chosen, key=lambda i: lengths[i]):
        if part and (len(part) + 1) * lengths[i] * vocabulary > LOGITS:
            yield part
            part = []
        part.append(i)
    yield part


def entropy(logits: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """H of the next token at each row's temperature, in nats, shape (rows,). Greedy rows have temperature 1."""
    warm = torch.tensor([t or 1.0 for t in temperatures], device=logits.device)[:, None]
    logs = torch.log_softmax(logits.float() / warm, -1)
    return -(logs.exp() * logs).sum(-1)


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    n: Count,
    window: Count = 25,
    k: NonNegative = 4.0,
    least_std: NonNegative = 0.5,
    least: NonNegative = 1.8,
    first: NonNegative = 3.0,
    steps: Annotated[int, Ge(0)] = 3,
    learning_rate: Annotated[float, Gt(0)] = 0.01,
    weight: Share = 0.05,
    most: Annotated[int, Ge(0)] = 20,
    temperature: NonNegative = 0.6,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """n samples, each decoded with reflection. `metadata["reflections"]` has [position, H before, H after] of each."""

    async def one(number: int) -> Trajectory:
        hook = Reflection(window, k, least_std, least, first, steps, learning_rate, weight, most)
        alone = policy.for_problem(problem, number)
        (sample,) = await alone.sample(problem.prompt, temperature=temperature, max_tokens=max_tokens, hook=hook)
        return Trajectory(problem.id, [sample], {"reflections": [list(entry) for entry in hook.found]})

    return list(await asyncio.gather(*map(one, range(n))))
