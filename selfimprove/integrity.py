"""Whether a run folder still is what was written there. Readers check it, and `resume` repairs it.

Each phase's manifest has the hashes of the phase's files. JSON files have a checksum of their own, parts have a hash in
their name, and config.yaml has one in its first line. So a file that is missing, cut short or changed is noticed.
`docs/safety.md` says what happens then.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from selfimprove import store
from selfimprove.digests import Digests, hashes, unfit
from selfimprove.errors import Damaged
from selfimprove.policy.models import adapter_base, is_adapter, local

log = logging.getLogger("selfimprove")

MANIFEST = ".manifest.json"
FORECAST = "forecast.json"  # what the first passes told of the others (`selfimprove.forecast`)
MEND = "`selfimprove resume` makes it again"


def manifests(path: Path) -> list[Path]:
    """The manifests in a run folder, pass by pass."""
    found = (path.glob(pattern) for pattern in (f"*{MANIFEST}", f"base/*{MANIFEST}", f"rounds/*/*{MANIFEST}"))
    return [file for some in found for file in sorted(some)]


def phases(path: Path) -> list[str]:
    """The phases that have a manifest, such as `rounds/000/generate`."""
    return [str(file.relative_to(path)).removesuffix(MANIFEST) for file in manifests(path)]


def implied(path: Path) -> dict[str, Any]:
    """The part of summary.json that says which files a run has that has ended."""
    return {"phases": phases(path), "forecast": (path / FORECAST).exists()}


def begun(path: Path) -> bool:
    """Whether a phase of the run in this folder is done, so that there was a summary.json.

    False for folders of older versions.
    """
    return (path / f"prepare{MANIFEST}").exists() and len(manifests(path)) > 1


def lost(path: Path, summary: dict[str, Any]) -> list[Path]:
    """Files that are missing though the run has ended and its summary implies them: manifests, and figures of rounds.

    Empty for an interrupted run, since its summary is older than its last files.
    """
    if summary.get("status", "running") == "running":
        return []
    named = [path / f"{phase}{MANIFEST}" for phase in summary.get("phases", [])]
    evaluated = [f.parent for f in named if f.name == f"evaluate{MANIFEST}" and f.parent.name != "base"]
    figures = [folder / "metrics.json" for folder in evaluated if summary["status"] == "complete"]
    always = [path / "environment.json"] if named else []
    always += [path / FORECAST] if summary.get("forecast") else []
    return [file for file in (*always, *named, *figures) if not file.exists()]


class Checked:
    """The files of a run folder. Each is compared with its manifest once, before it is first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests = Digests(path)
        self._whole: set[Path] = set()

    @cached_property
    def _expected(self) -> dict[Path, tuple[Path, str, dict[str, Any]]]:
        """File -> the folder of the manifest that names it, the file's name there, and the manifest."""
        found = {}
        for file in manifests(self.path):
            manifest = store.read_json(file)
            for name in manifest.get("outputs", {}):
                found[file.parent / name] = (file.parent, name, manifest)
        return found

    def file(self, path: Path) -> Path:
        """`path`, a file or folder below the run's. Raises Damaged if it differs from its manifest.

        A file that no manifest names is not checked. It belongs to a phase that is not done, or to an older version.
        """
        if path not in self._whole and path in self._expected:
            folder, name, manifest = self._expected[path]
            own = {"outputs": {name: manifest["outputs"][name]}, "files": manifest.get("files", {})}
            problem = unfit(folder, own, self._digests)
            self._digests.save()
            if problem:
                raise Damaged(problem.path, f"{problem.why}; {MEND}")
            self._whole.add(path)
        return path

    def require(self, summary: dict[str, Any]) -> None:
        """Raises Damaged if a file of a run that has ended is missing."""
        if missing := lost(self.path, summary):
            raise Damaged(missing[0], f"is missing; {MEND}")


# Mending


def mend(path: Path, order: Sequence[str]) -> bool:
    """Prepare a run folder for `resume`. Damaged files are removed, with a log line each. The run makes them again.

    metrics.jsonl is written again here. `order` has the phases of a pass in order. Returns whether nothing was damaged.
    """
    digests = Digests(path)
    summary, problems = _read_figures(path)
    problems += [(Damaged(file, "is missing"), file) for file in lost(path, summary)]
    complete = summary.get("status") == "complete"
    for file in manifests(path):
        try:
            manifest = store.read_json(file)
        except Damaged as problem:
            problems.append((problem, file))
            continue
        found = unfit(file.parent, manifest, digests)
        if found and not (complete and _made_room(file, found)):
            own = file.name == f"prepare{MANIFEST}"  # it stays, since what is made again has to be equal
            problems.append((found, Path(found.path) if own else file))
    digests.save()
    for said, file in problems:
        log.warning("%s; it is made again", said)
        file.unlink(missing_ok=True)
    return mend_log(path, order) and not problems


def _read_figures(path: Path) -> tuple[dict[str, Any], list[tuple[Damaged, Path]]]:
    """The damaged ones of summary.json and the JSON files beside the manifests."""
    summary, problems = dict[str, Any](), list[tuple[Damaged, Path]]()
    own = (path / name for name in ("summary.json", "environment.json", WEIGHTS))
    for file in (*own, *path.glob(FORECAST), *path.glob("rounds/*/metrics.json")):
        try:
            value = store.read_json(file)
            summary = value if file.name == "summary.json" else summary
        except Damaged as problem:
            if file.exists() or begun(path):
                problems.append((problem, file))
    return summary, problems


