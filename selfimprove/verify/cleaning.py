r"""Cleans a stated answer for comparison: removes delimiters, currency, separators and units.

math-verify reads "18 dollars" as a product of letters, and cannot read "50\%". So gold answer and answer are cleaned
alike before it sees them. This module does not import math-verify, because code that only groups answers uses it too.
"""

from __future__ import annotations

import re
from decimal import Decimal

from selfimprove.verify.characters import fold
from selfimprove.verify.statements import boxed

LONGEST = 500  # most characters of an answer; the parser takes long to fail on longer ones, mostly looping samples

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
CURRENCY = r"$\u20ac\u00a3\u00a5\u20b9\u00a2\u20a9\u20bd\u20ba\u20ab\u0e3f\u20b4\u20aa\u20a6\u20b1\u20bf"  # a class's
QUANTITY = rf"-?(?:{NUMBER})(?:/\d+)?(?:\s*(?:\\?%|percent\b|pct\b))?"
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")

_DONE = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?")
_SPACES = str.maketrans({"\n": " ", "\t": " ", "~": " "})
# A dollar sign opens mathematics before a non-space and closes it after one, unless a digit follows (Pandoc's rule).
SPAN = re.compile(r"\$\$(.+?)\$\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|(?<!\\)\$(?=\S)([^$]*?[^\s$\\])\$(?!\d)")
_JOINED = re.compile(r"(?:[\s,;]|and|or)*")
_CURRENCY = re.compile(
    rf"(?:\b(?:US|HK|CA|AU|NZ|C|A|R|S))?\\?\$|[{CURRENCY}]|\\(?:pounds|euro|yen|cents?|rupee)\b"
    r"|\b(?:Rs\.?|INR|USD|EUR|GBP|CHF|RM)\s*(?=[\d.])"
)
_UPRIGHT = re.compile(r"\\(?:mathrm|operatorname|mathit|rm)\s*\{\s*([ei])\s*\}|\{\\rm\s+([ei])\s*\}")  # \mathrm{e}
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|\\,|\\!,|,\\!|\\? )\d{3})+(?![\d,])")
_SEPARATOR = re.compile(r"[^\d]+")
_SCALE = re.compile(rf"({NUMBER})\s*(?:(thousand|million|billion|trillion)\b|([万萬만亿億억]))", re.IGNORECASE)
_ZEROS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_ZEROS |= dict.fromkeys("万萬만", 4) | dict.fromkeys("亿億억", 8)
_TENS = re.compile(r"(?<=\d)\s*(?:[xX*\u00d7\u00b7]|\\times|\\cdot)\s*10\s*\^\s*\{?([-+]?\d+)\}?")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:percent|\\?%)\s*\}|\b(?:percent|percentage|pct)\b)\s*$", re.I)
_SCIENTIFIC = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)")
_MIXED = re.compile(r"(-?\d+) (\d+)/(\d+)")
_PLAIN = re.compile(r"([+-]?)\s*(\d*)(?:\.(\d*))?")
_SYMBOLS = str.maketrans(
    {
        "\u00b2": "^{2}",
        "\u00b3": "^{3}",
        "\u00bd": "\\frac{1}{2}",
        "\u00bc": "\\frac{1}{4}",
        "\u00be": "\\frac{3}{4}",
        "\u2153": "\\frac{1}{3}",
        "\u2154": "\\frac{2}{3}",
        "\u00d7": "\\times ",
        "\u00b7": "\\cdot ",
        "\u22c5": "\\cdot ",
        "\u00f7": "\\div ",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u2260": "\\neq ",
        "\u00b1": "\\pm ",
        "\u221e": "\\infty ",
        "\u03c0": "\\pi ",
        "\u03b8": "\\theta ",
        "\u222a": "\\cup ",
        "\u2229": "\\cap ",
        "\u2208": "\\in ",
        "\u211d": "\\mathbb{R}",
        "\u00b0": "^\\circ ",
        "\u00ba": "^\\circ ",
    }
)
_ROOT = re.compile(r"\u221a\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[a-zA-Z]))")

# Units

