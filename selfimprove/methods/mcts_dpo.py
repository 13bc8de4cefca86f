"""MCTS-DPO: search a tree of steps for each problem, prefer the better step at every fork, by DPO; repeat.

Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning (Xie et al. 2024, arXiv 2405.00451).

    generate   a tree for each problem x by pi_v; a step is a line. An iteration follows, from the node it starts at,
                   argmax_child Q + w p sqrt(N_parent) / (1 + N_child),   p = pi_v(step), penalised for its length,
               expands if there are no children, up to a finished solution or the depth limit, and backs up
                   Q = r + gamma V,   V = sum_c N_c Q_c / sum_c N_c,   N += 1.
               The next step is the child most visited; and so on, to the end of the solution
    verify     a state is worth C + O: C the policy's own confidence that the steps so far are right, asked with the
               gold answer at hand; O = +1 for a correct finished solution, -1 for another one. r is the gain in worth
    filter     at each depth of the chosen path the candidate of highest Q against that of lowest, both behind the
               same steps; e = N_l / (N_w + N_l) says how little the visits speak for the pair
    train      L = -(1 - e) log sigmoid(z) - e log sigmoid(-z),   z = beta [log pi/pi_ref (y_w) - log pi/pi_ref (y_l)]

Settings make it the paper's or the released code's: conf/method/mcts_dpo.yaml, mcts_dpo_released.yaml.

*Wrong when* siblings hardly differ in worth. Each value is a mean over few visits, so chance then tells the best step
from the worst, and training follows that chance. Self-evaluation adds nothing where the policy's confidence does not
depend on whether the steps are right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from selfimprove.filter.step_pairs import step_pairs
from selfimprove.generate import mcts
from selfimprove.generate.critique import fill
from selfimprove.generate.tree import Branch, records, solution
from selfimprove.policy import Policy
from selfimprove.train.dpo import dpo
from selfimprove.types import CLOSED, Count, Message, NonNegative, Problem, Sample, Share, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.judge import share

pairs, train = step_pairs, dpo

Check = Callable[[str, Problem], Awaitable[Outcome]]


@dataclass(frozen=True)
class Growth:
    """How large a tree grows, and where: what the searches of paper and code set. `first_*` hold at the root."""

    __pydantic_config__ = CLOSED

    iterations: Count  # before each step of the solution is chosen
    first_iterations: Count  # before the first one
    depth: Count  # steps that an iteration looks ahead
    candidates: Count  # different steps to choose from
    first_candidates: Count
    exploration: NonNegative = 1.0  # w of PUCT
    discount: Share = 1.0  # gamma
    prior: Literal["inside", "outside"] = "outside"  # where the length penalty stands; see generate/mcts.py
    length_penalty: NonNegative = 1.25
    least_visits: Literal[0, 1] = 0  # what a child without visits weighs in V
    recount: bool = False  # count a visit twice for the node that an iteration starts from


@dataclass(frozen=True)
class Worth:
    """What a state is worth: a part for the policy's confidence and a part for the outcome."""

    __pydantic_config__ = CLOSED

    confidence: NonNegative = 1.0  # weight; at 0 nothing is asked
    outcome: NonNegative = 1.0  # weight
    late: int | None = None  # the confidence is divided by how many steps a state's parent is beyond this depth
    early: tuple[Share, ...] = ()  # what a correct answer given as the first, second, ... step counts; later ones 1
    bonus: NonNegative = 1.0  # what a correct answer counts that is not the start of the written gold solution


@dataclass(frozen=True)
class Judge:
    """How a policy is asked whether the steps so far are right.

    In `prompt`, {question}, {options}, {solution} and {gold} are replaced; `correct` and `incorrect` are what it may go
    on with. With `incorrect`, the confidence is the share of the two that `correct` has; without, its probability.
    """

    __pydantic_config__ = CLOSED

    prompt: list[Message]
    correct: str
    incorrect: str | None = None


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    check: Check,
    search: Growth,
    worth: Worth,
    steps: mcts.Steps,
    judge: Judge | None,
) -> list[Trajectory]:
    """The chosen solution of a problem's tree, with the tree. `judge` None: every state has confidence 1."""

    async def evaluate(children: Sequence[Branch]) -> None:
        await asyncio.gather(*map(judged, children))

    async def judged(child: Branch) -> None:
        assert child.parent is not None
        child.terminal = mcts.ended(child, policy, steps)
        sure, result = worth.confidence, 0.0
        if judge and sure:
            sure *= await ask(policy, judge, problem, child.text)
        if child.terminal:
            verdict = await check(child.text, problem)
            child.status = verdict.status
            result = worth.outcome * outcome_score(child, problem, worth.early, worth.bonus)
        child.value = state_value(child.parent, sure, result, worth.late)
        child.reward = child.value - child.parent.value

    async def propose(node: Branch) -> list[Sample]:
        return await mcts.propose(node, policy, search.candidates if node.depth else search.first_candidates, steps)

    prior = mcts.prior_inside if search.prior == "inside" else mcts.prior_outside
    rules = mcts.Rules(
        propose=propose,
        evaluate=evaluate,
        prior=partial(prior, penalty=search.length_penalty),
        select=partial(mcts.puct, exploration=search.exploration),
        backup=partial(mcts.backup, discount=search.discount, least=search.least_visits),
        choose=mcts.most_visited,
        iterations=search.iterations,
        first_iterations=search.first_iterations,
        depth=search.depth,
        recount=search.recount,
    )
    root = Branch(policy.render(problem.prompt))
    path = await mcts.search(root, rules)
    return [Trajectory(problem.id, [solution(path)], tree=records(root))]


def state_value(parent: Branch, confidence: float, outcome: float, late: int | None) -> float:
    """Confidence plus outcome; a confidence of 0 stands for none, and the parent's value is taken on."""
    score = confidence if late is None else confidence / max(parent.depth - late, 1)
    return (score or parent.value) + outcome


def outcome_score(child: Branch, problem: Problem, early: Sequence[float], bonus: float) -> float:
    """+1 or -1 for a finished solution; 0 if the check ended as `timeout` or `error`."""
    if child.status != "correct":
        return -1.0 if child.status in ("wrong", "unparseable") else 0.0
    written = problem.metadata.get("solution")
    score = bonus if written and not written.strip().startswith(child.text.strip()) else 1.0
    return score * (early[child.depth - 1] if child.depth <= len(early) else 1.0)


# Self-evaluation


async def ask(policy: Policy, judge: Judge, problem: Problem, text: str) -> float:
    """The policy's confidence in the steps `text`, 0 to 1, from the log-probabilities of the judge's two endings.

    The policy is shown the gold answer, or the written solution where the problem has one. 0 if a prompt does not
    fit the model's window.
    """
    prompt = fill(judge.prompt, problem, text, gold=problem.metadata.get("solution"))
    try:
        confidence, _ = await share(policy, prompt, "", judge.correct, judge.incorrect)
    except ValueError:
        return 0.0  # no room to ask: as if nothing had been said
    return confidence
