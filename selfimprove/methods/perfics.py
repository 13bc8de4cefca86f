"""PeRFICS: a model refines its own answers. Models are ranked by performance, gain from refinement, and cost.

Democratizing LLMs (Shashidhar et al. 2023, arXiv 2310.07611, Findings of EMNLP 2023).

    y_0 ~ pi(. | x)                      zero-shot
    for i = 1 .. iterations
        c_i ~ pi(. | critique, x, y_i-1)     the same prompts for every task: no hint of what matters in it
        y_i ~ pi(. | rewrite, x, y_i-1, c_i)
    answer: the last y

Nothing outside of the model says when to stop or which answer is better, so refining can lose as well as gain.

The ranking weighs what the paper's metric weighs: performance, the gain from refinement, and the memory footprint. How
the paper weighs them was not found. FORMULA is our own, and says so wherever it is printed.

*Wrong when* the model cannot tell its right answers from its wrong ones: each iteration then rewrites right ones too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from selfimprove import store
from selfimprove.errors import ConfigError
from selfimprove.generate.critique import Critique, fill
from selfimprove.policy import Policy
from selfimprove.types import Count, NonNegative, Problem, Trajectory

if TYPE_CHECKING:
    from rich.table import Table

Cost = Literal["memory", "tokens", "seconds"]
FORMULA = (
    "score = (alpha P + beta dR) / C^gamma with alpha = {alpha:g}, beta = {beta:g}, gamma = {gamma:g}; P: accuracy of "
    "first answers, dR: of refined ones minus P, C: {cost} as a share of the largest. This is not the paper's "
    "weighting, which was not found."
)


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    critique: Critique,
    iterations: Count,
    temperature: NonNegative,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """The first answer, and the answer of each iteration with all that led to it.

    The verdict words of `critique` are not read. Raises ValueError if a prompt does not fit the model's window.
    """

    async def say(prompt: Any) -> Any:
        return (await policy.sample(prompt, temperature=temperature, max_tokens=max_tokens))[0]

    samples = [await say(problem.prompt)]
    trajectories = [Trajectory(problem.id, samples, {"stage": 0})]
    for stage in range(1, iterations + 1):
        answer = samples[-1].text
        review = await say(fill(critique.verify, problem, answer))
        rewrite = await say(fill(critique.refine, problem, answer, review=review.text))
        samples = [*samples, review, rewrite]
        trajectories.append(Trajectory(problem.id, samples, {"stage": stage}))
    return trajectories


# The ranking


@dataclass(frozen=True, slots=True)
class Figures:
    """What a model showed on a task: accuracies in [0, 1], and what its answers cost, refinement included."""

    model: str
    performance: float  # of first answers
    refined: float  # of the last ones
    memory: float  # bytes of weights, keys and values
    tokens: float  # sampled, a problem
    seconds: float  # a problem

    @property
    def gain(self) -> float:
        return self.refined - self.performance


@dataclass(frozen=True, slots=True)
class Weights:
    """What counts for how much. With alpha = beta the score is refined accuracy over cost; gamma 0 leaves cost out."""

    alpha: float = 1.0  # of performance
    beta: float = 1.0  # of the gain from refinement
    gamma: float = 1.0  # of cost
    cost: Cost = "memory"


def scores(figures: Sequence[Figures], weights: Weights) -> list[float]:
    """FORMULA of each model.

    P and dR are not scaled to the compared models, so that a model's worth does not change when another one joins. Only
    C does, by a common factor. Raises ValueError if a cost is not above 0.
    """
    costs = [float(getattr(f, weights.cost)) for f in figures]
    if min(costs) <= 0:
        raise ValueError(f"{figures[costs.index(min(costs))].model}: its {weights.cost} is {min(costs)}, not above 0")
    return [
        (weights.alpha * f.performance + weights.beta * f.gain) / (cost / max(costs)) ** weights.gamma
        for f, cost in zip(figures, costs, strict=True)
    ]


def ranking(figures: Sequence[Figures], weights: Weights) -> list[tuple[Figures, float]]:
    """The models with their scores, the best first; of equal scores the cheaper one."""
    pairs = zip(figures, scores(figures, weights), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], getattr(pair[0], weights.cost)))


def table(figures: Sequence[Figures], weights: Weights) -> Table:
    """The ranking with what it is made of, and the formula below."""
    from rich.table import Table

    columns = ("model", "first, %", "refined, %", "gain, points", "memory, MB", "tokens", "ms", "score")
    formula = FORMULA.format(alpha=weights.alpha, beta=weights.beta, gamma=weights.gamma, cost=weights.cost)
    shown = Table(*columns, title="PeRFICS; tokens and ms are of a problem", caption=formula)
    for f, score in ranking(figures, weights):
        accuracies = f"{100 * f.performance:.1f}", f"{100 * f.refined:.1f}", f"{100 * f.gain:+.1f}"
        costs = f"{f.memory / 1e6:.1f}", f"{f.tokens:.0f}", f"{1000 * f.seconds:.1f}"
        shown.add_row(f.model, *accuracies, *costs, f"{score:.3f}")
    return shown


def read(folder: Path) -> tuple[Figures, str]:
    """The figures that `selfimprove eval method=perfics` left in a folder, and the name of the task.

    Raises ConfigError if the folder holds no finished evaluation of that kind.
    """
    path = folder / "summary.json"
    summary: dict[str, Any] = store.read_json(path) if path.exists() else {}
    if (summary.get("kind"), summary.get("method"), summary.get("status")) != ("eval", "perfics", "complete"):
        raise ConfigError(f"{folder}: no finished evaluation; selfimprove eval method=perfics makes one")
    name, n = summary["model"], summary["n"]
    figures = Figures(
        Path(summary["policy"]["path"]).name if name == "other" else name,
        summary["curve"][0]["accuracy"],
        summary["curve"][-1]["accuracy"],
        summary["memory"],
        summary["tokens"]["sampled"] / n,
        summary["seconds"] / n,
    )
    return figures, f"{summary['dataset']}, {n} problems"


def main(arguments: Sequence[str]) -> int:
    """Ranks models by their evaluations' folders."""
    from selfimprove.printable import one_line
    from selfimprove.report.display import standard_output

    parser = argparse.ArgumentParser(prog="python -m selfimprove.methods.perfics", description=main.__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="of selfimprove eval method=perfics, one a model")
    for name in ("alpha", "beta", "gamma"):
        parser.add_argument(f"--{name}", type=float, default=1.0)
    parser.add_argument("--cost", choices=get_args(Cost), default="memory")
    chosen = vars(parser.parse_args(arguments))
    try:
        models = [read(folder) for folder in chosen.pop("folders")]
        if len({task for _, task in models}) > 1:
            raise ConfigError(f"models of different tasks: {'; '.join(sorted({task for _, task in models}))}")
        shown = table([figures for figures, _ in models], Weights(**chosen))
    except (ConfigError, ValueError) as problem:
        print(one_line(problem), file=sys.stderr)
        return 2
    standard_output().print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
