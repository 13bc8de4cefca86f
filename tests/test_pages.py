"""The pages: every command on them is one that there is, and every link leads somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from selfimprove import config, errors
from selfimprove.cli import _parser
from selfimprove.overrides import read

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMPOSED = ("run", "eval", "doctor")  # what takes KEY=VALUE words of a whole configuration


def commands() -> dict[str, list[str]]:
    """The words of each command on a page, by where it stands. Comments are not of it, nor is `... | program`."""
    found = {}
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        for number, line in enumerate(lines):
            if begun := re.match(r"(?: {4}|\$ )(?:\w+=\S+ )*selfimprove (.*)", line):
                words = split([begun[1], *lines[number + 1 : number + 5]])
                if (
                    words and "..." not in words and not any(word.startswith("[") for word in words)
                ):  # else a usage line
                    found[f"{page.relative_to(ROOT)}: {' '.join(words)}"] = words
    return found


def split(lines: list[str]) -> list[str]:
    """The words of a command that goes on in the next line while a quotation is open."""
    for end in range(1, len(lines) + 1):
        try:
            return shlex.split("\n".join(lines[:end]), comments=True)
        except ValueError:
            continue
    raise AssertionError(f"no end: {lines[0]}")


def overrides(words: list[str]) -> list[str]:
    return [word for word in words[1:] if "=" in word and not word.startswith("-")]


def test_there_are_many():
    assert len(commands()) > 80


def test_every_command_parses():
    for where, words in commands().items():
        if words[0] == "run":
            flags = [word for word in words[1:] if word.startswith("-")]
            assert set(flags) <= {"-m", "--cfg", "--help"}, where
            read(overrides(words), "-m" in words)
        else:
            _parser().parse_args(words)
        for key, _, value in (word.partition("=") for word in overrides(words)):
            if (config.CONF / key).is_dir():
                for choice in value.split(","):
                    assert (config.CONF / key / f"{choice}.yaml").exists() or choice == "null", where


def firsts(words: list[str]) -> list[str]:
    """Of a sweep's words, the first value of each; and without what is Hydra's own."""
    kept = [word for word in overrides(words) if not word.startswith("hydra")]
    return [word.partition(",")[0] if re.fullmatch(r"[\w./@]+=[\w.]+(,[\w.]+)+", word) else word for word in kept]


@pytest.mark.slow
@pytest.mark.parametrize("where", [w for w, words in commands().items() if words[0] in COMPOSED])
def test_every_configuration_on_a_page_is_one(where):
    words = commands()[where]
    if words[0] == "eval" and len(words) > 1 and "=" not in words[1]:
        words = [words[0], *words[2:]]
    config.compose(firsts(words), needs=words[0] == "run")


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_link_leads_to_a_page_and_its_heading():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if link.startswith(("http", "mailto")):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_page_for_assistants_is_short():
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) <= 60


def test_an_error_names_the_page_about_its_key():
    said = {
        message: errors.page(message) for message in ("dataset.levels: [99] ...", "method=x: no such choice", "x=3")
    }
    assert list(said.values()) == ["; see docs/data.md", "; see docs/methods/", ""]
    for page in errors.PAGES.values():
        assert (ROOT / "docs" / (page if page.endswith("/") else f"{page}.md")).exists(), page
