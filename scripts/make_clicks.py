"""Makes the click models of method=reloop2 as they are before any training: selfimprove/models/clicks*."""

from __future__ import annotations

import torch

from selfimprove.policy import nets
from selfimprove.policy.clicks import Clicks
from selfimprove.policy.models import PACKAGED

SIZES = {"clicks": (200, 100), "clicks_movielens": (671, 9066)}

for name, (users, items) in SIZES.items():
    torch.manual_seed(0)
    nets.save(Clicks(users=users, items=items), PACKAGED / name)
