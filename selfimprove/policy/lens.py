"""What each layer of a model would say: its hidden states through the final norm and the output head.

This is the logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"), along a given completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

PART = 1024  # places whose logits are made at once
NORMS = ("norm", "ln_f", "final_layernorm")  # what models call the one behind the last layer

Layer = tuple[list[int], list[float]]  # the likeliest token at each place, and its log-probability in nats


def lens(
    model: Any,
    head: Callable[[torch.Tensor], torch.Tensor],
    ids: torch.Tensor,
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> list[list[Layer]]:
    """Of each (prompt, completion) by layer, first to last: the likeliest token at each place, and its log-probability.

    `ids` are both, one behind the other, except for the last token, padded on the right; `head` makes logits of hidden
    states. Raises ValueError for a model whose logits are not what its head makes of its last states.
    """
    output = model(input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    states = output.hidden_states[1:]
    require_head(model, head(states[-1][:, -1]), output.logits[:, -1].float())
    norm = next((own for name in NORMS if (own := getattr(model.base_model, name, None))), None)
    if norm is None:
        raise ValueError(
            f"{model.name_or_path}: no final norm was found ({', '.join(NORMS)}), so layers cannot be read"
        )
    places = [(i, len(prompt) - 1 + j) for i, (prompt, said) in enumerate(asked) for j in range(len(said))]
    where = tuple(torch.tensor(places, device=ids.device).T)
    found: list[list[Layer]] = [[] for _ in asked]
    for number, layer in enumerate(states, start=1):
        chosen = layer[where] if number == len(states) else norm(layer[where])  # the last has been through it
        best = [torch.log_softmax(head(part), -1).max(-1) for part in chosen.split(PART)]
        tokens = torch.cat([part.indices for part in best]).tolist()
        logprobs = torch.cat([part.values for part in best]).tolist()
        start = 0
        for layers, (_, said) in zip(found, asked, strict=True):
            end = start + len(said)
            layers.append((tokens[start:end], logprobs[start:end]))
            start = end
    return found


def require_head(model: Any, made: torch.Tensor, known: torch.Tensor) -> None:
    """Raises ValueError if `made` of hidden states are not the logits `known`: a model may scale behind its head."""
    if (made - known).abs().max() > 0.05 * known.abs().max():
        raise ValueError(
            f"{model.name_or_path}: hidden states and output head do not give this model's logits, so that neither "
            "hooks nor layers can be read"
        )
