"""Checks which of the options in `metadata["options"]` a completion chooses: by its letter, its text, or both.

The answer is the first of these that there is:

- the last statement (`selfimprove.verify.statements`) that names an option;
- a letter alone on the last line, or one that leads the text ("(B) copper. Explanation: ...");
- the one option that the text takes ("B is correct", "I would pick B");
- the one option that it names without denying it ("not B", "B is wrong").

An answer that names several options, or the letter of one and the text of another, is `unparseable`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Any

from selfimprove.verify import Outcome
from selfimprove.verify.characters import fold
from selfimprove.verify.statements import NOT, is_idle, passages, statements
from selfimprove.verify.text import normalise

_WRAPPING = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}|\\[()\[\]]|[*$]")
_LABEL = r"(?:(?:option|choice|answer|letter)\s+)?"
_ALONE = re.compile(rf"{_LABEL}[(\[]? ?([A-Za-z]|\d\d?) ?[)\]]? ?[.):,;!]?", re.IGNORECASE)
_LED = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\(([A-Za-z]|\d\d?)\)|([A-Z]|[a-z](?=\))|\d(?=\)|[.:]\s))"
    r"(?:[.):,;]|\s+(?=because|since|as\b|[-\u2013\u2014])))\s*(.*)",
    re.DOTALL,
)
_EDGE = r"a-zA-Z0-9_'\u00c0-\u024f\u0370-\u052f"  # a letter beside one is part of a word; Chinese ones are not here
_BEFORE, _AFTER = rf"(?<![{_EDGE}\\])", rf"(?![{_EDGE}])"
_NO_ARTICLE = r"(?=\s*[,.:;)\]/&?!]|\s+(?:or|and|nor|is|isn't|cannot|can't|because|remains)\b|\s*$)"  # after a lone A
_LETTERS = re.compile(
    rf"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice)\s+([A-Z])\b|{_BEFORE}([B-HJ-Z]){_AFTER}|{_BEFORE}([A]){_AFTER}{_NO_ARTICLE}"
)
_REASONS = re.compile(r"\b(?:explanation|reason(?:ing|s)?|rationale|justification|because|since|as|for|note)\b", re.I)
_FORMULA = re.compile(r"\\[a-zA-Z]|[=^_]|\b[A-Z]\s+[A-Z]\b")  # letters in a formula name no options
_FORMULAS = re.compile(
    r"\\boxed\s*\{.*|\\\[.{0,500}?\\\]|\\\(.{0,500}?\\\)|(?<!\\)\$[^$\n\\=^_]{0,500}[\\=^_][^$\n]{0,500}\$"
)
_NUMERIC = re.compile(r"\s*[-+$\u20ac\u00a3]?\.?\d")

# Around the name of an option, in one clause

_NOT_BEFORE = (
    r"(?i:(?:\b(?:not|never|cannot|neither|nor|unlike|if|whether|suppose|unless|except(?:\s+for)?|doubt|avoid|ignore"
    r"|rul(?:e|es|ed|ing)(?:\s+out)?|eliminat(?:e|es|ed|ing)|exclud(?:e|es|ed|ing)|(?:reject|discard)(?:s|ed|ing)?"
    r"|dismiss(?:es|ed|ing)?|cross(?:es|ed|ing)?\s+out|(?:rather|other)\s+than|instead\s+of|far\s+from"
    r"|(?:anything|all|everything|everyone)\s+but)\b|\b(?:wrong|incorrect|false)\s*:|n't\b|不是|并非|不选|排除)"
    r"(?:\s+(?:be|been|the|an?|options?|choices?|answer|letter|statement|case|either|possibly|really|actually|sure|if"
    r"|whether|that|necessarily|simply|just|any|of|it|is|to|select|choose|choosing|pick|picking|say|go|going|with|think"
    r"|believe|me|in|for|both|correct|right|true|likely|final)\b)*[\s(\[\"'*]*)"
)
_NOT_AFTER = (
    r"(?i:[\s)\]\"'*.]*(?:\b(?:is|are|was|were|seems?|looks?|(?:would|must|can|could|should|may)\s+be)\s+"
    r"(?:(?:\w+ly|both|all|also|therefore|thus)\s+)*(?:not|wrong|incorrect|false|untrue|invalid|impossible|unlikely"
    r"|irrelevant|out|eliminated|excluded|ruled|discarded|rejected|dismissed|inaccurate|mistaken|implausible|unsupported)\b"
    r"|\b(?:is|are|was|does|do|did|ca|could|wo|would|has|have)n't\b|\b(?:can|could|does|do|did|will|would)\s*not\b"
    r"|\bfails?\b|[-\u2013\u2014:(]\s*(?:wrong|incorrect|false|no\b)|\?(?!\s*(?:yes|correct|right)\b)"
    r"|不对|错误|不正确))"
)
_TAKEN_BEFORE = (
    r"(?i:(?:\b(?:(?:pick|choose|select|chose|opt\s+for|vote\s+for|go(?:ing)?\s+with|answer\s+with)(?:s|ing)?"
    r"|(?:correct|right|best|true|final|most\s+\w+)\s+(?:(?:answer|option|choice|statement|one|response)\s*)?"
    r"(?:is|would\s+be|must\s+be))\b|\b(?:choice|option|pick)\s*:|选(?:择)?|正确\w*是)"
    r"(?:\s+(?:the|option|choice|answer|statement|letter|therefore|thus)\b)*[\s:(\[\"'*]*)"
)
_TAKEN_AFTER = (
    r"(?i:[\s)\]\"'*]*\b(?:is|must\s+be|would\s+be|seems|looks)\s+(?:(?:\w+ly|the|a|my)\s+)*(?:correct|right|best|true"
    r"|answer|most\s+\w+|closest|only\s+\w+)\b)"
)
_SO = r"(?i:\b(?:therefore|thus|hence|so)\b[\s,:]*(?:(?:it\s+(?:is|must\s+be)|the|option|choice)\s+)*\(?)"  # "Hence B."
_REFUTED = (
    r"(?i:[\s)\]\"'*]*\b(?:(?:is|was)\s+(?:wrong|incorrect)"
    r"|(?:is\s+not|was\s+not|isn't|wasn't)\s+(?:the\s+)?(?:correct|right|answer))\b)"
)


def check(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """Check whether `text` chooses the gold option. `gold` is that option's letter, number or text."""
    options = metadata.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= 26 or not all(isinstance(o, str) for o in options):
        return Outcome("error", 0.0, reason="metadata has no list `options` of 2 to 26 texts")
    right = choose(gold or "", options)
    if len(right) != 1:
        return Outcome("error", 0.0, reason=f"gold answer {gold!r} names {len(right) or 'none'} of the options")
    chosen = chosen_in(text, options)
    letters = [string.ascii_uppercase[i] for i in sorted(chosen)]
    if len(chosen) != 1:
        return Outcome("unparseable", 0.0, reason=f"chooses {' and '.join(letters) or 'no option'}")
    return Outcome("correct", 1.0, letters[0]) if chosen == right else Outcome("wrong", 0.0, letters[0])


