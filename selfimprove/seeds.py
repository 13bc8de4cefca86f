"""Every random number of a run comes from one seed and a name that says what the number is for."""

from __future__ import annotations

import hashlib


def derive(seed: int, *name: str | int) -> int:
    """A 63-bit seed for `name`, e.g. derive(0, "generate", round, problem_id, call). Stable across machines."""
    text = "\x1f".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
