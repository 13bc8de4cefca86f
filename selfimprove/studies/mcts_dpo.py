"""Does MCTS-DPO's mechanism show at tiny scale? On chains of arithmetic, with the shipped model.

The paper's claims (Xie et al. 2024, arXiv 2405.00451): the method raises accuracy; step-level pairs do so better than
pairs of whole solutions; trees of the current policy better than trees of the one it started from; and self-evaluation
helps the search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from selfimprove.studies import Claim, Lab, Result, advantage, claim_above, gain, measured, overall
from selfimprove.studies.arms import learning_table, run_arms

SMALL = ("dataset.train_size=16", "dataset.heldout_size=40", "rounds=2", "method.train.batch_size=4")
FULL = ("dataset.train_size=200", "dataset.heldout_size=300")
SMALL_TREES = (
    "method.parts=1",
    "method.generate.search.iterations=3",
    "method.generate.search.first_iterations=10",
)
ARMS = {
    "mcts_dpo": (),
    "instance": ("filter=instance_pairs",),
    "offline": ("method.sampler=base",),
    "no self-evaluation": ("method.generate.judge=null",),
    "random rejected": ("method.filter.rejected=random",),
}
CLAIMS = {  # of the method against an arm, and what that arm is
    "pairs of steps beat pairs of whole solutions": ("instance", "as many pairs of the same trees"),
    "online trees beat offline ones": ("offline", "trees of the start throughout"),
    "self-evaluation adds to the outcome": ("no self-evaluation", "outcome alone"),
    "the worst sibling teaches more than a random one": ("random rejected", "random rejected sibling"),
}


def study(lab: Lab) -> Iterator[Claim]:
    size = SMALL if lab.quick else FULL
    arms = run_arms(lab, ("method=mcts_dpo", *size, *(SMALL_TREES if lab.quick else ())), ARMS)
    online = arms["mcts_dpo"]
    answers = max(2, round(_tokens_a_problem(online) / _tokens_an_answer(online)))
    plain = lab.over_seeds("method=rejection_sampling", *size, f"method.generate.n={answers}")
    lab.note(learning_table({**arms, f"rejection_sampling, n={answers}": plain}, "mean over seeds", "run"))

    text = f"greedy accuracy rises by 5 points in {len(online[0].summary['rounds'])} rounds"
    yield claim_above(text, gain(online), "the policy it starts from", online[0].command, least=0.05)
    for text, (name, control) in CLAIMS.items():
        yield claim_above(text, advantage(online, arms[name]), control, arms[name][0].command)
    text, control = "beside rejection sampling at equal sampled tokens", f"rejection_sampling with n={answers}"
    yield measured(text, None, advantage(online, plain), control, plain[0].command)
    after = overall([r.heldout() for r in online])
    for name, estimate in lab.at_equal_tokens(online).items():
        text = f"beside the start's {name} at equal sampled tokens, mcts_dpo being at {after:.3f}"
        yield measured(text, None, estimate, "held-out problems, no training", online[0].command)


def _tokens_a_problem(results: Sequence[Result]) -> float:
    """Tokens sampled for learning, for each problem and round."""
    first = results[0]
    problems = sum(1 for path in first.path.glob("rounds/000*") for _ in first.attempts(path))
    return first.sampled_tokens / len(first.summary["rounds"]) / problems


def _tokens_an_answer(results: Sequence[Result]) -> float:
    """Tokens of a greedy answer of the base policy."""
    folder = results[0].path / "base" / "evaluation"
    return float(np.mean([group[0].trajectory.sampled_tokens for group in results[0].attempts(folder)]))
