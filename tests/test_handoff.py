"""What docs/handoff.md shows is run as it stands there, but for programs that are not installed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment_of
from tests.waiting import PATIENCE

PAGE = (Path(__file__).parent.parent / "docs" / "handoff.md").read_text()
SCRIPTS = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [shlex.split(line) for line in re.findall(r"^    (\S.*)$", PAGE, re.MULTILINE)]


@pytest.mark.slow
def test_the_page_runs(cli, tmp_path):
    for name, text in SCRIPTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    said = {}
    for program, *words in COMMANDS:
        if program == "selfimprove" and "lm/after" not in words:
            said[words[0]] = cli(*words).stdout
        elif program == "python":
            done = subprocess.run(
                [sys.executable, *words],
                cwd=tmp_path,
                env=environment_of(tmp_path / "home", HF_HUB_OFFLINE="1"),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert done.returncode == 0, done.stderr
            said[words[0]] = done.stdout
    assert "The answer is 12." in said["use_peft.py"]
    assert len((tmp_path / "heldout.jsonl").read_text().splitlines()) == 60
    assert "accuracy" in said["eval"]


def test_every_script_is_python_or_yaml():
    import yaml

    assert {"heldout.py", "use_peft.py", "use_trl.py", "task/tiny_arithmetic.yaml"} == set(SCRIPTS)
    for name, text in SCRIPTS.items():
        assert yaml.safe_load(text) if name.endswith(".yaml") else compile(text, name, "exec")
