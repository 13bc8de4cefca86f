"""Sets forecasts beside what the runs then cost.

python scripts/bench.py --only forecast_error
python scripts/bench_forecast.py NAME...     # these methods alone
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from children import command, printed

from selfimprove import store
from selfimprove.probing import forecast, probe
from selfimprove.report.expected import counted, total

# The words of the command, behind `run` or `eval`; the data set is arithmetic at its default sizes where none is named.
RUNS = {
    "rejection_sampling": "run method=rejection_sampling",
    "mcts_dpo": "run method=mcts_dpo rounds=1 dataset.train_size=200",
    "bstar": "run method=bstar dataset.dev_size=100 rounds=2",
    "dser": "eval method=dser model=tiny dataset.heldout_size=24",
    "evolve": "run method=evolve",
    "grpo": "run method=grpo rounds=1",
}


def forecast_error(names: list[str] | None = None) -> dict[str, Any]:
    """The largest relative error of the forecast seconds of six unlike runs, from a probe of a minute at most before
    each; with the errors of all counts, and whether the truth is within each interval. Takes about 20 minutes on one
    quiet core: six probes, and six runs of half a minute to six minutes."""
    found = {name: _one(RUNS[name].split()) for name in names or RUNS}
    return {"value": max(rows["seconds"]["error"] for rows in found.values()), **found}


def _one(words: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> forecast, truth, error and `inside`, for the seconds of the whole command and for its tokens."""
    kind, *overrides = words
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "probe").mkdir()
        cost, _ = forecast(probe(overrides, Path(name) / "probe"))
        path, begin = Path(name) / "run", time.perf_counter()
        where = ["--dir", str(path)] if kind == "eval" else ["tracker=none", f"hydra.run.dir={path}"]
        printed(command(kind, *overrides, *where))
        spent = {"seconds": time.perf_counter() - begin, **_tokens(path)}
    rows = {"seconds": total(cost.seconds.values()), **cost.tokens}
    return {
        name: {
            "forecast": each,
            "truth": spent[name],
            "error": abs(each.value / spent[name] - 1),
            "inside": each.low <= spent[name] <= each.high,
        }
        for name, each in rows.items()
        if spent.get(name)
    }


def _tokens(path: Path) -> dict[str, float]:
    """The tokens that a run or an evaluation spent, by kind."""
    found: dict[str, float] = {}
    for file in path.glob("**/*.manifest.json"):
        manifest = store.read_json(file)
        for kind, count in counted(manifest["phase"], manifest.get("metrics", {})).items():
            found[kind] = found.get(kind, 0.0) + count
    return found


if __name__ == "__main__":
    print(json.dumps(forecast_error(sys.argv[1:] or None), indent=2))