_POWER = r"(?:\s*\^\s*\{?-?\d\}?|[\u00b2\u00b323]|\s+(?:squared|cubed))?"
_LONG = (
    r"(?:[\u03bcmcdkn]m|ft|yd|mi|nmi|in|[\u03bcmk]g|lbs?|oz|[\u03bcmn]s|secs?|mins?|hrs?|[\u03bcmcd][lL]|k[NJWV]|M[JW]|kWh|mA|[kMG]?Hz"
    r"|[kM]?Pa|atm|k?cal|[kMG]?eV|[kMGT]i?B|mol|rad|ha|rpm|[mk]ph|bpm|cc|sq\.?|dB|[kM]?\u03a9)"
)
_SHORT = r"[mgshdlLNJWVAKC]"  # only after a space: 5m may be a product
_DEGREES = r"(?:\^?\s*\{?\\circ\}?|\\degree|[\u00b0\u00ba])\s*[CFK]?(?![a-zA-Z])"
_UNIT = (
    rf"(?:\s*(?:{_LONG}|{_DEGREES})|\s+{_SHORT}|{_SHORT}(?=[\u00b2\u00b3]|/(?:s|h|min)\b)){_POWER}"
    rf"(?:(?:\s*[/*\u00b7\u22c5]\s*|\s*\\cdot\s*|\s+per\s+|\s+)(?:{_LONG}|{_SHORT}){_POWER})*"
)
_FRACTION = r"\\[dt]?frac\s*\{\d+\}\s*\{\d+\}"
_MEASURE = re.compile(
    rf"([+-]?\s*(?:(?:{NUMBER})(?:/\d+| \d+/\d+|\s*{_FRACTION}|[eE][+-]?\d+)?|{_FRACTION})){_UNIT}\.?"
)
_GAPS = re.compile(r"\\[,;:! ]|\s+")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2})(?::\d{2})?)?\s*([ap])\.?\s?m\b\.?|(\d{1,2}):(00)(?![\d:])", re.IGNORECASE)

# Prose

_WORD = re.compile(r"(?<![\\\w])[a-zA-Z]{3,}")
_OTHER_LETTER = re.compile(r"[^\W\d_a-zA-Z\u0370-\u03ff]")  # neither ASCII nor Greek, so not part of a formula
_LEADING = re.compile(rf"({QUANTITY})(?=\s+[a-zA-Z(]|\s*[^\W\d_a-zA-Z]|[,;(]|\s*$)")
_HEDGED = re.compile(  # "5 or maybe 6", "5, 6", "5 apples or 6"; but not "5, since 2 + 3 = 5"
    r"\s*(?:(?:[a-z]+\s+)?(?:,\s*(?:(?:and|or|maybe|perhaps|possibly)\s+)?|(?:or|to|and)\s+(?:[a-z]+\s+)?)"
    r"|[或和到至かや])-?\.?\d",
    re.IGNORECASE,
)
_NUMBERS = re.compile(rf"(?<![a-zA-Z0-9_.\\]){QUANTITY}")
_WORDS = re.compile(r"[^\W\d_]{4,}|[^\W\d_]+(?: [^\W\d_]+){1,4}|[^\W\d_a-zA-Z]+")
_NOT_PROSE = re.compile(
    r"sin|cos|tan|cot|sec|csc|log|exp|sqrt|frac|abs|max|min|mod|gcd|lcm|det|arc\w+|sinh|cosh|tanh|inf|infinity|and"
    r"|\w*matrix|cases|array|begin|end|left|right|cdot|times|plus|minus|over|squared|cubed|factorial|choose"
    r"|hundred|dozen|half|third|quarter|percent|percentage|pct"
)


def clean(answer: str) -> str | None:
    """An answer in the form for comparison. A plain number becomes `-?digits[.digits]%?`.

    None if the text has no single answer: it is too long, or prose with no number or with several to choose from.
    """
    if _DONE.fullmatch(answer):
        return answer
    if len(answer) > LONGEST:
        return None
    text = fold(answer).translate(_SPACES).strip(" *").lstrip(" ,;:=").rstrip(" .,;:")
    while "\\" in text and (box := boxed(text)) is not None:
        text = box
    text = _unspanned(text)
    if (":" in text or "m" in text or "M" in text) and (clock := _CLOCK.match(_unwrapped(text))):
        return _time(clock)
    text = _CURRENCY.sub("", text)
    text = _THOUSANDS.sub(_together, text)
    text = _SCALE.sub(_scaled, text)
    if "\\" in text:
        text = _UPRIGHT.sub(lambda match: f"{{{match[1] or match[2]}}}", text)
        if (whole := TEXT.fullmatch(text.strip())) and any(map(str.isdigit, whole[1])):
            text = whole[1]
    if not text.strip().isdecimal():
        text = _unmeasured(_TENS.sub(r" \\times 10^{\1}", text))
    text = text.lstrip(" ,;:=").rstrip(" .,;:")
    if not text:
        return None
    if is_prose(text):
        if not any(map(str.isdigit, text)):
            if len(text) == 3 and text.isascii():  # "Yes", or the product xyz: math-verify compares both
                return text
            return f"\\text{{{text.lower()}}}" if _WORDS.fullmatch(text) else None
        return _from_prose(text)
    percent = _PERCENT.search(text)
    number = (text[: percent.start()] if percent else text).strip()
    if match := _SCIENTIFIC.fullmatch(number):
        number = f"{match[1]} \\times 10^{{{match[2]}}}"
    elif match := _MIXED.fullmatch(number):
        number = f"{match[1]}\\frac{{{match[2]}}}{{{match[3]}}}"
    elif (match := _PLAIN.fullmatch(number)) and (match[2] or match[3]):
        number = ("-" if match[1] == "-" else "") + (match[2].lstrip("0") or "0") + (f".{match[3]}" if match[3] else "")
    return number + ("%" if percent else "")


