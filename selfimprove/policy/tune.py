"""Temporary adapters: a low-rank change of the weights for the requests that ask for it, and for no other.

Adapters are LoRA (Hu et al. 2021, arXiv 2106.09685): a linear layer W gives x W + (alpha / r) x A B. The A and B of
many adapters stand in one tensor each, a slice an adapter, and row i of a batch goes through slice i alone. So many
adapters are trained in one forward and backward, and no gradient of one meets another. The base's weights are never
written to, so that an adapter leaves no trace when it is forgotten.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from selfimprove import seeds
from selfimprove.policy import Tuning

HELD_BYTES = 2**30  # of the adapters that are there at a time
TRAINED_BYTES = 2**30  # that training one batch of adapters may take, by `_needed`

Pair = tuple[torch.Tensor, torch.Tensor]
Adapter = dict[str, Pair]  # layer -> A (in, r) and (alpha / r) B (r, out), float32


class Adapters:
    """The adapters of a model for requests in flight: trained when asked for, forgotten with the last request.

    `layers` are the linear layers of the model except for its head. Raises ValueError if there are none.
    """

    def __init__(self, model: Any, vocabulary: int) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.waiting: dict[str, Tuning] = {}
        self.held: dict[str, Adapter] = {}
        self.peak = 0  # bytes of held adapters, at most so far
        self._users: Counter[str] = Counter()
        self._stacked: tuple[tuple[str, ...], Adapter] = ((), {})

    @cached_property
    def layers(self) -> dict[str, torch.nn.Linear]:
        modules = self.model.base_model.named_modules()
        found = {name: module for name, module in modules if isinstance(module, torch.nn.Linear)}
        if not found:
            raise ValueError("this model has no linear layers of PyTorch's kind, so it cannot be given adapters")
        return found

    def ask(self, tuning: Tuning) -> bool:
        """A request begins that wants this adapter. True if the adapter is there already."""
        self._users[tuning.name] += 1
        if tuning.name not in self.held:
            self.waiting[tuning.name] = tuning
        return tuning.name in self.held

    def release(self, name: str) -> bool:
        """A request has ended that wanted it. True if it was the last, and the adapter is forgotten."""
        self._users[name] -= 1
        if self._users[name]:
            return False
        del self._users[name]
        self.held.pop(name, None)
        self.waiting.pop(name, None)
        if name in self._stacked[0]:
            self._stacked = ((), {})
        return True

    def train(self, idle: bool) -> list[str]:
        """Train a batch of what waits; the names of the adapters that are there now.

        Unless the engine is `idle`, it waits for a full batch, and until those that are held leave room for it.
        """
        if not self.waiting:
            return []
        first = next(iter(self.waiting.values()))
        alike = sorted((t for t in self.waiting.values() if t.kind == first.kind), key=lambda t: -t.longest)
        count = self._fitting(alike)
        room = HELD_BYTES - sum(_bytes(adapter) for adapter in self.held.values())
        if not idle and (count == len(alike) or room < count * self._size(first)):
            return []
        batch = alike[:count]
        for tuning, adapter in zip(batch, trained(self.model, self.layers, batch), strict=True):
            self.held[tuning.name] = adapter
            del self.waiting[tuning.name]
        self.peak = max(self.peak, sum(_bytes(adapter) for adapter in self.held.values()))
        return [tuning.name for tuning in batch]

    def _fitting(self, alike: Sequence[Tuning]) -> int:
        """How many of them can be trained together: at least one."""
        held = HELD_BYTES // self._size(alike[0])
        most = max(1, min(len(alike), held))
        return next((n - 1 for n in range(2, most + 1) if self._needed(alike[:n]) > TRAINED_BYTES), most)

    def _size(self, tuning: Tuning) -> int:
        """Bytes of an adapter's weights."""
        return 4 * tuning.r * sum(layer.in_features + layer.out_features for layer in self.layers.values())

    def _needed(self, batch: Sequence[Tuning]) -> int:
        """About the bytes that training takes: weights, gradients and two moments; what the layers read and give of
        each padded token; logits, probabilities and their gradient."""
        weights = self._size(batch[0])
        tokens = len(batch) * max(tuning.longest for tuning in batch)
        targets = sum(max(len(completion) for _, completion in tuning.rows) for tuning in batch)
        return 4 * weights * len(batch) + tokens * weights // batch[0].r + 12 * targets * self.vocabulary

    @contextmanager
    def on(self, names: Sequence[str]) -> Iterator[None]:
        """While it is open, row i of what the model reads goes through the adapter names[i]; "" is none."""
        if not any(names):
            yield
            return
        if self._stacked[0] != tuple(names):
            self._stacked = ((), {})  # first let go of the old ones
            self._stacked = tuple(names), _stack([self.held.get(name) for name in names])
        with attached(self.layers, self._stacked[1]):
            yield


