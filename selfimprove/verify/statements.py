r"""Finds what a completion states as its answer.

Two parts are not read: reasoning (`<think> ... </think>`, and everything after a `<think>` without end), and further
questions with their answers, which a base model likes to add. In the rest, an answer is stated by a box, `#### ...`
(GSM8K), `<answer> ... </answer>`, and "The answer is ..." or "Answer: ...", in several languages. Each check decides
which statement counts: the last one that can answer its kind of question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

MOST = 50  # only this many last statements of a passage are read: a looping sample makes a thousand
FARTHEST = 1000  # most characters of a statement


class Statement(NamedTuple):
    start: int  # its place in the passage
    text: str  # what is stated, verbatim
    kind: Literal["box", "tag", "mark", "phrase", "supposed"]  # supposed: "if the answer is 5"
    denied: bool = False  # "the answer is not 5"


# Passages

_TAG = re.compile(
    r"<(?P<a>/?)(?:think|thinking|thoughts?|reasoning|reflection|scratchpad)>|\[(?P<b>/?)THINK\]"
    r"|◁(?P<c>/?)think▷|<\|(?:begin|(?P<d>end))_of_(?:thought|thinking)\|>",
    re.IGNORECASE,
)
_NEXT = re.compile(
    r"[ \t>*_-]*(?:\#+[ \t*_]*)?"
    r"(?:(?:(?:next|new|another)[ \t]+)?(?:question|problem|exercise|q|human|user|pregunta|frage|domanda|pergunta"
    r"|问题|問題|题目|題目|问|質問|문제|질문|\u0432\u043e\u043f\u0440\u043e\u0441|\u0437\u0430\u0434\u0430\u0447\u0430)"
    r"(?:[ \t]*\#?(?P<number>\d{1,6})(?!\.?\d))?|(?<=\#[ ])(?:instruction|input|task)|example[ \t]+\d+)"
    r"[ \t]*[*_]*[ \t]*(?::|\n|(?<=\d)[.)])",
    re.IGNORECASE,
)
_TURN = re.compile(r"<\|im_start\|>user|<\|im_end\|>|<\|eot_id\|>|<\|end_?of_?text\|>|<\|user\|>|</s>|\[INST\]", re.I)
_REPLY = re.compile(
    r"^[ \t#*_>]*(?:answer|a|solution|response|assistant|答案|答)[ \t*_]*:", re.IGNORECASE | re.MULTILINE
)


def passages(text: str) -> list[str]:
    """The parts of a completion that may hold the answer, one for each question in it. The first that answers counts.

    A new question begins where another turn of a conversation does. It also begins at a line such as "Question:" or
    "### Problem 2" if an answer was stated before it, an empty line precedes it, or "Answer:" follows. "Question 1" and
    those that count on from it begin no new part.
    """
    parts = [text]
    if "<" in text or "[" in text or "◁" in text:
        parts = [part for part in _TURN.split(_spoken(text)) if part.strip()]
    return [passage for part in parts for passage in _questions(part)] if "\n" in text else parts


def _questions(text: str) -> Iterator[str]:
    start, line, looked = 0, text.find("\n") + 1, 0
    first = _NEXT.match(text)
    numbered = first is not None and first["number"] is not None  # the problem itself has several questions
    reply: int | None = None  # where the last answer begins; found when first needed
    while line:
        if match := _NEXT.match(text, line):
            if reply is None:
                reply = max((found.start() for found in _REPLY.finditer(text)), default=-1)
            number = match["number"]
            another = number is None or (int(number) > 1 and not numbered)
            ends = another and (text.endswith("\n\n", start, line) or reply >= match.end())
            numbered = numbered or number is not None
            if not ends and looked < MOST:
                looked += 1
                ends = bool(statements(text[start:line]))
            if ends and text[start:line].strip():
                yield text[start:line]
                start = line
        line = text.find("\n", line) + 1
    yield text[start:]


def _spoken(text: str) -> str:
    """A completion without its reasoning. An end tag without a beginning ends reasoning that the prompt began."""
    kept: list[str] = []
    start, inside = 0, False
    for tag in _TAG.finditer(text):
        if any(tag.groups()):  # an end
            if not inside:
                kept.clear()
            start, inside = tag.end(), False
        elif not inside:
            kept.append(text[start : tag.start()])
            inside = True
    return "\n".join([*kept, text[start:]] if not inside else kept) if start or inside else text


# Statements

_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_ANSWER_TAG = re.compile(r"<answer>(.{0,1000}?)</answer>", re.IGNORECASE | re.DOTALL)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BETWEEN = re.compile(  # boxes of one list: "x = [3], x = [5] or [7]"
    r"(?:[ \t$,;&~]|\n(?!\s*\n)|\\[()\[\],;:! ]|\\q?quad|\\\\|\\(?:text|mbox|textrm|mathrm)\s*\{[\s,;]*(?:and|or)?\s*\}"
    r"|\b(?:and|or)\b|\\?\b[a-zA-Z]+(?:_\{?\w+\}?)?\s*=|(?<=\n)[ \t]*(?:[-*\u2022]|\d+[.)])[ \t])*"
)
_PHRASE = re.compile(
    r"\banswers?\b(?:\s+(?:to|of|for)\s[^.\n]{0,80}?)?[*_]*(?:\s*\([^()\n]{1,40}\))?[*_]*\s*"
    r"(?:(?P<no>(?:can(?:not|'t|\snot)|could(?:n't|\snot)|won't|(?:must|should|would|will)(?:n't|\snot))"
    r"\s+(?:possibly\s+)?be\b(?!\s+(?:determined|found|known|computed|calculated|answered|solved|inferred|concluded)\b)"
    r"|(?:is|are)n't\b)"
    r"|(?:(?:must|should|would|will|has\s+to|turns\s+out\s+to)\s+be|is|are|becomes|equals|comes\s+(?:out\s+)?(?:to|as))\b"
    r"|:|=|(?:->?|=>|\u2192)(?=\s)|(?P<head>\n))[:*_\s]*",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(?:^|\n)[\s#*_]*(?:the\s+)?(?:final\s+)?$", re.IGNORECASE)  # before "Answer" in a heading
_FOREIGN = re.compile(
    "|".join(
        (
            r"(?:答案|答)(?:应该|應該|应|應)?(?:(?P<no>不是|并非)|是|为|為|等于|等於|:)",  # Chinese
            r"(?:答え|解答|正解|答)(?:は|:)",  # Japanese
            r"(?:정답|답)(?:은|:)",  # Korean
            r"\br[eé]ponse(?:\s+finale)?\s*(?:(?P<no2>n'est\s+pas)|est|:|=)",  # French
            r"\b(?:respuesta|risposta|resposta)(?:\s+(?:final|finale|correcta))?\s*(?:(?P<no3>no\s+es|non\s+è|não\s+é)|es\b|è|é|:|=)",
            r"\b(?:antwort|lösung)\s*(?:(?P<no4>ist\s+nicht)|ist\b|lautet\b|:)",  # German
            r"\bantwoord\s*(?:is\b|:)",  # Dutch
            r"\bodpowiedź\s*(?:to\b|:)",  # Polish
            r"\b\u043e\u0442\u0432\u0435\u0442\s*(?:\u0440\u0430\u0432\u0435\u043d\b|-|:)",  # Russian
            r"\bcevap\s*:",  # Turkish
            r"\bjawaban(?:nya)?\s*(?:adalah\b|:)",  # Indonesian
            r"\bjibu\s*(?:ni\b|:)",  # Swahili
            r"\b(?:đáp\s+án|câu\s+trả\s+lời)\s*(?:là\b|:)",  # Vietnamese
            r"คำตอบ(?:คือ|:)",  # Thai
            r"(?:الإجابة|الاجابة|الجواب)(?:\s+النهائية)?\s*(?:(?P<no5>ليست|ليس)|هي|هو|:)",  # Arabic
            r"उत्तर\s*(?:है|:|=|-)?(?=\s)",  # Hindi
            r"উত্তর\s*(?:হল|:)?(?=\s)",  # Bengali
        )
    ),
    re.IGNORECASE,
)
_FOREIGN_WORDS = re.compile("respuesta|risposta|resposta|reponse|antwo|cevap|jawaban|jibu", re.IGNORECASE)
_SAID = re.compile(  # to the end of the formula, line or sentence; the points of "St. Louis" and "U.S." end none
    r"\\\[.{0,2000}?\\\]|\$\$.{0,2000}?\$\$"
    r"|[^\n]+?(?=[.!]?[*_]*(?:\n|$)|(?<!\b(?:St|Dr|Mr|Ms|Mt|vs|Rs|No))(?<!\.\w)[.!][*_]*\s)",
    re.DOTALL,
)
_SUPPOSED = re.compile(
    r"\b(?:if|suppose|supposing|assume|assuming|whether|unless|hope|hoping)\s+(?:that\s+)?(?:\w+\s+){0,2}$", re.I
)
_WRONG = re.compile(
    r"(?:\b(?:wrong|incorrect|mistaken|not\s+(?:the|an?|my|our)|doubt(?:\s+that)?)"
    r"|(?:n't|\bnot)\s+(?:think|believe|say|sure|certain|clear)(?:\s+(?:that|if))?)\s+(?:\w+\s+){0,2}$",
    re.IGNORECASE,
)
NOT = re.compile(
    r"(?:(?:definitely|certainly|clearly|surely|obviously|absolutely|simply|actually|therefore|thus|also|probably|of"
    r" course|in fact|now|then|most)\s+)*(?:not|never|neither|no longer|anything but|different from|other than|unlike"
    r"|far from)\b",
    re.IGNORECASE,
)

ADVERBS = (
    r"(?:(?:indeed|also|therefore|thus|hence|so|now|really|clearly|obviously|actually|definitely|certainly|probably"
    r"|likely|very|quite|already|then|of course|in fact|both|always|still|fully|completely|mathematically|logically"
    r"|well),?\s+)*"
)
REMARK = re.compile(  # words about an answer that give none
    rf"{ADVERBS}(?:correct|incorrect|wrong|accurate|inaccurate|consistent|inconsistent|reasonable|unreasonable|plausible"
    r"|sensible|valid|invalid|verified|confirmed|checked|validated|supported|justified|proved|proven|obtained|derived"
    r"|reached|calculated|computed|determined|based on|complete|clear|obvious|evident|straightforward|good|fine|ok|okay"
    r"|as (?:expected|required|requested|follows|desired|stated|shown)|sound|acceptable|makes? sense|satisf\w+"
    r"|an? (?:valid|reasonable|plausible|sensible|possible|correct|good|nice)"
    r"|the (?:correct|right|required|desired|expected|final) (?:one|answer|value|result|number|choice))(?![a-zA-Z])",
    re.IGNORECASE,
)


def statements(passage: str) -> list[Statement]:
    """All statements of an answer in `passage`, in order. Boxes that form a list are one statement."""
    found: list[Statement] = []
    if "\\boxed" in passage or "\\fbox" in passage:
        found += _lists(passage)
    if "####" in passage:
        found += (Statement(m.start(), m[1], "mark") for m in _HASHES.finditer(passage))
    if "<" in passage and "<answer>" in passage.lower():
        found += (Statement(m.start(), m[1].strip(), "tag") for m in _ANSWER_TAG.finditer(passage))
    if "nswer" in passage or "NSWER" in passage:
        found += _phrases(_PHRASE, passage)
    if not passage.isascii() or (not found and _FOREIGN_WORDS.search(passage)):
        found += _phrases(_FOREIGN, passage)
    return sorted(found, key=lambda statement: statement.start)[-MOST:] if len(found) > 1 else found


def is_idle(statement: Statement) -> bool:
    """Whether a statement gives no answer: a supposition, a denial, a remark on the answer."""
    remark = statement.kind == "phrase" and REMARK.match(statement.text) is not None
    return remark or statement.denied or statement.kind == "supposed"


def stated(text: str) -> str | None:
    """The last statement of the first passage that has one, verbatim; None if there is none."""
    for passage in passages(text):
        for statement in reversed(statements(passage)):
            if not is_idle(statement):
                return statement.text
    return None


def _phrases(pattern: re.Pattern[str], text: str) -> Iterator[Statement]:
    for match in list(pattern.finditer(text))[-MOST:]:
        start = match.start()
        before = text[max(text.rfind("\n", 0, start), text.rfind(". ", 0, start), start - 40, 0) : start]
        if match.lastgroup == "head" and not _HEADING.search(before):
            continue
        if answer := _SAID.match(text, match.end(), match.end() + FARTHEST):
            if len(before) > 2 and _SUPPOSED.search(before):
                yield Statement(start, answer[0], "supposed")
                continue
            denied = (match.lastgroup or "").startswith("no") or NOT.match(answer[0]) is not None
            denied = denied or (len(before) > 5 and _WRONG.search(before) is not None)
            yield Statement(start, answer[0], "phrase", denied)


def last_box(text: str) -> tuple[int, str | None]:
    """Start and content of the outermost box that closes last; (-1, None) without one."""
    boxes = _boxes(text)
    return (boxes[-1][0], text[boxes[-1][1] : boxes[-1][2]]) if boxes else (-1, None)


def boxed(text: str) -> str | None:
    """The content of a text's last box, or of the last boxes that form a list."""
    boxes = list(_lists(text)) if "\\boxed" in text or "\\fbox" in text else []
    return boxes[-1].text if boxes else None


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Start, content's start and content's end of each outermost box. It takes one pass, however deep they nest."""
    found: list[tuple[int, int, int]] = []
    first = min((i for i in (text.find("\\boxed"), text.find("\\fbox")) if i >= 0), default=len(text))
    opened: list[tuple[int, int] | None] = []  # start and content's start of a box, None for another brace
    for match in _BRACES.finditer(text, first):
        if match[0] == "}":
            if opened and (box := opened.pop()):
                while found and found[-1][0] > box[0]:
                    found.pop()
                found.append((*box, match.start()))
        elif match[0] == "{":
            opened.append(None)
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append((match.start(), match.end()))
    return found


def _lists(text: str) -> Iterator[Statement]:
    """One statement for each box, or for a list of boxes with only commas, "and", "or" and "x =" between them."""
    group: list[str] = []
    start = end = 0
    for begin, inner, close in _boxes(text):
        if group and not _BETWEEN.fullmatch(text, end, begin):
            yield Statement(start, ", ".join(dict.fromkeys(group)), "box")
            group = []
        group.append(text[inner:close].strip())
        start, end = begin, close + 1
    if group:
        yield Statement(start, ", ".join(dict.fromkeys(group)) if len(group) > 1 else group[0], "box")
