"""Pipelines of trusted code, run in this process: what tests of method=agent_k have in place of the sandbox."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from selfimprove.datasets.tables import tabular
from selfimprove.policy.templates import written
from selfimprove.tools.pipeline import SETUP, SOLUTION, Broken, Pipeline
from selfimprove.types import Problem

TASK = ("train", "test", "target", "identifier", "kind", "description")


@cache
def problems() -> dict[str, Problem]:
    """A small task of each kind."""
    found = tabular(
        tables=["iris", "friedman", "moons"], train_size=2, heldout_size=1, rows=80, players=4, split=0, seed=0
    )
    return {problem.id: problem for problem in found}


def codes(problem: Problem, template: str = "linear") -> dict[str, str]:
    """Right code of all stages."""
    return {s: written(s, template, problem.metadata["kind"] == "classification") for s in (*SETUP, *SOLUTION)}


def request(problem: Problem, codes: dict[str, str], **more: Any) -> dict[str, Any]:
    task = {key: problem.metadata[key] for key in TASK}
    return {"task": task, "codes": codes, "tests": True, "trials": 2, "members": 2, **more}


def lowest(space: dict[str, list[Any]], last: float | None) -> dict[str, Any]:
    """The low end of each number; the model's own default for a choice."""
    return {name: ends[0] for name, (kind, *ends) in space.items() if kind != "choice"}


class Here:
    """Implements the tool `stages`. `asked` has the requests."""

    def __init__(self) -> None:
        self.asked = list[dict[str, Any]]()

    async def __call__(self, text: str) -> str:
        given = json.loads(text)
        self.asked.append(given)
        pipeline = Pipeline(given, lowest, lambda stage: None)
        try:
            return json.dumps({"done": pipeline.run()})
        except Broken as broken:
            return json.dumps({"broken": broken.stage, "said": str(broken), "status": "failed"})

    def close(self) -> None:
        pass


def here() -> Here:
    return Here()
