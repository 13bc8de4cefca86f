"""`selfimprove doctor`: what differs from what was tested, what this machine can run, and what memory a run needs."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfimprove.account import estimated
from selfimprove.memory import GB, advice, estimate, host_memory, machine_memory

_PACKAGED = Path(__file__).parent / "requirements.lock"
LOCK = _PACKAGED if _PACKAGED.exists() else Path(__file__).parent.parent / "requirements.lock"

# What a run stands on; the rest of the lock follows from these.
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "hydra-core",
    "pyarrow",
    "math-verify",
    "wandb",
)
_ENGINES = {"transformers": "transformers", "vllm": "vllm"}


def report() -> int:
    """Print the report. Returns 1 if a package that every run needs is missing, else 0."""
    console = Console()
    tested = locked()
    table = Table("package", "tested", "here", "", box=None, pad_edge=False)
    missing = False
    for name in PACKAGES:
        here = installed(name)
        missing |= here is None
        note = (
            "missing: make demo installs it"
            if here is None
            else ""
            if here == tested.get(name)
            else "not the tested one"
        )
        table.add_row(name, tested.get(name, "?"), here or "-", note)
    console.print(table)

    console.print(f"\npython      {platform.python_version()} on {platform.platform()}")
    console.print(f"cores       {os.cpu_count()}, memory {machine_memory() / GB:.0f} GB")
    console.print(f"GPU         {_gpus()}")
    for engine, module in _ENGINES.items():
        console.print(f"engine      {engine}: {escape(_imports(module))}", soft_wrap=True)
    whole, absent = extras()
    console.print(f"extras      {', '.join(whole) or 'none'}", soft_wrap=True)
    if absent:
        names = ", ".join(absent)
        console.print(f"            not here: {names} (pip install 'selfimprove\\[NAME]')", soft_wrap=True)
    sandboxes = ", ".join(filter(None, map(shutil.which, ("bwrap", "docker", "podman"))))
    console.print(f"sandbox     {sandboxes or 'none (apt-get install bubblewrap): model-written code is refused'}")
    console.print(f"run folders {Path('outputs').resolve()} (hydra.run.dir=... for another)", soft_wrap=True)
    return int(missing)


def memory(overrides: Sequence[str]) -> int:
    """Print the memory that a run with these overrides needs, by part, and whether it fits. Loads no model.

    Returns 0 if it fits or if that is unknown, else 1. Raises ConfigError for overrides that do not make a run.
    """
    from selfimprove.config import compose
    from selfimprove.fit import require_there

    config = compose(overrides, needs=False)
    require_there(config)
    found, whole = estimate(config), estimate(config, row=config.model.max_length)
    console = Console(soft_wrap=True, highlight=False)
    model, hardware = config.model, config.hardware
    if found is None or whole is None:
        console.print(f"model={model.name}: what it needs is not known, since it has no config.json of a decoder")
        return 0
    place = "a GPU" if hardware.device == "cuda" else "this machine"
    kind = "full" if model.lora is None else f"LoRA r={model.lora.r}{', nf4 base' if model.lora.quantize else ''}"
    room = f"{found.room / GB:.0f} GB" if found.room else "unknown"
    console.print(f"model={model.name} ({model.dtype}, {kind}) on hardware={hardware.name}: {place} has {room}\n")
    table = Table("part", "GB", f"share of {place}" if found.room else "", box=None, pad_edge=False)
    for name, parts in (("sampler", found.sampler), ("trainer", found.trainer), ("verifier", found.second)):
        for part, size in parts.items():
            table.add_row(f"{name}: {part}", f"{size / GB:.2f}", _share(size, found.room))
        if parts:
            table.add_row(f"{name}, all", f"{sum(parts.values()) / GB:.2f}", _share(sum(parts.values()), found.room))
    table.add_row("most at one time", f"{found.peak / GB:.2f}", _share(found.peak, found.room))
    console.print(table)
    console.print()
    if found.sequences is not None:
        console.print(f"The sampler's cache holds {found.sequences} sequences of {model.max_length} tokens at once.")
    if found.trainer:
        step = f"rows of {found.row} tokens (2 x model.max_tokens, at most the window)"
        longest = f"{sum(whole.trainer.values()) / GB:.2f} GB where all have {model.max_length}"
        console.print(f"The trainer is counted with {step}; it needs {longest}.")
    both = "hold it together" if found.together else "take turns (hardware.sleep)"
    console.print(f"Sampler and trainer {both}. Rough figures: docs/hardware.md has the formulas.")
    if found.second:
        turns = (
            "is held beside the sampler: solvers ask it as they go" if found.asked or found.together else "takes turns"
        )
        console.print(f"The verifier's model {turns}; of several GPUs it is on the first.")
    if seconds := estimated(config):
        console.print("\nSeconds of a round outside of sampling and training, a guess:")
        times = Table(box=None, pad_edge=False, show_header=False)
        for name, spent in (seconds | {"all": sum(seconds.values())}).items():
            times.add_row(name, f"{spent:.0f}")
        console.print(times)
    if host := host_memory(config):
        console.print(
            f"While the policy is loaded, training takes up to {host / GB:.0f} GB of the machine's own memory."
        )
    if found.fits:
        console.print("fits" if found.room else "whether it fits is unknown: hardware.memory_gb is null")
        return 0
    remedy = advice(config)
    console.print(f"does not fit; it would with {' '.join(remedy)}" if remedy else "does not fit, nor with other keys")
    return 1


def _share(size: float, room: float | None) -> str:
    return f"{100 * size / room:.0f} %" if room else ""


def locked() -> dict[str, str]:
    """The tested version of every package, from requirements.lock."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return dict(match.groups() for line in lines if (match := re.match(r"([\w.-]+)==(\S+)", line)))  # type: ignore[misc]


def installed(name: str) -> str | None:
    """A package's version without its local tag (2.13.0+cpu is 2.13.0), or None."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> tuple[list[str], list[str]]:
    """The package's optional extras: those whose packages are all installed, and those that lack one."""
    names = importlib.metadata.metadata("selfimprove").get_all("Provides-Extra") or []
    needs = list(map(Requirement, importlib.metadata.requires("selfimprove") or []))

    def here(extra: str) -> bool:
        return all(installed(need.name) for need in needs if not need.marker or need.marker.evaluate({"extra": extra}))

    whole = [name for name in names if here(name)]
    return whole, [name for name in names if name not in whole]


def _imports(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return f"not installed (pip install 'selfimprove[{module}]')"
    try:
        importlib.import_module(module)
    except Exception as problem:  # whatever a broken installation raises is what the user wants to know
        return f"does not import: {type(problem).__name__}: {problem}"
    return "imports"


def _gpus() -> str:
    if installed("torch") is None:
        return "unknown: torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "none (the default hardware=cpu runs the embedded model)"
    count = torch.cuda.device_count()
    first = torch.cuda.get_device_properties(0)
    return f"{count} x {first.name}, {first.total_memory / 1e9:.0f} GB"