def reference(gold: str, metadata: dict[str, Any], **options: Any) -> str:
    return f"The answer is ({gold})" if len(gold) == 1 else f"Answer: {gold}"


def chosen_in(text: str, options: list[str]) -> set[int]:
    """Indices of the options that a completion chooses: one if the choice is clear."""
    for passage in passages(fold(text)):
        if chosen := _chosen(passage, options):
            return chosen
    return set()


def _chosen(passage: str, options: list[str]) -> set[int]:
    gone: set[int] = set()  # options that a later sentence takes back
    for statement in reversed(statements(passage)):
        if is_idle(statement) and not statement.denied and not _whole(statement.text, options):
            continue
        named = choose(statement.text, options, led=True)
        if statement.denied and not NOT.match(statement.text):  # "a wrong answer is B", "the answer cannot be B"
            gone |= named
            continue
        gone |= _refuted(passage[statement.start :], named, options)
        if named - gone:
            return named - gone
    lines = passage.strip().splitlines()
    for line in (lines[-1:], lines[:1]):
        if line and (alone := _ALONE.fullmatch(_bare(line[0]))) and (index := _index(alone[1], options)) is not None:
            return {index}
    if (led := _leading(passage, options)) is not None:
        return {led}
    return choose(_FORMULAS.sub(" ", passage), options) - gone


def _leading(passage: str, options: list[str]) -> int | None:
    """The option whose letter a text begins with and explains, where it does not go on to list the others."""
    match = _LED.fullmatch(_bare(passage))
    index = _index(match[1] or match[2], options) if match else None
    if match is None or index is None:
        return None
    if re.match(r"\W*(?:wrong|incorrect|false|no|not)\b", match[3], re.IGNORECASE):
        return None
    words = _REASONS.split(match[3].partition("\n")[0], maxsplit=1)[0]
    rest = "" if match[3].startswith(("-", "\u2013", "\u2014")) else normalise(words)
    if rest and rest != normalise(options[index]):
        return None
    return None if index == 0 and re.match(r"\s*\(?B[).:]", match[3][len(words) :]) else index


