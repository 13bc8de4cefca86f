"""Functions with state: multi-turn items of the Berkeley Function Calling Leaderboard (Patil et al. 2025), version 4.

    pip install --no-deps bfcl-eval==2026.3.23

A user makes several requests, one after the other. An action is a call such as `cd(folder='document')` or
`lockDoors(unlock=True, door=['driver'])`, and its result is the observation. The action `done` ends a request, and the
next request is the observation. After each request the state of all objects has to be that of the gold calls, and what
these returned has to be among what was seen (the leaderboard's own rule). An episode gains 1 if all requests hold.

A call is a function's name and literal arguments. Nothing else of Python is evaluated.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfimprove.datasets import Row, Side
from selfimprove.datasets.bfcl import packaged, read, shown
from selfimprove.env import Seen

NAME = "BFCL_v4_multi_turn_base.json"
DONE = "done"  # the action that ends a request
_SIDES: dict[int, Side] = {0: "test", 1: "dev"}


def require() -> None:
    """Raises ConfigError if the package is missing."""
    packaged()


class Functions:
    """One item: {"requests": texts, "classes": names, "config": their first states, "gold": calls of each request}."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task

    def reset(self) -> Seen:
        self.own, self.gold = objects(self.task), objects(self.task)
        self.results, self.turn, self.valid = list[str](), 0, True
        return Seen(self.task["requests"][0])

    def step(self, action: str) -> Seen:
        if action != DONE:
            self.results.append(called(self.own, action))
            return Seen(self.results[-1])
        expected = [called(self.gold, call) for call in self.task["gold"][self.turn]]
        alike = all(state(self.own[name]) == state(self.gold[name]) for name in self.own)
        self.valid = self.valid and alike and not Counter(expected) - Counter(self.results)
        self.turn += 1
        if self.turn == len(self.task["requests"]):
            return Seen("That was the last request.", float(self.valid), True)
        return Seen(self.task["requests"][self.turn])


def objects(task: dict[str, Any]) -> dict[str, Any]:
    """The task's classes in their first states."""
    from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING, STATELESS_CLASSES

    found = {name: getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name)() for name in task["classes"]}
    for name, made in found.items():
        if name not in STATELESS_CLASSES:
            made._load_scenario(copy.deepcopy(task["config"].get(name, {})), long_context=False)
    return found


def called(those: dict[str, Any], text: str) -> str:
    """What a call returns, as the leaderboard writes it; what is wrong with it, where it cannot be made."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            return "Error: an action is a call like name(argument='value'), or done"
        owner = next((o for o in those.values() if callable(getattr(o, call.func.id, None))), None)
        if owner is None or call.func.id.startswith("_"):
            return f"Error: there is no function {call.func.id}"
        values = [ast.literal_eval(value) for value in call.args]
        named = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "Error: an action is a call like name(argument='value'), or done"
    try:
        result = getattr(owner, call.func.id)(*values, **named)
    except Exception as problem:  # whatever the function raises is what a caller sees
        return f"Error during execution: {problem}"
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result) if isinstance(result, dict) else str(result)
    except TypeError:
        return str(result)


def state(thing: Any) -> dict[str, Any]:
    """An object's attributes that are not private."""
    return {name: value for name, value in vars(thing).items() if not name.startswith("_")}


def tasks(side: Side, count: int, seed: int) -> Iterator[Row]:
    """Up to `count` items of a side, in the order of their ids' hashes. A fifth is held out and a fifth is for dev. The
    seed changes nothing."""
    folder = packaged()
    gold = {fields["id"]: fields["ground_truth"] for _, fields in read(folder / "possible_answer" / NAME)}
    items = [
        (hashlib.blake2b(fields["id"].encode(), digest_size=6).hexdigest(), fields) for _, fields in read(folder / NAME)
    ]
    own = sorted(
        (mark, fields["id"], fields) for mark, fields in items if _SIDES.get(int(mark, 16) % 5, "train") == side
    )
    for _, name, fields in own[:count]:
        requests = ["\n".join(message["content"] for message in turn) for turn in fields["question"]]
        task = {
            "requests": requests,
            "classes": fields["involved_classes"],
            "config": fields["initial_config"],
            "gold": gold[name],
        }
        question = f"{documented(folder, fields)}\n\nRequest: {requests[0]}"
        yield Row(name, question, None, NAME, side, {"task": task})


def documented(folder: Path, fields: dict[str, Any]) -> str:
    """The functions of an item's classes, a line each."""
    from bfcl_eval.constants.executable_backend_config import MULTI_TURN_FUNC_DOC_FILE_MAPPING

    files: Sequence[str] = [MULTI_TURN_FUNC_DOC_FILE_MAPPING[name] for name in fields["involved_classes"]]
    left_out = fields.get("excluded_function") or []
    documents = [doc for file in files for _, doc in read(folder / "multi_turn_func_doc" / file)]
    return "\n".join(shown(doc) for doc in documents if doc["name"] not in left_out)
