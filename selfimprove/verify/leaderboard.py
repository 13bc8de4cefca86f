"""What a submission to a data-science task is worth: its place on a leaderboard.

The text is JSON: {"submission": CSV}, or {"failed": how, "said": why} of a pipeline that made none, where `how` is
"timeout" or "failed". The submission is scored on rows whose answers its maker never saw. Its reward is the quantile
of that score among the players of the task's leaderboard: the share of them that it beats, ties counting half.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from selfimprove.tools.pipeline import is_number, score, targets
from selfimprove.verify import Outcome

ENTRANT = "entrant"  # the submission's name in the standings


def check(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """`correct` for a submission that can be scored, and its quantile; `unparseable` for any other, or none.

    `timeout` where the pipeline hung. `extracted` are the standings, best first, in which "=" joins equal ones.
    """
    try:
        true = json.loads(gold or "")
        ids, answers, players = true["ids"], true["answers"], metadata["players"]
    except (ValueError, KeyError, TypeError) as error:
        return Outcome(
            "error", 0.0, reason=f"the problem is no task with a leaderboard: {type(error).__name__}: {error}"
        )
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("submission"), str):
        made = said if isinstance(said, dict) else {}
        why = str(made.get("said", "the text is no submission"))[:300]
        return Outcome("timeout" if made.get("failed") == "timeout" else "unparseable", 0.0, reason=why)
    try:
        rows = [row for row in csv.reader(io.StringIO(said["submission"])) if row]
    except csv.Error as error:  # a field that is too long, for instance
        return Outcome("unparseable", 0.0, reason=f"the submission is no CSV: {error}")
    expected = [metadata["identifier"], metadata["target"]]
    if not rows or rows[0] != expected:
        return Outcome("unparseable", 0.0, reason=f"the submission's first line is not {','.join(expected)}")
    if [row[0] for row in rows[1:]] != ids or any(len(row) != 2 for row in rows):
        return Outcome("unparseable", 0.0, reason=f"the submission's rows are not the {len(ids)} rows to answer")
    given = [row[1] for row in rows[1:]]
    if metadata["metric"] == "accuracy":
        classes = sorted({*answers, *given})
        value = score("accuracy", targets(answers, classes), targets(given, classes))
    elif all(map(is_number, given)):
        value = score("r2", targets(answers, None), targets(given, None))
    else:
        return Outcome("unparseable", 0.0, reason="an answer is no number")
    return Outcome(
        "correct", quantile(value, players), standings(value, players), reason=f"{metadata['metric']} {value:.4f}"
    )


def reference(gold: str | None, metadata: dict[str, Any]) -> str:
    """The submission of the gold answers. Raises ValueError if there are none."""
    if gold is None:
        raise ValueError("the problem has no gold answers")
    true = json.loads(gold)
    lines = [f"{metadata['identifier']},{metadata['target']}"]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(true["ids"], true["answers"], strict=True))
    return json.dumps({"submission": "\n".join([*lines, text.getvalue()])})


def quantile(value: float, players: Mapping[str, float]) -> float:
    """The share of the players whose score is below a value; equal ones count half."""
    return sum(0.5 if other == value else float(other < value) for other in players.values()) / len(players)


def standings(value: float, players: Mapping[str, float]) -> str:
    """All names by their scores, best first: "p03 entrant=p01 p00"."""
    by_score: dict[float, list[str]] = {}
    for name, own in {ENTRANT: value, **players}.items():
        by_score.setdefault(own, []).append(name)
    return " ".join("=".join(by_score[own]) for own in sorted(by_score, reverse=True))
