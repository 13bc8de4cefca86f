"""Slots that tests/test_rounds.py names in a configuration."""

import asyncio
from pathlib import Path

from selfimprove.generate.best_of_n import best_of_n
from selfimprove.types import Adaptation, Trajectory
from selfimprove.verify import Outcome

opened, closed, first = [], [], []


class Resource:
    def close(self):
        closed.append(self)


def resource(opening, **options):
    opened.append(len(opening.problems))
    return Resource()


async def longest(problem, trajectories, context):
    """The longest answer of a problem is the correct one; one call of the policy for each."""
    assert isinstance(context.resource, Resource)
    (sample,) = await context.policy.sample(problem.prompt, max_tokens=3)
    assert sample.version == trajectories[0].samples[0].version
    best = max(len(t.text) for t in trajectories)
    return [Outcome("correct" if len(t.text) == best else "wrong", 1.0, t.text[:9]) for t in trajectories]


async def at_two_temperatures(problem, policy):
    found = []
    for temperature in (0.5, 1.5):
        found += [
            Trajectory(problem.id, [sample], {"temperature": temperature})
            for sample in await policy.sample(problem.prompt, 2, temperature=temperature)
        ]
    return found


def hottest(groups):
    """Chooses the temperature at which fewer answers are right: neither the default nor chance would."""
    right = {0.5: 0, 1.5: 0}
    for group in groups:
        for attempt in group:
            right[attempt.trajectory.metadata["temperature"]] += attempt.verdict.status == "correct"
    surface = [{"temperature": t, "correct": n} for t, n in right.items()]
    chosen = min(right, key=right.__getitem__)
    return Adaptation({"generate": {"temperature": chosen}}, {"correct": float(right[chosen])}, surface)


async def asks_its_verifier(problem, policy, *, check):
    """Samples until an answer passes, four times at most."""
    for _ in range(4):
        (sample,) = await policy.sample(problem.prompt)
        outcome = await check(sample.text, problem)
        if outcome.status == "correct":
            break
    return [Trajectory(problem.id, [sample], {"status": outcome.status})]


async def waits_for_a_verdict(problem, policy, *, file):
    """The first problem is answered at once. The others wait until an answer has been checked."""
    first.append(problem.id)
    for _ in range(3000):
        if Path(file).exists() or problem.id == first[0]:
            return [Trajectory(problem.id, await policy.sample(problem.prompt, max_tokens=3))]
        await asyncio.sleep(0.02)
    raise ValueError("no answer was checked while others are sampled")


def leaves_a_line(text, gold, metadata, *, file):
    with open(file, "a") as out:
        out.write("checked\n")
    return Outcome("correct", 1.0)


def every_status(text, gold, metadata):
    """A check whose statuses come in turn, by the length of the text."""
    status = ("correct", "wrong", "unparseable", "timeout", "error")[len(text) % 5]
    return Outcome(status, 1.0 if status == "correct" else 0.0, reason="as the test wants it")


def seen_statuses(groups, *, seed):
    """No example: leaves what it saw in `seen`."""
    seen.append([(a.verdict.status, a.verdict.reward) for group in groups for a in group])
    return iter(())


seen = []
generate = best_of_n
