"""Runs programs in a fresh container, by the command line that Docker and Podman share.

Each call has its own container, with nothing of the host in it. Its first process is `selfimprove.verify.watch`. It
runs as root, with no capability but those to change users and to kill their processes. It starts the programs as two
users, who can reach neither each other nor it. When it ends, all of them end.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.verify import watch
from selfimprove.verify.watch import DISK_MB, OPEN_FILES, Child, Limits, Result

ENGINES = {
    "docker": (
        "apt-get install docker.io",
        "systemctl start docker; may this user not ask it: usermod -aG docker USER",
    ),
    "podman": ("apt-get install podman", "podman info"),
}  # the commands that install it and that mend it
IMAGE = "python:3.11-slim"
SHM_MB = 16  # of /dev/shm
OWN_MB, OWN_PROCESSES = 64, 8  # for the first process, in addition to the programs'
START_SECONDS = 30  # to start and end a container; not part of a program's time
ANSWER_SECONDS = 60  # for any other command
USERS = range(50_000, 60_000)  # rarely used ids; process limits count by user, over all containers
GONE = re.compile("no such container|already in progress", re.IGNORECASE)


def describe(engine: str, image: str) -> dict[str, str]:
    """The engine's version and the image's digest (its id if it came from no registry).

    Raises ConfigError if the engine is not installed or does not answer, or when the image is not on this machine.
    The message names the command that helps.
    """
    version = _ask(engine, "version", "--format", "{{.Server.Version}}")
    if version.returncode:
        raise ConfigError(f"{engine} does not answer: {_line(version.stderr)}. Try: {ENGINES[engine][1]}")
    digest = "{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}"
    found = _ask(engine, "image", "inspect", "--format", digest, image)
    if found.returncode:
        raise ConfigError(f"the image {image} is not on this machine ({_line(found.stderr)}): {engine} pull {image}")
    return {"isolation": f"{engine} {version.stdout.strip()}", "image": image, "digest": found.stdout.strip()}


def run(engine: str, image: str, programs: Sequence[dict[str, Any]], stdin: str, limits: Limits) -> Result:
    """Run one program, or two joined by two pipes, in one container, as `watch.run` does. Then the container is gone.

    The status is `error` when the container gives no result, and `timeout` also when it does not end. Raises
    ConfigError when the engine is not installed, RuntimeError when the container cannot be removed.
    """
    name = f"selfimprove-{secrets.token_hex(8)}"
    first = USERS.start + secrets.randbelow(len(USERS) - 1)
    request = {"programs": programs, "stdin": stdin, "limits": asdict(limits), "users": [first, first + 1]}
    # The client's memory has no limit. A byte of output becomes at most six bytes of JSON.
    outer = Limits(limits.seconds + START_SECONDS, 1 << 20, 12 * limits.output_bytes + (1 << 16), 0)
    start = functools.partial(_Container, engine, name)
    result = watch.run(start, [_command(engine, image, name, limits)], json.dumps(request).encode(), outer)
    if result.status == "ok":
        return Result(**json.loads(result.stdout))
    why = f"{engine} ended with {result.status} {result.exit_code or ''}: {_line(result.stderr)}"
    return Result("timeout" if result.status == "timeout" else "error", None, "", why, result.seconds, result.counted)


class _Container(Child):
    """The client process of a container."""

    def __init__(self, engine: str, name: str, stack: ExitStack, command: Sequence[str]) -> None:
        self._engine, self._name = engine, name
        super().__init__(stack, command, env=None)  # our own environment: DOCKER_HOST and other settings

    def kill(self) -> None:
        """Kill the client and remove its container, running or not. After exit code 0 the container is already gone."""
        if self.process.poll() == 0:
            return
        self.process.kill()
        done = _ask(self._engine, "rm", "--force", self._name)
        if done.returncode and not GONE.search(done.stderr):
            raise RuntimeError(f"the container {self._name} cannot be removed: {_line(done.stderr)}")


def _command(engine: str, image: str, name: str, limits: Limits) -> list[str]:
    memory = f"{2 * limits.memory_mb + DISK_MB + SHM_MB + OWN_MB}m"
    return [
        *(_tool(engine), "run", "--rm", "--interactive", f"--name={name}", "--hostname=sandbox"),
        *("--pull=never", "--log-driver=none", "--network=none", "--read-only"),
        *(f"--tmpfs=/tmp:rw,nosuid,nodev,noexec,mode=1777,size={DISK_MB}m", f"--shm-size={SHM_MB}m"),
        *(f"--memory={memory}", f"--memory-swap={memory}", f"--pids-limit={2 * limits.processes + OWN_PROCESSES}"),
        # The programs' limits are set inside. Without these options an engine raises its own limits, which can fail.
        *(f"--ulimit=nofile={OPEN_FILES}:{OPEN_FILES}", "--ulimit=nproc=4096:4096", "--ulimit=core=0:0"),
        *("--cap-drop=ALL", "--cap-add=SETUID", "--cap-add=SETGID", "--cap-add=KILL"),
        *("--security-opt=no-new-privileges", "--user=0:0", "--workdir=/", "--entrypoint=python"),
        *(image, "-I", "-c", _source()),
    ]


@functools.cache
def _source() -> str:
    return Path(watch.__file__).read_text()


def _tool(engine: str) -> str:
    if found := shutil.which(engine):
        return found
    raise ConfigError(f"`{engine}` is not installed: {ENGINES[engine][0]}")


def _ask(engine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [_tool(engine), *arguments]
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"`{engine} {arguments[0]}` took more than {ANSWER_SECONDS} s: {ENGINES[engine][1]}"
        ) from None


def _line(text: str) -> str:
    """The end of a command's output on one line."""
    return " ".join(text.split())[-300:]
