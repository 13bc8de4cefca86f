"""Runs Python programs that nobody has read, so that all they can do is print.

`bubblewrap` gives each program its own namespaces: no network, no process but its own, a read-only system, a private
and sized /tmp, no /proc, no environment, no capability, and no way to a new namespace. `prlimit` bounds its memory,
processes and files; a seccomp filter, where `pyseccomp` is installed, closes system calls no such program needs. Time,
output and the memory of all its processes together are watched from outside. What this does not cover is written in
docs/sandbox.md.

`unsafe_subprocess` runs the program as the user, with the limits and none of the walls.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from selfimprove.errors import ConfigError

Status = Literal["ok", "exit", "killed", "timeout", "memory", "output", "error"]

INSTALL = "apt-get install bubblewrap (or: dnf install bubblewrap, pacman -S bubblewrap)"
NOBODY = "65534"
DISK_MB = 64  # of /tmp, and the size of the largest file
SHM_MB = 16  # of /dev/shm
OPEN_FILES = 128
# The namespace's first process: with its end the kernel ends all others. bubblewrap waits for it, as it would not for
# an init of its own, so that nothing is left to reap; and the program cannot undo that it dies with its parent.
FIRST = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
TICK = 0.1  # s between two looks at the memory of all processes
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program prints the same set in the same order
    "PYTHONDONTWRITEBYTECODE": "1",
}

# Refused with EPERM: what could reach the kernel's wider surface, other processes' memory, or memory that no limit
# counts. Namespaces already make most of them powerless; this is the second wall.
DENIED_SYSCALLS = """
    acct add_key adjtimex bpf chroot clock_adjtime clock_settime delete_module fanotify_init finit_module fsconfig
    fsmount fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
    kexec_file_load kexec_load keyctl lookup_dcookie mbind memfd_create memfd_secret migrate_pages mknod mknodat mount
    mount_setattr move_mount move_pages mq_open msgget name_to_handle_at open_by_handle_at open_tree perf_event_open
    pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace quotactl reboot request_key
    semget setdomainname sethostname setns settimeofday shmget swapoff swapon syslog umount2 unshare userfaultfd
    vhangup
"""
CLONE_NEW = 0x7E020000  # every CLONE_NEW* flag of clone(2) but CLONE_NEWTIME, which clone(2) cannot take
AF_UNIX = 1


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended.

    status: `ok` (exit code 0), `exit` (another one), `killed` (by a signal; the code is 128 + its number), `timeout`,
    `memory`, `output` (wrote more than it may), or `error` (the sandbox did not start it; `stderr` says why).
    exit_code is None where the program was stopped from outside. stdout and stderr are cut at the output limit.
    """

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float  # wall clock


@dataclass(frozen=True, slots=True)
class Limits:
    seconds: float  # wall clock
    memory_mb: int  # MiB: address space of each process, and resident memory of all of them together
    output_bytes: int  # of standard output and of standard error, each
    processes: int  # threads count as processes


def require(name: str) -> None:
    """Raises ConfigError unless the sandbox `name` can run a program here; tried once, in about 50 ms."""
    try:
        result = run("print('ready')", sandbox=name, seconds=30, memory_mb=512, output_bytes=1000)
    except ConfigError as error:
        raise ConfigError(f"verifier.sandbox={name}: {error}") from None
    if result.stdout != "ready\n":
        raise ConfigError(
            f"verifier.sandbox={name}: bubblewrap cannot run a program on this machine: "
            f"{result.stderr.strip() or result.status}. Unprivileged user namespaces must be allowed (in a container: "
            "its seccomp profile; Ubuntu 24.04: kernel.apparmor_restrict_unprivileged_userns=0). "
            "verifier.sandbox=unsafe_subprocess runs model-written code without any isolation."
        )


def describe(name: str) -> dict[str, str]:
    """What guards the runs of sandbox `name` here, for the run's record."""
    if name == "unsafe_subprocess":
        return {"sandbox": name, "python": _python(), "isolation": "none: programs ran as the user"}
    version = subprocess.run([_tool("bwrap"), "--version"], capture_output=True, text=True).stdout.strip()
    seccomp = "on" if _seccomp_filter() else "off: pip install pyseccomp (and libseccomp2)"
    return {"sandbox": name, "python": _python(), "isolation": version, "seccomp": seccomp}


