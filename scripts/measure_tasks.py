"""How often does a policy solve tasks of reasoning-gym? For the choice of one that RL can begin with.

    python scripts/measure_tasks.py MODEL [--problems 24] [TASK...]

Of each task eight answers at temperature 1 to each of a few dev problems, with prompt and worked examples of
conf/experiment/smollm2_rl.yaml, so that no held-out problem is looked at. RL learns where some answers are right and
some are wrong: where pass@8 is far from 0 and 1. A task is a name, or name{option: value} as in dataset.tasks.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
import yaml

from selfimprove.config import compose
from selfimprove.datasets import Shot
from selfimprove.datasets.reasoning_gym import Task, load
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.studies.solving import attempts, grader, right, solve
from selfimprove.studies.tiny import shipped
from selfimprove.verify.reasoning_gym import check

TASKS = (
    "chain_sum{min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 2}",
    "chain_sum{min_terms: 3, max_terms: 3, min_digits: 1, max_digits: 1}",
    "gcd{min_value: 1, max_value: 20}",
    "spell_backward{min_word_len: 3, max_word_len: 4}",
    "letter_counting{min_words: 1, max_words: 3}",
)
N = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--problems", type=int, default=24)
    args = parser.parse_args()
    config = compose(["experiment=smollm2_rl"])
    options = {key: value for key, value in config.dataset.model_dump().items() if key in ("prompt", "system", "shots")}
    options["shots"] = [Shot(**shot) for shot in options["shots"]]
    engine = shipped(args.model, 96, 512)
    print(
        "| task | right | pass@8 | some right, some wrong | tokens | seconds |\n| --- | --- | --- | --- | --- | --- |"
    )
    for task in args.tasks:
        name, _, own = task.partition("{")
        chosen = Task(name, config=yaml.safe_load("{" + own) if own else {})
        sizes = {"train_size": 0, "dev_size": args.problems, "heldout_size": 1}
        problems = [p for p in load(tasks=[chosen], seed=0, **sizes, **options) if p.split == "dev"]
        began = time.monotonic()
        solver = partial(best_of_n, n=N, temperature=1.0)
        found = solve(solver, engine, problems, max_tokens=config.model.max_tokens)
        took = time.monotonic() - began
        share = np.array([np.mean(right(group)) for group in attempts(problems, found, grader(check))])
        tokens = np.mean([t.sampled_tokens for group in found for t in group])
        mixed = np.mean((share > 0) & (share < 1))
        cells = (
            f"`{task}`",
            *(f"{x:.3f}" for x in (share.mean(), (share > 0).mean(), mixed)),
            f"{tokens:.0f}",
            f"{took:.0f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
