"""`selfimprove show`: the search tree of one problem, drawn in the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from selfimprove import config as configuration
from selfimprove import store
from selfimprove.errors import ConfigError
from selfimprove.printable import printable
from selfimprove.report.runs import RunData
from selfimprove.types import Node, Problem, Trajectory, Verdict, from_rows

MARK = "*"  # before each step of the chosen path, which is bold as well
COLOUR = {"correct": "green", "wrong": "red", "unparseable": "red"}


def show(run_dir: Path, problem: str, round: int | None = None, console: Console | None = None) -> None:
    """Draw the tree that a run grew for a problem in `round`; None: in the last round that has one. An evaluation of a
    solver has one tree of each held-out problem, and no rounds.

    Raises ConfigError if `run_dir` is not a run, or has no such problem, round or tree.
    """
    configuration.load(run_dir / "config.yaml")
    run = RunData(run_dir)
    path = run.files.file(run_dir / "problems.parquet")
    if not path.exists():
        raise ConfigError(f"{run_dir}: has no problems.parquet yet")
    record = next((p for p in store.read_records(path, Problem) if p.id == problem), None)
    if record is None:
        some = next((p.id for p in store.read_records(path, Problem)), "none")
        raise ConfigError(f"--problem {problem}: {run_dir} has no such problem; it has, for instance, {some}")
    run.files.require(run.summary)  # so that a lost file is not taken for a tree that never was
    folders = sorted(path.parent for path in (run_dir / "rounds").glob("*/trajectories.parquet"))
    if run.kind == "eval" and (run_dir / "solver/trajectories.parquet").exists():
        folders = [run_dir / "solver"]
    if round is not None:
        folders = [folder for folder in folders if run.kind != "eval" and _round(folder) == round]
        if not folders:
            raise ConfigError(f"--round {round}: {run_dir} has no trajectories of that round")
    for folder in reversed(folders):
        for trajectory in _trajectories(run, folder, problem):
            if trajectory.tree:
                (console or Console()).print(draw(record, trajectory, _verdict(run, folder, trajectory.id)))
                return
    where = "" if round is None else f" in round {round}"
    raise ConfigError(f"{run_dir}: no tree of {problem}{where}; methods that search keep trees of their train problems")


def draw(problem: Problem, trajectory: Trajectory, verdict: Verdict | None) -> RenderableType:
    """Question and gold answer, then the tree. Each step has its visits N, Q, prior p and worth v.

    The chosen path is marked. Finished solutions show the status of their check. An arrow comes before the observation
    after a step.
    """
    children: dict[int, list[Node]] = defaultdict(list)
    for node in trajectory.tree:
        children[node.parent].append(node)
    root = children[-1][0]
    last = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
    head = Text(printable(problem.metadata.get("question", last)).strip())
    status = f", chosen solution {verdict.status}" if verdict else ""
    steps = f"gold {problem.gold}, {len(trajectory.tree) - 1} steps in {trajectory.id}{status}"
    head.append(f"\n{printable(steps)}\n", style="dim")
    tree = Tree(Text(f"start  N {root.visits}", style="bold"))
    waiting = [(root, tree)]
    for node, drawn in waiting:
        waiting += [(child, drawn.add(_label(child))) for child in children[node.id]]
    return Group(head, tree)


def _label(node: Node) -> Text:
    label = Text(f"{MARK} " if node.chosen else "", style="bold" if node.chosen else "")
    label.append(printable(node.text).strip() or "(blank)")
    figures = f"  N {node.visits}  Q {node.q:+.2f}  p {node.prior:.3f}  v {node.value:+.2f}"
    label.append(figures, style="cyan")
    if node.terminal:
        label.append(printable(f"  {node.status or 'end'}"), style=COLOUR.get(node.status or "", "yellow"))
    if "observed" in node.metadata:
        label.append(f"\n→ {printable(str(node.metadata['observed'])).strip()}", style="dim")
    return label


def _round(folder: Path) -> int:
    return int(folder.name.split(".")[0])  # 002, or 002.1 if a round has parts


def _trajectories(run: RunData, folder: Path, problem: str) -> list[Trajectory]:
    path = run.files.file(folder / "trajectories.parquet")
    with store.opened(path):
        rows = pq.read_table(path, filters=[("problem_id", "=", problem)]).to_pylist()
        return from_rows(rows, Trajectory)


def _verdict(run: RunData, folder: Path, trajectory: str) -> Verdict | None:
    path = run.files.file(folder / "verdicts.parquet")
    verdicts: Iterator[Verdict] = store.read_records(path, Verdict) if path.exists() else iter(())
    return next((verdict for verdict in verdicts if verdict.trajectory_id == trajectory), None)
