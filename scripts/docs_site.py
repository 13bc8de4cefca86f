"""MkDocs hook: README.md and CONTRIBUTING.md as pages, and the methods' pages in the navigation."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}


def on_config(config: Any) -> Any:
    methods = sorted((ROOT / "docs" / "methods").glob("*.md"))
    entries = [{path.stem: f"methods/{path.name}"} for path in methods]
    config.nav = [{"Methods": entries} if "Methods" in entry else entry for entry in config.nav]
    return config


def on_page_markdown(text: str, **_: Any) -> str:
    """In a table GitHub wants a bar of code escaped, and MkDocs does not."""
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), text)


def on_files(files: Files, config: Any) -> Files:
    for source, name in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (ROOT / source).read_text(encoding="utf-8"))
        for other, page in PAGES.items():
            text = text.replace(f"]({other}", f"]({page}")
        files.append(File.generated(config, name, content=text))
    return files
