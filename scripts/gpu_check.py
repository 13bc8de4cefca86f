"""Does this project work on this machine's GPU? Minutes, without network, on the embedded policy and on random weights.

    python scripts/gpu_check.py [--only STEP ...] [--minutes 8] [--device cuda] [--out FILE.json]

Each step runs in a process of its own, so that one which fails or is killed leaves the others. The table says of each
whether it holds, tokens a second, the most memory that was taken, and the exact error; what a step printed is in the
folder named at the end. It also runs with other versions than those of requirements.lock, and says which differ.
Exit code 1 where a step does not hold. Steps that cannot be tried here (one GPU, no vLLM) are left out, and say so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = {"cuda": 240.0, "cpu": 600.0}  # seconds that one step may take


def packages() -> list[str]:
    """A line for each package of pyproject.toml that is missing, or is not the tested version."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    tested = dict(found.groups() for line in lines if (found := re.match(r"([\w.-]+)==(\S+)", line)))  # type: ignore[misc]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    said = []
    for name in [re.split(r"[<>=!\s]", line)[0] for line in wanted]:
        try:
            here = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            said.append(f"{name}: missing, tested with {tested.get(name, 'any')}")
            continue
        if here != tested.get(name, here):
            said.append(f"{name}: {here}, tested with {tested[name]}")
    return said


def used_gb() -> float | None:
    """GB that are taken of the fullest GPU, by nvidia-smi; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True)
    found = [float(line) for line in done.stdout.split() if line.replace(".", "").isdigit()]
    return max(found) * 2**20 / 1e9 if done.returncode == 0 and found else None


class Peak:
    """The most memory that processes took of the fullest GPU while the block ran, looked at twice a second, less what
    was taken before."""

    def __enter__(self) -> Peak:
        self.before = used_gb()
        self.most = self.before or 0.0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while self.before is not None and not self._over.wait(0.5):
            self.most = max(self.most, used_gb() or 0.0)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._watch.join()

    @property
    def gb(self) -> float | None:
        return None if self.before is None else self.most - self.before


def step(name: str, device: str, folder: Path, limit: float) -> dict[str, Any]:
    """Run one step in a process of its own. Returns its row of the table."""
    file, log = folder / "found.json", folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log"
    file.unlink(missing_ok=True)
    asked = [sys.executable, __file__, "--step", name, "--device", device, "--folder", str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    begun = time.monotonic()
    with Peak() as peak, log.open("wb") as sink:
        child = subprocess.Popen(
            asked,
            env=os.environ | offline | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
        try:
            child.wait(limit)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and whatever it left behind
            child.wait()
    found: dict[str, Any] = {"holds": False, "said": "", "tokens_s": None, "estimate_gb": None}
    if late:
        found["said"] = f"took more than {limit:.0f} s"
    elif file.exists():
        found |= json.loads(file.read_text())
    else:
        found["said"] = f"its process ended with exit code {child.returncode}: {log}"
    taken = found.get("host_gb") if device == "cpu" else peak.gb
    return found | {"step": name, "seconds": time.monotonic() - begun, "peak_gb": taken}


def child(name: str, device: str, folder: Path) -> None:
    """The other end of `step`: run it here, and write what it found."""
    try:
        from gpu_steps import STEPS, Place

        found = asdict(STEPS[name](Place(device, folder)))
    except BaseException as problem:
        traceback.print_exc()
        line = next((line for line in str(problem).splitlines() if line.strip()), "")
        found = {"holds": False, "said": f"{type(problem).__name__}: {line}"}
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found["host_gb"] = most * 1024 / 1e9  # of the largest process
    (folder / "found.json").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # not hang on what a failed step left running


def row(found: dict[str, Any]) -> str:
    """A line of the table."""

    def number(key: str, form: str) -> str:
        return format(found[key], form) if found.get(key) is not None else ""

    holds = {True: "yes", False: "NO", None: "left out"}[found["holds"]]
    cells = [
        f"{found['step']:<20}",
        f"{holds:<9}",
        f"{number('tokens_s', ',.0f'):>9}",
        f"{number('peak_gb', '.2f'):>8}",
    ]
    cells += [f"{number('estimate_gb', '.2f'):>9}", f"{number('seconds', '.0f'):>8}", f" {found['said']}"]
    return " ".join(cells)


HEAD = f"{'step':<20} {'holds':<9} {'tokens/s':>9} {'peak GB':>8} {'estimate':>9} {'seconds':>8}  what was found"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run these (default: all)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same steps, small")
    parser.add_argument("--minutes", type=float, default=8.0, help="end after so many")
    parser.add_argument("--out", type=Path, help="write the rows there as JSON")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        child(args.step, args.device, args.folder)
    from gpu_steps import STEPS

    if unknown := set(args.only or ()) - set(STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}; there are: {', '.join(STEPS)}")
    for line in packages():
        print(line)
    folder, end = Path(tempfile.mkdtemp(prefix="gpu_check-")), time.monotonic() + 60 * args.minutes
    print(HEAD)
    rows = []
    for name in args.only or STEPS:
        if (left := end - time.monotonic()) > 0:
            found = step(name, args.device, folder, min(LIMIT[args.device], left))
        if time.monotonic() >= end and (left <= 0 or found["holds"] is False):
            found = {"step": name, "holds": None, "said": f"the {args.minutes:g} minutes are over: --only '{name}'"}
        rows.append(found)
        print(row(found), flush=True)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=2) + "\n")
    failed = [found["step"] for found in rows if found["holds"] is False]
    for heavy in [path for path in folder.iterdir() if path.is_dir()]:
        shutil.rmtree(heavy)
    print(f"\nwhat the steps printed: {folder}")
    print(f"does not hold: {', '.join(failed)}" if failed else "all that could be tried holds")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
