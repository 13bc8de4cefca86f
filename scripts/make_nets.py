"""Makes untrained nets: the click models of method=reloop2 and the priors of method=niw_meta."""

from __future__ import annotations

import torch

from selfimprove.datasets.episodes import SIDE
from selfimprove.policy import nets
from selfimprove.policy.clicks import Clicks
from selfimprove.policy.episodes import Prior
from selfimprove.policy.models import PACKAGED

MADE = {
    "clicks": lambda: Clicks(users=200, items=100),
    "clicks_movielens": lambda: Clicks(users=671, items=9066),
    "sine_prior": lambda: Prior(inputs=1, outputs=1),
    "glyphs_prior": lambda: Prior(inputs=SIDE * SIDE, outputs=5, classes=True),
}

for name, make in MADE.items():
    torch.manual_seed(0)
    nets.save(make(), PACKAGED / name)
