"""What a small run of every method does, beside what it did when recorded.json was written: changes of the loop must
not change it.

    python tests/test_recorded.py --write [NAME]...    # writes recorded.json anew, or what it says of these runs

The file holds, for each phase of a run, the manifest's key and the hashes of the files that the phase wrote. It also
holds a hash of each problem's records without floating-point numbers: token ids, texts, seeds, policy versions,
verdicts, and which examples were kept.

Log-probabilities and trained weights differ in their last digits between kinds of processors and versions of packages.
So do the hashes of files that hold them, and the keys of phases that read such files. The file says which machine wrote
it. On a machine of that kind everything must be equal. On another one the test asks for less: the same phases, the same
keys where a key depends on no file, and the same records of the base policy for more than half of the problems.

When a verifier is changed so that it reads some answers in another way, record the runs that this touches anew, in a
commit of its own. The hash of the verifiers' code is left out of the keys.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from selfimprove import run, solving, store
from selfimprove.config import compose
from selfimprove.types import Example, Trajectory, Verdict
from selfimprove.verify import Outcome
from selfimprove.verify.pool import Pool

RECORDED = Path(__file__).with_name("recorded.json")
KINDS = {"trajectories": Trajectory, "verdicts": Verdict, "grades": Verdict, "examples": Example}
PACKAGES = ("torch", "transformers", "trl", "tokenizers", "safetensors", "pyarrow", "numpy", "scipy")

SMALL = "seed=5 dataset.heldout_size=3 hardware.shard=3 verify.workers=1"
TRAIN = f"{SMALL} dataset.train_size=6 rounds=2 tracker=none model.max_tokens=40"
SOLVE = f"{SMALL} dataset.train_size=0 model.max_tokens=40"
LEVELS = "dataset.levels=[3,4]"
BSTAR = f"{LEVELS} dataset.dev_size=3 method.train.steps=2 method.probe.n=2 method.probe.temperatures.step=0.7"
MCTS = "dataset.levels=[2] method.generate.search.iterations=2 method.generate.search.first_iterations=4 method.parts=2"
TALK = f"{LEVELS} method.generate.max_tokens=32"
COLOURS = "dataset=colouring dataset.vertices=[3,4] method.generate.rounds=2 model.max_tokens=24"

RUNS = {  # `selfimprove run`
    "rejection_sampling": f"method=rejection_sampling {LEVELS}",
    "rejection_sampling_from_base": f"method=rejection_sampling {LEVELS} method.start=base method.generate.n=2 "
    "method.parts=2",
    "rejection_sampling_of_base": f"method=rejection_sampling {LEVELS} method.sampler=base control=shuffled_verdicts",
    "rejection_sampling_asking": f"method=rejection_sampling {LEVELS} rounds=1 generate=iad generate.iterations=2",
    "rejection_sampling_prepared": f"method=rejection_sampling {LEVELS} rounds=1 generate=auto_evolve "
    "generate.plan_tokens=24",
    "rejection_sampling_measured": f"method=rejection_sampling {LEVELS} rounds=1 eval.samples=2 "
    "eval.consistency={samples:2} eval.drift=3 dataset@eval.also=colouring eval.also.heldout_size=2",
    "rejection_sampling_judged": f"method=rejection_sampling {LEVELS} rounds=1 verifier=judge_arithmetic",
    "iterative_dpo": f"method=iterative_dpo {LEVELS}",
    "mcts_dpo": f"method=mcts_dpo {MCTS}",
    "mcts_dpo_released": f"method=mcts_dpo_released {MCTS}",
    "bstar": f"method=bstar {BSTAR} method.generate.n=4",
    "bstar_released": f"method=bstar_released {BSTAR} method.generate.n=4",
    "sharpening": f"method=sharpening {LEVELS} method.generate.n=4",
    "sharpening_rlhf": f"method=sharpening_rlhf {LEVELS} method.generate.n=4",
    "internal_consistency": f"method=internal_consistency {LEVELS} method.generate.n=4 method.filter.agreement=0.4",
    "curated_loop": f"method=curated_loop {LEVELS} verifier=lines",
    "curated_loop_categorical": "experiment=curated_categorical rounds=2 dataset.train_size=40 model.max_tokens=1",
    "curated_loop_points": "experiment=curated_points rounds=2 dataset.train_size=40 model.max_tokens=1",
}
EVALUATIONS = {  # `selfimprove eval`
    "dser": f"method=dser {TALK} method.generate.chains=2 method.generate.iterations=2",
    "iad": f"method=iad {TALK} verifier=arithmetic verifier.partial=true method.generate.iterations=2",
    "ids": "method=ids dataset.levels=[3,4] method.generate.chains=2 method.generate.first=12 "
    "method.generate.triggers=2 method.generate.max_tokens=96",
    "perfics": f"method=perfics {TALK}",
    "auto_evolve": f"method=auto_evolve {TALK} dataset.dev_size=3 method.generate.plan_tokens=24",
    "gen_vs_mc": f"method=gen_vs_mc {LEVELS} method.generate.rounds=1",
    "gen_vs_mc_choice": f"method=gen_vs_mc {LEVELS} method.generate.rounds=1 method.generate.space=choice "
    "dataset.form=choice",
    "critique_coloring": f"method=critique_coloring {COLOURS}",
    "critique_coloring_self": f"method=critique_coloring {COLOURS} method.generate.critic=self",
}


def do(name: str, folder: Path) -> None:
    """The run or evaluation of this name, in an empty folder."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        _fix(patch)
        if name in RUNS:
            run.start(compose([*TRAIN.split(), *RUNS[name].split()]), folder)
        else:
            solving.evaluate_solver(None, [*SOLVE.split(), *EVALUATIONS[name].split()], folder)


