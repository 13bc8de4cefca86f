"""MCTS-DPO: search a tree of steps for each problem, prefer the better step at every fork, by DPO; repeat.

Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning (Xie et al. 2024, arXiv 2405.00451).

    generate   a tree for each problem x by pi_v; a step is a line. An iteration follows, from the node it starts at,
                   argmax_child Q + w p sqrt(N_parent) / (1 + N_child),   p = pi_v(step), penalised for its length,
               expands where there are no children, up to a finished solution or the depth limit, and backs up
                   Q = r + gamma V,   V = sum_c N_c Q_c / sum_c N_c,   N += 1.
               The next step is the child most visited; and so on, to the end of the solution
    verify     a state is worth C + O: C the policy's own confidence that the steps so far are right, asked with the
               gold answer at hand; O = +1 for a correct finished solution, -1 for another one. r is the gain in worth
    filter     at each depth of the chosen path the candidate of highest Q against that of lowest, both behind the
               same steps; e = N_l / (N_w + N_l) says how little the visits speak for the pair
    train      L = -(1 - e) log sigmoid(z) - e log sigmoid(-z),   z = beta [log pi/pi_ref (y_w) - log pi/pi_ref (y_l)]

Settings make it the paper's or the released code's: conf/method/mcts_dpo.yaml, mcts_dpo_released.yaml.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from selfimprove.filter.step_pairs import step_pairs
from selfimprove.generate.critique import fill
from selfimprove.generate.mcts import (
    Rules,
    Steps,
    backup,
    ended,
    most_visited,
    prior_inside,
    prior_outside,
    propose,
    puct,
    search,
)
from selfimprove.generate.tree import Branch, records, solution
from selfimprove.policy import Policy
from selfimprove.train.dpo import dpo
from selfimprove.types import Count, Message, NonNegative, Problem, Share, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.judge import share

pairs, train = step_pairs, dpo

Check = Callable[[str, Problem], Awaitable[Outcome]]


@dataclass(frozen=True)
class Judge:
    """How a policy is asked whether the steps so far are right.

    In `prompt`, {question}, {options}, {solution} and {gold} are replaced; `correct` and `incorrect` are what it may go
    on with. With `incorrect`, the confidence is the share of the two that `correct` has; without, its probability.
    """

    prompt: list[Message]
    correct: str
    incorrect: str | None = None


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    check: Check,
    iterations: Count,
    first_iterations: Count,
    depth: Count,
    candidates: Count,
    first_candidates: Count,
    judge: Judge | None,
    confidence: NonNegative = 1.0,
    outcome: NonNegative = 1.0,
    late: int | None = None,
    early: Sequence[Share] = (),
    bonus: NonNegative = 1.0,
    exploration: NonNegative = 1.0,
    discount: Share = 1.0,
    prior: Literal["inside", "outside"] = "outside",
    length_penalty: NonNegative = 1.25,
    least_visits: Literal[0, 1] = 0,
    recount: bool = False,
    similarity: Share = 0.99,
    temperature: NonNegative = 1.0,
    stop: Sequence[str] = ("\n",),
    step_tokens: Count | None = None,
    max_tokens: Count | None = None,
    finish_at: Count | None = None,
) -> list[Trajectory]:
    """The chosen solution of a problem's tree, with the tree.

    `first_*` hold until the first step is chosen, at the root. `judge` None: every state has confidence 1. `confidence`
    and `outcome` weigh the two parts of a state's worth; at `confidence` 0 nothing is asked. `late`: the confidence is
    divided by how many steps a state's parent is beyond this depth. `early`: what a correct answer given as the first,
    second, ... step counts, later ones 1. `bonus`: what a correct answer counts that is not the start of the written
    gold solution, where there is one. `step_tokens` and `max_tokens` limit a step and a solution; None: the policy's.
    """
    limit = max_tokens or policy.max_tokens
    steps = Steps(tuple(stop), temperature, step_tokens or limit, limit, similarity, finish_at)

    async def evaluate(children: Sequence[Branch]) -> None:
        await asyncio.gather(*map(judged, children))

    async def judged(child: Branch) -> None:
        assert child.parent is not None
        child.terminal = ended(child, policy, steps)
        sure, result = confidence, 0.0
        if judge and confidence:
            sure *= await ask(policy, judge, problem, child.text)
        if child.terminal:
            verdict = await check(child.text, problem)
            child.status = verdict.status
            result = outcome * outcome_score(child, problem, early, bonus)
        child.value = state_value(child.parent, sure, result, late)
        child.reward = child.value - child.parent.value

    rules = Rules(
        propose=lambda node: propose(node, policy, candidates if node.depth else first_candidates, steps),
        evaluate=evaluate,
        prior=partial(prior_inside if prior == "inside" else prior_outside, penalty=length_penalty),
        select=partial(puct, exploration=exploration),
        backup=partial(backup, discount=discount, least=least_visits),
        choose=most_visited,
        iterations=iterations,
        first_iterations=first_iterations,
        depth=depth,
        recount=recount,
    )
    root = Branch(policy.render(problem.prompt))
    path = await search(root, rules)
    return [Trajectory(problem.id, [solution(path)], tree=records(root))]


def state_value(parent: Branch, confidence: float, outcome: float, late: int | None) -> float:
    """Confidence plus outcome; a confidence of 0 stands for none, and the parent's value is taken on."""
    score = confidence if late is None else confidence / max(parent.depth - late, 1)
    return (score or parent.value) + outcome


def outcome_score(child: Branch, problem: Problem, early: Sequence[float], bonus: float) -> float:
    """+1 or -1 for a finished solution, 0 where the check said nothing of it."""
    if child.status != "correct":
        return -1.0 if child.status in ("wrong", "unparseable") else 0.0
    written = problem.metadata.get("solution")
    score = bonus if written and not written.strip().startswith(child.text.strip()) else 1.0
    return score * (early[child.depth - 1] if child.depth <= len(early) else 1.0)


# Self-evaluation


async def ask(policy: Policy, judge: Judge, problem: Problem, text: str) -> float:
    """The policy's confidence in the steps `text`, 0 to 1, from the log-probabilities of the judge's two endings. The
    gold answer that it is shown is the written solution, where the problem has one."""
    prompt = fill(judge.prompt, problem, text, gold=problem.metadata.get("solution"))
    try:
        confidence, _ = await share(policy, prompt, "", judge.correct, judge.incorrect)
    except ValueError:
        return 0.0  # no room to ask: as if nothing had been said
    return confidence
