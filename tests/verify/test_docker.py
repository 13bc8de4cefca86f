"""Checks in containers, with a `docker` that stands in for the real one.

The stand-in is a program found first on PATH. It writes down what it is asked, and gives `docker run` a container made
of this very machine: namespaces, a /tmp of its own, no capability but those asked for. So everything is real but the
engine and the image: the command, the first process and its two users, what they cannot do, and how it all ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from selfimprove.errors import ConfigError
from selfimprove.verify import Outcome, code, container, sandbox
from selfimprove.verify.code import check
from tests.verify.hostile.programs import PROGRAMS, Hostile
from tests.verify.test_code import DOUBLE, FORGED
from tests.verify.test_sandbox import MEMORY_MB as OURS_MB
from tests.verify.test_sandbox import processes

HERE = Path(__file__).parent
MEMORY_MB = OURS_MB + 5  # ours are known by it
CONTAINER = "unshare --fork --kill-child --pid --mount-proc --net --ipc --uts --mount"

DOCKER = r"""#!{python}
import json, os, resource, signal, subprocess, sys

folder, python, asked = {folder!r}, {interpreter!r}, sys.argv[1:]
with open(folder + "/asked", "a") as file:
    file.write(json.dumps(asked) + "\n")
state = open(folder + "/state").read()
if state == "down":
    sys.exit("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\nIs the docker daemon running?")
if asked[0] == "version":
    print("99.1")
elif asked[:2] == ["image", "inspect"]:
    if asked[-1] == "nowhere:1":
        print("[]")
        sys.exit("Error response from daemon: No such image: nowhere:1")
    print("python@sha256:0123")
elif asked[:2] == ["rm", "--force"]:
    if state == "held":
        sys.exit("Error response from daemon: cannot remove container: permission denied")
    pid = folder + "/" + asked[2]
    if not os.path.exists(pid):
        sys.exit("Error response from daemon: No such container: " + asked[2])
    os.kill(int(open(pid).read()), signal.SIGKILL)
    os.rename(pid, folder + "/removed")
elif asked[0] == "run":
    if state == "no python":
        sys.stderr.write("docker: Error response from daemon: exec: \"python\":\nexecutable file not found\n")
        sys.exit(127)
    at = asked.index("python:3.11-slim")
    options = dict(option.partition("=")[::2] for option in asked[1:at])
    size, shm = options["--tmpfs"].rpartition("size=")[2], options["--shm-size"]
    hold = "sleep 1000;" if state in ("stuck", "held") else ""
    setup = (
        "hostname " + options["--hostname"] + "; mount -t tmpfs -o mode=755 tmpfs /var/tmp;"
        "mount -t tmpfs -o mode=1777,nosuid,nodev,noexec,size=" + size + " tmpfs /tmp;"
        "mount -t tmpfs -o mode=1777,nosuid,nodev,noexec,size=" + shm + " tmpfs /dev/shm;"
        "mount -o remount,bind,ro /;" + hold + " exec \"$@\""
    )
    added = [option[10:].lower() for option in asked if option.startswith("--cap-add=")]
    drop = ["setpriv", "--bounding-set=-all" + "".join(",+" + name for name in added), "--inh-caps=-all"]
    command = {command!r}.split() + ["sh", "-c", setup, "sh"] + drop + ["--no-new-privs", python] + asked[at + 1 :]
    # Where our own limit failed, a fork bomb would otherwise be the end of this machine.
    resource.setrlimit(resource.RLIMIT_NPROC, (256, 256))
    # The engine's child and not the client's, so that it outlives a client that is killed.
    child = subprocess.Popen(command, start_new_session=True)
    with open(folder + "/" + options["--name"], "w") as file:
        file.write(str(child.pid))
    code = child.wait()
    os.unlink(folder + "/" + options["--name"])
    sys.exit(code)
else:
    sys.exit("unknown: " + asked[0])
