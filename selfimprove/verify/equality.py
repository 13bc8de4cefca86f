r"""Decides when two answers are equal: for votes, maj@k, consensus and counts of different answers.

Verdicts use the same rule. Algebra, as in \sqrt{8} = 2\sqrt{2}, is left to the check of mathematics, which runs in a
process that can be killed and writes equal answers in one form (`selfimprove.verify.math.simplest`). The rest is text
and plain numbers, which this module compares.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from selfimprove.verify import arithmetic, cleaning
from selfimprove.verify import text as words

_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_DECIMAL = re.compile(rf"-?(?:{_NUMBER})")
_FRACTION = re.compile(
    r"(?P<minus>-?) *(?P<whole>\d+(?=\\))?(?:\\[dt]?frac *(?:\{(?P<a>\d+)\}|(?P<a1>\d)) *(?:\{(?P<b>\d+)\}|(?P<b1>\d))"
    r"|(?P<c>\d+)/(?P<d>\d+))"
)
_POWER = re.compile(rf"(?P<value>-?(?:{_NUMBER})) *\\(?:times|cdot) *10\^\{{(?P<exponent>-?\d{{1,3}})\}} *")
_NAMED = re.compile(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)? *= *")  # "x = "
_JOINT = re.compile(r" *(?:,|;|\band\b|\bor\b|\\text *\{ *(?:and|or) *\}) *(?:(?:and|or)\b *)?")
_SET = re.compile(r"\\(?:left *)?\\?\{(.*?)\\(?:right *)?\\?\}")


_SPACED = re.compile(r"\d\s+\d")  # numbers side by side, or a mixed one
_FILLER = frozenset(" ?._-!,;:*\u2026\n\t")


@lru_cache(maxsize=65536)
def canonical(answer: str) -> str | None:
    r"""One text for all equal answers; None for an answer of only dots, question marks and the like.

    Equal are 1,000 and 1000.0, 1/2 and 0.5, $18 and 18, x = 3 and 3, "1, 2" and \{2, 1\}, Paris and paris. Whole
    numbers are exact. Others are equal if they agree in six decimals, below 1 in six significant digits. 50% is 50.
    """
    if answer.isascii() and answer.isdecimal():
        return answer.lstrip("0") or "0"
    if _FILLER.issuperset(answer):
        return None
    if len(answer.strip()) == 1 and answer.strip().isalpha():  # a letter, such as an option's, and not an article
        return answer.strip().upper()
    if (whole := cleaning.TEXT.fullmatch(answer.strip())) and not any(map(str.isdigit, whole[1])):
        return words.normalise(whole[1])
    if cleaning.is_prose(answer) or (_SPACED.search(answer) and "\\" not in answer and "/" not in answer):
        return words.normalise(answer)
    cleaned = cleaning.clean(answer)
    if cleaned is None:
        return words.normalise(answer)
    cleaned = _NAMED.sub("", cleaned, count=1) if _NAMED.match(cleaned) else cleaned
    value = _value(cleaned.removesuffix("%"))
    if value is not None:
        return _decimal(value)
    inside = _SET.fullmatch(cleaned)
    listed = _JOINT.sub(",", inside[1] if inside else cleaned)
    if inside or not re.search(r"[()\[\]{}]", listed):
        parts = [_part(part) for part in listed.split(",")]
        if len(parts) > 1:
            return ",".join(sorted(set(parts)))
    return cleaned.replace(" ", "")


def _part(text: str) -> str:
    text = _NAMED.sub("", text.strip())
    value = _value(text)
    return text.replace(" ", "") if value is None else _decimal(value)


def _value(text: str) -> Fraction | None:
    if _DECIMAL.fullmatch(text):
        return Fraction(text)
    if match := _POWER.fullmatch(text):
        return Fraction(match["value"]) * Fraction(10) ** int(match["exponent"])
    if match := _FRACTION.fullmatch(text):
        above, below = (int(match[x] or match[y] or match[z]) for x, y, z in (("a", "a1", "c"), ("b", "b1", "d")))
        if below:
            value = int(match["whole"] or 0) + Fraction(above, below)
            return -value if match["minus"] else value
    if (tree := arithmetic.parse(text)) is not None:
        return Fraction(arithmetic.evaluate(tree))
    return None


def _decimal(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value)
    if abs(value) < 1:
        return f"{float(value):.6g}"
    scaled = round(value * 10**6)
    whole, rest = divmod(abs(scaled), 10**6)
    digits = f"{whole}.{rest:06}".rstrip("0").rstrip(".")
    return f"-{digits}" if scaled < 0 else digits