def _made_room(manifest: Path, problem: Damaged) -> bool:
    """Whether the missing file is a policy that was removed as a whole, while a later round has one."""
    folder = manifest.with_name("policy")
    later = (other for other in manifest.parent.parent.glob("*/policy") if other.parent.name > folder.parent.name)
    return problem.path == folder and not folder.exists() and any(later)


def mend_log(path: Path, order: Sequence[str]) -> bool:
    """Write metrics.jsonl again from the manifests, unless every line of a phase and of its steps is in its place.

    Returns whether all lines were there.
    """
    file = path / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    there = [record for line in lines if (record := _read_line(line)) is not None]
    cut = len(lines) - len(there) == 1 and _read_line(lines[-1]) is None  # by a kill
    wanted = [line for name in _ordered(path, order) for line in _lines(store.read_json(name), there)]
    expected, found = [json.dumps(line) for line in wanted], [json.dumps(line) for line in there]
    known = {*expected}
    missing = len(known - {*found})
    whole = not missing and (cut or len(there) == len(lines))
    if whole and [line for line in found if line in known] == expected:
        return True
    store.write_text(file, "".join(f"{line}\n" for line in expected))
    if not whole:
        log.warning("%s: %d lines were missing or damaged; they are made again", file, missing)
    return whole


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None


def _lines(manifest: dict[str, Any], there: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a phase: its training steps, then its figures.

    Manifests of older versions do not have the steps. Then the steps of `there` are taken.
    """
    where = {**manifest["where"], "phase": manifest["phase"]}
    if "steps" in manifest:
        steps = [{**where, **step} for step in manifest["steps"]]
    else:
        steps = [line for line in there if "step" in line and {k: line[k] for k in store.WHERE if k in line} == where]
    return [*steps, {**where, **manifest["metrics"], "seconds": manifest["seconds"]}]


def _ordered(path: Path, order: Sequence[str]) -> list[Path]:
    """The manifests of phases that log a line, in the order in which the phases were done."""
    ranks = {f"{phase}{MANIFEST}": rank for rank, phase in enumerate(order)}
    found = [file for file in manifests(path) if file.name in ranks and "where" in store.read_json(file)]
    return sorted(found, key=lambda file: (file.parent.name != "base", file.parent, ranks[file.name]))


# What a run begins with


PREPARED = ("problems.parquet", "also.parquet", "dropped_problems.json")


def problem_files(path: Path) -> list[Path]:
    """The files with a run's problems: its own, and those of its second data set if it has one."""
    return [path / name for name in PREPARED[:2] if (path / name).exists()]


def seal(path: Path, key: str) -> None:
    """Write the manifest of the files with a run's problems. `key` is a hash of the problems."""
    names = [name for name in PREPARED if (path / name).exists()]
    manifest = {"phase": "prepare", "key": key, **hashes(path, names, Digests(path))}
    store.write_sealed(path / f"prepare{MANIFEST}", manifest)


def sealed(path: Path) -> tuple[str | None, bool]:
    """The hash of a run's problems (None: unknown), and whether all files that hold them are there."""
    manifest = store.read_or_none(path / f"prepare{MANIFEST}") or {}
    names = manifest.get("outputs", PREPARED[:1])
    return manifest.get("key"), all((path / name).exists() for name in names)


WEIGHTS = "weights.json"


def base_digests(path: Path, models: Mapping[str, str]) -> dict[str, str]:
    """Role -> the hash of the policy that a run starts from. The keys of phases have it.

    `models` is what `resolve` gave. A hash is of the content of all model files. weights.json keeps it with the hashes
    of the files. For a model that is not on this machine yet, the hash is of its name, and its files are noted once
    they are here. Raises Damaged if a file is not the one that the run began with.
    """
    known: dict[str, Any] = store.read_or_none(path / WEIGHTS) or {}
    for role, model in models.items():
        files = model_files(model)
        before = known.setdefault(role, {"digest": store.digest(files or model), "files": files})
        if before["files"] is None:
            before["files"] = files
        _require_same(path, model, before["files"], files)
    if known != store.read_or_none(path / WEIGHTS):
        store.write_sealed(path / WEIGHTS, known)
    return {role: str(known[role]["digest"]) for role in models}


def require_base(path: Path, role: str, model: str) -> None:
    """Raises Damaged if a file of the base policy is not the one that the run began with."""
    known = store.read_json(path / WEIGHTS) if (path / WEIGHTS).exists() else {}
    _require_same(path, model, known.get(role, {}).get("files"), model_files(model))


def _require_same(path: Path, model: str, before: dict[str, str] | None, files: dict[str, str] | None) -> None:
    if before is None or files is None:  # unknown, or not on this machine, so there is nothing to compare
        return
    if changed := {*before.items()} ^ {*files.items()}:
        name = min(name for name, _ in changed)
        raise Damaged((local(model) or path) / name, f"is not what {path} began with: put it back, or start a new run")


_MODEL_FILES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".model", ".txt", ".tiktoken", ".jinja", ".py"}


def model_files(model: str) -> dict[str, str] | None:
    """The hash of each file of a model: weights, configuration and tokenizer. An adapter's base counts too.

    None if they are not on this machine.
    """
    folder = local(model)
    if folder is None:
        return None
    digests = Digests(folder)
    names = sorted(file.name for file in folder.iterdir() if file.suffix in _MODEL_FILES and file.is_file())
    found = {name: digests.of(folder / name) for name in names}
    digests.save()
    if is_adapter(folder):
        base = model_files(adapter_base(folder)) or {}
        found |= {f"base model/{name}": made for name, made in base.items()}
    return found
