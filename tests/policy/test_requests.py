"""A request says all that its answer depends on, and an engine refuses what it does not have."""

import asyncio

import pytest

from selfimprove.policy import Policy, Request, Tuning, plain
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.types import Problem

ADAPTER = Tuning((((1, 2), (3,)),))


def test_equal_ids_behind_other_media_or_adapters_have_another_base():
    ids = (1, 2, 3)
    bases = {
        Request(ids, 4, seed, media=media, adapter=adapter).base
        for seed in (0, 1)
        for media in ((), ("a",))
        for adapter in (None, ADAPTER)
    }
    assert len(bases) == 4, "the seed is not in it, media and adapter are"
    assert Request(ids, 4, 0).base == plain(list(ids))


@pytest.mark.parametrize("asked", [{"media": ("picture",)}, {"adapter": ADAPTER}, {"hook": object()}])
def test_an_engine_refuses_what_it_does_not_have(asked):
    policy = Policy(ScriptedEngine({"q": "7"}), seed=0)
    with pytest.raises(ValueError, match=f"engine=scripted has no {next(iter(asked))}"):
        asyncio.run(policy.sample("q", **asked))


def test_calls_are_counted_for_each_role_and_scope():
    async def seeds():
        made = {}
        for role in ("policy", "critic"):
            made[role] = Policy(ScriptedEngine({"q": "7"}), 0, role=role, others=lambda name: made[name])
        policy = made["policy"].for_problem(Problem("q", "q"))
        found = []
        for _ in range(2):
            (sample,) = await policy.on("critic").sample("q")
            found.append((sample.role, sample.seed))
        (own,) = await policy.sample("q")
        return [*found, (own.role, own.seed)], policy.meter.take()

    found, counts = asyncio.run(seeds())
    assert [role for role, _ in found] == ["critic", "critic", "policy"]
    assert len({seed for _, seed in found}) == 3
    assert counts["calls"] == 3
    assert counts["calls@critic"] == 2
