"""UPO: a policy learns from its own preference pairs, and an estimator with dropout says which of them to trust.

Self-Evolutionary Large Language Models through Uncertainty-Enhanced Preference Optimization (Wang et al. 2024, arXiv
2409.11212).

    label      in the first round, on labelled problems: pairs of a right and a wrong answer of the base policy. They
               train the policy (DPO), a reward model r (Bradley-Terry) and an estimator q, which reads two answers and
               says whether the first is the better one
    generate   y_1..y_n ~ pi_v(. | x); of the two best and the two worst by r all pairs (y_w, y_l) with r(y_w) > r(y_l)
    verify     T passes of q with dropout: p_t = q_t(y_w better than y_l | x); q agrees where most p_t are above 1/2
               BALD = H(mean_t p_t) - mean_t H(p_t)           how much of q's doubt is doubt about its own weights
    filter     of the pairs with which q agrees draw an easy set by weights 1 - BALD, and a hard set by weights BALD
               D = 40 % of the labelled pairs, the easy set, 30 % of each problem's widest pairs, 20 % of the hard set;
               one pair a problem
    train      pi_{v+1} by DPO on D, from pi_v

What of this is the paper's, the released code's and our own is said in docs/methods/upo.md.

*Wrong when* estimator and reward model make the same mistakes, as they can where both learnt from the same pairs: then
they agree on reversed pairs too. Without dropout BALD is 0 for every pair, and the draw is by chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from selfimprove import seeds
from selfimprove.filter.pairs import right_and_wrong
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.made import Made
from selfimprove.policy import Policy
from selfimprove.policy.chat import Text
from selfimprove.train.dpo import dpo
from selfimprove.train.reward import LABEL
from selfimprove.train.reward import classifier as classifier
from selfimprove.train.reward import reward as reward_model
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Sample, Share, Trajectory
from selfimprove.verify import Context, Judge, Opening, Outcome
from selfimprove.verify.doubt import bald
from selfimprove.verify.reward_model import open_role, require_role, sigmoid

if TYPE_CHECKING:
    from selfimprove.binding import Target
    from selfimprove.schema import Config
    from selfimprove.verify.scoring import Scorer

T = TypeVar("T")

label, pairs, train, reward = best_of_n, right_and_wrong, dpo, reward_model


# The estimator's rows


def orders(
    groups: Iterable[list[Attempt]], *, per_problem: Count, words: str, text: Text, seed: int
) -> Iterator[Example]:
    """Two rows for each pair of a right and a wrong answer: the right one first with label 1, and last with label 0."""
    kept = {group[0].problem.id: group for group in groups}
    named = {a.trajectory.id: a.trajectory for group in kept.values() for a in group}
    for pair in right_and_wrong(kept.values(), per_problem=per_problem, seed=seed):
        samples = [named[name].samples[-1] for name in pair.trajectory_ids]
        for order, value in ((samples, 1), (samples[::-1], 0)):
            ids = both(order, words, text)
            start = len(pair.prompt_ids)
            yield Example(pair.problem_id, pair.trajectory_ids, ids[:start], ids[start:], metadata={LABEL: value})


def both(samples: Sequence[Sample], words: str, text: Text | Policy) -> list[int]:
    """What the estimator reads: the prompt, the first answer, `words` of the user, the second answer."""
    first, second = samples
    between = text.turn(words, first.finish == "stop")
    return [*first.prompt_ids, *first.completion_ids, *between, *second.completion_ids]


# A round


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    n: Count,
    judge: Judge,
    seed: int,
    share: Share = 1.0,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """The pairs of n answers, a trajectory each, of two samples: the one that the reward model prefers, and the other.

    Answers that were cut off, or that repeat another, are in no pair. The pair of best and worst is always there
    (metadata["widest"]), any other one with probability `share`. metadata["margin"] is r(y_w) - r(y_l).
    """
    found = await policy.sample(problem.prompt, n, temperature=temperature, max_tokens=max_tokens)
    answers = list({tuple(s.completion_ids): s for s in found if s.finish == "stop"}.values())
    outcomes = await judge(problem, [Trajectory(problem.id, [sample]) for sample in answers])
    r = [outcome.reward for outcome in outcomes]
    ranked = sorted((i for i, o in enumerate(outcomes) if o.status != "error"), key=lambda i: -r[i])
    kept = ranked if len(ranked) <= 4 else [*ranked[:2], *ranked[-2:]]
    rng = random.Random(seed)
    made = []
    for a, i in enumerate(kept):
        for j in kept[a + 1 :]:
            widest = (i, j) == (kept[0], kept[-1])
            if r[i] > r[j] and (widest or rng.random() < share):
                note = {"margin": r[i] - r[j], "widest": widest}
                made.append(Trajectory(problem.id, [replace(answers[i]), replace(answers[j])], note))
    return made


@dataclass(frozen=True)
class Models:
    """The reward model and the estimator, open."""

    reward: Scorer
    estimator: Scorer

    def close(self) -> None:
        self.reward.close()
        self.estimator.close()


def require_stage(config: Config, verifier: Target, where: str) -> None:
    """Raises ConfigError unless both roles are reward models of the method's."""
    for name in ("reward", "estimator"):
        require_role(config, verifier.get(name, name), f"{where}.{name}")


