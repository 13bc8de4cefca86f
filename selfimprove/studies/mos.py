"""Do merged adapters forget less, is the right one found by looping, and what is alignment good for?

Claims of Sun et al. 2024 (arXiv 2412.09441), on handwritten digits in five tasks of two classes, with a small
transformer that was pre-trained without labels. Each arm has the learning rate with which it is best on dev pictures of
a seed that no comparison uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from selfimprove.methods.mos import LOOPS, Mos
from selfimprove.policy import nets
from selfimprove.store import read_records
from selfimprove.studies import Claim, Lab, Result, claim_sign, difference, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.staged import policy_of
from selfimprove.studies.streams import ByProblem, final, forgotten, learnt, tasks, tuned_arms
from selfimprove.types import Problem

OWN = "alpha 0.1"
ARMS = {
    "alpha 0": ["method.train.momentum=0"],
    OWN: [],
    "alpha 1": ["method.train.momentum=1"],
    "no alignment": ["method.train.align_epochs=0"],
}
RATES = (1e-3, 3e-3)


def study(lab: Lab) -> Iterator[Claim]:
    train, heldout, epochs = (60, 40, 2) if lab.quick else (600, 400, 20)
    common = ["method=mos", f"dataset.train_size={train}", f"dataset.heldout_size={heldout}"]
    common += [f"method.train.epochs={epochs}"]
    runs, rates = tuned_arms(lab, common, ARMS, RATES, 100)
    loops = [retrieval(result) for result in runs[OWN]]
    yield from claims(runs, loops)
    lab.note(table(runs, rates))
    shares = ", ".join(f"loop {i + 1}: {100 * overall([found[i] for found in loops]):.1f} %" for i in range(LOOPS))
    lab.note(f"Held-out pictures with the adapter of their own task, {OWN}: {shares}")


def retrieval(result: Result) -> list[ByProblem]:
    """Held-out problem id -> whether a loop of the last policy has the adapter of the problem's task, for each loop."""
    net, task = nets.load(policy_of(result)), tasks(result)
    assert isinstance(net, Mos)
    problems = [p for p in read_records(result.path / "problems.parquet", Problem) if p.split == "test"]
    with torch.inference_mode():
        pictures = torch.tensor([p.array.data for p in problems]).reshape(len(problems), *problems[0].array.shape)
        _, loops = net.eval().retrieved(pictures)
    return [
        {p.id: float(found == task[p.id]) for p, found in zip(problems, loop.tolist(), strict=True)} for loop in loops
    ]


def claims(runs: Mapping[str, list[Result]], loops: list[list[ByProblem]]) -> Iterator[Claim]:
    own, plain, mean, bare = runs[OWN], runs["alpha 0"], runs["alpha 1"], runs["no alignment"]
    command = own[0].command
    less = difference([forgotten(r) for r in plain], [forgotten(r) for r in own])
    yield claim_sign("alpha 0.1 forgets less than alpha 0", less, "alpha 0", command)
    new = difference([learnt(r) for r in own], [learnt(r) for r in mean])
    yield claim_sign(
        "alpha 1 learns new tasks worse than alpha 0.1", new, "alpha 1, each task after its own round", command
    )
    for name, other in (("alpha 0", plain), ("alpha 1", mean)):
        change = difference([final(r) for r in own], [final(r) for r in other])
        yield claim_sign(f"accuracy at the end: alpha 0.1 above {name}", change, name, command)
    found = difference([loop[-1] for loop in loops], [loop[0] for loop in loops])
    yield claim_sign("the last loop has the right adapter more often than the first", found, "loop 1", command)
    old = difference([final(r, old=True) for r in own], [final(r, old=True) for r in bare])
    yield claim_sign("accuracy on old classes: alignment above none", old, "no alignment", command)


def table(runs: Mapping[str, list[Result]], rates: Mapping[str, float]) -> object:
    def mean(values: list[ByProblem]) -> str:
        return f"{100 * overall(values):.1f} %"

    return arms_table(
        "Held-out accuracy, means over seeds",
        {f"{arm}, rate {rates[arm]:g}": results for arm, results in runs.items()},
        {
            "after its own round": lambda results: mean([learnt(r) for r in results]),
            "at the end": lambda results: mean([final(r) for r in results]),
            "old classes at the end": lambda results: mean([final(r, old=True) for r in results]),
            "forgotten": lambda results: mean([forgotten(r) for r in results]),
        },
    )
