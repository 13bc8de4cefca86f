"""Both repositories of a published run as folders: `model` and `trajectories`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove import config as configuration
from selfimprove import store
from selfimprove.attempt import pair
from selfimprove.errors import ConfigError
from selfimprove.hub.cards import base_id, dataset_card, model_card
from selfimprove.policy.chat import messages_of
from selfimprove.regrade import problems_of
from selfimprove.report import fair
from selfimprove.report.explorer import places
from selfimprove.report.runs import RunData
from selfimprove.session import base_policies
from selfimprove.summary import last_policies
from selfimprove.types import STATUSES

MODEL, DATA = "model", "trajectories"
_OURS = ("handover.json",)  # of a policy folder: of no use to others


def write(run_dir: Path, repo: str, folder: Path, license: str | None, controls: Sequence[Path]) -> None:
    """Write `folder/model` and `folder/trajectories`.

    Raises ConfigError if the run is not complete, trained no policy, or is damaged. It also does so if a control is no
    run of the same problems, or if the license of the base model is not known.
    """
    run = RunData(run_dir)
    if run.kind != "run" or not run.ended:
        raise ConfigError(f"{run_dir}: {run.status}; only a finished run is published")
    compared = [RunData(path) for path in controls]
    for other in compared:
        if not other.ended:
            raise ConfigError(f"--control {other.path}: {other.status}; it has to be finished")
        fair.refuse([run, other], other_models=False)
    config = configuration.read(run_dir / "config.yaml")
    policy = last_policies(store.Run(run_dir), config, base_policies(config))["policy"]
    if policy.version == 0:
        raise ConfigError(f"{run_dir}: trained no policy")
    source = run.files.file(Path(policy.path))
    given = license or license_of(run)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty")
    _copy_policy(run, source, folder / MODEL)
    model_card(run, repo, given, compared).save(folder / MODEL / "README.md")
    counts = _write_answers(run, folder / DATA / "data" / "train.parquet")
    dataset_card(run, repo, counts).save(folder / DATA / "README.md")
    _write_text(folder / DATA / "run" / "summary.json", json.dumps(run.summary, indent=2) + "\n")
    _write_text(folder / DATA / "run" / "config.yaml", configuration.dump(config))


def license_of(run: RunData) -> str:
    """The license of the base model, by its own card. Raises ConfigError if there is none."""
    if str(run.config["model"]["path"]) in ("package", "made"):
        return "apache-2.0"  # made by this package's scripts
    card = run.base_folder / "README.md" if run.base_folder else None
    if card and card.is_file():
        from huggingface_hub import ModelCard

        if found := ModelCard.load(card, ignore_metadata_errors=True).data.license:
            return str(found)
    raise ConfigError(
        f"{run.path}: the license of its base model ({run.config['model']['path']}) stands in no file here; "
        "say it, e.g. --license apache-2.0"
    )


def _copy_policy(run: RunData, source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*_OURS))
    adapter = folder / "adapter_config.json"
    if adapter.exists():  # it names a folder of the machine that it was trained on
        if (base := base_id(run)) is None:
            raise ConfigError(
                f"{source}: is an adapter, and its base model is not on the hub, so that nobody could load it; "
                "merge it first (docs/handoff.md)"
            )
        known = json.loads(adapter.read_text(encoding="utf-8"))
        _write_text(adapter, json.dumps(known | {"base_model_name_or_path": base}, indent=2) + "\n")


_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "round": pa.int32(),
        "problem": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "gold": pa.string(),
        "completions": pa.list_(pa.string()),
        "status": pa.string(),
        "reward": pa.float64(),
        "extracted": pa.string(),
        "tokens": pa.int64(),
    }
)


def _write_answers(run: RunData, path: Path) -> dict[str, int]:
    """The answers to training problems; how many got each status."""
    counts = dict.fromkeys(STATUSES, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for rows in store.batches(_answers(run), 1024):
            for row in rows:
                counts[row["status"]] += 1
            writer.write_table(pa.Table.from_pylist(configuration.redact(rows), schema=_SCHEMA))
    return {str(status): count for status, count in counts.items()}


def _answers(run: RunData) -> Iterator[dict[str, Any]]:
    problems = problems_of(run)
    for place in places(run):
        for group in pair(place.folder, problems) if not place.heldout else ():
            for attempt in group:
                problem, trajectory, verdict = attempt.problem, attempt.trajectory, attempt.verdict
                yield {
                    "id": trajectory.id,
                    "round": place.round,
                    "problem": problem.id,
                    "prompt": messages_of(problem.prompt),
                    "gold": problem.gold,
                    "completions": [sample.text for sample in trajectory.samples],
                    "status": verdict.status,
                    "reward": verdict.reward,
                    "extracted": verdict.extracted,
                    "tokens": trajectory.sampled_tokens,
                }


def _write_text(path: Path, text: str) -> None:
    """Text without secrets and without the user's home."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(configuration.redact(text)).replace(str(Path.home()), "~"), encoding="utf-8")
