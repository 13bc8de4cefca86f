"""Whether a policy-gradient run has stopped learning. The log says so as soon as the figures show it.

Each sign compares the figures of a pass with those of the stage's first pass. The run is not stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

from selfimprove import store
from selfimprove.plan import Pass

Figures = Mapping[str, float]

LITTLE = 0.1  # low entropy: less than this share of the first pass's
LONGER = 2.0  # long answers: more than so many times the first pass's length
CUT = 0.5  # and more than this share of answers cut at the limit


def signs(first: Figures, now: Figures) -> dict[str, str]:
    """What has collapsed, by a short name, with the line to say. Figures are `phase/name` -> value."""
    found = {}
    if now["train/idle"] == 1:
        found["rewards"] = "all answers to a problem have the same reward, so this step taught nothing"
    if now["train/entropy"] < LITTLE * first["train/entropy"]:
        found["entropy"] = (
            f"the policy's entropy is {now['train/entropy']:.2g} nats a token, and was {first['train/entropy']:.2g}: "
            "it samples nearly the same each time"
        )
    if now["filter/explore/distinct_solutions"] <= 1 < first["filter/explore/distinct_solutions"]:
        found["distinct"] = "all answers to a problem have the same words"
    if "generate/completion/mean_tokens" not in now:  # the answers are another stage's, which has its own line
        return found
    length, before = now["generate/completion/mean_tokens"], first["generate/completion/mean_tokens"]
    cut = now["generate/completion/truncated"]
    if length > LONGER * before or cut > CUT >= first["generate/completion/truncated"]:
        found["length"] = (
            f"answers have {length:.0f} tokens, and had {before:.0f}; {100 * cut:.0f} % of them are cut at the limit"
        )
    return found


def collapsed(run: store.Run, passes: list[Pass], step: Pass) -> list[str]:
    """The lines to log after a pass. A line is logged once: not again if the stage's last pass showed the same.

    Only policy gradients get lines, since only their training has an entropy.
    """
    stage = [p for p in passes[: step.number + 1] if p.stage == step.stage and run.manifest(p, "train")]
    if not stage or stage[-1] is not step or not {"train/entropy", "train/idle"} <= _figures(run, step).keys():
        return []
    first, now = _figures(run, stage[0]), _figures(run, step)
    known = signs(first, _figures(run, stage[-2])) if len(stage) > 1 else {}
    return [line for name, line in signs(first, now).items() if name not in known]


def _figures(run: store.Run, step: Pass) -> dict[str, float]:
    found: dict[str, float] = {}
    for phase in ("generate", "filter", "train"):
        if manifest := run.manifest(step, phase):
            found |= {f"{phase}/{name}": value for name, value in manifest["metrics"].items()}
    return found
