"""Finds where in a completion the program may be: pieces of text, the most likely first.

The sandbox takes the first piece that is Python and defines what the tests call. This module does not parse Python.
"""

from __future__ import annotations

import re
import textwrap

Program = tuple[str, str, bool]  # see `candidate.viable`

_LINE = re.compile(r"([> \t]*)(`{3,}|~{3,})[ \t]*([^`\n]*)")  # a fence alone on its line
_ANYWHERE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BODY = re.compile(r"(?:[ \t][^\n]*|)(?:\n(?:[ \t][^\n]*|)(?=\n|\Z))*")  # lines that are indented or empty
_START = re.compile(r"^(?:def|class|import|from|async def|@\w)", re.MULTILINE)
_RETURNS = re.compile(r"^[ \t]*(?:return|yield)\b", re.MULTILINE)
_PRINTS = re.compile(r"\bprint\s*\(|\bwrite(?:lines)?\s*\(")


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, block) of the fenced blocks, last first.

    A fence may be indented, or longer than three marks. The last block may be unfinished. Text outside fences counts
    too, since the prompt may have opened a fence, but comes after the others.
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
    if len(inside) + len(outside) == 1:  # no fences
        return []
    anywhere = [("", block) for block in _ANYWHERE.findall(text)]
    found = [*reversed(inside), *reversed(anywhere), *reversed(outside)]
    return [(name, block) for name, block in dict.fromkeys(found) if block.strip()]


def continuing(text: str, prompt: str, entry_point: str) -> list[Program]:
    """Programs with the function `entry_point`, which `prompt` begins and `text` defines or continues."""
    stub = f"{prompt}    pass\n\n"  # the prompt's imports and helpers, which an answer need not repeat
    pieces = [block for _, block in blocks(text)]
    head = text.partition("```")[0]
    body = _indented(head)
    begun = [text, head, body]
    if re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", text[len(body) :], re.MULTILINE):
        begun = [body]  # the text goes on to define the function again: the first one is the answer
    fenced: list[Program] = [(piece, stub + piece, False) for piece in pieces]
    whole: list[Program] = [(piece, stub + piece, True) for piece in _whole(text)]
    bodies: list[Program] = [("", prompt + piece, True) for piece in [*pieces, *begun] if _is_body(piece)]
    for piece in [part.strip("\r\n") for part in [*pieces, text, head] if _RETURNS.search(part)]:  # indents are lost:
        if re.search(r"\n(?:return|yield)\b", piece):  # those of all lines,
            bodies.append(("", prompt + textwrap.indent(piece, "    "), True))
        else:  # or the first line's
            line = f"    {piece.lstrip()}\n"
            bodies += [("", prompt + line, True), ("", prompt + _indented(line), True)]
    candidates = fenced + (bodies + whole if _is_body(text) else whole + bodies)
    return [program for program in dict.fromkeys(candidates) if program[1].strip()]


def defining(text: str) -> list[Program]:
    """Programs that do not continue a prompt."""
    pieces: list[Program] = [(block, block, False) for _, block in blocks(text)]
    return [*pieces, *((piece, piece, True) for piece in _whole(text))]


def printing(text: str) -> str:
    """The last Python block that prints, else the last block that prints, else the last block, else `text`."""
    found = blocks(text)
    for wanted in (lambda name: name.startswith("py"), lambda name: True):
        for name, block in found:
            if wanted(name) and _PRINTS.search(block):
                return block
    return found[0][1] if found else text


def _whole(text: str) -> list[str]:
    """The text, and the text from where code may begin, up to the mark that ends a program in MBPP's examples."""
    text = re.split(r"^\[DONE\]", text, maxsplit=1, flags=re.MULTILINE)[0].replace("[BEGIN]\n", "", 1)
    start = _START.search(text)
    return [
        piece for piece in dict.fromkeys([text, text.lstrip(), text[start.start() :] if start else ""]) if piece.strip()
    ]


def _is_body(text: str) -> bool:
    """Whether a text can continue a prompt that ends inside a function."""
    return bool(text.strip()) and text.lstrip("\r\n")[0] in " \t"


def _indented(text: str) -> str:
    """The function body at the start of a base model's completion, without the text after it."""
    match = _BODY.match(text)
    return match[0] if match else ""
