"""The wheel, installed where there is no checkout: what a user of `pip install selfimprove` has."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def call(*words: str | Path, cwd: Path, home: Path | None = None) -> str:
    """A program's standard output, in an environment that knows nothing of the checkout."""
    kept = {
        k: v for k, v in os.environ.items() if k in ("PATH",) or k.startswith(("PIP_", "SSL_", "HTTP", "http", "no_"))
    }
    environment = kept | {"HOME": str(home or cwd), "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=10 * PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("selfimprove-*.whl")
    return found


def test_it_holds_what_commands_read_and_nothing_of_the_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for path in (*ROOT.glob("conf/**/*.yaml"), ROOT / "requirements.lock"):
        assert f"selfimprove/{path.relative_to(ROOT)}" in names
    code = [path for path in (ROOT / "selfimprove").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT)) for path in code} <= set(names)
    assert {name.partition("/")[0].rpartition(".")[2] for name in names} == {"selfimprove", "dist-info"}


def used(python: Path, folder: Path) -> None:
    """`selfimprove` of this environment lists, runs, continues and evaluates, in an empty folder."""
    script = python.parent / "selfimprove"
    where = call(python, "-c", "import selfimprove; print(selfimprove.__file__)", cwd=folder).strip()
    assert Path(where).is_relative_to(python.parent.parent)
    assert "rejection_sampling" in call(script, "methods", cwd=folder)
    call(script, "run", *SMALL, "rounds=1", "hydra.run.dir=run", cwd=folder)
    assert json.loads((folder / "run" / "summary.json").read_text())["status"] == "complete"
    call(script, "resume", "run", cwd=folder)
    assert "accuracy" in call(script, "eval", "run", "eval.samples=1", cwd=folder)


def test_it_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are those of this environment, which spares gigabytes."""
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # behind its own packages
    used(python, tmp_path)


@pytest.mark.skipif(not os.environ.get("SELFIMPROVE_TEST_INSTALL"), reason="downloads 5 GB; SELFIMPROVE_TEST_INSTALL=1")
def test_it_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "requirements.lock", wheel, cwd=tmp_path)
    used(python, tmp_path)
