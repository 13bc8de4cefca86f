"""summary.json and the figures of a round, made from the manifests of finished phases.

Only the last pass is read from its manifests. When the next pass begins, its counts are added to the round's totals. So
the cost of a summary does not grow with the number of finished passes.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from selfimprove import integrity, store
from selfimprove.plan import AFTER, ALWAYS, ASKING, BASE, PHASES, Pass, plan
from selfimprove.schema import Config
from selfimprove.session import Policies, Weights
from selfimprove.types import STATUSES


class Summary:
    """summary.json of a run, which is written again after each pass."""

    def __init__(self, config: Config, run: store.Run) -> None:
        self.config, self.run = config, run
        self.last: dict[str, Any] | None = None  # the figures of the last evaluation after training
        self._written: list[str] = []  # the rounds that are over, as JSON
        self._round: int | None = None
        self._closed: list[dict[str, Any]] = []  # the manifests of the current round's earlier passes, added up
        self._open: Pass | None = None
        self._spent: Counter[str] = Counter()

    def begin(self, step: Pass) -> None:
        """A pass begins: the one before is over."""
        if self._open is not None:
            counted = self._count(self._open)
            self._closed, self._open = [_added([*self._closed, counted])], None
            self._spent += _spending(counted)
        if self._round is not None and self._round != step.round:
            self._written.append(_indented(self._row()))
            self._closed = []
        self._round, self._open = step.round, step

    def write(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """Write summary.json, and return what it holds of the present round and the run."""
        manifest = self.run.manifest(BASE, "evaluate")
        base = manifest and manifest["metrics"]
        row = self._row() if self._round is not None else None
        if row and row["evaluation"]:
            self.last = row["evaluation"]
        last, unit = self.last, self.config.dataset.score
        head = {
            "status": status,
            "reason": reason,
            "method": self.config.method.name,
            "model": self.config.model.name,
            "dataset": self.config.dataset.name,
            "seed": self.config.seed,
            "control": self.config.control,
            "unit": unit,
            "side": self.config.eval.called,
            "base": base,
            "final": last or base,
            "change": last and {f"{unit}{end}": last[f"change{end}"] for end in ("", "_low", "_high")},
        }
        rows = [*self._written, *([_indented(row)] if row else [])]
        known = {} if status == "running" else integrity.implied(self.run.path)
        text = json.dumps(head | known, indent=2, ensure_ascii=False).removesuffix("\n}")
        text += ',\n  "rounds": [\n' + ",\n".join(rows) + "\n  ]\n}\n"
        store.write_text(self.run.path / "summary.json", store.sealed(text))
        return head | {"rounds": [json.loads(text) for text in rows[-SHOWN:]], "rounds_done": len(rows)}

    def over_budget(self) -> str | None:
        """The reason to stop after the present pass: which budget is reached. None: go on."""
        assert self._open is not None
        now = self._spent + _spending(self._count(self._open))
        base = self.run.manifest(BASE, "evaluate")
        extra = sum(m["seconds"] for phase in AFTER if (m := self.run.manifest(BASE, phase))) if base else 0.0
        rounds = self._open.round + 1 if self._open.ends_round else self._open.round
        seconds, price = now["seconds"] + extra, self.config.hardware.price_per_hour or 0.0
        spent = {
            "sampled_tokens": int(now["sampled_tokens"]),
            "seconds": round(seconds),
            "rounds": rounds,
            "cost": round(seconds * price / 3600, 4),
        }
        for name, limit in self.config.budget:
            if limit is not None and spent[name] >= limit:
                where = self.run.prefix(self._open)[1:]
                return f"budget.{name}={limit} is reached: {spent[name]:,} after round {where}"
        return None

    def _count(self, step: Pass) -> dict[str, Any]:
        """The counts of a pass's finished phases."""
        found = {phase: m for phase in PHASES if (m := self.run.manifest(step, phase))}
        metrics = {phase: manifest["metrics"] for phase, manifest in found.items()}
        tokens = Counter[str]()
        for phase in ASKING:
            for name, count in metrics.get(phase, {}).items():
                if name.startswith("tokens/"):
                    tokens[name.removeprefix("tokens/")] += count
        tokens["trained"] += metrics.get("train", {}).get("tokens", 0)
        return {
            "trajectories": metrics.get("generate", {}).get("trajectories", 0),
            "verdicts": {s: metrics["verify"][f"verdicts/{s}"] for s in STATUSES} if "verify" in metrics else {},
            "examples": metrics.get("filter", {}).get("examples", 0),
            "tokens": {"prompt": 0, "sampled": 0, "scored": 0, "trained": 0} | dict(tokens),
            "seconds": {phase: manifest["seconds"] for phase, manifest in found.items()},
            "evaluation": metrics.get("evaluate"),
            **{phase: metrics[phase] for phase in ("handover", "drift", "also") if phase in metrics},
        }

    def _row(self) -> dict[str, Any]:
        """The row of the present round."""
        passes = [*self._closed, *([self._count(self._open)] if self._open else [])]
        row = {"round": self._round, **_added(passes)}
        known = row["seconds"]
        row["seconds"] = {p: round(known.get(p, 0), 3) for p in PHASES if p in known or p in ALWAYS}
        return row