def run(
    program: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    seconds: float,
    memory_mb: int,
    output_bytes: int,
    processes: int = 16,
    sandbox: str = "bubblewrap",
) -> Result:
    """Runs a Python program to its end and says how it ended. No process of it is left when this returns.

    files: text files by name, put beside the program, in its working directory. Safe to call from several threads.
    Raises ConfigError when the sandbox is not installed.
    """
    limits = Limits(seconds, memory_mb, output_bytes, processes)
    begun = time.monotonic()
    with ExitStack() as stack:
        main = _Box(stack, sandbox, ["main.py"], limits, files={"main.py": program, **(files or {})})
        stopped, stdout, stderr = _watch([main], stdin.encode(errors="surrogatepass"), limits)
    return _result(stopped, main.code, stdout, stderr, time.monotonic() - begun)


def run_pair(
    trusted: Sequence[str], untrusted: Sequence[str], *, stdin: str, limits: Limits, sandbox: str = "bubblewrap"
) -> Result:
    """Runs two Python programs, each in its own sandbox, joined by two pipes alone; the result is the trusted one's.

    trusted, untrusted: arguments of Python. The untrusted program's standard input and output are the pipes; the
    trusted one finds the descriptors to read from and to write to as its last two arguments. Limits hold for each of
    the two. The untrusted one is killed when the trusted one ends. Raises ConfigError as `run` does.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        (from_trusted, to_untrusted), (from_untrusted, to_trusted) = os.pipe(), os.pipe()
        with ExitStack() as ends:
            for fd in (from_trusted, to_untrusted, from_untrusted, to_trusted):
                ends.callback(os.close, fd)
            pipe = (from_untrusted, to_untrusted)
            first = _Box(stack, sandbox, [*trusted, *map(str, pipe)], limits, inherit=pipe)
            second = _Box(stack, sandbox, untrusted, limits, stdin=from_trusted, stdout=to_trusted)
        stopped, stdout, stderr = _watch([first, second], stdin.encode(), limits)
    return _result(stopped, first.code, stdout, stderr, time.monotonic() - begun)


def _result(stopped: Status | None, code: int | None, stdout: bytes, stderr: bytes, seconds: float) -> Result:
    out, err = stdout.decode(errors="replace"), stderr.decode(errors="replace")
    status: Status
    if stopped:
        status, code = stopped, None
    elif code is None:
        status = "error"
    elif code == 0:
        status = "ok"
    elif err.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        status = "memory"
    else:
        status = "killed" if code > 128 else "exit"
    return Result(status, code, out, err, seconds)


class _Box:
    """One program in one sandbox, from its start until `end`, which the given stack calls at the latest."""

    def __init__(
        self,
        stack: ExitStack,
        sandbox: str,
        arguments: Sequence[str],
        limits: Limits,
        *,
        files: Mapping[str, str] | None = None,
        stdin: int = subprocess.PIPE,
        stdout: int = subprocess.PIPE,
        inherit: Sequence[int] = (),
    ) -> None:
        # Without a user namespace the number of processes is counted over all that the user runs: no limit can be set.
        bounds = _prlimit(limits, nproc=sandbox != "unsafe_subprocess")
        command = [*bounds, _python(), *arguments]
        status: IO[bytes] | None = None
        with ExitStack() as mine:  # descriptors that only the child needs
            fds = list(inherit)
            folder = None
            if sandbox == "unsafe_subprocess":
                folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
                for name, text in (files or {}).items():
                    Path(folder, name).write_text(text, errors="surrogatepass")
            else:
                wrap = _bubblewrap(sandbox)
                for name, text in (files or {}).items():
                    fds.append(_memory_file(mine, text.encode(errors="surrogatepass")))
                    wrap += ["--file", str(fds[-1]), f"/tmp/{name}"]
                if filter := _seccomp_filter():
                    fds.append(_memory_file(mine, filter))
                    wrap += ["--seccomp", str(fds[-1])]
                reader, writer = os.pipe()
                mine.callback(os.close, writer)
                status = stack.enter_context(os.fdopen(reader, "rb"))
                fds.append(writer)
                command = [*wrap, "--remount-ro", "/", "--json-status-fd", str(writer), "--", *FIRST, *command]
                if os.geteuid() == 0:  # RLIMIT_NPROC counts by the user outside, and does not bind root
                    drop = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]
                    command = [_tool("setpriv"), *drop, *command]
            self.process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE if stdout == subprocess.PIPE else subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd=folder or "/",
                pass_fds=fds,
                start_new_session=status is None,
            )
        self.code: int | None = None  # the program's own exit code, once it has ended by itself
        self._status = status
        self._ended = False
        self.pid = self.process.pid
        self._fds: list[int] = []
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                stack.enter_context(pipe)
        stack.callback(self.end)
        self.exited = self._watch_process(self.process.pid)
        if status and (line := status.readline()):
            self.pid = json.loads(line)["child-pid"]  # the first process in the sandbox
            with suppress(ProcessLookupError):  # already over
                self._watch_process(self.pid)

    def _watch_process(self, pid: int) -> int:
        """A descriptor that stays with this very process, and is readable once it has ended."""
        self._fds.append(os.pidfd_open(pid))
        return self._fds[-1]

    def end(self) -> None:
        """Kills every process in the sandbox, waits until they are gone, and reads the exit code. Once is enough.

        Raises RuntimeError should the kernel not let them go.
        """
        if self._ended:
            return
        self._ended = True
        if len(self._fds) == 2:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fds[1], signal.SIGKILL)
            if not all(_readable(fd, 10) for fd in reversed(self._fds)):  # bubblewrap ends after its child
                self.process.kill()
                raise RuntimeError(f"process {self.pid} of a sandbox did not end within 10 s of its SIGKILL")
        elif self._status is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for fd in self._fds:
            os.close(fd)
        if self._status is None:
            code = self.process.returncode
            self.code = 128 - code if code < 0 else code
        else:
            for line in self._status:
                self.code = json.loads(line).get("exit-code", self.code)


def _watch(boxes: Sequence[_Box], feed: bytes, limits: Limits) -> tuple[Status | None, bytes, bytes]:
    """Feeds and reads the first box until it ends or a limit is reached, then ends all. Why it was stopped, if it was,
    and what it wrote."""
    main = boxes[0]
    stdin, stdout, stderr = main.process.stdin, main.process.stdout, main.process.stderr
    assert stdin
    assert stdout
    assert stderr
    written = {stdout: bytearray(), stderr: bytearray()}
    stopped: Status | None = None
    deadline = time.monotonic() + limits.seconds
    look = time.monotonic() + TICK
    with selectors.DefaultSelector() as selector:
        for pipe in written:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)
        os.set_blocking(stdin.fileno(), False)
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(main.exited, selectors.EVENT_READ)
        running = True
        while running and not stopped:
            now = time.monotonic()
            if now >= deadline:
                stopped = "timeout"
            elif now >= look:
                look = now + TICK
                if any(_resident(box.pid) > limits.memory_mb << 20 for box in boxes):
                    stopped = "memory"
            for key, _ in selector.select(max(0.0, min(look, deadline) - now)):
                if key.fileobj == main.exited:
                    running = False
                elif key.fileobj is stdin:
                    feed = _write(stdin, feed)
                    if not feed:
                        selector.unregister(stdin)
                        stdin.close()
                elif not _read(key.fileobj, written[key.fileobj], limits.output_bytes):  # type: ignore[index,arg-type]
                    selector.unregister(key.fileobj)
            if any(len(data) > limits.output_bytes for data in written.values()):
                stopped = "output"
    for box in boxes:
        box.end()
    for pipe, data in written.items():  # all writers are gone: what is left ends
        while len(data) <= limits.output_bytes and _read(pipe, data, limits.output_bytes):
            pass
        if len(data) > limits.output_bytes:
            stopped = stopped or "output"
            del data[limits.output_bytes :]
    return stopped, bytes(written[stdout]), bytes(written[stderr])


def _read(pipe: IO[bytes], data: bytearray, most: int) -> bool:
    """Adds what there is to `data`, up to one byte more than `most`. False at the end of the pipe."""
    with suppress(BlockingIOError):
        chunk = os.read(pipe.fileno(), min(1 << 16, most + 1 - len(data)))
        data += chunk
        return bool(chunk)
    return True


def _write(pipe: IO[bytes], data: bytes) -> bytes:
    """What of `data` is still to be written; nothing when the reader is gone."""
    try:
        return data[os.write(pipe.fileno(), data[: 1 << 16]) :] if data else data
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _readable(fd: int, seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _resident(pid: int) -> int:
    """Bytes of private memory held by a process and all below it."""
    total, pids = 0, [pid]
    while pids:
        folder = Path("/proc", str(pids.pop()))
        with suppress(OSError):  # it ended meanwhile
            _, resident, shared, *_ = folder.joinpath("statm").read_text().split()
            total += (int(resident) - int(shared)) * resource.getpagesize()
            for task in folder.joinpath("task").iterdir():
                pids += map(int, task.joinpath("children").read_text().split())
    return total


def _memory_file(stack: ExitStack, data: bytes) -> int:
    """A descriptor that reads `data`, of a file that is in memory only."""
    fd = os.memfd_create("input")
    stack.callback(os.close, fd)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _prlimit(limits: Limits, *, nproc: bool) -> list[str]:
    bounds = {
        "as": limits.memory_mb << 20,
        "fsize": DISK_MB << 20,
        "nofile": OPEN_FILES,
        "core": 0,
        "memlock": 0,
        "msgqueue": 0,
    }
    if nproc:
        bounds["nproc"] = limits.processes
    for name, value in bounds.items():  # a limit of our own process can be lowered only
        hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
        bounds[name] = value if hard == resource.RLIM_INFINITY else min(value, hard)
    return [_tool("prlimit"), *(f"--{name}={value}" for name, value in bounds.items()), "--"]


def _bubblewrap(name: str) -> list[str]:
    """The command line up to what differs from call to call. Raises ConfigError when it cannot be given."""
    if name != "bubblewrap":
        raise ConfigError(f"no such sandbox: {name!r}; there are bubblewrap and unsafe_subprocess")
    return list(_fixed_options())


@functools.cache
def _fixed_options() -> tuple[str, ...]:
    wrap = [
        _tool("bwrap"),
        "--unshare-all",
        "--unshare-user",
        "--uid",
        NOBODY,
        "--gid",
        NOBODY,
        "--hostname",
        "sandbox",
    ]
    wrap += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"]
    if "--disable-userns" in subprocess.run([wrap[0], "--help"], capture_output=True, text=True).stdout:
        wrap += ["--disable-userns"]  # since bubblewrap 0.8; older ones have the seccomp filter alone
    wrap += ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            wrap += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            wrap += ["--ro-bind", folder, folder]
    if not _python().startswith("/usr/"):
        wrap += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
        wrap += ["--dev-bind", device, device]
    wrap += ["--size", str(DISK_MB << 20), "--tmpfs", "/tmp", "--size", str(SHM_MB << 20), "--tmpfs", "/dev/shm"]
    return (*wrap, "--chdir", "/tmp")


@functools.cache
def _python() -> str:
    """The interpreter that programs run under: this one's base, or the system's where an unprivileged user (which root
    becomes) may not read this one."""
    own = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    if own.exists() and (
        os.geteuid() != 0 or all(folder.stat().st_mode & stat.S_IXOTH for folder in own.resolve().parents)
    ):
        return str(own)
    if found := shutil.which("python3", path="/usr/bin:/bin"):
        return os.path.realpath(found)
    raise ConfigError(f"the sandbox cannot read {own} as an unprivileged user, and there is no /usr/bin/python3")


@functools.cache
def _tool(name: str) -> str:
    if found := shutil.which(name):
        return os.path.realpath(found)
    package = INSTALL if name == "bwrap" else "apt-get install util-linux"
    raise ConfigError(
        f"running model-written code needs `{name}`, which is not installed: {package}. "
        "verifier.sandbox=unsafe_subprocess would run it without any isolation."
    )


@functools.cache
def _seccomp_filter() -> bytes | None:
    """A compiled filter, or None where there is no libseccomp to compile it."""
    try:
        import pyseccomp  # type: ignore[import-untyped]
    except (ImportError, RuntimeError):  # RuntimeError: libseccomp itself is missing
        return None
    deny = pyseccomp.ERRNO(1)  # EPERM
    filter = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    numbers = {
        name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in f"{DENIED_SYSCALLS} clone3".split()
    }
    clone3 = numbers.pop("clone3")
    for number in numbers.values():
        if number != -1:  # a call that this libseccomp does not know
            filter.add_rule(deny, number)
    for bit in range(32):
        if flag := CLONE_NEW & 1 << bit:
            filter.add_rule(deny, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    if clone3 != -1:  # its flags are in memory, out of a filter's sight: ENOSYS sends libc back to clone
        filter.add_rule(pyseccomp.ERRNO(38), clone3)
    filter.add_rule(deny, "socket", pyseccomp.Arg(0, pyseccomp.NE, AF_UNIX))
    with tempfile.TemporaryFile() as file:
        filter.export_bpf(file)
        file.seek(0)
        return file.read()
