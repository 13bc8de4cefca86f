"""scripts/gpu_check.py, whose steps run here on a CPU and small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_check

    return gpu_check


def test_a_step_that_fails_is_a_line_with_its_error(gpu_check: Any, tmp_path: Path) -> None:
    found = gpu_check.step("no such step", "cpu", tmp_path, PATIENCE)
    assert found["holds"] is False
    assert gpu_check.row(found).split()[3] == "NO"
    assert found["said"] == "KeyError: 'no such step'"
    assert "Traceback" in (tmp_path / "no-such-step.log").read_text()


def test_packages_that_are_missing_or_others_are_named(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu_check.importlib.metadata.version

    def version(name: str) -> str:
        if name == "trl":
            raise gpu_check.importlib.metadata.PackageNotFoundError
        return "0.1+local" if name == "peft" else str(real(name))

    monkeypatch.setattr(gpu_check.importlib.metadata, "version", version)
    said = gpu_check.packages()
    assert any(line.startswith("trl: missing, tested with 1.") for line in said)
    assert any(line.startswith("peft: 0.1, tested with 0.") for line in said)


@pytest.mark.slow
def test_every_step_holds_on_a_cpu(tmp_path: Path) -> None:
    asked = [sys.executable, SCRIPTS / "gpu_check.py", "--device", "cpu", "--minutes", "600"]
    done = subprocess.run(
        [*asked, "--out", tmp_path / "rows.json"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert done.returncode == 0, done.stdout
    out = [row["step"] for row in rows if row["holds"] is None]
    assert out == ([] if find_spec("vllm") else ["vLLM, hand-over", "vLLM, killed"])
