"""The steps of the Dockerfiles in a clean folder: what they copy is all that is there.

Steps that need root or another package index (apt-get, useradd, PyTorch's CPU builds) are left out, and dependencies
are those of this environment.
"""

import json
import re
import shlex
import shutil
import sys
import sysconfig

import pytest

from tests.conftest import SMALL
from tests.test_wheel import ROOT, call

FILES = ("Dockerfile", "Dockerfile.cuda")
LEFT_OUT = ("apt-get", "useradd")


def steps(name: str) -> list[tuple[str, str]]:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return [(word, rest) for word, rest in re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_let_through(name):
    through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for word, rest in steps(name):
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert source in through


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_as_root_and_no_secret_is_asked_for(name):
    words = [word for word, _ in steps(name)]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert "ARG" not in words
    assert not re.search(r"token|key=|password", (ROOT / name).read_text(), re.IGNORECASE)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_its_steps_make_a_program_that_runs(name, tmp_path):
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    at, entry, ran = tmp_path, [], []
    environment = {}
    for word, rest in steps(name):
        if word == "WORKDIR":
            at = tmp_path / rest.lstrip("/")
            at.mkdir(exist_ok=True)
        elif word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = at / target / source if target == "./" else at / target
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
        elif word == "ENV":
            environment |= dict(pair.split("=") for pair in shlex.split(rest))
        elif word == "RUN" and not rest.startswith(LEFT_OUT):
            program, *words = shlex.split(rest)
            call(tmp_path / "venv" / "bin" / program, *words, "--no-deps", cwd=at)
            ran.append(rest)
        elif word in ("ENTRYPOINT", "CMD"):
            entry += json.loads(rest)
    assert len(ran) == 1
    shutil.rmtree(tmp_path / "src")  # what is installed needs no source
    program = tmp_path / "venv" / "bin" / entry[0]
    assert "usage" in call(program, "--help", cwd=at) or entry[1:]
    call(program, "run", *SMALL, "rounds=1", "hydra.run.dir=run", cwd=at)
    assert json.loads((at / "run" / "summary.json").read_text())["status"] == "complete"
    assert environment["WANDB_MODE"] == "offline"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed")
def test_uv_takes_the_tested_versions(tmp_path):
    words = ("pip", "compile", "--quiet", "--constraint", "requirements.lock", "pyproject.toml", "--output-file")
    call(shutil.which("uv") or "uv", *words, tmp_path / "resolved.txt", cwd=ROOT)
    tested = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
    found = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (tmp_path / "resolved.txt").read_text(), re.MULTILINE))
    assert found
    assert {name: version for name, version in found.items() if tested.get(name, version) != version} == {}
