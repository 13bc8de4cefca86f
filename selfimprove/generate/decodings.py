"""One problem answered by several ways of decoding. They show whether the policy agrees with itself."""

from __future__ import annotations

from collections.abc import Sequence

from selfimprove.policy import Policy
from selfimprove.types import Problem, Sample, Trajectory

BEAM, TOP_K, TOP_P = 5, 50, 0.95


async def decodings(
    problem: Problem, policy: Policy, samples: int, temperature: float, max_tokens: int | None = None
) -> list[Trajectory]:
    """`samples` samples at `temperature`, and one answer each of beam search, top-k and top-p at temperature 1.

    `decoding` in a trajectory's metadata says which it is: consistency, beam, top_k or top_p.
    """
    prompt = problem.prompt
    answers = {
        "beam": [await policy.beam(prompt, BEAM, max_tokens=max_tokens)],
        "top_k": await policy.sample(prompt, top_k=TOP_K, max_tokens=max_tokens),
        "top_p": await policy.sample(prompt, top_p=TOP_P, max_tokens=max_tokens),
        "consistency": await policy.sample(prompt, samples, temperature=temperature, max_tokens=max_tokens),
    }
    return [Trajectory(problem.id, [s], {"decoding": name}) for name, samples in answers.items() for s in samples]


async def by_layer(problem: Problem, policy: Policy, answer: Sample) -> list[Trajectory]:
    """What each layer would say along an answer of the policy: a trajectory for each layer, first to last.

    Their decodings are called layer_1, layer_2, and so on. For a greedy answer, the last layer's is the answer itself.
    """
    layers = await policy.lens(answer.prompt_ids, answer.completion_ids)
    return [Trajectory(problem.id, [s], {"decoding": f"layer_{i}"}) for i, s in enumerate(layers, start=1)]


async def by_head(
    problem: Problem, policy: Policy, answer: Sample, heads: Sequence[tuple[int, int]]
) -> list[Trajectory]:
    """What the policy would say along an answer with one attention head left in a layer: a trajectory for each head.

    Their decodings are called head_L.H, of layer L and head H from 0.
    """
    found = await policy.lens(answer.prompt_ids, answer.completion_ids, heads)
    names = [f"head_{layer}.{head}" for layer, head in heads]
    return [Trajectory(problem.id, [s], {"decoding": name}) for name, s in zip(names, found, strict=True)]
