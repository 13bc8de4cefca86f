"""Pre-trains a small vision transformer on masked patches of unlabelled pictures, and writes it as a policy folder.

    python scripts/make_vit.py digits     # selfimprove/models/digits_vit: patches of 2 x 2; in the package
    python scripts/make_vit.py fashion    # fashion_vit in the cache of models: patches of 7 x 7

Half of the patches are hidden, and the model predicts their grey levels (SimMIM, Xie et al. 2022, arXiv:2111.09886, by
transformers' ViTForMaskedImageModeling). It reads only the training pictures, without their classes. The result depends
on a fixed seed. The head of the classifier is untrained. The log is printed.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers import ViTForMaskedImageModeling

from selfimprove.datasets import pictures
from selfimprove.policy import nets
from selfimprove.policy.models import PACKAGED, cache_root
from selfimprove.policy.vit import Vit, vit_config

BATCH, RATE, HIDDEN = 64, 3e-3, 0.5
SIZES = {"digits": (8, 2, 1200), "fashion": (28, 7, 1200)}  # pixels a side, of a patch, optimizer steps


def main(name: str) -> None:
    size, patch, steps = SIZES[name]
    every = [pictures.Task(list(range(10)))]
    load = getattr(pictures, name)
    count = {"digits": 1000, "fashion": 5000}[name]
    problems = load(tasks=every, train_size=count, heldout_size=1, seed=0)
    data = torch.tensor([p.array.data for p in problems if p.split == "train"]).reshape(-1, 1, size, size)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = Vit(size=size, patch=patch)
    teacher = ViTForMaskedImageModeling(vit_config(**{k: v for k, v in net.options.items() if k != "classes"}))
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    patches = (size // patch) ** 2
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(len(data), size=BATCH))
        hidden = torch.from_numpy(rng.random((BATCH, patches)).argsort(1) < HIDDEN * patches)
        loss = teacher(data[rows], bool_masked_pos=hidden).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 199:
            print(f"step {step + 1}: mean absolute error {loss.item():.4f} of a hidden pixel")
    net.body.load_state_dict(teacher.vit.state_dict(), strict=False)
    folder = PACKAGED / "digits_vit" if name == "digits" else cache_root() / "models" / "fashion_vit"
    nets.save(net, folder)
    print(f"{sum(p.numel() for p in net.parameters())} parameters, {folder.name}")


if __name__ == "__main__":
    main(sys.argv[1])
