"""How well the packaged model judges its own solutions: the table in docs/verifiers.md.

python scripts/measure_judge.py
"""

from __future__ import annotations

import asyncio

import numpy as np

from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.policy import Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import resolve
from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Context, arithmetic

WRITTEN = [
    "verifier.reason=true",
    "verifier.lead='Verdict: '",
    "verifier.correct=correct",
    "verifier.incorrect=incorrect",
]
SETTINGS: dict[str, list[str]] = {
    "as in the file": [],
    "written greedily": WRITTEN,
    "written at temperature 1": [*WRITTEN, "verifier.temperature=1"],
}


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """Probability that a right solution scores above a wrong one, ties counting half."""
    above = scores[right][:, None] - scores[~right][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


async def measure() -> None:
    config = compose(["verifier=judge_arithmetic", "dataset.train_size=300", "tracker=none"])
    found: list[Problem] = bind(config.dataset.model_dump(by_alias=True), "dataset")(seed=0)
    problems = [p for p in found if p.split == "train"]
    engine = TransformersEngine(resolve("tiny", "package"), device="cpu")
    policy = Policy(engine, 0, max_tokens=96, scope=("measure",))
    samples = await asyncio.gather(*(policy.for_problem(p).sample(p.prompt) for p in problems))
    checked = [arithmetic.check(s.text, p.gold, p.metadata) for p, (s,) in zip(problems, samples, strict=True)]
    right = np.array([outcome.status == "correct" for outcome in checked])
    print(f"{len(right)} solutions, {right.mean():.2f} of them right")
    for name, overrides in SETTINGS.items():
        node = compose(["verifier=judge_arithmetic", "tracker=none", *overrides]).training_verifier
        verify = bind(node, "verifier")
        policy.meter.take()
        outcomes = await asyncio.gather(
            *(
                verify(p, [Trajectory(p.id, s)], Context(policy.for_problem(p), None, None))  # type: ignore[arg-type]
                for p, s in zip(problems, samples, strict=True)
            )
        )
        scores = np.array([outcome.reward for (outcome,) in outcomes])
        said = np.array([outcome.status == "correct" for (outcome,) in outcomes])
        calls = policy.meter.take()["calls"] / len(problems)
        print(f"{name:26} AUC {auc(scores, right):.3f}  accuracy {(said == right).mean():.3f}  calls {calls:.0f}")


if __name__ == "__main__":
    asyncio.run(measure())