def _stack(rows: Sequence[Adapter | None]) -> Adapter:
    """A slice a row, of the largest rank; zeros for a row without an adapter."""
    first = next(adapter for adapter in rows if adapter)
    rank = max(a.shape[1] for adapter in rows if adapter for a, _ in adapter.values())
    stacked = {}
    for name, (a, b) in first.items():
        left, right = a.new_zeros(len(rows), a.shape[0], rank), b.new_zeros(len(rows), rank, b.shape[1])
        for i, adapter in enumerate(rows):
            if adapter:
                own = adapter[name]
                left[i, :, : own[0].shape[1]], right[i, : own[1].shape[0]] = own
        stacked[name] = left, right
    return stacked


def _bytes(adapter: Adapter) -> int:
    return sum(tensor.numel() * tensor.element_size() for pair in adapter.values() for tensor in pair)


@contextmanager
def attached(layers: Mapping[str, torch.nn.Module], pairs: Mapping[str, Pair], scale: float = 1.0) -> Iterator[None]:
    """While it is open, each layer adds scale x A[i] B[i] to what it gives of row i.

    Raises ValueError for a model that does not hand its layers one row a sequence, as mixtures of experts do not.
    """

    def adding(pair: Pair) -> Any:
        def add(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            x, (a, b) = args[0], pair
            if x.dim() != 3 or len(x) != len(a):
                raise ValueError(
                    "a layer of this model reads tokens of several sequences as one: it can have no adapters"
                )
            return torch.baddbmm(output, torch.bmm(x, a.to(x.dtype)), b.to(x.dtype), alpha=scale)

        return add

    with ExitStack() as stack:
        for name, pair in pairs.items():
            handle = layers[name].register_forward_hook(adding(pair))
            stack.callback(handle.remove)
        yield


def trained(model: Any, layers: Mapping[str, torch.nn.Linear], batch: Sequence[Tuning]) -> list[Adapter]:
    """An adapter for each tuning, all of one `kind`, trained together.

    Each step reads one row of each tuning, one after another, and lowers the mean negative log-likelihood of its
    completion by AdamW, without decay.
    """
    first = batch[0]
    with torch.inference_mode(False), torch.enable_grad():
        pairs = _begin(layers, batch)
        parameters = [tensor for pair in pairs.values() for tensor in pair]
        optimizer = torch.optim.AdamW(parameters, lr=first.learning_rate, weight_decay=0.0, fused=True)
        with attached(layers, pairs, first.alpha / first.r):
            for step in range(first.steps):
                optimizer.param_groups[0]["lr"] = first.learning_rate * first.schedule(step)
                loss = _loss(model, [tuning.rows[step % len(tuning.rows)] for tuning in batch])
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
                optimizer.step()
    scaled = {name: (a.detach(), b.detach() * (first.alpha / first.r)) for name, (a, b) in pairs.items()}
    # Copies, so that each gives its memory back by itself.
    return [{name: (a[i].clone(), b[i].clone()) for name, (a, b) in scaled.items()} for i in range(len(batch))]


def _begin(layers: Mapping[str, torch.nn.Linear], batch: Sequence[Tuning]) -> Adapter:
    """A drawn as PEFT draws it, from each tuning's own seed; B is 0, so that an adapter begins as no change."""
    device = next(iter(layers.values())).weight.device
    generators = [torch.Generator().manual_seed(seeds.derive(tuning.seed, "adapter")) for tuning in batch]
    pairs = {}
    for name, layer in layers.items():
        bound = 1 / math.sqrt(layer.in_features)
        shape = layer.in_features, batch[0].r
        a = torch.stack([(2 * torch.rand(shape, generator=generator) - 1) * bound for generator in generators])
        b = torch.zeros(len(batch), batch[0].r, layer.out_features)
        pairs[name] = a.to(device).requires_grad_(), b.to(device).requires_grad_()
    return pairs


def _loss(model: Any, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
    """The sum over rows of the mean negative log-likelihood of a completion's tokens, in nats."""
    device = model.device
    read = [[*prompt, *completion[:-1]] for prompt, completion in rows]
    width = max(map(len, read))
    padded = [[*row, *[0] * (width - len(row))] for row in read]  # no token sees what is behind it
    ids = torch.tensor(padded, device=device)
    places = [(i, len(prompt) - 1 + j) for i, (prompt, said) in enumerate(rows) for j in range(len(said))]
    where = tuple(torch.tensor(places, device=device).T)
    labels = torch.tensor([token for _, said in rows for token in said], device=device)
    share = torch.tensor([1 / len(said) for _, said in rows for _ in said], device=device)
    # The model's own head, and whatever follows it, see only the positions that count.
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][where][None],))
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        hook.remove()
    return (F.cross_entropy(logits.float(), labels, reduction="none") * share).sum()
