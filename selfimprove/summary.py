"""summary.json and the figures of a round, made from the manifests of the phases that are done."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any

from selfimprove import store
from selfimprove.schema import Config
from selfimprove.session import Weights
from selfimprove.types import STATUSES

PHASES = ("adapt", "generate", "verify", "filter", "train", "handover", "evaluate", "drift", "also")
_OPTIONAL = ("adapt", "handover", "drift", "also")  # phases that many runs do not have
ASKING = ("adapt", "generate", "verify")  # the phases of a round that spend tokens of a model on learning


def over_budget(config: Config, run: store.Run, number: int) -> str | None:
    """The reason to stop after pass `number`, which ends a round: which budget is reached. None: go on."""
    done = [(phase, m) for n in range(-1, number + 1) for phase in PHASES if (m := run.manifest(n, phase))]
    spent = {
        "sampled_tokens": sum(m["metrics"].get("tokens/sampled", 0) for phase, m in done if phase in ASKING),
        "seconds": round(sum(m["seconds"] for _, m in done)),
        "rounds": (number + 1) // config.method.refresh,
    }
    for name, limit in config.budget:
        if limit is not None and spent[name] >= limit:
            return f"budget.{name}={limit} is reached: {spent[name]:,} after round {run.prefix(number)[1:]}"
    return None


def last_weights(run: store.Run, config: Config, base: Weights) -> Weights:
    """The newest policy of a run; the base where no round has trained one."""
    for number in reversed(range(config.passes)):
        if run.manifest(number, "train"):
            return Weights(str(run.round(number) / "policy"), number + 1, run.made(number, "train")["policy"])
    return base


def empty(run: store.Run, number: int) -> bool:
    manifest = run.manifest(number, "filter")
    return manifest is not None and not manifest["metrics"]["examples"]


def ends_round(config: Config, number: int) -> bool:
    return (number + 1) % config.method.refresh == 0


def round_metrics(config: Config, run: store.Run, number: int) -> dict[str, Any]:
    """Everything measured in the round that pass `number` ends, flat: `<phase>/<metric>`, and `seconds/<phase>`.

    Where a round has several passes, counts, tokens and seconds are sums over them, other figures are means.
    """
    first = number if number < 0 else number - number % config.method.refresh
    gathered: dict[str, list[float]] = {}
    for phase in PHASES:
        for manifest in (m for n in range(first, number + 1) if (m := run.manifest(n, phase))):
            for name, value in {**manifest["metrics"], "seconds": manifest["seconds"]}.items():
                for key, figure in _flat(f"seconds/{phase}" if name == "seconds" else f"{phase}/{name}", value):
                    gathered.setdefault(key, []).append(figure)
    merged = {key: _merged(key, values) for key, values in gathered.items()}
    return {"round": number if number < 0 else number // config.method.refresh, **merged}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A metric's name and value; of a mapping, those of its entries: `adapt/generate.temperature`."""
    if not isinstance(value, dict):
        yield name, value
        return
    head = name.removesuffix("/overrides")
    for key, inner in value.items():
        yield from _flat(f"{head}.{key}" if "." in head or head == name else f"{head}/{key}", inner)


_COUNTED = ("tokens", "verdicts", "seconds", "dropped", "trajectories", "examples", "calls", "steps", "tokens_trained")


def _merged(name: str, values: list[Any]) -> Any:
    if len(values) == 1 or not all(isinstance(value, int | float) for value in values):
        return values[-1]
    return sum(values) if any(part in _COUNTED for part in name.split("/")) else sum(values) / len(values)


def summarize(config: Config, run: store.Run, status: str, reason: str | None = None) -> dict[str, Any]:
    """Write summary.json from the manifests of the phases that are done, and return it."""
    rounds: list[dict[str, Any]] = []
    refresh = config.method.refresh
    for number in range(config.rounds):
        passes = range(number * refresh, (number + 1) * refresh)
        done = [(phase, m) for n in passes for phase in PHASES if (m := run.manifest(n, phase))]
        if not done:
            break

        def total(phase: str, name: str, done: list[tuple[str, Any]] = done) -> int:
            return int(sum(m["metrics"].get(name, 0) for p, m in done if p == phase))

        seconds = {phase: round(sum(m["seconds"] for p, m in done if p == phase), 3) for phase in PHASES}
        evaluation: list[dict[str, Any]] = [m["metrics"] for phase, m in done if phase == "evaluate"]
        verdicts = [f"verdicts/{s}" for s in STATUSES] if any(phase == "verify" for phase, _ in done) else []
        rounds.append(
            {
                "round": number,
                "trajectories": total("generate", "trajectories"),
                "verdicts": {name.removeprefix("verdicts/"): total("verify", name) for name in verdicts},
                "examples": total("filter", "examples"),
                "tokens": {
                    **{k: sum(total(p, f"tokens/{k}") for p in ASKING) for k in ("prompt", "sampled", "scored")},
                    "trained": total("train", "tokens"),
                },
                "seconds": {phase: spent for phase, spent in seconds.items() if spent or phase not in _OPTIONAL},
                "evaluation": evaluation[-1] if evaluation else None,
                **{phase: m["metrics"] for phase, m in done if phase in ("handover", "drift", "also")},
            }
        )
    base = run.manifest(-1, "evaluate")
    evaluated: list[dict[str, Any]] = [r["evaluation"] for r in rounds if r["evaluation"]]
    last = evaluated[-1] if evaluated else None
    summary = {
        "status": status,
        "reason": reason,
        "method": config.method.name,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "control": config.control,
        "base": base and base["metrics"],
        "final": last or (base and base["metrics"]),
        "change": last and {f"accuracy{end}": last[f"change{end}"] for end in ("", "_low", "_high")},
        "rounds": rounds,
    }
    store.write_json(run.path / "summary.json", summary)
    return summary


def exit_code(summary: Mapping[str, Any]) -> int:
    """0: the run is done, or stopped by a rule of its own (a budget, on_empty); 128 + n: by signal n."""
    reason = summary["reason"] or ""
    return 128 + signal.Signals[reason] if reason in signal.Signals.__members__ else 0
