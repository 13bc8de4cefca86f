"""Encodes values of built-in types as JSON, keeping tuples, sets and keys that are not text."""

from __future__ import annotations

from typing import Any

_KINDS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """JSON that `decode` turns back into an equal value. Raises ValueError if there is no such form."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):  # an instance of a subclass becomes one of `kind`
            return kind(value)
    for name, container in _KINDS.items():
        if isinstance(value, container):
            return [name, [encode(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in value.items()]]
    if isinstance(value, (bytes, bytearray)):
        return [type(value).__name__, value.decode("latin-1")]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    raise ValueError(f"no form in JSON for {value!r:.80}")


def decode(data: Any) -> Any:
    """The value that `encode` was given. Raises ValueError, TypeError or KeyError when `data` is not from `encode`."""
    if not isinstance(data, list):
        return data
    name, body = data
    if name == "dict":
        return {decode(key): decode(item) for key, item in body}
    if name in ("bytes", "bytearray"):
        raw = body.encode("latin-1")
        return raw if name == "bytes" else bytearray(raw)
    if name == "complex":
        return complex(*body)
    if name == "range":
        return range(*body)
    return _KINDS[name](map(decode, body))
