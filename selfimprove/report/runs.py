"""What finished and unfinished run folders hold, read by column for tables and plots over many runs.

    for path in find([Path("outputs/default")]):
        run = RunData(path)
        run.config["method"]["name"], run.seed, run.complete
        run.heldout[0]           # {problem id: 1.0 or 0.0} of the base policy; [1] after round 0, and so on
        run.tokens[0]["sampled"] # of round 0

Everything is read when it is first asked for and then kept. Only the columns that are needed leave the Parquet files,
one row group (a shard of problems) at a time; trajectories never become Python objects.

Indexes: an *evaluation* is 0 for the base policy and r + 1 after round r. A *round* is r, from 0. Lists end where the
run does: an unfinished run has fewer entries, and no entry is half there.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfimprove import config as configuration
from selfimprove import scores
from selfimprove.errors import ConfigError, Damaged
from selfimprove.integrity import MEND, Checked, begun
from selfimprove.store import opened, read_columns, read_json
from selfimprove.types import Problem, Trajectory, Verdict
from selfimprove.units import UNITS, Unit

KINDS = ("prompt", "sampled", "scored", "trained")
"""What tokens are counted as: of prompts, sampled, scored (log-probabilities alone), and read by a trainer."""


_OF_A_PASS = (  # phase, its figure, and what it is called over steps
    ("filter", "exploit/available_reward", "reward"),
    ("filter", "explore/distinct_answers", "distinct answers"),
    ("generate", "completion/mean_tokens", "tokens of an answer"),
)


def find(paths: Iterable[Path]) -> list[Path]:
    """The run folders among and below `paths`, each once, sorted by name within each of `paths`.

    A path is a run folder itself, a folder of a sweep, or any folder above. Folders inside a run folder are not looked
    into. Raises ConfigError for a path that does not exist or has no run below it.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder")
        below = list(_below(path))
        if not below:
            raise ConfigError(f"{path}: no run folder here or below (one has config.yaml and summary.json)")
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _below(path: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(path):
        if "config.yaml" in files and not {"summary.json", "environment.json"}.isdisjoint(files):
            names.clear()
            yield Path(folder)
        names.sort()


@dataclass(frozen=True)
class RunData:
    """One run folder. Reading a property raises ConfigError where the folder is damaged."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as plain data: resolved, secrets removed. Not validated: an older version may have written it."""
        return configuration.load(self.path / "config.yaml")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json: status, reason, base, final, change, rounds; {} of a run that was killed before it.

        Raises Damaged where a file is missing that the run had by its summary.
        """
        path = self.path / "summary.json"
        if not path.exists() and begun(self.path):
            raise Damaged(path, f"is missing; {MEND}")
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        self.files.require(found)
        return found

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json: versions, git commit, hardware, the exact command; {} where it is missing."""
        path = self.path / "environment.json"
        return read_json(path) if path.exists() else {}

    @cached_property
    def files(self) -> Checked:
        """The folder's files, each compared with its phase's manifest before it is read."""
        return Checked(self.path)

    @property
    def kind(self) -> str:
        """`run` for rounds of training, `eval` for a folder that `selfimprove eval method=...` left."""
        return str(self.summary.get("kind", "run"))

    @property
    def method(self) -> str:
        return str(self.config["method"]["name"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def status(self) -> str:
        """complete, stopped, failed or running (also what a killed run is left as); `not started` without a summary."""
        return str(self.summary.get("status", "not started"))

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def ended(self) -> bool:
        """Whether the run is complete, or stopped by a rule of its own configuration: a budget, or on_empty."""
        reason = str(self.summary.get("reason") or "")
        return self.complete or (self.status == "stopped" and not reason.startswith("SIG"))

    # Problems

    @cached_property
    def problems(self) -> pa.Table:
        """Columns `id`, `prompt` (text or messages, as JSON), `gold`, `split` (train, dev, test, sealed): the problems used."""
        path = self.files.file(self.path / "problems.parquet")
        return read_columns(path, Problem, ["id", "prompt", "gold", "split"])

    def prompts(self, split: str) -> dict[str, str]:
        """Problem id -> prompt as JSON, of the problems of one split."""
        chosen = self.problems.filter(pc.field("split") == split)
        return dict(zip(chosen["id"].to_pylist(), chosen["prompt"].to_pylist(), strict=True))

    # Evaluations on the held-out problems: index 0 is the base policy, r + 1 what round r trained

    @cached_property
    def evaluations(self) -> list[Path]:
        """Folders with the trajectories and verdicts of each evaluation that is whole."""
        folders = [self.path / "base" / "evaluation"]
        folders += [folder / "evaluation" for folder in self._round_folders]
        return list(itertools.takewhile(lambda f: (f.parent / "evaluate.manifest.json").exists(), folders))

    def answers(self, index: int) -> pa.Table:
        """The answers of an evaluation, one row each, in the order of the file.

        Columns: `problem_id`; `decoding` ("greedy", "sampled", or what eval.consistency asked for); `status`;
        `extracted` (null where no answer was read); `prompt_tokens` and `sampled_tokens`, over the answer's samples.
        """
        return answers(self.evaluations[index], self.files)

    @property
    def side(self) -> str:
        """What the problems of the evaluations are called: held-out, or dev of a run with eval.side=dev."""
        return "dev" if self.config["eval"].get("side") == "dev" else "held-out"

    @property
    def evaluated(self) -> dict[str, str]:
        """Problem id -> prompt as JSON, of the problems of the evaluations."""
        return self.prompts("dev" if self.side == "dev" else "test")

    @property
    def unit(self) -> Unit:
        """What a held-out problem's score is."""
        return UNITS[self.config["dataset"].get("score", "accuracy")]

    @cached_property
    def heldout(self) -> list[dict[str, float]]:
        """The scores of each evaluation: held-out problem id -> score, in the order of the problems.

        A run of an earlier version has greedy answers, right (1) or wrong (0).
        """
        return [
            dict(scores.read(file).by_problem)
            if (file := self.files.file(folder / scores.FILE)).exists()
            else _shares(_counts(folder, "greedy", self.files))
            for folder in self.evaluations
        ]

    @cached_property
    def sampled(self) -> list[dict[str, tuple[int, int]]]:
        """The same of the sampled answers: problem id -> (n, c), n answers of which c are correct. Each entry is {}
        where eval.samples is 0."""
        return [_counts(folder, "sampled", self.files) for folder in self.evaluations]

    @cached_property
    def also(self) -> list[dict[str, float]]:
        """As `heldout`, on the held-out problems of the second data set, eval.also; [] without one."""
        folders = [self.path / "base" / "also", *(folder / "also" for folder in self._round_folders)]
        there = [folder for folder in folders if (folder.parent / "also.manifest.json").exists()]
        return [_shares(_counts(folder, "greedy", self.files)) for folder in there]

    @cached_property
    def drift(self) -> list[dict[str, tuple[float, int]]]:
        """KL from the base policy, an entry a round: held-out problem id -> (nats, tokens) of one answer; [] where
        eval.drift is null."""
        found = []
        for folder in self._round_folders:
            if (folder / "drift.manifest.json").exists():
                with opened(self.files.file(folder / "drift" / "scores.parquet")) as file:
                    columns = file.read(use_threads=False).to_pydict()
                    both = zip(columns["nats"], columns["tokens"], strict=True)
                    found.append(dict(zip(columns["problem_id"], both, strict=True)))
        return found

    # Rounds

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """metrics.json of each round: flat, `<phase>/<metric>` and `seconds/<phase>`. Whole rounds alone."""
        found = [folder / "metrics.json" for folder in self._round_folders]
        return [read_json(path) for path in found if path.exists()]

    @cached_property
    def steps(self) -> dict[str, list[tuple[int, float]]]:
        """Figures of training over the run's optimizer steps, counted from 1: name -> (step, value), ...

        Those that the trainer logged at each step (loss, entropy, kl, ...), and of each pass, at its first step, what
        its attempts were (reward, tokens of an answer, distinct answers). Another role's names begin with the role's.
        """
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        stages, last = self.config["method"].get("stages", {}), 0
        for folder in itertools.chain.from_iterable(self.passes.values()):
            known = {phase: folder / f"{phase}.manifest.json" for phase in ("generate", "filter", "train")}
            if not known["train"].exists():
                continue
            manifests = {phase: read_json(path) for phase, path in known.items() if path.exists()}
            stage = stages.get(manifests["train"].get("where", {}).get("stage"), {})
            role = stage.get("role", "policy")
            prefix = "" if role == "policy" else f"{role}: "
            for phase, figure, name in _OF_A_PASS:
                value = manifests.get(phase, {}).get("metrics", {}).get(figure)
                if value is not None:
                    found[prefix + name].append((last + 1, float(value)))
            for step in manifests["train"].get("steps", ()):
                for name, value in step.items():
                    if name not in ("step", "progress"):
                        found[prefix + name].append((last + int(step["step"]), float(value)))
            last += int(manifests["train"]["metrics"].get("steps", 0))
        return dict(found)

    @cached_property
    def tokens(self) -> list[dict[str, int]]:
        """Tokens that learning spent, an entry a round: {prompt, sampled, scored, trained}. Evaluation is not in it."""
        return [{kind: int(r["tokens"].get(kind, 0)) for kind in KINDS} for r in self.summary.get("rounds", [])]

    @cached_property
    def seconds(self) -> list[dict[str, float]]:
        """Wall-clock seconds, an entry a round: phase (adapt, generate, verify, filter, train, evaluate) -> seconds."""
        return [dict(r["seconds"]) for r in self.summary.get("rounds", [])]

    @cached_property
    def verdicts(self) -> list[dict[str, int]]:
        """Verdicts on the training problems' answers, an entry a round: status -> number."""
        return [dict(r["verdicts"]) for r in self.summary.get("rounds", [])]

    @cached_property
    def flops(self) -> list[dict[str, float]]:
        """Estimated floating-point operations of learning, an entry a round, by kind of token; {} where the size of the
        policy is not known.

        2 N for a token of a prompt, a sampled or a scored one, 6 N for a trained one (Kaplan et al. 2020,
        arXiv 2001.08361, section 2.1), with all N parameters of the policy. An upper bound where prompts are read from
        a cache or training is of an adapter; attention over the context, and models other than the policy, count as if
        they were N too.
        """
        n = self.parameters
        if n is None:
            return [{} for _ in self.tokens]
        return [{kind: flops(n, kind, count) for kind, count in tokens.items()} for tokens in self.tokens]

    @cached_property
    def parameters(self) -> int | None:
        """N, the number of the base policy's parameters, from the headers of its files; None where there are none."""
        return parameters(self.base_folder) if self.base_folder else None

    @cached_property
    def base_folder(self) -> Path | None:
        """Where the base policy's files are on this machine; None where they are not."""
        from selfimprove.policy.models import local, resolve

        model = self.config["model"]
        return local(resolve(model["name"], str(model["path"])))

    def training(self, number: int) -> pa.Table:
        """The answers of a round's training problems: the columns of `answers`, over all passes of the round."""
        parts = [folder for folder in self._passes(number) if (folder / "verify.manifest.json").exists()]
        if not parts:
            raise ConfigError(f"{self.path}: round {number} has no verdicts")
        return pa.concat_tables([answers(folder, self.files) for folder in parts])

    # Reading

    def _passes(self, number: int) -> list[Path]:
        """The folders of a round's passes, in order."""
        return self.passes.get(number, [])

    @cached_property
    def passes(self) -> dict[int, list[Path]]:
        """The folders of all passes by round, in the order of passes, which their names sort in."""
        found: dict[int, list[Path]] = {}
        for folder in sorted((self.path / "rounds").glob("[0-9]*")):
            if number := re.match(r"[0-9]+", folder.name):
                found.setdefault(int(number[0]), []).append(folder)
        return dict(sorted(found.items()))

    @cached_property
    def _round_folders(self) -> list[Path]:
        """The last pass's folder of each round, which has the evaluation and metrics.json."""
        return [folders[-1] for folders in self.passes.values()]


def _counts(folder: Path, decoding: str, files: Checked) -> dict[str, tuple[int, int]]:
    """Problem id -> (answers, correct ones) of one decoding, of an evaluation's folder."""
    table = answers(folder, files, lengths=False)
    right = pc.equal(table["status"], "correct").to_pylist()
    total: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for name, how, good in zip(table["problem_id"].to_pylist(), table["decoding"].to_pylist(), right, strict=True):
        if how == decoding:
            total[name] += 1
            correct[name] += good
    return {name: (n, correct[name]) for name, n in total.items()}


def _shares(counts: dict[str, tuple[int, int]]) -> dict[str, float]:
    return {name: correct / n for name, (n, correct) in counts.items()}


def answers(folder: Path, files: Checked | None = None, lengths: bool = True) -> pa.Table:
    """Trajectories and verdicts of a folder side by side, without the tokens themselves: see `RunData.answers`.

    Raises ConfigError when a file cannot be read, is not what `files` expects, or the two do not belong together.
    """
    files = files or Checked(folder)
    verdicts = read_columns(files.file(folder / "verdicts.parquet"), Verdict, ["status", "extracted"])
    path = files.file(folder / "trajectories.parquet")
    known = read_columns(path, Trajectory, ["problem_id", "metadata"])
    if known.num_rows != verdicts.num_rows:
        raise ConfigError(f"{folder}: {known.num_rows} trajectories and {verdicts.num_rows} verdicts")
    metadata = pc.dictionary_encode(known["metadata"]).combine_chunks()
    names = pa.array(
        [json.loads(text).get("decoding", "greedy") for text in metadata.dictionary.to_pylist()], pa.string()
    )
    columns = {"problem_id": known["problem_id"], "decoding": names.take(metadata.indices)}
    columns |= {"status": verdicts["status"], "extracted": verdicts["extracted"]}
    return pa.table(columns | (_lengths(path) if lengths else {}))


def _lengths(path: Path) -> dict[str, pa.Array]:
    """Tokens of each trajectory's samples, read a row group at a time."""
    found: dict[str, list[np.ndarray]] = {"prompt_tokens": [], "sampled_tokens": []}
    with opened(path) as file:
        for group in range(file.num_row_groups):
            for name, field in (("prompt_tokens", "prompt_ids"), ("sampled_tokens", "completion_ids")):
                column = file.read_row_group(group, columns=[f"samples.list.element.{field}"], use_threads=False)
                samples = column["samples"].combine_chunks()
                each = pc.list_value_length(pc.struct_field(samples.flatten(), field)).to_numpy(zero_copy_only=False)
                until = np.cumsum(pc.list_value_length(samples).to_numpy(zero_copy_only=False))
                sums = np.concatenate([[0], np.cumsum(each)])[np.concatenate([[0], until])]
                found[name].append(np.diff(sums))
    return {name: pa.array(np.concatenate(parts or [np.zeros(0, int)]), pa.int64()) for name, parts in found.items()}


def flops(parameters: int, kind: str, tokens: float) -> float:
    """2 N a token that is read, sampled or scored, 6 N a trained one."""
    return (6.0 if kind == "trained" else 2.0) * parameters * tokens


def parameters(folder: Path) -> int | None:
    """How many parameters the safetensors files of a model folder hold, from their headers alone; None without any.

    An adapter folder counts as the base model it names. Weights that are shared are stored once, and counted once.
    Raises Damaged for a file that is none.
    """
    if (folder / "adapter_config.json").is_file():
        named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        folder = Path(str(named))
    files = sorted(folder.glob("*.safetensors"))
    return sum(map(_stored, files)) if files else None


def _stored(path: Path) -> int:
    """Numbers in one safetensors file. It starts with the header's length, 8 bytes, little-endian; then JSON."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise Damaged(path, f"is no file of weights ({problem})") from None
