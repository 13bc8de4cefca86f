"""Makes the W&B workspace for runs of this package: one command, and all its charts are there.

    python scripts/wandb_workspace.py --entity ME --project selfimprove     # needs an API key; prints the address
    python scripts/wandb_workspace.py --dry-run                             # prints the definition, asks nobody

Runs are grouped by method, and each chart has the round on its x axis: the line is the mean over a group's runs, which
are its seeds, and the band goes from the lowest to the highest. Needs pip install 'selfimprove[workspace]'.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

SECTIONS: dict[str, dict[str, list[str]]] = {
    "Accuracy": {
        "held-out accuracy": ["evaluate/accuracy"],
        "change from the base policy": ["evaluate/change"],
    },
    "Exploration and exploitation": {
        "pass@1 on training problems": ["filter/explore/pass@1"],
        "different answers a problem": ["filter/explore/distinct_answers"],
        "different right solutions a problem": ["filter/explore/distinct_correct"],
        "reward of what was sampled": ["filter/exploit/available_reward"],
        "reward of what was kept": ["filter/exploit/kept_reward"],
        "share that was kept": ["filter/exploit/keep_rate"],
    },
    "Cost": {
        "sampled tokens": ["generate/tokens/sampled"],
        "prompt tokens": ["generate/tokens/prompt"],
        "tokens trained on": ["train/tokens"],
        "seconds": ["seconds/generate", "seconds/verify", "seconds/train", "seconds/evaluate"],
    },
    "Verdicts": {
        "correct": ["verify/verdicts/correct"],
        "wrong": ["verify/verdicts/wrong"],
        "unparseable": ["verify/verdicts/unparseable"],
        "checks that failed": ["verify/verdicts/timeout", "verify/verdicts/error"],
    },
}
"""Section -> title of a chart -> series; every one is in `selfimprove.tracking.SERIES`."""

PATTERNS = {
    "Exploration and exploitation": {"pass@k on training problems": r"filter/explore/pass@\d+"},
    "Drift": {"divergence from the reference, where a method logs one": r"train/.*(kl|drift|rewards/margins).*"},
}
"""Charts of whatever series match: how many there are depends on the method."""


def workspace(entity: str, project: str) -> ws.Workspace:
    """The definition, validated by the client library; nothing is sent."""
    method = ws.Config("method.name")
    sections = []
    for name in [*SECTIONS, *(name for name in PATTERNS if name not in SECTIONS)]:
        panels = [_chart(title, y=series) for title, series in SECTIONS.get(name, {}).items()]
        panels += [_chart(title, metric_regex=regex) for title, regex in PATTERNS.get(name, {}).items()]
        sections.append(ws.Section(name=name, panels=panels, is_open=name != "Drift", pinned=name == "Accuracy"))
    return ws.Workspace(
        entity=entity,
        project=project,
        name="selfimprove: methods by round",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[method]),
    )


def _chart(title: str, **what: Any) -> wr.LinePlot:
    return wr.LinePlot(
        title=title,
        x="round",
        title_x="round (-1: the base policy)",
        groupby=wr.Config("method.name"),
        aggregate=True,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=100,
        **what,
    )


def definition(made: ws.Workspace) -> dict[str, Any]:
    """What `save` would send, as plain data."""
    spec: dict[str, Any] = made._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    return spec


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the W&B workspace for runs of selfimprove.")
    parser.add_argument("--entity", help="user or team whose project it is")
    parser.add_argument("--project", default="selfimprove", help="as tracker.project; default: selfimprove")
    parser.add_argument("--dry-run", action="store_true", help="print the definition as JSON and send nothing")
    chosen = parser.parse_args()
    if not chosen.dry_run and not chosen.entity:
        parser.error("--entity: whose project? (or --dry-run)")
    made = workspace(chosen.entity or "ENTITY", chosen.project)
    if chosen.dry_run:
        print(json.dumps(definition(made), indent=2))
    else:
        print(made.save().url)


if __name__ == "__main__":
    main()
