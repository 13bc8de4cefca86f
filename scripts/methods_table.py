"""The table of methods in README.md, made of conf/method/ and docs/methods/found.yaml.

python scripts/methods_table.py            # writes it into README.md
python scripts/methods_table.py --check    # exit 1 where README.md has another one
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

from selfimprove.binding import Target, asks_for, module_of, options_of
from selfimprove.config import CONF, compose
from selfimprove.schema import Config, Stage

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- methods: made by scripts/methods_table.py -->", "<!-- methods end -->"
HEAD = ["`method=`", "samples", "judged by", "learns by", "evaluated by", "needs", "what `selfimprove study` found"]


def table() -> str:
    """The whole table in Markdown, a row a method; a method's other settings (`_released`) stand in its row."""
    found = yaml.safe_load((ROOT / "docs/methods/found.yaml").read_text(encoding="utf-8"))
    names = [path.stem for path in sorted((CONF / "method").glob("*.yaml"))]
    twins = {name: [other for other in names if other.startswith(f"{name}_")] for name in names}
    rows = [row(name, twins[name], found) for name in names if not any(name in others for others in twins.values())]
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(name: str, twins: list[str], found: dict[str, str]) -> list[str]:
    config = compose([f"method={name}"], needs=False)
    stages = list(config.stages.values())
    paper = config.method.paper
    link = f"[{paper.removeprefix('arXiv:')}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    shown = ", ".join(f"`{one}`" for one in (name, *twins))
    page = ROOT / "docs" / "methods" / f"{name}.md"
    said = found.get(name, "")
    return [
        f"{shown} {link if paper.startswith('arXiv') else ''}".rstrip(),
        _each(_function(stage.generate) for stage in stages if stage.of is None),
        _each(_function(stage.verifier) if stage.verifier else "the data set's verifier" for stage in stages),
        _each(_learns(stage) for stage in stages if stage.train and stage.role)
        or ("a memory" if any(stage.remember for stage in stages) else "nothing: it thinks longer"),
        _function(config.method.evaluate) if config.method.evaluate else _evaluated(config),
        ", ".join(sorted({*config.method.needs, *_needs(stages)} - {"weights"})) or "-",
        f"[{said}](docs/methods/{name}.md)" if page.exists() and said else said,
    ]


def _evaluated(config: Config) -> str:
    if any(stage.train for stage in config.stages.values()):
        return "one greedy answer"
    return f"`{config.method.answer['_target_'].rpartition('.')[2]}`" if config.method.answer else "its first answer"


def _learns(stage: Stage) -> str:
    assert stage.train is not None
    own = _function(stage.train)
    return own if stage.role == "policy" else f"{own} ({stage.role})"


def _needs(stages: list[Stage]) -> set[str]:
    needs: set[str] = set()
    for stage in stages:
        if stage.generate:
            own = getattr(module_of(stage.generate), "needs", None)
            needs |= set(own(**options_of(stage.generate)) if own else getattr(module_of(stage.generate), "NEEDS", ()))
            needs |= {"a verifier"} if asks_for(stage.generate) & {"check", "judge"} else set()
    return needs


def _function(node: Target | None) -> str:
    """The function that a target names, where it is at home: `generate.best_of_n`."""
    if node is None:
        return "-"
    from selfimprove.binding import function

    own = function(node, "method")
    return f"`{own.__module__.removeprefix('selfimprove.').rpartition('.')[2]}.{own.__name__}`"


def _each(words: object) -> str:
    return ", ".join(dict.fromkeys(words))  # type: ignore[call-overload]


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    new = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL)
    if "--check" in sys.argv:
        sys.exit(f"README.md's table of methods is old: python {sys.argv[0]}" if new != text else 0)
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