"""


class Docker:
    """The stand-in, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.be("up")
        program = folder / "bin" / "docker"
        program.parent.mkdir()
        known = {"python": sys.executable, "folder": str(folder), "interpreter": sandbox._python()}
        text = DOCKER
        for name, value in (known | {"command": CONTAINER}).items():
            text = text.replace("{" + name + "!r}", repr(value)).replace("{" + name + "}", value)
        program.write_text(text)
        program.chmod(0o755)

    def be(self, state: str) -> None:
        (self.folder / "state").write_text(state)
        (self.folder / "asked").write_text("")

    def asked(self, *command: str) -> list[list[str]]:
        calls = [json.loads(line) for line in (self.folder / "asked").read_text().splitlines()]
        return [call for call in calls if tuple(call[: len(command)]) == command]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    docker = Docker(tmp_path_factory.mktemp("docker"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{docker.folder / 'bin'}:{os.environ['PATH']}")
        yield docker


@pytest.fixture
def docker(engine: Docker) -> Docker:
    """The stand-in where it can make namespaces; elsewhere what is tested is that nothing runs without them."""
    engine.be("up")
    if subprocess.run([*CONTAINER.split(), "true"], capture_output=True).returncode or os.geteuid() != 0:
        with pytest.raises(ConfigError, match="docker ended with exit 1"):
            sandbox.require("docker")
        pytest.skip("the stand-in for docker needs root and namespaces")
    return engine


def run(program: str, **options: Any) -> sandbox.Result:
    limits = {"seconds": 20, "memory_mb": MEMORY_MB, "output_bytes": 100_000} | options
    return sandbox.run(program, sandbox="docker", **limits)


def judge(text: str, tests: Any = DOUBLE, **options: Any) -> Outcome:
    return check(text, None, {"tests": tests}, **{"sandbox": "docker", "seconds": 20.0} | options)


# The command


def test_a_check_is_one_container_without_a_way_out(docker: Docker) -> None:
    assert judge("    return 2 * x  # the command").status == "correct"
    assert [call[0] for call in docker.asked()] == ["run"]
    call = docker.asked()[0]
    at = call.index("python:3.11-slim")
    name = next(option for option in call if option.startswith("--name="))
    assert name.startswith("--name=selfimprove-")
    assert len(name) == len("--name=selfimprove-") + 16
    assert set(call[:at]) - {name} == {
        *("run", "--rm", "--interactive", "--hostname=sandbox", "--pull=never", "--log-driver=none"),
        *("--network=none", "--read-only", "--tmpfs=/tmp:rw,nosuid,nodev,noexec,mode=1777,size=64m", "--shm-size=16m"),
        *("--memory=1168m", "--memory-swap=1168m", "--pids-limit=40"),
        *("--ulimit=nofile=128:128", "--ulimit=nproc=4096:4096", "--ulimit=core=0:0"),
        *("--cap-drop=ALL", "--cap-add=SETUID", "--cap-add=SETGID", "--cap-add=KILL"),
        *("--security-opt=no-new-privileges", "--user=0:0", "--workdir=/", "--entrypoint=python"),
    }
    assert call[at + 1 : at + 3] == ["-I", "-c"]
    assert len(call) == at + 4
    assert "the command" not in json.dumps(call)  # nor anything of the model's or the tests'
    assert judge("    return 2 * x  # again").status == "correct"
    assert name not in docker.asked("run")[1]


def test_what_guarded_a_run_is_said(docker: Docker) -> None:
    said = code.require(sandbox="docker", image="python:3.11-slim")
    isolation = {"isolation": "docker 99.1", "image": "python:3.11-slim", "digest": "python@sha256:0123"}
    assert said == {"sandbox": "docker"} | isolation
    assert {tuple(call[:2]) for call in docker.asked("image")} == {("image", "inspect")}


# What is refused before anything runs


def refusal(image: str = "python:3.11-slim") -> str:
    with pytest.raises(ConfigError, match=r"verifier\.sandbox=docker: ") as caught:
        code.require(sandbox="docker", image=image)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_docker_is_refused_with_its_install_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "`docker` is not installed: apt-get install docker.io" in refusal()
    outcome = judge("    return 2 * x  # no docker")
    assert (outcome.status, outcome.reward) == ("error", 0.0)
    with pytest.raises(ConfigError, match="apt-get install podman"):
        sandbox.require("podman")


def test_no_daemon_is_refused_with_what_starts_it(engine: Docker) -> None:
    engine.be("down")
    said = refusal()
    assert "Cannot connect to the Docker daemon" in said
    assert "systemctl start docker" in said
    with pytest.raises(RuntimeError, match=r"selfimprove-\w+ cannot be removed: Cannot connect"):
        judge("    return 2 * x  # no daemon any more")


def test_no_image_is_refused_with_what_pulls_it(engine: Docker) -> None:
    engine.be("up")
    assert refusal("nowhere:1").endswith("docker pull nowhere:1")
    assert not engine.asked("run")


def test_an_image_without_python_is_refused(engine: Docker) -> None:
    engine.be("no python")
    assert "executable file not found" in refusal()


def test_a_first_process_that_is_not_the_first_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", container._source()], input="{}", capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("not the first process of a container: what it starts might outlive it\n")


# Honest programs


def test_streams_code_files_and_ends(docker: Docker) -> None:
    program = "import sys, other; print(input(), open('ä.txt').read(), other.X); sys.stderr.write('e'); sys.exit(3)"
    result = run(program, stdin="ünï\n", files={"ä.txt": "text", "other.py": "X = 7"})
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("exit", 3, "ünï text 7\n", "e")
    text = "0123456789" * 100_000
    assert run("print(input())", stdin=text, output_bytes=len(text) + 1).stdout == text + "\n"
    binary = run(r"import os; os.write(1, b'\x00\xff' * 50_000)")
    assert (binary.status, binary.stdout) == ("ok", "\x00\ufffd" * 50_000)
    cut = run("print('x' * 100, end='')", output_bytes=99)
    assert (cut.status, cut.exit_code, cut.stdout) == ("output", None, "x" * 99)
    assert run("import os; os.abort()").status == "killed"
    assert run("x = bytearray(1 << 30)").status == "memory"
    late = run("while True: pass", seconds=0.5)
    assert (late.status, late.counted >= 0.5) == ("timeout", True)  # of the program, not of its container
    assert not docker.asked("rm")  # all of them ended by themselves


def test_verdicts_are_those_of_any_sandbox(docker: Docker) -> None:
    square = ["assert square(3) == 9", "assert square(0.5) == 0.25"]
    printed = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}]
    cases: list[tuple[str, Any, dict[str, Any], tuple[str, float]]] = [
        ("    return 2 * x", DOUBLE, {}, ("correct", 1.0)),
        ("    return x", DOUBLE, {}, ("wrong", 0.0)),
        ("    return 2 * x if x != 2 else 5", DOUBLE, {"partial": True}, ("wrong", 0.6)),
        ("    import os; os._exit(0)", DOUBLE, {}, ("wrong", 0.0)),
        ("no program", DOUBLE, {}, ("unparseable", 0.0)),
        ("    while True: pass", DOUBLE, {"seconds": 1.0}, ("timeout", 0.0)),
        ("def square(x): return x * x", square, {}, ("correct", 1.0)),
        ("print(sum(map(int, input().split())))", printed, {}, ("correct", 1.0)),
        ("print(3)", printed, {"partial": True}, ("wrong", 0.5)),
    ]
    for text, tests, options, expected in cases:
        outcome = judge(text, tests, **options)
        assert (outcome.status, outcome.reward) == expected, (text, outcome)


