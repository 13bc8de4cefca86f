"""The controls that a method's file names in its header can be typed as they stand there."""

import re

import pytest

from selfimprove.config import CONF, compose

HEADS = ("Controls", "Ablations")
WORD = re.compile(r"~method\.\S+|[+~]{0,2}(method|control|dataset|verifier|model|generate|filter|eval)[\w.@]*=\S+")


def controls(name: str) -> list[list[str]]:
    """Each control of a header as the words to type. What stands in brackets explains it."""
    text, reading = "", False
    for line in (CONF / "method" / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        if head := re.match(r"# ?([A-Z][\w -]*):", line):
            reading, line = head[1] in HEADS, line[head.end() - 1 :]
        text += f" {line[1:].strip()}" if reading else ""
    parts = re.split(r"[;,](?![^\[]*\])", re.sub(r"\([^()]*\)", ";", text))
    found = [[word.rstrip(".") for word in part.split() if WORD.fullmatch(word.rstrip("."))] for part in parts]
    return [words for words in found if words and not any(re.search("=[A-Z]", word) for word in words)]


METHODS = [path.stem for path in sorted((CONF / "method").glob("*.yaml")) if controls(path.stem)]


def test_most_methods_name_some():
    assert len(METHODS) > 30


@pytest.mark.parametrize("name", METHODS)
def test_a_control_composes_as_it_is_written(name):
    for words in controls(name):
        own = [] if any(word.startswith("method=") for word in words) else [f"method={name}"]
        compose([*own, *words], needs=False)
