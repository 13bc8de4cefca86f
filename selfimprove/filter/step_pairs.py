"""Preference pairs from search trees, of candidate steps or of whole solutions.

A problem's tree is in its first trajectory (`Trajectory.tree`). That trajectory's sample is the chosen solution. The
formulas and their sources are in `selfimprove/methods/mcts_dpo.py`.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

from selfimprove.types import Attempt, Count, Example, Node, Share

Children = dict[int, list[Node]]


def step_pairs(
    groups: Iterable[list[Attempt]],
    *,
    rejected: Literal["worst", "random"] = "worst",
    only_correct: bool = False,
    per_problem: Count | None = None,
    max_smoothing: Share = 1.0,
    seed: int,
) -> Iterator[Example]:
    """A pair at every depth of the chosen path that has at least two candidate steps.

    The best candidate is the chosen side. The worst one, or a random other one, is the rejected side. Candidates are
    ranked by (Q, pi, r, value, N), where pi is 1/k for each of the k most visited and 0 for the others. A step with a
    single child takes that child's step along, and so on. A tree gives at most `per_problem` pairs, those nearest the
    root first. With `only_correct`, a tree whose chosen solution is not correct gives no pair. The metadata holds the
    visit counts and `label_smoothing`, for `selfimprove.train.dpo`.
    """
    for attempts in groups:
        attempt = attempts[0]
        if only_correct and attempt.verdict.status != "correct":
            continue
        rng = random.Random(f"{seed}/{attempt.problem.id}")
        for prompt_ids, ranked in _choices(attempt)[:per_problem]:
            (best, chosen), others = ranked[-1], ranked[:-1]
            worst, loser = others[0] if rejected == "worst" else rng.choice(others)
            if chosen == loser:
                continue
            yield Example(
                problem_id=attempt.problem.id,
                trajectory_ids=[attempt.trajectory.id],
                prompt_ids=prompt_ids,
                completion_ids=chosen,
                rejected_ids=loser,
                metadata={
                    "depth": best.depth,
                    "visits": [best.visits, worst.visits],
                    "q": [best.q, worst.q],
                    "label_smoothing": smoothing(best.visits, worst.visits, max_smoothing),
                },
            )


def instance_pairs(
    groups: Iterable[list[Attempt]],
    *,
    only_correct: bool = False,
    per_problem: Count | None = None,
    seed: int,
) -> Iterator[Example]:
    """Pairs of whole solutions of a tree, a correct one and one that is not. They are the control for `step_pairs`.

    There are as many as `step_pairs` makes from the same trees with the same options. If one tree has too few, the next
    ones make up for it. If there are too few different pairs in all, they are repeated from the first.
    """
    owed, made = 0, list[Example]()
    for attempts in groups:
        attempt = attempts[0]
        if only_correct and attempt.verdict.status != "correct":
            continue
        owed += len(_choices(attempt)[:per_problem])
        nodes = attempt.trajectory.tree
        leaves = [node for node in nodes if node.terminal and node.status is not None]
        right = [node for node in leaves if node.status == "correct"]
        wrong = [node for node in leaves if node.status in ("wrong", "unparseable")]
        pairs = [(a, b) for a in right for b in wrong]
        random.Random(f"{seed}/{attempt.problem.id}").shuffle(pairs)
        for winner, loser in pairs[:owed]:
            made.append(
                Example(
                    problem_id=attempt.problem.id,
                    trajectory_ids=[attempt.trajectory.id],
                    prompt_ids=attempt.trajectory.samples[0].prompt_ids,
                    completion_ids=_solution_ids(nodes, winner),
                    rejected_ids=_solution_ids(nodes, loser),
                    metadata={"depth": [winner.depth, loser.depth]},
                )
            )
        owed -= min(owed, len(pairs))
    yield from made
    yield from itertools.islice(itertools.cycle(made), owed)


def smoothing(chosen: int, rejected: int, most: float) -> float:
    """Label smoothing of a pair from its visit counts: 1 - 1 / (1 + N_rejected / max(1, N_chosen)), at most `most`."""
    return min(1 - 1 / (1 + rejected / max(1, chosen)), most)


def _choices(attempt: Attempt) -> list[tuple[list[int], list[tuple[Node, list[int]]]]]:
    """For each node of the chosen path with several children: the ids up to it, and its candidates with their ids.

    The candidates come from worst to best.
    """
    trajectory = attempt.trajectory
    children: Children = defaultdict(list)
    for node in trajectory.tree:
        children[node.parent].append(node)
    choices = []
    prompt_ids = trajectory.samples[0].prompt_ids
    for node in [node for node in trajectory.tree if node.chosen or node.parent == -1]:  # parents stand first
        prompt_ids = [*prompt_ids, *node.completion_ids]
        if len(children[node.id]) > 1:
            choices.append((prompt_ids, [(c, _whole_step(c, children)) for c in _ranked(children[node.id])]))
    return choices


def _ranked(candidates: list[Node]) -> list[Node]:
    """From worst to best."""
    most = max(c.visits for c in candidates)
    share = 1 / sum(c.visits == most for c in candidates)
    return sorted(candidates, key=lambda c: (c.q, share * (c.visits == most), c.reward, c.value, c.visits))


def _whole_step(node: Node, children: Children) -> list[int]:
    """The step's token ids, and those of the steps behind it as long as each has a single child."""
    ids = list(node.completion_ids)
    while len(children[node.id]) == 1:
        node = children[node.id][0]
        ids += node.completion_ids
    return ids


def _solution_ids(nodes: list[Node], leaf: Node) -> list[int]:
    by_id = {node.id: node for node in nodes}
    steps = [leaf]
    while steps[-1].parent != -1:
        steps.append(by_id[steps[-1].parent])
    return [token for step in reversed(steps) for token in step.completion_ids]