def is_prose(text: str) -> bool:
    """Whether a text has words that are not part of a formula."""
    bare = TEXT.sub("", text)
    return bool(_OTHER_LETTER.search(bare)) or any(
        not _NOT_PROSE.fullmatch(word.lower()) for word in _WORD.findall(bare)
    )


def _unspanned(text: str) -> str:
    """The mathematics in a text, without dollar signs or other delimiters."""
    if "$" not in text and "\\" not in text:
        return text
    spans: list[str] = [next(group for group in span if group) for span in SPAN.findall(text)]
    if not spans:
        return text
    if _JOINED.fullmatch(SPAN.sub("", text)):
        return ", ".join(spans)
    return spans[0] if SPAN.match(text) else spans[-1]  # "$5$ because $2 + 3 = 5$", "the cost of $3$ is $15$"


def _together(match: re.Match[str]) -> str:
    """1234 for "1,234", but not for the interval or pair (12,102)."""
    around = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    pair = match[0].count(",") == 1 and around[0] in ("(", "[") and around[1] in (")", "]")
    return match[0] if pair else _SEPARATOR.sub("", match[0])


def _scaled(match: re.Match[str]) -> str:
    """1500000 for "1.5 million"."""
    value = Decimal(match[1]).scaleb(_ZEROS[(match[2] or match[3]).lower()])
    return f"{value.to_integral_value() if value == value.to_integral_value() else value:f}"


def _unwrapped(text: str) -> str:
    """A text without the LaTeX commands for upright letters and for space."""
    return (_GAPS.sub(" ", TEXT.sub(r" \1", text)) if "\\" in text else text).strip()


def _unmeasured(text: str) -> str:
    """A plain number or fraction without its unit; in other texts, Unicode symbols as LaTeX."""
    if match := _MEASURE.fullmatch(_unwrapped(text)):
        return match[1]
    if text.isascii():
        return text
    return _ROOT.sub(lambda match: f"\\sqrt{{{match[1] or match[2]}}}", text).translate(_SYMBOLS)


def _time(clock: re.Match[str]) -> str:
    """A time of day as "10:30 am", "22:30" or "12:00"."""
    hour, minute = int(clock[1] or clock[4]), clock[2] or clock[5] or "00"
    return f"{hour}:{minute}" + (f" {clock[3].lower()}m" if clock[3] else "")


def same_time(one: str, other: str) -> bool | None:
    """Whether two cleaned answers are the same time of day; None if either cannot be one, or neither has to be.

    If only one says am or pm, the other may be in the same half of the day, or on the 24-hour clock.
    """
    a, b = (re.fullmatch(r"(\d{1,2})(?::(\d\d)(?: ([ap])m)?)?", text) for text in (one, other))
    if not a or not b or not (a[3] or b[3] or "00" in (a[2], b[2])):
        return None
    if (a[2] or "00") != (b[2] or "00"):
        return False
    if a[3] and b[3]:
        return a[3] == b[3] and int(a[1]) % 12 == int(b[1]) % 12
    half = a[3] or b[3]
    hours = {int(a[1]), int(b[1])}
    return len(hours) == 1 or (half is not None and hours == {h := min(hours), h + 12} and half == "p")


def _from_prose(text: str) -> str | None:
    """The number at a sentence's start, else the one after its last equals sign, else its only number."""
    if match := _LEADING.match(text):
        return None if _HEDGED.match(text, match.end()) else clean(match[1])
    if "=" in text:
        return clean(text.rpartition("=")[2])
    numbers = set(_NUMBERS.findall(text))
    return clean(numbers.pop()) if len(numbers) == 1 else None
