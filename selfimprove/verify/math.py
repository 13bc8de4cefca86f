r"""Checks a mathematical answer against the gold answer, with Hugging Face math-verify.

The answer is the last statement that can be one (`selfimprove.verify.statements`). A remark on the answer ("This answer
is reasonable") is none, nor is a denial ("The answer is not 5"). Answer and gold answer are cleaned alike
(`selfimprove.verify.cleaning`). Two plain numbers are compared here. Everything else goes to math-verify, which uses
our test for equal numbers and has no timer here: run this in a `Pool`.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any, Literal

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float, nan, oo, zoo
from sympy.printing.latex import LatexPrinter

from selfimprove.verify import Outcome, values
from selfimprove.verify.characters import fold
from selfimprove.verify.cleaning import CURRENCY, LONGEST, NUMBER, QUANTITY, SPAN, clean, is_prose, same_time
from selfimprove.verify.statements import ADVERBS, NOT, REMARK, passages, statements

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns about each call without a timer
values.stand_in()

_PRINTER = LatexPrinter()

Fallback = Literal["last_number", "none"]

_LETTERS = r"a-zA-Z0-9_\u00c0-\u024f\u0370-\u052f"  # a digit beside one is part of a name: x2, but not 第2
_LAST_NUMBER = re.compile(
    rf"(?<![{_LETTERS}.\\])(?:(?<![\d)}}])-\s?)?[{CURRENCY}]?(?:\d{{1,2}}:\d\d?(?!\d)(?:\s?[ap]\.?m\b)?|(?:{NUMBER})"
    r"(?:[eE][-+]?\d+|\s?(?:\\times|\\cdot|[x\u00d7\u00b7])\s?10\^\{?-?\d+\}?)?(?:/\d+|\s?\\?%)?"
    r"(?:\s*(?:[万萬만亿億억]|(?:thousand|million|billion|trillion)\b))?)"
)
_PLAIN = re.compile(r"-?\d{1,15}(?:\.\d+)?%?")
_BARE = re.compile(r"[-+.\\(\[{$]*\d|[-+]?\\[a-zA-Z({\[]|[a-zA-Z]\s?=")  # the start of a bare formula
_QUICK = re.compile(r"\$?[0-9][0-9.,]*")  # a number and nothing else
_AMOUNT = rf"(?:\\?[{CURRENCY}]|\\\(|\s)*({QUANTITY})(?![.,]?\d)"
_DENIED = re.compile(
    r"(?:\bnot\b|n't\b|\bnever\b|\bcannot\b|\brather than\b|\binstead of\b|\bno longer\b"
    r"|\bdifferent from\b|\bother than\b|\bfar from\b|\banything but\b|\bneither\b|\bnor\b"
    r"|不是|不等于|并非)"
    rf"(?:\s*\b(?:be|been|equals?|to|exactly|simply|just|the|an?|actually|really|necessarily|answer|is)\b)*{_AMOUNT}",
    re.IGNORECASE,
)
_UNEQUAL = re.compile(rf"(?:\u2260|\\neq?\b){_AMOUNT}")
_REFUTED = re.compile(
    rf"(?<![{_LETTERS}.\\])({QUANTITY})(?:\s*(?:\$|\\\)))?"
    r"(?:\s+(?:is|was|would\s+be)\s+(?:also\s+)?"
    r"(?:(?:not|n't)\s+(?:the\s+)?(?:correct|right|answer|possible)|wrong|incorrect|impossible|too\s+\w+)\b"
    r"|\s*(?:では(?:な|ありません)|じゃな|[이가]?\s*아니))",
    re.IGNORECASE,
)
_VAGUE = re.compile(rf"{ADVERBS}(?:between|either|somewhere|anywhere|from\s+\S?\d)", re.IGNORECASE)
_NO_QUANTITY = re.compile(  # starts of sentences about an answer, never of a mathematical answer
    rf"{ADVERBS}(?:shown|found|expected|as|required|done|final|simple|easy|given|within|below|above|less|more|greater"
    r"|smaller|larger|at (?:least|most)|close|near|exact|rounded|simplified|written|expressed|represented|boxed|stated"
    r"|presented|independent|dependent|optional|needed|dimensionally|too|great|first|step|this|it(?!\s+is)|we|what"
    r"|because|since|how|where|when|if|to|for|from|by|with|without|of|on|in|under|over|let'?s|let us|let me"
    r"|an? (?:positive|negative|whole|natural|even|odd|prime|real|rational|irrational|unique|single|simple|finite"
    r"|perfect|proper|non-?negative|nonzero|two-digit|three-digit|multiple|number|value|integer|fraction|decimal|solution)"
    r"|the (?:same|only|sum of|product of|number of|value of)"
    r"|not (?:an?|in|on|the|only|always|yet|as|so|simply|just|clear|obvious|surprising))(?![a-zA-Z])",
    re.IGNORECASE,
)
_WEAK = re.compile(  # words that count as an answer only if no other is stated
    rf"{ADVERBS}(?:right|true|false|even|odd|positive|negative|prime|unique|impossible|possible|undefined|unknown|real"
    r"|rational|irrational|finite|infinite)[\s.!*]*(?:[.,]|$|\b(?:and|as|since|because)\b.*)",
    re.IGNORECASE,
)
_HEADING = re.compile(  # starts of Markdown headings, which also have "####"
    r"[*_\s]*(?:step|verif\w+|conclusion|solution|check\w*|explanation|summary|part|case|note|analysis|final answer"
    r"|answer|calculat\w+|understand\w*|approach|method|result|\d+\.\s+[a-z])\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"(?:\\text\s*\{)?[\s.?\u2026_]*(?:(?:your|the|final)\s+)*(?:answer|result)?[\s.?\u2026_]*(?:here)?[\s.]*\}?", re.I
)


def check(text: str, gold: str | None, metadata: dict[str, Any], *, fallback: Fallback = "last_number") -> Outcome:
    """Check whether the answer stated in `text` equals `gold`.

    With `fallback: last_number` the last number is the answer of a text that states none; with `none` it is not.
    """
    if gold is None or not gold.strip():
        return Outcome("error", 0.0, reason="the problem has no gold answer")
    expected = clean(gold)
    if expected is None or expected.lower() == "nan":
        return Outcome("error", 0.0, reason=f"gold answer {gold!r:.80} is not one answer")
    if not _is_number(expected) and (fault := _fault(expected)):
        return Outcome("error", 0.0, reason=f"gold answer {gold!r:.80}: {fault}")
    found = extract(text, fallback)
    if found is None:
        return Outcome("unparseable", 0.0, reason="no answer is stated")
    answer = clean(found)
    if answer is None or answer.lower() == "nan":
        return Outcome("unparseable", 0.0, found[:LONGEST], reason="what is stated is not one answer")
    equal = compare(expected, answer)
    if equal is None:
        return Outcome("unparseable", 0.0, answer, reason="the answer cannot be read as mathematics")
    answer = answer if _is_number(answer) else simplest(answer)
    return Outcome("correct", 1.0, answer) if equal else Outcome("wrong", 0.0, answer)


def reference(gold: str, metadata: dict[str, Any], **options: Any) -> str:
    return f"The answer is \\boxed{{{gold}}}."


# Which statement counts


def extract(text: str, fallback: Fallback) -> str | None:
    """The answer of a completion, verbatim; or, with `fallback: last_number`, its last number that is not denied."""
    for passage in passages(fold(text)):
        answer = _answer(passage, fallback)
        if answer is not None:
            return answer
    return None


def _answer(passage: str, fallback: Fallback) -> str | None:
    denied: set[str | None] = set()
    supposed: set[str | None] = set()
    weak = vague = None
    for statement in reversed(statements(passage)):
        said = statement.text
        if not statement.denied and statement.kind != "supposed" and _QUICK.fullmatch(said):
            pass
        elif statement.kind == "supposed":
            supposed.add(clean(said.partition(",")[0]))
            continue
        elif statement.kind == "phrase":
            said, numbers = _affirmed(said)
            if statement.denied and not NOT.match(statement.text):  # "cannot be 5"; "not 5 but 6" is one as well
                numbers, said = [*numbers, clean(said)], ""
            denied.update(numbers)
            if statement.denied or numbers:
                if not any(map(str.isdigit, said)):
                    continue
                if not _BARE.match(said.lstrip()):  # "not 6; it is 5", but "5, since 2 + 3 is not 6"
                    said = _answer(said, "last_number") or said
            if _WEAK.match(said):
                weak = weak or said
                continue
            if _VAGUE.match(said):
                vague = said
                continue
            if REMARK.match(said) or _NO_QUANTITY.match(said):
                continue
        elif _HEADING.match(said) if statement.kind == "mark" else _PLACEHOLDER.fullmatch(said[:60]):
            continue
        elif statement.kind == "tag" and (is_prose(said) or clean(said) is None):
            said = _answer(said, "last_number") or said
        if not denied or clean(said) not in denied:
            return said
    if weak or vague or fallback == "none" or denied:
        return weak or vague
    whole = passage.strip()
    if len(whole) < 60 and _BARE.match(whole) and "\n" not in whole and not is_prose(whole) and clean(whole):
        return whole
    rest, refuted = _affirmed(_UNEQUAL.sub(" ", passage))
    supposed.update(refuted)
    found = None
    for match in _LAST_NUMBER.finditer(rest):
        if not supposed or clean(match[0]) not in supposed:
            found = match
    return found and (_formula(rest, found.start()) or found[0])


def _formula(text: str, place: int) -> str | None:
    """The LaTeX formula around a place in a text, or its part after the last equals sign."""
    for span in SPAN.finditer(text) if "\\" in text else ():
        inner: str = next(filter(None, span.groups()))
        if span.start() < place < span.end() and "\\" in inner:
            after = inner.rpartition("=")[2]
            return after if after.count("{") == after.count("}") else inner
    return None


def _affirmed(text: str) -> tuple[str, list[str | None]]:
    """The text without the numbers that it denies, and those numbers, cleaned."""
    denied: list[str | None] = []

    def drop(match: re.Match[str]) -> str:
        denied.append(clean(match[1]))
        return " "

    return _REFUTED.sub(drop, _DENIED.sub(drop, text)), denied


# Equality


def _is_number(cleaned: str) -> bool:
    return len(cleaned) < 16 and _PLAIN.fullmatch(cleaned) is not None


def compare_short(gold: str, answer: str) -> bool | None:
    """Whether two cleaned answers are equal, as in `values.equal_numbers`; None if plain arithmetic cannot tell."""
    if gold == answer:
        return True
    if "%" in gold or "%" in answer or not _is_number(gold) or not _is_number(answer):
        return None
    if "." not in gold and "." not in answer:
        return int(gold) == int(answer)
    a, b = float(gold), float(answer)
    difference, scale = abs(a - b), max(abs(a), abs(b))
    if difference <= values.TOLERANCE * min(1, scale) or difference > 2 * values.TOLERANCE * max(1, scale):
        return difference <= values.TOLERANCE * min(1, scale)
    return "." in gold and "." in answer and values.cut((gold, answer), difference, scale)


@lru_cache(maxsize=16384)
def compare(gold: str, answer: str) -> bool | None:
    """Whether two cleaned answers are equal; None if the second cannot be read.

    Results are cached in the process, because samples of a problem, also in later rounds, often state the same answers.
    A comparison that raises, hangs or dies is not cached.
    """
    equal = compare_short(gold, answer)
    if equal is None and (":" in gold or ":" in answer):
        equal = same_time(gold, answer)
        if equal is None and same_time(gold, gold):  # gold is a time and the answer is not
            return False
    if equal is not None:
        return equal
    parsed = _parse(answer)
    return bool(verify(_parse(gold), parsed, timeout_seconds=None, raise_on_error=True)) if parsed else None


@lru_cache(maxsize=16384)
def simplest(cleaned: str) -> str:
    r"""A cleaned formula in one form for all of its value: 2 \sqrt{2} for \sqrt{8}. Other answers are unchanged.

    So equal answers have equal texts when they are grouped (`selfimprove.verify.equality`).
    """
    parsed = _parse(cleaned)
    value = parsed[0] if parsed else None
    if (
        not isinstance(value, Expr)
        or value.has(Float, nan, oo, zoo)
        or not any(map(str.isdigit, cleaned))
        or cleaned.endswith("%")
    ):
        return cleaned
    try:
        return str(_PRINTER.doprint(values.evaluated(value) if value.is_number else value.expand()))
    except ValueError:  # a whole number of more digits than Python writes out
        return cleaned


@lru_cache(maxsize=1024)
def _fault(gold: str) -> str | None:
    """Why this cleaned gold answer cannot be compared; None if it can."""
    if same_time(gold, gold):
        return None
    parsed = _parse(gold)
    if not parsed:
        return "cannot be read as mathematics"
    try:
        same = verify(parsed, parsed, timeout_seconds=None, raise_on_error=True)
    except (ValueError, TypeError, AttributeError) as error:
        return f"cannot be compared ({error})"
    return None if same else "is not equal to itself"


@lru_cache(maxsize=1024)
def _parse(cleaned: str) -> list[Any]:
    """A cleaned answer as math-verify parses it; empty if it cannot. Do not change the list: it is cached."""
    latex = f"${cleaned[:-1]}$%" if cleaned.endswith("%") else f"${cleaned}$"
    parsed: list[Any] = parse(latex, [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    return parsed
