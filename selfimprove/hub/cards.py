"""The cards of a published run: everything in them is read from the run folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from selfimprove.report.runs import KINDS, RunData

PAGE = "https://arxiv.org/abs/"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def base_id(run: RunData) -> str | None:
    """The base model's name on the hub; None if it has none."""
    path = str(run.config["model"]["path"])
    return path if _HUB_ID.fullmatch(path) and not Path(path).is_dir() else None


def model_card(run: RunData, repo: str, license: str, controls: Sequence[RunData]) -> ModelCard:
    """The model card: paper, method, base, data, accuracy, controls, cost, command."""
    method, unit, summary = run.config["method"], run.unit, run.summary
    base, data = base_id(run), run.config["dataset"]["name"]
    value = summary["final"][unit.name]
    result = EvalResult(
        task_type="text-generation",
        dataset_type=data,
        dataset_name=f"{data}, {summary['final']['n']} held-out problems",
        metric_type=unit.name,
        metric_name=f"held-out {unit.label}",
        metric_value=round(100 * value, 2) if unit.percent else value,
        verified=False,
    )
    card = ModelCardData(
        base_model=base,
        datasets=[f"{repo}-trajectories"],
        eval_results=[result],
        library_name="peft" if run.config["model"].get("lora") else "transformers",
        license=license,
        model_name=repo.rpartition("/")[2],
        pipeline_tag="text-generation",
        tags=["selfimprove", method["name"], "self-improvement"],
    )
    shipped = run.config["model"]["path"] in ("package", "made")
    name = base or f"`{run.config['model']['name']}`, {'shipped with selfimprove' if shipped else 'not on the hub'}"
    rows = [
        ("method", f"`{method['name']}`: {method['title']}"),
        ("what it does", method["summary"]),
        ("paper", _paper(method["paper"])),
        ("base model", name),
        ("license of the base model", license),
        ("data", f"`{data}`: {_problems(run)}"),
        ("training answers", f"[{repo}-trajectories](https://huggingface.co/datasets/{repo}-trajectories)"),
        ("seed", str(run.seed)),
        ("rounds", str(len(summary["rounds"]))),
    ]
    text = [f"# {repo.rpartition('/')[2]}", "", _INTRODUCTION, "", *_table(("", ""), rows), ""]
    text += ["## Held-out " + unit.label, "", *_scores(run), "", *_controls(controls), ""]
    text += ["## Cost", "", *_cost(run), "", "## Command", "", f"    {run.command}", "", _versions(run), ""]
    return ModelCard(f"---\n{card.to_yaml()}\n---\n\n" + "\n".join(text))


_INTRODUCTION = (
    "A policy trained on its own verified output by `selfimprove`. The figures below are those of the run folder; "
    "nothing was filled in by hand."
)


def dataset_card(run: RunData, repo: str, counts: dict[str, int]) -> DatasetCard:
    """The card of the training answers."""
    data = run.config["dataset"]["name"]
    card = DatasetCardData(
        pretty_name=f"Training answers of {repo.rpartition('/')[2]}",
        task_categories=["text-generation"],
        tags=["selfimprove", run.method],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.parquet"}]}],
    )
    verdicts = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    text = [
        f"# Training answers of {repo.rpartition('/')[2]}",
        "",
        f"All answers that [{repo}](https://huggingface.co/{repo}) was trained from, with their verdicts, right and"
        f" wrong ones alike: {sum(counts.values())} ({verdicts}). The problems are training problems of `{data}`, whose"
        " license applies to them. Held-out problems are not published, so that they stay held out.",
        "",
        *_table(("column", "is"), _COLUMNS),
        "",
        f"    {run.command}",
        "",
    ]
    return DatasetCard(f"---\n{card.to_yaml()}\n---\n\n" + "\n".join(text))


_COLUMNS = [
    ("`id`", "the attempt: round, problem, number"),
    ("`round`", "the pass whose policy wrote it"),
    ("`problem`, `prompt`, `gold`", "the problem; the prompt as messages"),
    ("`completions`", "the texts that were sampled for it, in order; the last one is the answer"),
    ("`status`, `reward`, `extracted`", "what the verifier said, and the answer that it read"),
    ("`tokens`", "sampled tokens"),
]


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{paper}]({PAGE}{number})" if paper.startswith("arXiv:") else paper


def _problems(run: RunData) -> str:
    splits = run.problems["split"].to_pylist()
    return ", ".join(f"{splits.count(side)} {name}" for side, name in (("train", "training"), ("test", "held-out")))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return [
        f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in row)} |" for row in lines
    ]


def _scores(run: RunData) -> list[str]:
    unit, summary = run.unit, run.summary
    rows = [("base policy", unit.headline(summary["base"]), "")]
    rows.append(("this policy", unit.headline(summary["final"]), unit.headline(summary["change"], signed=True)))
    note = f"95 % intervals over {summary['final']['n']} problems, the change paired by problem. It is one seed: what "
    return [*_table(("", unit.label, "change"), rows), "", note + "another one would give is not in them."]


def _controls(controls: Sequence[RunData]) -> list[str]:
    if not controls:
        return [
            "No control run was given. `control=shuffled_verdicts` is the one that shows whether the verdicts matter."
        ]
    rows = [
        (
            f"`control={run.config.get('control')}`, seed {run.seed}",
            run.unit.headline(run.summary["change"], signed=True),
        )
        for run in controls
    ]
    return [*_table(("control", "change"), rows)]


def _cost(run: RunData) -> list[str]:
    spent = {kind: sum(tokens[kind] for tokens in run.tokens) for kind in KINDS}
    seconds: dict[str, float] = {}
    for each in run.seconds:
        for phase, value in each.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    rows = [(f"{kind} tokens", f"{count:,}") for kind, count in spent.items()]
    rows += [(f"seconds of {phase}", f"{value:,.1f}") for phase, value in seconds.items()]
    flops = [sum(found.values()) for found in run.flops if found]
    rows += [("FLOPs of learning, estimated", f"{sum(flops):.2e}")] if len(flops) == len(run.flops) else []
    rows.append(("hardware", f"`{run.config['hardware']['name']}`"))
    return _table(("", ""), rows)


def _versions(run: RunData) -> str:
    known: dict[str, Any] = run.environment.get("versions", {})
    said = ", ".join(f"{name} {version}" for name, version in known.items() if version)
    commit = run.environment.get("git_commit")
    return f"Versions: {said}" + (f"; commit {commit}" if commit else "") + "."
