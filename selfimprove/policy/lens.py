"""What each layer of a model would say: its hidden states through the final norm and the output head.

This is the logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"), along a given completion. And what the
model would say with one attention head alone in a layer (the probe of Liang et al. 2024, arXiv 2407.14507).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

PART = 1024  # places whose logits are made at once
NORMS = ("norm", "ln_f", "final_layernorm")  # what models call the one behind the last layer

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden states -> logits
Asked = tuple[Sequence[int], Sequence[int]]  # prompt, completion
Layer = tuple[list[int], list[float]]  # the likeliest token at each place, and its log-probability in nats


def lens(model: Any, head: Head, ids: torch.Tensor, asked: Sequence[Asked]) -> list[list[Layer]]:
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
    where = _places(ids, asked)
    *inner, last = states  # the last has been through the norm
    return _said(head, asked, [*(norm(layer[where]) for layer in inner), last[where]])


def by_head(
    model: Any, head: Head, ids: torch.Tensor, asked: Sequence[Asked], heads: Sequence[tuple[int, int]]
) -> list[list[Layer]]:
    """As `lens`, by attention head: what the model would say if `heads`' one were the only one of its layer.

    Each is a pair (layer, head), from 0. Raises ValueError for one that the model does not have.
    """
    where = _places(ids, asked)
    states = []
    for layer, number in heads:
        with alone(model, layer, number):
            states.append(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[where])
    return _said(head, asked, states)


@contextmanager
def alone(model: Any, layer: int, number: int) -> Iterator[None]:
    """In here the layer's other attention heads give 0: what they put into the output projection is zeroed.

    Raises ValueError for a head that the model does not have, or an attention whose output projection is not found.
    """
    heads, layers = model.config.get_text_config(decoder=True).num_attention_heads, model.base_model.layers
    if not (0 <= layer < len(layers) and 0 <= number < heads):
        raise ValueError(f"{model.name_or_path}: no head {number} in layer {layer}: {len(layers)} layers of {heads}")
    projection = getattr(getattr(layers[layer], "self_attn", None), "o_proj", None)
    if projection is None:
        raise ValueError(f"{model.name_or_path}: layer {layer} has no attention with an output projection (o_proj)")

    def zero(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        size = inputs[0].shape[-1] // heads
        own = slice(number * size, (number + 1) * size)
        kept = torch.zeros_like(inputs[0])
        kept[..., own] = inputs[0][..., own]
        return (kept,)

    handle = projection.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def _places(ids: torch.Tensor, asked: Sequence[Asked]) -> tuple[torch.Tensor, ...]:
    """(row, column) of each completion token's prediction."""
    places = [(i, len(prompt) - 1 + j) for i, (prompt, said) in enumerate(asked) for j in range(len(said))]
    return tuple(torch.tensor(places, device=ids.device).T)


def _said(head: Head, asked: Sequence[Asked], states: Sequence[torch.Tensor]) -> list[list[Layer]]:
    """Of each entry of `asked`, by entry of `states`, each of shape (places, width): the likeliest tokens."""
    found: list[list[Layer]] = [[] for _ in asked]
    for chosen in states:
        best = [torch.log_softmax(head(part), -1).max(-1) for part in torch.split(chosen, PART)]
        tokens = torch.cat([part.indices for part in best]).tolist()
        logprobs = torch.cat([part.values for part in best]).tolist()
        start = 0
        for answers, (_, said) in zip(found, asked, strict=True):
            end = start + len(said)
            answers.append((tokens[start:end], logprobs[start:end]))
            start = end
    return found


def require_head(model: Any, made: torch.Tensor, known: torch.Tensor) -> None:
    """Raises ValueError if `made` of hidden states are not the logits `known`: a model may scale behind its head."""
    if (made - known).abs().max() > 0.05 * known.abs().max():
        raise ValueError(
            f"{model.name_or_path}: hidden states and output head do not give this model's logits, so that neither "
            "hooks nor layers can be read"
        )
