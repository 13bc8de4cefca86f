"""Does MCTS-DPO's mechanism show at tiny scale? On chains of arithmetic, with the shipped model.

The paper's claims (Xie et al. 2024, arXiv 2405.00451): the method raises accuracy; step-level pairs do so better than
pairs of whole solutions; trees of the current policy better than trees of the one it started from; and self-evaluation
helps the search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from selfimprove.studies import Claim, Lab, Result, advantage, claim_above, gain

SMALL = ("dataset.train_size=60", "dataset.heldout_size=200", "rounds=2", "method.train.batch_size=4")
FULL = ("dataset.train_size=200", "dataset.heldout_size=300")
SMALL_TREES = ("method.parts=1", "method.generate.search.iterations=3", "method.generate.search.first_iterations=10")
CONTROLS = {
    "instance": ("filter=instance_pairs",),
    "offline": ("method.sampler=base",),
    "no self-evaluation": ("method.generate.judge=null",),
    "random rejected": ("method.filter.rejected=random",),
}


def study(lab: Lab) -> Iterator[Claim]:
    size = SMALL if lab.quick else FULL
    common = ("method=mcts_dpo", *size, *(SMALL_TREES if lab.quick else ()))
    online = lab.over_seeds(*common)
    runs = {name: lab.over_seeds(*common, *overrides) for name, overrides in CONTROLS.items()}
    answers = max(2, round(_tokens_a_problem(online) / _tokens_an_answer(online)))
    plain = lab.over_seeds("method=rejection_sampling", *size, f"method.generate.n={answers}")
    lab.note(_table({"mcts_dpo": online, **runs, f"rejection_sampling, n={answers}": plain}))

    def compared(claim: str, name: str, said: str) -> Claim:
        others = runs[name]
        return claim_above(claim, advantage(online, others), said, others[0].command)

    rounds = online[0].summary["rounds"]
    yield claim_above(
        f"greedy accuracy rises by 5 points in {len(rounds)} rounds",
        gain(online),
        "the policy it starts from",
        online[0].command,
        least=0.05,
    )
    yield compared("pairs of steps beat pairs of whole solutions", "instance", "as many pairs of the same trees")
    yield compared("online trees beat offline ones", "offline", "trees of the start throughout")
    yield compared("self-evaluation adds to the outcome", "no self-evaluation", "outcome alone")
    yield compared("the worst sibling teaches more than a random one", "random rejected", "random rejected sibling")
    beside = advantage(online, plain)
    yield Claim(
        "beside rejection sampling at equal sampled tokens",
        None,
        beside.value,
        (beside.low, beside.high),
        f"rejection_sampling with n={answers}",
        plain[0].command,
    )
    after = sum(sum(r.heldout().values()) / len(r.heldout()) for r in online) / len(online)
    for name, estimate in lab.at_equal_tokens(online).items():
        yield Claim(
            f"beside the start's {name} at equal sampled tokens, mcts_dpo being at {after:.3f}",
            None,
            estimate.value,
            (estimate.low, estimate.high),
            "held-out problems, no training",
            online[0].command,
        )


def _tokens_a_problem(results: Sequence[Result]) -> float:
    """Tokens sampled for learning, for each problem and round."""
    first = results[0]
    problems = sum(1 for path in first.path.glob("rounds/000*") for _ in first.attempts(path))
    return first.sampled_tokens / len(first.summary["rounds"]) / problems


def _tokens_an_answer(results: Sequence[Result]) -> float:
    folder = results[0].path / "base" / "evaluation"
    lengths = [group[0].trajectory.sampled_tokens for group in results[0].attempts(folder)]
    return sum(lengths) / len(lengths)


def _table(runs: dict[str, Sequence[Result]]) -> Table:
    table = Table("run", "accuracy, base", "last", "examples a round", "sampled tokens", title="mean over seeds")
    for name, results in runs.items():

        def mean(values: list[float]) -> float:
            return sum(values) / len(values)

        before, after = (
            mean([mean(list(result.heldout(folder).values())) for result in results]) for folder in ("base", "last")
        )
        rounds = [r for result in results for r in result.summary["rounds"]]
        examples = mean([float(r["examples"]) for r in rounds])
        tokens = mean([float(result.sampled_tokens) for result in results])
        table.add_row(name, f"{before:.3f}", f"{after:.3f}", f"{examples:.0f}", f"{tokens:.0f}")
    return table