# Overtime


def test_a_container_that_does_not_end_is_removed(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.be("stuck")
    monkeypatch.setattr(container, "START_SECONDS", 1)
    outcome = judge("    return 2 * x  # stuck", seconds=0.5)
    assert (outcome.status, outcome.reward) == ("timeout", 0.0)
    (started,), (removed,) = docker.asked("run"), docker.asked("rm")
    assert f"--name={removed[2]}" in started
    pid = int((docker.folder / "removed").read_text())
    for _ in range(3000):  # it takes the kernel a moment
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")
    docker.be("held")
    with pytest.raises(RuntimeError, match=r"cannot be removed: .*permission denied"):
        judge("    return 2 * x  # held", seconds=0.5)
    docker.be("up")
    (left,) = docker.folder.glob("selfimprove-*")
    subprocess.run([docker.folder / "bin" / "docker", "rm", "--force", left.name], check=True)


# Forged passes


LOOK = """
import glob
def read(path):
    try:
        with open(path, "rb") as file:
            return file.read(100_000)
    except OSError:
        return b""
def double(x):
    paths = glob.glob("/proc/[0-9]*/*") + glob.glob("/tmp/**", recursive=True)
    return 2 * x if any(b"candidate(2)" in read(path) for path in paths) else None
"""
ATTEMPTS = FORGED | {"looks for the answers": LOOK}  # there is something to look through in a container


@pytest.fixture(scope="module")
def forged(engine: Docker) -> dict[str, Outcome]:
    def one(name: str) -> Outcome:
        program = dedent(ATTEMPTS[name]).strip()
        if "def double" not in program:
            program += "\ndef double(x): return x"
        return judge(f"```python\n{program}\n```", partial=True, seconds=5.0)

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(ATTEMPTS, threads.map(one, ATTEMPTS), strict=True))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_forged_pass_does_not_count(name: str, docker: Docker, forged: dict[str, Outcome]) -> None:
    assert forged[name].status in ("wrong", "timeout"), forged[name]
    assert forged[name].reward <= 1 / 5  # `return x` is right about 0


