"""Gives characters with the same meaning one form: full-width digits, digits of other scripts, curly quotes, dashes."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_QUOTES = "\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`"
_DOUBLE = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f\u300a\u300b"
_DASHES = "\u2010\u2011\u2012\u2212\ufe63\uff0d"
_EN_DASH = re.compile(r"\u2013(?=\S)")  # a minus sign or a hyphen; before a space it is a pause
# Compatibility forms that only look different. A superscript, a fraction or a circled digit has another meaning.
_LOOKS = ("<wide>", "<narrow>", "<compat>", "<noBreak>", "<initial>", "<medial>", "<final>", "<isolated>", "<vertical>")
_KNOWN = {
    **dict.fromkeys(_QUOTES, "'"),
    **dict.fromkeys(_DOUBLE, '"'),
    **dict.fromkeys(_DASHES, "-"),
    "\u3002": ". ",  # the full stop of Chinese and Japanese, which no space follows
    "\uff61": ". ",
    "\u0964": ". ",  # danda, the full stop of Hindi
    "\u3001": ", ",
    "\u060c": ", ",
    "\u066b": ".",  # Arabic decimal and thousands separators, percent sign
    "\u066c": ",",
    "\u066a": "%",
    "\u2044": "/",
    "\u2215": "/",
    "\u2028": "\n",
    "\u2029": "\n",
}


def fold(text: str) -> str:
    """`text` in composed form (NFC), with one form for characters that are typed in several ways."""
    if text.isascii():
        return text
    return "".join(map(_plain, _EN_DASH.sub("-", unicodedata.normalize("NFC", text))))


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    if character.isascii():
        return character
    if character in _KNOWN:
        return _KNOWN[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "Zs":
        return " "
    if category == "Cf":  # without width: joiners, direction marks, the byte order mark
        return ""
    return (
        unicodedata.normalize("NFKC", character)
        if unicodedata.decomposition(character).startswith(_LOOKS)
        else character
    )
