"""Run folders without a run: what the tests of comparisons read, written by hand."""

import json
from pathlib import Path

import yaml

from selfimprove.policy.models import PACKAGED
from selfimprove.store import write_json, write_records
from selfimprove.types import Problem, Sample, Trajectory, Verdict

CONFIG = {
    "name": "t",
    "seed": 0,
    "rounds": 2,
    "control": None,
    "group": None,
    "method": {"name": "rejection_sampling", "parts": 1, "generate": {"n": 4}},
    "model": {"name": "tiny", "path": str(PACKAGED / "tiny"), "max_tokens": 96, "dtype": "float32"},
    "dataset": {"name": "arithmetic", "verifier": {"_target_": "v", "form": "solve"}},
    "engine": {"name": "transformers"},
    "hardware": {"name": "cpu"},
    "tracker": {"name": "none"},
    "eval": {"samples": 0, "max_tokens": None},
}


def problems(n, split="test", words="What is {}?"):
    return [Problem(f"{split}-{i}", words.format(f"{split} {i}"), str(i), split) for i in range(n)]


def sample(tokens):
    return Sample([1, 2, 3], list(range(tokens)), [0.0] * tokens, "t", "stop", 0)


def write_answers(folder, heldout, greedy, sampled=None):
    """`greedy[i]`: whether problem i is solved; `sampled[i]`: answers of other attempts, right where equal to gold."""
    trajectories, verdicts = [], []
    for i, problem in enumerate(heldout):
        said = [("greedy", problem.gold if greedy[i] else "no")]
        said += [("sampled", answer) for answer in (sampled[i] if sampled else [])]
        for number, (decoding, answer) in enumerate(said):
            name = f"{problem.id}/{number}"
            kind = {"decoding": decoding}
            trajectories.append(Trajectory(problem.id, [sample(2), sample(8)], kind, name))
            right = answer == problem.gold
            status = "unparseable" if answer is None else "correct" if right else "wrong"
            verdicts.append(Verdict(name, status, float(right), answer))
    write_records(folder / "trajectories.parquet", trajectories, Trajectory)
    write_records(folder / "verdicts.parquet", verdicts, Verdict)


def write_run(path, solved, *, sampled=None, train=None, heldout=None, tokens=1000, status="complete", **changed):
    """A run whose evaluation v solves the problems where `solved[v]` is true; `changed`: configuration, a__b."""
    config = json.loads(json.dumps(CONFIG)) | {"rounds": len(solved) - 1}
    for key, value in changed.items():
        *above, last = key.split("__")
        section = config
        for name in above:
            section = section[name]
        section[last] = value
    path = Path(path)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    heldout = heldout or problems(len(solved[0]))
    write_records(path / "problems.parquet", [*heldout, *(train or problems(5, "train"))], Problem)
    rounds = []
    for v, greedy in enumerate(solved):
        folder = path / "base" if v == 0 else path / "rounds" / f"{v - 1:03d}"
        write_answers(folder / "evaluation", heldout, greedy, sampled if v == 0 else None)
        write_json(folder / "evaluate.manifest.json", {})
        if v:
            write_json(folder / "metrics.json", {"round": v - 1, "train/loss": 0.5})
            spent = {"prompt": 300, "sampled": tokens, "scored": 0, "trained": 100}
            seconds = {"generate": 2.0, "train": 1.0, "evaluate": 0.5}
            rounds.append({"tokens": spent, "seconds": seconds, "verdicts": {"correct": 3, "wrong": 1}})
    write_json(path / "summary.json", {"status": status, "reason": None, "rounds": rounds})
    write_json(path / "environment.json", {"git_commit": "abc"})
    return path