SHOWN = 20  # rounds that are handed to the display


def _spending(counted: dict[str, Any]) -> Counter[str]:
    return Counter({"sampled_tokens": counted["tokens"]["sampled"], "seconds": sum(counted["seconds"].values())})


def _added(passes: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts of several passes as one. They are summed, but of evaluations and the like the last one counts."""
    found = dict(passes[0]) if passes else {}
    for one in passes[1:]:
        for key, value in one.items():
            if key in ("trajectories", "examples"):
                found[key] += value
            elif key in ("verdicts", "tokens", "seconds"):
                names = dict.fromkeys((*found[key], *value))
                found[key] = {name: found[key].get(name, 0) + value.get(name, 0) for name in names}
            elif value is not None:
                found[key] = value
    return found


def _indented(row: dict[str, Any]) -> str:
    text = json.dumps(row, indent=2, ensure_ascii=False)
    return "\n".join(f"    {line}" for line in text.splitlines())


def last_policies(run: store.Run, config: Config, base: Policies) -> Policies:
    """The newest policy of each role, or the base if no pass has trained one."""
    found = dict(base)
    for step in plan(config):
        role = config.stages[step.stage].role
        if role and run.manifest(step, "train"):
            found[role] = Weights(str(run.folder(step) / "policy"), step.number + 1, run.made(step, "train")["policy"])
    return found


def round_metrics(config: Config, run: store.Run, passes: list[Pass]) -> dict[str, Any]:
    """Everything measured in these passes of one round: `<phase>/<metric>` and `seconds/<phase>` -> value.

    A stage's name stands in front, e.g. `rl.train/loss`. If a stage has several passes, counts, tokens and seconds are
    sums over them, and other figures are means.
    """
    gathered: dict[str, list[float]] = {}
    for step in passes:
        for phase in PHASES:
            if manifest := run.manifest(step, phase):
                shown = f"{step.stage}.{phase}" if step.stage and phase not in AFTER else phase
                times = {"seconds": manifest["seconds"], "hashing_seconds": manifest.get("seconds_hashing", 0.0)}
                for name, value in {**manifest["metrics"], **times}.items():
                    for key, figure in _flat(f"seconds/{shown}" if name == "seconds" else f"{shown}/{name}", value):
                        gathered.setdefault(key, []).append(figure)
    merged = {key: _merged(key, values) for key, values in gathered.items()}
    return {"round": passes[0].round, **merged}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A metric's name and value; of a mapping, those of its entries: `adapt/generate.temperature`."""
    if not isinstance(value, dict):
        yield name, value
        return
    head = name.removesuffix("/overrides")
    for key, inner in value.items():
        yield from _flat(f"{head}.{key}" if head == name else f"{head}/{key}", inner)


_COUNTED = (
    "tokens",
    "verdicts",
    "seconds",
    "dropped",
    "trajectories",
    "examples",
    "problems",
    "calls",
    "steps",
    "tokens_trained",
)


def _merged(name: str, values: list[Any]) -> Any:
    if len(values) == 1 or not all(isinstance(value, int | float) for value in values):
        return values[-1]
    counted = any(part in _COUNTED or "seconds" in part for part in name.split("/"))
    return sum(values) if counted else sum(values) / len(values)


def exit_code(summary: Mapping[str, Any]) -> int:
    """0: the run is done, or stopped by a budget; 128 + n: by signal n."""
    reason = summary["reason"] or ""
    return 128 + signal.Signals[reason] if reason in signal.Signals.__members__ else 0
