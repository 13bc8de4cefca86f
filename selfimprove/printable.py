"""Text of a model, a data set or a folder, for the terminal."""

from __future__ import annotations

import re

# Control characters except line end and tab (an escape sequence starts with one of them), characters that change the
# direction of text, line separators that only some programs know, and halves of surrogate pairs.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: object) -> str:
    """The text with every character that a terminal would act on shown as its code, as in `\\x1b[2J`."""
    return _UNSEEN.sub(_code, str(text))


def one_line(text: object) -> str:
    """The same in one line: an end of line is a space."""
    return " ".join(printable(text).split("\n"))


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