def resource(opening: Opening, *, reward: str = "reward", estimator: str = "estimator", **options: Any) -> Models:
    return Models(open_role(opening, reward), open_role(opening, estimator))


def opens(*, reward: str = "reward", estimator: str = "estimator", **options: Any) -> list[str]:
    """The models that `resource` puts on the device."""
    return [reward, estimator]


async def verify(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    passes: Count,
    words: str,
    reward: str = "reward",
    estimator: str = "estimator",
) -> list[Outcome]:
    """Of a pair whether the estimator agrees with its order (`correct`), its mean probability as the reward, and that
    of each pass in `step_rewards`. Of a single answer, which `generate` asks about, r. `reward` and `estimator` are
    roles; `words` stand between the two answers of a pair."""
    models: Models = context.resource
    policy = context.policy

    async def rated(sample: Sample) -> Outcome:
        ids = [*sample.prompt_ids, *sample.completion_ids]
        ((score,),) = await models.reward.logits(ids)
        policy.meter.count(reward, calls=1, prompt=0, scored=len(ids))
        return Outcome("correct" if score > 0 else "wrong", score)

    def doubted(number: int, samples: Sequence[Sample]) -> Outcome:
        ids = both(samples, words, policy)
        seed = seeds.derive(policy.seed, *policy.scope, "passes", number) % 2**63
        p = [sigmoid(score) for (score,) in models.estimator.passes(ids, passes, seed)]
        policy.meter.count(estimator, calls=passes, prompt=0, scored=passes * len(ids))
        return Outcome("correct" if agrees(p) else "wrong", sum(p) / passes, step_rewards=p)

    async def one(number: int, trajectory: Trajectory) -> Outcome:
        try:
            if len(trajectory.samples) == 1:
                return await rated(trajectory.samples[0])
            return doubted(number, trajectory.samples)
        except ValueError as error:
            return Outcome("error", 0.0, reason=str(error))

    return [await one(number, trajectory) for number, trajectory in enumerate(trajectories)]


def agrees(p: Sequence[float]) -> bool:
    """Whether most passes say that the first answer is the better one, or as many as say that it is not."""
    return sum(value > 0.5 for value in p) * 2 >= len(p)


def selected(
    groups: Iterable[list[Attempt]],
    *,
    rate: Share,
    labelled: Share,
    widest: Share,
    hard: Share,
    draw: Literal["bald", "chance"] = "bald",
    stage: str = "label",
    made: Made,
    seed: int,
) -> Iterator[Example]:
    """D, one pair a problem: shares of the labelled pairs, of the widest ones and of the hard set, and the easy set.

    The easy and the hard set are each a share `rate` of the pairs with which the estimator agrees. With `draw: chance`
    they are as large, and drawn from all pairs with equal weights. metadata["set"] says where a pair comes from.
    `stage` made the labelled pairs.
    """
    rng = random.Random(seed)
    attempts = [a for group in groups for a in group if a.verdict.status != "error"]
    clean = [a for a in attempts if a.verdict.status == "correct"]
    count = int(rate * len(clean))
    doubt = [bald(a.verdict.step_rewards or [0.5]) for a in clean]
    pool = clean if draw == "bald" else attempts
    even = [1.0] * len(pool)
    easy_set = drawn(pool, [1 - b for b in doubt] if draw == "bald" else even, count, rng)
    hard_set = drawn(pool, doubt if draw == "bald" else even, count, rng)
    wide = [a for a in attempts if a.trajectory.metadata["widest"]]
    rows = [replace(e, metadata={"set": "labelled"}) for e in some(list(made.examples(stage)), labelled, rng)]
    rows += [row(a, "easy") for a in easy_set]
    rows += [row(a, "widest") for a in some(wide, widest, rng)]
    rows += [row(a, "hard") for a in some(hard_set, hard, rng)]
    rng.shuffle(rows)
    seen = set[str]()
    for example in rows:
        if example.problem_id not in seen:
            seen.add(example.problem_id)
            yield example


def drawn(found: Sequence[Attempt], weights: Sequence[float], count: int, rng: random.Random) -> list[Attempt]:
    """`count` of them without replacement, one after another by weight. Those of weight 0 come last, by chance.

    The smallest of Exp(w_i) are such a draw (Efraimidis and Spirakis 2006).
    """
    keys = [(w <= 0, rng.expovariate(w if w > 0 else 1.0)) for w in weights]
    return [found[i] for i in sorted(range(len(found)), key=keys.__getitem__)[:count]]


def some(found: Sequence[T], share: float, rng: random.Random) -> list[T]:
    """A share of them at random, rounded down."""
    return rng.sample(found, int(share * len(found)))


def row(attempt: Attempt, name: str) -> Example:
    first, second = attempt.trajectory.samples
    return Example(
        attempt.problem.id,
        [attempt.trajectory.id],
        first.prompt_ids,
        first.completion_ids,
        rejected_ids=second.completion_ids,
        metadata={"set": name},
    )
