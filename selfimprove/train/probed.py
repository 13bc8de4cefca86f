"""The answers by which a trainer and a sampler are compared, and the file in which the trainer says what it thinks of
them."""

from __future__ import annotations

Answer = tuple[list[int], list[int]]  # token ids of a prompt and of a completion
HANDOVER = "handover.json"  # in a policy's folder: the answers, with the trainer's log-probabilities
