"""Slots of the methods in tests/conf: what they were given is left in the records they make."""

import dataclasses

from selfimprove.types import Example, Memory, Problem, Trajectory


class Counter:
    """A tool that counts its calls."""

    def __init__(self, start):
        self.calls = start

    def __call__(self, text):
        self.calls += 1
        return len(text)


def counter(*, start: int):
    return Counter(start)


async def informed(problem, policy, *, n: int, memory, step, tools, seed):
    """Samples, and notes what it was given."""
    given = {
        "memory": {one.key: one.metadata["count"] for one in memory},
        "step": [step.round, step.stage, step.part],
        "length": tools["counter"]("four"),
        "seed": seed,
    }
    return [Trajectory(problem.id, [sample], given) for sample in await policy.sample(problem.prompt, n)]


def followed(groups, *, word: str, seed):
    """A problem for each that has a right answer: the same question again, said to be the next one."""
    for group in groups:
        right = next((a for a in group if a.verdict.status == "correct"), None)
        if right:
            old = right.problem
            yield Problem(
                "", old.prompt, old.gold, "dev", {**old.metadata, "origin": right.trajectory.id, "word": word}
            )


def counted(groups, *, memory):
    """How many passes there were, and how many right answers in the last."""
    right = sum(a.verdict.status == "correct" for group in groups for a in group)
    before = next((one.metadata["count"] for one in memory if one.key == "passes"), 0)
    yield Memory("passes", metadata={"count": before + 1})
    yield Memory("right", array=[float(right)], metadata={"count": right})


async def in_turn(problem, policy, *, roles):
    """The critic answers, then the policy does; the critic again, for whom other seeds are drawn."""
    (first,) = await roles["critic"].sample(problem.prompt)
    (second,) = await policy.sample(problem.prompt)
    (third,) = await policy.on("critic").sample(problem.prompt)
    assert third.seed != first.seed
    return [Trajectory(problem.id, [first, third, second])]


def of_role(groups, *, of: str, text, step):
    """What one role sampled, as examples."""
    for group in groups:
        for attempt in group:
            for sample in attempt.trajectory.samples:
                if sample.role == of:
                    ids = [*sample.prompt_ids[:0], *sample.prompt_ids]
                    assert text.render(attempt.problem.prompt) == ids
                    yield Example(
                        attempt.problem.id,
                        [attempt.trajectory.id],
                        ids,
                        sample.completion_ids,
                        metadata={"of": step.stage},
                    )


def returns(text, gold, metadata):
    """A check whose reward is a number that is no share: how long the answer is, below zero."""
    from selfimprove.verify import Outcome

    return Outcome("correct", -float(len(text)), text[:5])


async def twice(problem, policy):
    """Answers two times, and says which turn it was."""
    found = []
    for turn in (1, 2):
        (sample,) = await policy.sample(problem.prompt, temperature=0)
        found.append(Trajectory(problem.id, [dataclasses.replace(sample)], {"stage": turn}))
    return found


def best_so_far(rounds):
    """A figure over all evaluations."""
    return {
        "best_so_far": max(sum(scores.values) / len(scores.values) for scores in rounds),
        "evaluations": len(rounds),
    }


def asks_too_much(groups, *, seed, roles):
    """A filter cannot ask a policy."""
    return iter(())