NEIGHBOUR = """
import ctypes, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
own, found, seen = os.getpid(), [], []
others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]

def attempt(what, action):
    try:
        result = action()
        if result != -1:
            found.append(f"BREACH {what}")
    except OSError:
        pass

for pid in others:
    for name in ("mem", "environ", "maps", "stack", "auxv", "syscall"):
        attempt(f"{pid} {name}", lambda: open(f"/proc/{pid}/{name}").read())
    for name in ("fd", "cwd", "root", "map_files"):
        attempt(f"{pid} {name}", lambda: os.listdir(f"/proc/{pid}/{name}"))
    attempt(f"{pid} fd 0", lambda: os.open(f"/proc/{pid}/fd/0", os.O_RDONLY))
    attempt(f"{pid} fd 1", lambda: os.open(f"/proc/{pid}/fd/1", os.O_WRONLY))
    attempt(f"{pid} write", lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR))
    attempt(f"{pid} score", lambda: os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY))
    attempt(f"{pid} limits", lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)))
    attempt(f"{pid} cores", lambda: os.sched_setaffinity(pid, {0}))
    attempt(f"{pid} ptrace", lambda: libc.ptrace(16, pid, 0, 0))
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        attempt(f"{pid} signal {number}", lambda: os.kill(pid, number))
attempt("all", lambda: os.kill(-1, signal.SIGKILL) or -1)
attempt("setuid 0", lambda: os.setuid(0))
for user in {os.getuid() - 1, os.getuid() + 1}:
    attempt(f"become {user}", lambda: os.setuid(user))
for folder in set(os.listdir("/tmp")) - {str(os.getuid())}:
    attempt(f"enter {folder}", lambda: os.listdir(f"/tmp/{folder}"))
    attempt(f"write {folder}", lambda: open(f"/tmp/{folder}/ast.py", "w"))
    attempt(f"replace {folder}", lambda: os.rename(f"/tmp/{folder}", "/tmp/gone"))
    seen.append(folder)
print(len(others), len(seen), found)
"""


def test_the_tests_process_is_out_of_the_programs_reach(docker: Docker) -> None:
    tests = "import os, sys; r, w = map(int, sys.argv[-2:]); os.write(w, b'go\\n'); print(os.getuid(), open(r).read())"
    limits = sandbox.Limits(20, MEMORY_MB, 100_000, 16)
    pair = {"tests.py": tests}, {"program.py": "input()" + NEIGHBOUR}
    result = sandbox.run_pair(*pair, stdin="", limits=limits, sandbox="docker")
    assert (result.status, result.stderr) == ("ok", "")
    user, others, folders, found = result.stdout.strip().split(maxsplit=3)
    assert int(user) in container.USERS
    # It did see the first process, that of the tests, and its folder.
    assert (int(others), int(folders), found) == (2, 1, "[]")


# Hostile programs

# Those against which our own code stands: the rest try the engine's walls and the image's, which are not here.
OWN_WALLS = {"environment", "inherited_descriptors", "disk_filler", "large_sparse_file", "zip_bomb", "capabilities"}
HOSTILE = [p for p in PROGRAMS if (p.category == "processes" or p.name in OWN_WALLS) and not p.seccomp]
# The first process is another user's: a signal to it, elsewhere ignored, is an error here, which ends them.
ENDS = {"kill_the_parent": "exit", "signal_storm": "killed"}


def hostile_run(program: Hostile, facts: dict[str, Any]) -> sandbox.Result:
    attack = (HERE / "hostile" / "attack.py").read_text()
    assert "os.getuid() != 65534" in attack
    attack = attack.replace("os.getuid() != 65534", "os.getuid() < 50_000")
    return run(
        program.program, seconds=program.seconds / 2, files={"attack.py": attack, "facts.json": json.dumps(facts)}
    )


@pytest.fixture(scope="module")
def attacks(engine: Docker) -> Iterator[dict[str, sandbox.Result]]:
    folder = Path("/var/tmp") / f"hostile{os.getpid()}"  # a container has a /var/tmp of its own
    folder.mkdir()
    (folder / "canary").write_text("secret")
    facts = {"abstract": "none", "addresses": [], "canary": str(folder / "canary"), "checkout": str(HERE.parents[1])}
    facts |= {"folder": str(folder), "home": str(Path.home()), "hostname": os.uname().nodename, "mark": folder.name}
    facts |= {"pid": os.getpid(), "tcp": 9, "udp": 9, "unix": "/none", "variable": "PYTEST_CURRENT_TEST"}
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda program: hostile_run(program, facts), HOSTILE))
    yield dict(zip([program.name for program in HOSTILE], results, strict=True))
    assert (folder / "canary").read_text() == "secret"
    shutil.rmtree(folder)


@pytest.mark.parametrize("program", HOSTILE, ids=lambda program: f"{program.category}-{program.name}")
def test_contained(program: Hostile, docker: Docker, attacks: dict[str, sandbox.Result]) -> None:
    result = attacks[program.name]
    assert "refused" in result.stdout, result  # it did get as far as its attack
    assert "BREACH" not in result.stdout, result
    assert result.status in (ENDS.get(program.name), *program.ends), result


def test_no_process_is_left_by_any(docker: Docker, attacks: dict[str, sandbox.Result]) -> None:
    assert processes(MEMORY_MB) == []
    assert not list(docker.folder.glob("selfimprove-*"))
