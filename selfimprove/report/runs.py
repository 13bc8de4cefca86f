"""Reads finished and unfinished run folders, by column, for tables and plots over many runs.

    for path in find([Path("outputs/default")]):
        run = RunData(path)
        run.config["method"]["name"], run.seed, run.complete
        run.heldout[0]           # {problem id: 1.0 or 0.0} of the base policy; [1] after round 0, and so on
        run.tokens[0]["sampled"] # of round 0

Data is read on first use and then kept. Only the needed columns of the Parquet files are read, one row group (a shard
of problems) at a time. Trajectories never become Python objects.

Indexes: *evaluation* 0 is of the base policy, and r + 1 follows round r. A *round* is r, from 0. An unfinished run has
fewer entries in a list, but each entry is complete.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
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
"""The kinds of tokens counted: of prompts, sampled, scored (log-probabilities only), and read by a trainer."""


_OF_A_PASS = (  # phase, its figure, and the figure's name over steps
    ("filter", "exploit/available_reward", "reward"),
    ("filter", "explore/distinct_answers", "distinct answers"),
    ("generate", "completion/mean_tokens", "tokens of an answer"),
)


def find(paths: Iterable[Path]) -> list[Path]:
    """The run folders at and below `paths`, each once, sorted by name within each of `paths`.

    A path is a run folder, a folder of a sweep, or any folder above. Run folders are not searched for others. Raises
    ConfigError when a path does not exist or has no run below it.
    """
    runs: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder")
        below = list(_below(path))
        if not below:
            raise ConfigError(f"{path}: no run folder here or below (one has config.yaml and summary.json)")
        for run in below:
            runs.setdefault(run.resolve(), run)
    return list(runs.values())


def _below(path: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(path):
        if "config.yaml" in files and not {"summary.json", "environment.json"}.isdisjoint(files):
            names.clear()
            yield Path(folder)
        names.sort()


@dataclass(frozen=True)
class RunData:
    """One run folder. Reading a property raises ConfigError when the folder is damaged."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as plain data, resolved and without secrets. It is not validated, since it may be older."""
        return configuration.load(self.path / "config.yaml")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json: status, reason, base, final, change, rounds; {} if the run was killed before writing it.

        Raises Damaged if a file is missing that the summary implies.
        """
        path = self.path / "summary.json"
        if not path.exists() and begun(self.path):
            raise Damaged(path, f"is missing; {MEND}")
        summary: dict[str, Any] = read_json(path) if path.exists() else {}
        self.files.require(summary)
        return summary

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json: versions, git commit, hardware, the exact command; {} if it is missing."""
        path = self.path / "environment.json"
        return read_json(path) if path.exists() else {}

    @property
    def command(self) -> str:
        """The exact command, without the paths of the machine that it ran on, and without secrets."""
        words = shlex.split(str(self.environment.get("command", "")))
        begin = next((i for i, word in enumerate(words) if word in ("run", "resume")), 0)
        kept = [word for word in words[begin:] if not word.startswith("hydra.run.dir=")]
        command = shlex.join(["selfimprove", *kept])
        return str(configuration.redact(command)).replace(str(Path.home()), "~")

    @cached_property
    def files(self) -> Checked:
        """The folder's files. Each is compared with its phase's manifest before it is read."""
        return Checked(self.path)

    @property
    def kind(self) -> str:
        """`run` for rounds of training, `eval` for a folder of `selfimprove eval method=...`."""
        return str(self.summary.get("kind", "run"))

    @property
    def method(self) -> str:
        return str(self.config["method"]["name"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def status(self) -> str:
        """complete, stopped, failed or running (also after a kill); `not started` without a summary."""
        return str(self.summary.get("status", "not started"))

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def ended(self) -> bool:
        """Whether the run is complete, or was stopped by a rule of its config: a budget, or on_empty."""
        reason = str(self.summary.get("reason") or "")
        return self.complete or (self.status == "stopped" and not reason.startswith("SIG"))

    # Problems

    @cached_property
    def problems(self) -> pa.Table:
        """The run's problems: `id`, `prompt` (text or messages, as JSON), `gold`, `split` (as in `Problem`)."""
        path = self.files.file(self.path / "problems.parquet")
        return read_columns(path, Problem, ["id", "prompt", "gold", "split"])

    def prompts(self, split: str) -> dict[str, str]:
        """Problem id -> prompt as JSON, for one split."""
        chosen = self.problems.filter(pc.field("split") == split)
        return dict(zip(chosen["id"].to_pylist(), chosen["prompt"].to_pylist(), strict=True))

    # Evaluations on the held-out problems: index 0 is the base policy, r + 1 the policy after round r

    @cached_property
    def evaluations(self) -> list[Path]:
        """The folders of complete evaluations, with their trajectories and verdicts."""
        folders = [self.path / "base" / "evaluation"]
        folders += [folder / "evaluation" for folder in self._round_folders]
        return list(itertools.takewhile(lambda f: (f.parent / "evaluate.manifest.json").exists(), folders))

    def answers(self, index: int) -> pa.Table:
        """The answers of an evaluation, one row each, in the order of the file.

        Columns: `problem_id`; `decoding` ("greedy", "sampled", or one of eval.consistency's); `status`; `extracted`
        (null if no answer was read); `prompt_tokens` and `sampled_tokens`, totals over the answer's samples.
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
        """The unit of a held-out problem's score."""
        return UNITS[self.config["dataset"].get("score", "accuracy")]

    @cached_property
    def heldout(self) -> list[dict[str, float]]:
        """The scores of each evaluation: held-out problem id -> score, in the order of the problems.

        For a run of an earlier version they are its greedy answers, right (1) or wrong (0).
        """
        return [
            dict(scores.read(file).by_problem)
            if (file := self.files.file(folder / scores.FILE)).exists()
            else _shares(_counts(folder, "greedy", self.files))
            for folder in self.evaluations
        ]

    @cached_property
    def sampled(self) -> list[dict[str, tuple[int, int]]]:
        """The sampled answers of each evaluation: problem id -> (n, c), n answers of which c are correct.

        Each entry is {} if eval.samples is 0.
        """
        return [_counts(folder, "sampled", self.files) for folder in self.evaluations]

    @cached_property
    def also(self) -> list[dict[str, float]]:
        """As `heldout`, for the held-out problems of the second data set, eval.also; [] without one."""
        folders = [self.path / "base" / "also", *(folder / "also" for folder in self._round_folders)]
        complete = [folder for folder in folders if (folder.parent / "also.manifest.json").exists()]
        return [_shares(_counts(folder, "greedy", self.files)) for folder in complete]

    @cached_property
    def drift(self) -> list[dict[str, tuple[float, int]]]:
        """KL from the base policy, one entry a round: held-out problem id -> (nats, tokens) of one answer.

        [] if eval.drift is null.
        """
        rounds = []
        for folder in self._round_folders:
            if (folder / "drift.manifest.json").exists():
                with opened(self.files.file(folder / "drift" / "scores.parquet")) as file:
                    columns = file.read(use_threads=False).to_pydict()
                    both = zip(columns["nats"], columns["tokens"], strict=True)
                    rounds.append(dict(zip(columns["problem_id"], both, strict=True)))
        return rounds

    # Rounds

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """metrics.json of each complete round: flat, `<phase>/<metric>` and `seconds/<phase>`."""
        paths = [folder / "metrics.json" for folder in self._round_folders]
        return [read_json(path) for path in paths if path.exists()]

    @cached_property
    def steps(self) -> dict[str, list[tuple[int, float]]]:
        """Figures of training over the run's optimizer steps, counted from 1: name -> (step, value), ...

        Each step has the trainer's figures (loss, entropy, kl, ...). The first step of a pass also has the figures of
        its attempts (reward, tokens of an answer, distinct answers). Names of another role begin with that role.
        """
        series: dict[str, list[tuple[int, float]]] = defaultdict(list)
        stages, last = self.config["method"].get("stages", {}), 0
        for folder in itertools.chain.from_iterable(self.passes.values()):
            paths = {phase: folder / f"{phase}.manifest.json" for phase in ("generate", "filter", "train")}
            if not paths["train"].exists():
                continue
            manifests = {phase: read_json(path) for phase, path in paths.items() if path.exists()}
            stage = stages.get(manifests["train"].get("where", {}).get("stage"), {})
            role = stage.get("role", "policy")
            prefix = "" if role == "policy" else f"{role}: "
            for phase, figure, name in _OF_A_PASS:
                value = manifests.get(phase, {}).get("metrics", {}).get(figure)
                if value is not None:
                    series[prefix + name].append((last + 1, float(value)))
            for step in manifests["train"].get("steps", ()):
                for name, value in step.items():
                    if name not in ("step", "progress"):
                        series[prefix + name].append((last + int(step["step"]), float(value)))
            last += int(manifests["train"]["metrics"].get("steps", 0))
        return dict(series)

    @cached_property
    def tokens(self) -> list[dict[str, int]]:
        """Tokens spent on learning, without evaluation, one entry a round: {prompt, sampled, scored, trained}."""
        return [{kind: int(r["tokens"].get(kind, 0)) for kind in KINDS} for r in self.summary.get("rounds", [])]

    @cached_property
    def seconds(self) -> list[dict[str, float]]:
        """Wall-clock time, one entry a round: phase (adapt, generate, verify, filter, train, evaluate) -> seconds."""
        return [dict(r["seconds"]) for r in self.summary.get("rounds", [])]

    @cached_property
    def verdicts(self) -> list[dict[str, int]]:
        """Verdicts on answers to the training problems, one entry a round: status -> number."""
        return [dict(r["verdicts"]) for r in self.summary.get("rounds", [])]

    @cached_property
    def flops(self) -> list[dict[str, float]]:
        """Estimated floating-point operations of learning, one entry a round, by kind of token.

        With all N parameters of the policy: 2 N for a prompt, sampled or scored token, 6 N for a trained one (Kaplan et
        al. 2020, arXiv 2001.08361, section 2.1). It is an upper bound if prompts are read from a cache or an adapter is
        trained. Attention over the context is not counted, and tokens of other models count as the policy's. Entries
        are {} if the policy's size is unknown.
        """
        n = self.parameters
        if n is None:
            return [{} for _ in self.tokens]
        return [{kind: flops(n, kind, count) for kind, count in tokens.items()} for tokens in self.tokens]

    @cached_property
    def parameters(self) -> int | None:
        """N, the number of the base policy's parameters, from the headers of its files; None without files."""
        return parameters(self.base_folder) if self.base_folder else None

    @cached_property
    def base_folder(self) -> Path | None:
        """The folder of the base policy's files; None if they are not on this machine."""
        from selfimprove.policy.models import local, resolve

        model = self.config["model"]
        return local(resolve(model["name"], str(model["path"])))

    def training(self, number: int) -> pa.Table:
        """The answers to a round's training problems, over all its passes, in the columns of `answers`.

        Raises ConfigError if the round has no verdicts.
        """
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
        """Round -> the folders of its passes, in order. Their names sort in the order of passes."""
        by_round: dict[int, list[Path]] = {}
        for folder in sorted((self.path / "rounds").glob("[0-9]*")):
            if number := re.match(r"[0-9]+", folder.name):
                by_round.setdefault(int(number[0]), []).append(folder)
        return dict(sorted(by_round.items()))

    @cached_property
    def _round_folders(self) -> list[Path]:
        """The folder of each round's last pass, which has the evaluation and metrics.json."""
        return [folders[-1] for folders in self.passes.values()]


def _counts(folder: Path, decoding: str, files: Checked) -> dict[str, tuple[int, int]]:
    """Problem id -> (answers, correct answers) of one decoding in an evaluation's folder."""
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
    """A folder's trajectories and verdicts in one table, without the tokens themselves: see `RunData.answers`.

    Raises ConfigError if a file cannot be read or is not what `files` expects, or when the two do not match.
    """
    files = files or Checked(folder)
    verdicts = read_columns(files.file(folder / "verdicts.parquet"), Verdict, ["status", "extracted"])
    path = files.file(folder / "trajectories.parquet")
    trajectories = read_columns(path, Trajectory, ["problem_id", "metadata"])
    if trajectories.num_rows != verdicts.num_rows:
        raise ConfigError(f"{folder}: {trajectories.num_rows} trajectories and {verdicts.num_rows} verdicts")
    metadata = pc.dictionary_encode(trajectories["metadata"]).combine_chunks()
    names = pa.array(
        [json.loads(text).get("decoding", "greedy") for text in metadata.dictionary.to_pylist()], pa.string()
    )
    columns = {"problem_id": trajectories["problem_id"], "decoding": names.take(metadata.indices)}
    columns |= {"status": verdicts["status"], "extracted": verdicts["extracted"]}
    return pa.table(columns | (_lengths(path) if lengths else {}))


def _lengths(path: Path) -> dict[str, pa.Array]:
    """The numbers of tokens in each trajectory's samples, read one row group at a time."""
    sums: dict[str, list[np.ndarray]] = {"prompt_tokens": [], "sampled_tokens": []}
    with opened(path) as file:
        for group in range(file.num_row_groups):
            for name, field in (("prompt_tokens", "prompt_ids"), ("sampled_tokens", "completion_ids")):
                column = file.read_row_group(group, columns=[f"samples.list.element.{field}"], use_threads=False)
                samples = column["samples"].combine_chunks()
                counts = pc.list_value_length(pc.struct_field(samples.flatten(), field)).to_numpy(zero_copy_only=False)
                until = np.cumsum(pc.list_value_length(samples).to_numpy(zero_copy_only=False))
                totals = np.concatenate([[0], np.cumsum(counts)])[np.concatenate([[0], until])]
                sums[name].append(np.diff(totals))
    return {name: pa.array(np.concatenate(parts or [np.zeros(0, int)]), pa.int64()) for name, parts in sums.items()}


def flops(parameters: int, kind: str, tokens: float) -> float:
    """2 N for each token that is read, sampled or scored, 6 N for each trained one."""
    return (6.0 if kind == "trained" else 2.0) * parameters * tokens


def parameters(folder: Path) -> int | None:
    """The number of parameters in a model folder's safetensors files, from their headers alone; None without files.

    An adapter folder counts as its base model. Shared weights are stored once, and counted once. Raises Damaged if a
    file is not one of weights.
    """
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        folder = Path(str(base))
    files = sorted(folder.glob("*.safetensors"))
    return sum(map(_stored, files)) if files else None


def _stored(path: Path) -> int:
    """The count of numbers in a safetensors file, which starts with its header's length (8 bytes, little-endian)."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise Damaged(path, f"is no file of weights ({problem})") from None
