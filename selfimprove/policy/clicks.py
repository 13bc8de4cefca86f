"""A click model for engine=net: two layers on embeddings of user and item."""

from __future__ import annotations

import torch

from selfimprove.policy import Request
from selfimprove.policy.draws import Draw
from selfimprove.policy.nets import Net


class Clicks(Net):
    """Logits of clicks. `users` and `items` are the sizes of the tables; ids are taken modulo them (the hashing trick).

    A chunk of events is an array of shape (events, 2): user and item. A draw is an array of shape (events, 1 + hidden):
    the probability of a click, then the last hidden layer, which is the key of a memory.
    """

    def __init__(self, *, users: int, items: int, width: int = 8, hidden: int = 16) -> None:
        super().__init__(users=users, items=items, width=width, hidden=hidden)
        self.users, self.items = torch.nn.Embedding(users, width), torch.nn.Embedding(items, width)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2 * width, 2 * hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(2 * hidden, hidden),
            torch.nn.ReLU(),
        )
        self.out = torch.nn.Linear(hidden, 1)

    def forward(self, events: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (..., n) and last hidden layers (..., n, hidden) of events (..., n, 2)."""
        users, items = events.long().unbind(-1)
        both = [self.users(users % self.users.num_embeddings), self.items(items % self.items.num_embeddings)]
        hidden = self.layers(torch.cat(both, -1))
        return self.out(hidden)[..., 0], hidden

    def draws(self, inputs: torch.Tensor, requests: list[Request]) -> list[Draw]:
        logits, hidden = self(inputs)
        rows = torch.cat([torch.sigmoid(logits)[..., None], hidden], -1).float().flatten(1)
        return [Draw("", 0.0, array=tuple(row)) for row in rows.tolist()]