def _fix(patch: pytest.MonkeyPatch) -> None:
    """Make constant what is not the loop's. This is the one place that knows of the package's inside.

    - The hash of the verifiers' code: a function called `version` that takes a node, wherever it is used.
    - When a check is done that a solver asks for as it goes. Otherwise the speed of the child process decides which
      requests share a batch, and with it the last digits of their log-probabilities.
    """
    for module in [m for name, m in sys.modules.items() if name.startswith("selfimprove.")]:
        found = getattr(module, "version", None)
        if isinstance(found, FunctionType) and found.__module__.startswith("selfimprove."):
            patch.setattr(module, "version", lambda node: "of the verifiers")

    async def check_one(self: Pool, text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
        (outcome,) = self.run([(text, gold, metadata)])
        return outcome

    patch.setattr(Pool, "check_one", check_one)


def machine() -> dict[str, str]:
    """What the last digits of a result depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    said = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    names = ("model name", "cpu family", "model", "flags")
    return {
        "processor": store.digest([platform.machine(), *(said.get(name) for name in names)]),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{package: version(package) for package in PACKAGES},
    }


def told(folder: Path) -> dict[str, Any]:
    """What a finished run's manifests and files say, by phase: `rounds/000/generate`."""
    phases = {}
    for path in sorted(folder.rglob("*.manifest.json")):
        manifest = json.loads(path.read_text())
        name = str(path.relative_to(folder)).removesuffix(".manifest.json")
        records = {file: exact(path.parent / file) for file in manifest["outputs"] if Path(file).stem in KINDS}
        phases[name] = {"key": manifest["key"], "outputs": manifest["outputs"], "records": records}
    return phases


def exact(path: Path) -> str:
    """A short hash for each problem of what the file holds beside floating-point numbers."""
    groups: dict[str, list[Any]] = {}
    for record in store.read_records(path, KINDS[path.stem]):
        values = {field: getattr(record, field) for field in record.__dataclass_fields__}
        owner = values.get("problem_id") or values["trajectory_id"].rpartition("/")[0]
        groups.setdefault(owner, []).append(_without_floats(values))
    return " ".join(store.digest(group)[:6] for group in groups.values())


def _without_floats(value: Any) -> Any:
    """JSON of a record: without floating-point numbers, and without fields that say nothing, so that the schema can
    grow."""
    if hasattr(value, "__dataclass_fields__"):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        inner = {key: _without_floats(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item not in (None, [], {})}
    if isinstance(value, list):
        return [_without_floats(item) for item in value if not isinstance(item, float)]
    return None if isinstance(value, float) else value


BEFORE_TRAINING = ("adapt", "generate", "verify", "filter")  # phases of the first pass whose policy is the base


def of_base(phase: str) -> bool:
    """Whether a phase asks the base policy only."""
    folder, _, name = phase.rpartition("/")
    return phase in ("base/evaluate", "solver") or (
        folder in ("rounds/000", "rounds/000.0") and name in BEFORE_TRAINING
    )


def reads_no_file(phase: str, phases: dict[str, Any]) -> bool:
    """Whether a phase's key depends on the configuration alone: the first ones of a run do."""
    folder = phase.rpartition("/")[0]
    return (
        of_base(phase)
        and not phase.endswith(("verify", "filter"))
        and not (phase.endswith("generate") and f"{folder}/adapt" in phases)
    )


SLOW = ("bstar_released", "mcts_dpo_released", "rejection_sampling_measured")  # their twins are quicker
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in (*RUNS, *EVALUATIONS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_does_what_it_did(name, tmp_path):
    recorded = json.loads(RECORDED.read_text())
    known = recorded["runs"][name]
    do(name, tmp_path)
    now = told(tmp_path)
    assert now.keys() == known.keys()
    for phase, told_before in known.items():  # a phase may come to write more
        now[phase]["outputs"] = {file: now[phase]["outputs"].get(file) for file in told_before["outputs"]}
    if machine() == recorded["machine"]:
        changed = {phase: [part for part in now[phase] if now[phase][part] != known[phase][part]] for phase in now}
        assert not any(changed.values()), {phase: parts for phase, parts in changed.items() if parts}
        return
    keys = [phase for phase in now if reads_no_file(phase, now)]
    assert keys
    assert {phase: now[phase]["key"] for phase in keys} == {phase: known[phase]["key"] for phase in keys}
    pairs = [
        (mine, theirs)
        for phase in filter(of_base, now)
        for file, records in now[phase]["records"].items()
        for mine, theirs in zip(records.split(), known[phase]["records"][file].split(), strict=True)
    ]
    assert sum(mine == theirs for mine, theirs in pairs) > len(pairs) / 2


def write(names: list[str]) -> None:
    """Record these runs; all where none is named."""
    known = json.loads(RECORDED.read_text()) if names else {"runs": {}}
    if names and known["machine"] != machine():
        sys.exit("recorded.json is of another kind of machine: record all runs")
    for name in names or [*RUNS, *EVALUATIONS]:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            do(name, Path(folder))
            known["runs"][name] = told(Path(folder))
        print(f"{name}: {time.perf_counter() - begin:.1f} s")
    RECORDED.write_text(
        json.dumps({"machine": machine(), "runs": dict(sorted(known["runs"].items()))}, indent=1) + "\n"
    )


if __name__ == "__main__":
    logging.disable(logging.INFO)
    write([word for word in sys.argv[1:] if word != "--write"])
