"""Calibration: compares a method's own estimates of its answers with whether the answers are right.

A *signal* is a number that a method gives without the gold answer: a judge's reward, the share of samples that agree,
the worth or the prior of a step in a search tree. An answer's signal is compared with the verdict of the data set's own
verifier. A step's signal is compared with the share of right solutions among those finished at or below it.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from selfimprove import trust
from selfimprove.binding import is_group, module_of, options_of
from selfimprove.report.explorer import Place, columns_of, places
from selfimprove.report.runs import RunData
from selfimprove.store import opened, read_columns, read_records
from selfimprove.types import Node, Problem, Sample, Verdict
from selfimprove.verify.pool import Pool

log = logging.getLogger("selfimprove")

BINS = 10
TREES = 500  # most trees of a pass

REWARD = "reward by"  # the start of the name of a verifier's signal
_UNFINISHED, _FINISHED, _PRIOR = "worth v of unfinished steps", "worth v of finished solutions", "prior p of steps"
NOTES = {
    _UNFINISHED: "Beside it: the share of the checked solutions below the step that are correct.",
    _PRIOR: "How likely the step is to the policy. Beside it: the share of checked solutions below that are correct.",
    _FINISHED: "Where a search adds the checked outcome to it, as MCTS-DPO does, this curve is a step by construction.",
}

Signal = tuple[str, int, np.ndarray, np.ndarray]  # name, round, scores (n,), outcomes in [0, 1] (n,)


def signals(run: RunData, checks: int) -> list[Signal]:
    """The signals of a run's training rounds.

    At most `checks` answers are graded for them, the same share of each pass. Answers are only graded if training used
    another verifier than the data set's own check.
    """
    all_signals: list[Signal] = []
    training = [place for place in places(run) if not place.heldout]
    for place in training:
        all_signals += [(name, place.round, *both) for name, both in _trees(place).items()]
    all_signals += _graded(run, training, checks)
    return [signal for signal in all_signals if len(signal[2])]


def diagrams(keyed: Sequence[tuple[Any, Signal]]) -> list[dict[str, Any]]:
    """Reliability diagrams: one for each name of a signal, with rows [key, round, bins as in `_bins`].

    `keyed` are signals, each with the key of its run. All bins of a diagram have one width. They range from 0 to 1 if
    all scores do, else from the lowest score to the highest.
    """
    by_name: defaultdict[str, list[tuple[Any, Signal]]] = defaultdict(list)
    for key, signal in keyed:
        by_name[signal[0]].append((key, signal))
    made = []
    for name, group in by_name.items():
        low = min(float(signal[2].min()) for _, signal in group)
        high = max(float(signal[2].max()) for _, signal in group)
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
        edges = np.linspace(low, high, BINS + 1)[1:-1]
        rows = [[key, number, _bins(edges, scores, right)] for key, (_, number, scores, right) in group]
        made.append({"name": name, "low": low, "high": high, "rows": rows})
    return made


def _bins(edges: np.ndarray, scores: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """[number of the bin, sum of scores, sum of outcomes, n] for each bin that is not empty."""
    which = np.digitize(scores, edges)
    sums = [np.bincount(which, weights, BINS) for weights in (scores, right, np.ones(len(scores)))]
    return [
        [b, round(float(s), 4), round(float(r), 4), int(n)] for b, (s, r, n) in enumerate(zip(*sums, strict=True)) if n
    ]


# Search trees


def _trees(place: Place) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Signals of the nodes of a pass's trees. Only nodes with a checked solution at or below them count."""
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    names = ("parent", "prior", "value", "terminal", "status")
    columns = [f"tree.list.element.{name}" for name in names]
    seen = 0
    with opened(place.folder / "trajectories.parquet") as file:
        if columns[0] not in {file.schema.column(i).path for i in range(len(file.schema))}:
            return {}
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False)
            ends, fields = columns_of(table["tree"], Node, names)
            for a, b in itertools.pairwise(ends):
                if b > a and seen < TREES:
                    seen += 1
                    _add({name: values[a:b] for name, values in fields.items()}, found)
            if seen >= TREES:
                break
    pairs = {name: np.array(both, dtype=float).reshape(-1, 2) for name, both in found.items()}
    return {name: (both[:, 0], both[:, 1]) for name, both in pairs.items()}


