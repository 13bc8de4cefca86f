"""Where in a completion the program is: pieces of text, most likely first, of which the sandbox takes the first that is
Python and defines what the tests call. Nothing is parsed out here."""

from __future__ import annotations

import re
import textwrap

Program = tuple[str, str, bool]  # see `candidate.viable`

_LINE = re.compile(r"([> \t]*)(`{3,}|~{3,})[ \t]*([^`\n]*)")  # a fence on a line of its own
_ANYWHERE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BODY = re.compile(r"(?:[ \t][^\n]*|)(?:\n(?:[ \t][^\n]*|)(?=\n|\Z))*")  # lines that are indented or empty
_START = re.compile(r"^(?:def|class|import|from|async def|@\w)", re.MULTILINE)
_RETURNS = re.compile(r"^[ \t]*(?:return|yield)\b", re.MULTILINE)
_PRINTS = re.compile(r"\bprint\s*\(|\bwrite(?:lines)?\s*\(")


def blocks(text: str) -> list[tuple[str, str]]:
    """Fenced blocks, last first, each after the language that its fence names.

    A fence may be indented, or longer than three marks. A block that the text ends within counts, as does what stands
    before the first fence, where a prompt has opened it: such pieces come after the others.
    """
    inside: list[tuple[str, str]] = []
    outside: list[tuple[str, str]] = []
    opened, indent, language, lines = "", "", "", list[str]()
    for line in re.split(r"\r\n|\r|\n", text):
        fence = _LINE.fullmatch(line)
        if fence and opened and len(fence[1]) > len(indent) + 3:  # in a docstring
            fence = None
        named = bool(fence and fence[3].strip())
        closes = bool(fence and opened and fence[2].startswith(opened) and not named)
        if fence is None or not (closes or not opened or (named and fence[2][0] == opened[0])):
            lines.append(line[len(indent) :] if not line[: len(indent)].strip("> \t") else line)
            continue
        (inside if opened else outside).append((language, "\n".join(lines) + "\n"))
        lines = []
        opened, indent, language = ("", "", "") if closes else (fence[2], fence[1], fence[3].strip().lower())
    (inside if opened else outside).append((language, "\n".join(lines) + "\n"))
    if len(inside) + len(outside) == 1:  # no fence at all
        return []
    anywhere = [("", block) for block in _ANYWHERE.findall(text)]
    found = [*reversed(inside), *reversed(anywhere), *reversed(outside)]
    return [(name, block) for name, block in dict.fromkeys(found) if block.strip()]


def continuing(text: str, prompt: str, entry_point: str) -> list[Program]:
    """Programs of which `entry_point` is a function that `prompt` begins and `text` defines or continues."""
    stub = f"{prompt}    pass\n\n"  # the prompt's imports and helpers, which an answer need not repeat
    pieces = [block for _, block in blocks(text)]
    head = text.partition("```")[0]
    body = _indented(head)
    begun = [text, head, body]
    if re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", text[len(body) :], re.MULTILINE):
        begun = [body]  # it runs on into the same function again: the first one is its answer
    fenced: list[Program] = [(piece, stub + piece, False) for piece in pieces]
    whole: list[Program] = [(piece, stub + piece, True) for piece in _whole(text)]
    more: list[Program] = [("", prompt + piece, True) for piece in [*pieces, *begun] if _is_body(piece)]
    for piece in [each.strip("\r\n") for each in [*pieces, text, head] if _RETURNS.search(each)]:  # blanks are lost,
        if re.search(r"\n(?:return|yield)\b", piece):  # those of all lines,
            more.append(("", prompt + textwrap.indent(piece, "    "), True))
        else:  # or of the first
            line = f"    {piece.lstrip()}\n"
            more += [("", prompt + line, True), ("", prompt + _indented(line), True)]
    found = fenced + (more + whole if _is_body(text) else whole + more)
    return [program for program in dict.fromkeys(found) if program[1].strip()]


def defining(text: str) -> list[Program]:
    """Programs that stand by themselves."""
    pieces: list[Program] = [(block, block, False) for _, block in blocks(text)]
    return [*pieces, *((piece, piece, True) for piece in _whole(text))]


def printing(text: str) -> str:
    """The program that prints: the last block of Python that does, else the last of any language, else the text."""
    found = blocks(text)
    for wanted in (lambda name: name.startswith("py"), lambda name: True):
        for name, block in found:
            if wanted(name) and _PRINTS.search(block):
                return block
    return found[0][1] if found else text


def _whole(text: str) -> list[str]:
    """The text, and the text from where code may begin in it; up to the mark by which MBPP's examples end a program."""
    text = re.split(r"^\[DONE\]", text, maxsplit=1, flags=re.MULTILINE)[0].replace("[BEGIN]\n", "", 1)
    start = _START.search(text)
    return [
        piece for piece in dict.fromkeys([text, text.lstrip(), text[start.start() :] if start else ""]) if piece.strip()
    ]


def _is_body(text: str) -> bool:
    """Whether it can continue a prompt that ends within a function."""
    return bool(text.strip()) and text.lstrip("\r\n")[0] in " \t"


def _indented(text: str) -> str:
    """The function body that a base model's completion starts with, without what it made up after it."""
    match = _BODY.match(text)
    return match[0] if match else ""
