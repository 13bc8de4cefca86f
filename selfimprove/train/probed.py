"""The answers by which trainer and sampler are compared, and the file with the trainer's log-probabilities of them."""

from __future__ import annotations

Answer = tuple[list[int], list[int]]  # token ids of a prompt and of a completion
HANDOVER = "handover.json"  # in a policy's folder: the answers, with the trainer's log-probabilities