def _add(tree: dict[str, list[Any]], found: dict[str, list[tuple[float, float]]]) -> None:
    parent, n = tree["parent"], len(tree["parent"])
    checked, right = [0] * n, [0] * n
    for i in reversed(range(n)):  # children before parents
        if tree["terminal"][i] and tree["status"][i] in ("correct", "wrong", "unparseable"):
            checked[i], right[i] = 1, int(tree["status"][i] == "correct")
        if parent[i] >= 0:
            checked[parent[i]] += checked[i]
            right[parent[i]] += right[i]
    for i in range(n):
        if checked[i] and parent[i] >= 0:
            outcome = right[i] / checked[i]
            found[_FINISHED if tree["terminal"][i] else _UNFINISHED].append((tree["value"][i], outcome))
            found[_PRIOR].append((tree["prior"][i], outcome))


# Rewards


def _graded(run: RunData, training: Sequence[Place], checks: int) -> list[Signal]:
    """Rewards of the training verifier, with the verdicts of the data set's own check on the same answers."""
    check, used = run.config["dataset"]["verifier"], training_verifier(run.config)
    if used != check and training and (refusal := trust.refusal(check, "dataset.verifier")):
        log.warning("%s: rewards are shown without grades: %s", run.path, refusal)
    if not differs(run.config) or not training:
        return []
    name = f"{REWARD} {used['_target_'].removeprefix('selfimprove.verify.')}"
    needs_gold = getattr(module_of(check), "NEEDS_GOLD", True)
    path = run.files.file(run.path / "problems.parquet")
    problems: dict[str, Problem] = {p.id: p for p in read_records(path, Problem)}
    to_grade = [
        (place.round, reward, (text, problems[problem].gold, problems[problem].metadata))
        for place in training
        for problem, text, reward in _answers(place, max(1, checks // len(training)))
        if problem in problems and (problems[problem].gold is not None or not needs_gold)  # made ones have no grade
    ]
    limits = run.config["verify"]
    workers = limits["workers"] or os.cpu_count() or 1
    options = {"workers": workers, "seconds": limits["seconds"], "memory_mb": limits["memory_mb"]}
    by_round: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    with Pool(check["_target_"], options_of(check), **options) as pool:
        outcomes = pool.run(item for _, _, item in to_grade)
        for (number, reward, _), outcome in zip(to_grade, outcomes, strict=True):
            if outcome.status not in ("timeout", "error"):  # these say nothing about the answer
                by_round[number].append((reward, float(outcome.status == "correct")))
    pairs = {number: np.array(both) for number, both in by_round.items()}
    return [(name, number, both[:, 0], both[:, 1]) for number, both in pairs.items()]


def _answers(place: Place, most: int) -> Iterable[tuple[str, str, float]]:
    """(problem, text, reward) of at most `most` answers that the verifier could judge, evenly spaced over the file."""
    verdicts = read_columns(place.folder / "verdicts.parquet", Verdict, ["status", "reward"])
    judged = [i for i, status in enumerate(verdicts["status"].to_pylist()) if status in ("correct", "wrong")]
    chosen = {judged[i * len(judged) // most] for i in range(most)} if len(judged) > most else set(judged)
    rewards, start = verdicts["reward"].to_pylist(), 0
    with opened(place.folder / "trajectories.parquet") as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            here = [i - start for i in range(start, start + count) if i in chosen]
            if here:
                columns = ["problem_id", "samples.list.element.text"]
                table = file.read_row_group(group, columns=columns, use_threads=False).take(here)
                ends, fields = columns_of(table["samples"], Sample, ["text"])
                texts = [fields["text"][end - 1] for end in ends[1:]]
                for i, problem, text in zip(here, table["problem_id"].to_pylist(), texts, strict=True):
                    yield problem, text, rewards[start + i]
            start += count


def differs(config: dict[str, Any]) -> bool:
    """Whether training used another verifier than the data set's own check, and that check may be called."""
    check: dict[str, Any] = config["dataset"]["verifier"]
    return training_verifier(config) != check and not trust.refusal(check) and not is_group(check)


def training_verifier(config: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = config.get("verifier") or config["method"].get("verifier") or config["dataset"]["verifier"]
    return node