def choose(answer: str, options: list[str], led: bool = False) -> set[int]:
    """Indices of the options that `answer` names: one if the answer is clear.

    led: if the answer begins with a letter, "(B) because ...", only another option's text counts beside it.
    """
    answer = _bare(fold(answer))
    if (match := _ALONE.fullmatch(answer)) and (letter := _index(match[1], options)) is not None:
        return {letter}
    if whole := _whole(answer, options, exactly=True):
        return whole
    match = _LED.fullmatch(answer) if led else None  # before articles are removed, which makes "A) ill" "ill"
    if match and (letter := _index(match[1] or match[2], options)) is not None:
        texts = [normalise(option) for option in options]
        found = {letter} | {i for i, text in enumerate(texts) if text == normalise(match[3]) != texts[letter]}
        also = _LETTERS.match(re.sub(r"^(?:and|or)\s+", "", match[3]))  # "A, B"
        other = _index(next(filter(None, also.groups())), options) if also else None
        return found if other is None else found | {other}
    if whole := _whole(answer, options):
        return whole
    return set() if led and _FORMULA.search(answer) else _named(answer, options)


def _bare(text: str) -> str:
    """A text without emphasis, dollar signs and the commands for upright letters."""
    return _WRAPPING.sub(lambda match: match[1] or "", text).strip()


def _whole(answer: str, options: list[str], exactly: bool = False) -> set[int]:
    """The options whose text is `answer`."""
    if exactly:
        bare = answer.strip(" .!\n").lower()
        return {i for i, option in enumerate(options) if option.strip().lower() == bare}
    return {i for i, option in enumerate(options) if normalise(option) == normalise(answer)}


def _named(answer: str, options: list[str]) -> set[int]:
    """The options that `answer` takes ("B is correct"), else those that it names without denying them."""
    texts = [normalise(option) for option in options]
    letters = {_index(next(filter(None, found)), options) for found in _LETTERS.findall(answer)}
    named = {i for i, text in enumerate(texts) if _contains(answer, text)}
    # "New York" does not name the option "York" as well
    named -= {i for i in named for j in named if texts[i] != texts[j] and _contains(texts[j], texts[i])}
    found = {letter for letter in letters if letter is not None} | named
    names = {i: _name(i, options) for i in found}
    any_name = "|".join(names.values())
    listed = (
        rf"(?:(?:{any_name})\)?\s*(?:,\s*(?:and\s+|or\s+)?|\band\s+|\bor\s+|\bnor\s+|&\s*)\(?){{0,26}}" if names else ""
    )
    after = rf"(?:\)?\s*(?:,\s*(?:and\s+|or\s+)?|\band\s+|\bor\s+|&\s*)\(?(?:{any_name})){{0,26}}"
    denied = {
        i
        for i, name in names.items()
        if _count(name, answer)
        <= _count(rf"{_NOT_BEFORE}{listed}(?:{name})", answer) + _count(rf"(?:{name}){after}{_NOT_AFTER}", answer)
    }
    rest = found - denied
    taken = {
        i
        for i in rest
        if re.search(
            rf"{_TAKEN_BEFORE}(?:{names[i]})|(?:{names[i]}){_TAKEN_AFTER}|{_SO}(?:{names[i]})[)*\s]*(?:[.!]|$)", answer
        )
    }
    return taken or rest


def _refuted(text: str, named: Iterable[int], options: list[str]) -> set[int]:
    """Which of the options `named` the text takes back: "the answer is B. No, B is wrong". It begins where they are."""
    if not re.search(r"\bnot\b|n't\b|wrong|incorrect", text):
        return set()
    return {
        i
        for i in named
        if (name := _name(i, options))
        and re.search(rf"(?i:\b(?:it\s+is|it's|be)\s+not\s+(?:option\s+)?)\(?(?:{name})|(?:{name}){_REFUTED}", text)
    }


def _name(index: int, options: list[str]) -> str:
    """A pattern for an option's letter, or its text with any spaces and punctuation between the words."""
    letter = string.ascii_uppercase[index]
    words = r"[\W_]+".join(map(re.escape, re.findall(r"\w+", options[index])))
    text = rf"(?i:(?<!\w){words}(?!\w))" if words else r"(?!)"
    lone = rf"{_BEFORE}{letter}{_AFTER}" + (_NO_ARTICLE if letter in "AI" else "")
    return rf"(?:\({letter}\)|\b[OoCc](?:ption|hoice)\s+{letter}\b|{lone})(?:[\s:.)*-]{{0,3}}{text})?|{text}"


def _count(pattern: str, text: str) -> int:
    return sum(1 for _ in re.finditer(pattern, text))


def _index(label: str, options: list[str]) -> int | None:
    """The option of a letter, or of a number from 1 on if no option is a number."""
    if label.isdigit():
        index = int(label) - 1
        return index if 0 <= index < len(options) and not any(map(_NUMERIC.match, options)) else None
    index = string.ascii_uppercase.index(label.upper())
    return index if index < len(options) else None


def _contains(text: str, words: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(words)}(?!\w|\.\w)", normalise(text)) is not None
