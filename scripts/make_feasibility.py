"""Make a file of tasks with how often a policy solves each: what dataset=feasibility reads.

    python scripts/make_feasibility.py --out selfimprove/models/tiny/feasibility.jsonl
    python scripts/make_feasibility.py --out FILE model=NAME dataset=NAME dataset.heldout_size=400

The first writes tasks for the shipped model: chains of 1 to 10 steps that it did not see when it was made, some of them
with a step that nobody has explained, which no answer solves. Of the tasks it draws it keeps as many that are feasible,
solved by more than half of the samples, as are not. The second, for any model, keeps all held-out problems.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove.config import compose
from selfimprove.datasets import arithmetic
from selfimprove.datasets.feasibility import FEASIBLE
from selfimprove.evaluation import base_answers
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.ready import prepare
from selfimprove.studies.solving import attempts, grader, right, solve
from selfimprove.studies.tiny import shipped
from selfimprove.verify.arithmetic import check

LENGTHS = {1: 2, 2: 3, 3: 3} | dict.fromkeys(range(4, 11), 1)  # of chains, with how often each is drawn
UNKNOWN = 0.15  # share of tasks with a step that has no meaning
WORDS = ("Blorp", "Zindle", "Frobate", "Quonk", "Vexify")
LIMIT = 96  # tokens of an answer

Row = dict[str, Any]


def task(rng: random.Random) -> tuple[arithmetic.Chain, str | None]:
    """A chain of the held-out side, and the question where it has a step without meaning."""
    while not (chain := arithmetic.random_chain(rng, rng.choices(*zip(*LENGTHS.items(), strict=True))[0])).heldout:
        pass
    if rng.random() >= UNKNOWN:
        return chain, None
    op, operand = rng.choice(chain.steps)
    verb = arithmetic.VERBS[op]
    return chain, chain.question.replace(f"{verb} {operand}.", f"{rng.choice(WORDS)} by {operand}.", 1)


def of_shipped(draws: int, samples: int) -> Iterator[Row]:
    """Tasks with the share of the shipped model's samples that are right."""
    rng = random.Random(0)
    drawn = {question or chain.question: (chain, question) for chain, question in (task(rng) for _ in range(draws))}
    known = [replace(arithmetic.problem(chain, "solve"), id=text) for text, (chain, odd) in drawn.items() if not odd]
    found = solve(partial(best_of_n, n=samples, temperature=1.0), shipped(max_batch=512), known, max_tokens=LIMIT)
    share = {g[0].problem.id: sum(right(g)) / len(g) for g in attempts(known, found, grader(check))}
    for text, (chain, odd) in drawn.items():
        yield {"question": text, "accuracy": share.get(text, 0.0), "steps": len(chain.steps), "unknown": bool(odd)}


def of_model(words: list[str], samples: int) -> Iterator[Row]:
    """Held-out problems of a configuration with the share of its model's samples that are right."""
    config = compose(words, needs=False)
    problems = {p.id: p for p in prepare(config)[0] if p.split == "test"}
    solved = defaultdict(list)
    for row in base_answers(config, list(problems.values()), samples).to_pylist():
        solved[row["problem_id"]].append(row["status"] == "correct")
    for name, right_ones in solved.items():
        yield {"question": problems[name].metadata["question"], "accuracy": sum(right_ones) / len(right_ones)}


def balanced(rows: list[Row]) -> list[Row]:
    """As many feasible tasks as others, in the order they were drawn."""
    kinds = [[row for row in rows if (row["accuracy"] > FEASIBLE) == feasible] for feasible in (True, False)]
    size = min(map(len, kinds))
    kept = {row["question"] for kind in kinds for row in kind[:size]}
    return [row for row in rows if row["question"] in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--draws", type=int, default=800)
    parser.add_argument("--samples", type=int, default=16)
    args = parser.parse_args()
    if args.words:
        rows = list(of_model(args.words, args.samples))
    else:
        rows = balanced(list(of_shipped(args.draws, args.samples)))
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(len(rows), "tasks,", sum(row["accuracy"] > FEASIBLE for row in rows), "of them feasible")
    for steps, n in sorted(Counter(row["steps"] for row in rows if "steps" in row).items()):
        feasible = sum(row["accuracy"] > FEASIBLE for row in rows if row["steps"] == steps)
        print(f"{steps} steps: {n} tasks, {feasible} of them feasible")


if __name__ == "__main__":
    main()
