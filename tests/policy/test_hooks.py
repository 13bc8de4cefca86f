"""Hooks: what they see of a decoding step, and that one that does nothing leaves everything as it is, to the bit."""

import asyncio
from dataclasses import dataclass, field

import pytest
import torch

from selfimprove.policy import Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.hf_reader import Reader
from selfimprove.policy.models import resolve
from selfimprove.types import Problem


@dataclass(frozen=True)
class Idle:
    """Changes nothing, and keeps what it was shown."""

    name: str = "idle"
    seen: list = field(default_factory=list, compare=False)
    reads = False

    def logits(self, rows):
        self.seen.append(rows)
        for note in rows.notes:
            note["tokens"] = note.get("tokens", 0) + 1
        return rows.logits


@dataclass(frozen=True)
class Only:
    """Draws one token, whatever the policy says."""

    token: int
    reads = False

    def logits(self, rows):
        found = torch.full_like(rows.logits, float("-inf"))
        found[:, self.token] = 0.0
        return found


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(resolve("tiny", "package"), device="cpu", max_batch=4)


def drawn(engine, hooks, temperature=1.0):
    """A sample for each hook, of prompts of different lengths, all at once."""

    async def everything():
        policy = Policy(engine, 3, max_tokens=12)
        return await asyncio.gather(
            *(
                policy.for_problem(Problem(f"p{i}", "")).sample(prompt(i), temperature=temperature, hook=hook)
                for i, hook in enumerate(hooks)
            )
        )

    return [(s.completion_ids, s.logprobs) for (s,) in asyncio.run(everything())]


def prompt(i):
    return f"Start with {'1' * (i + 1)}."


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_hook_that_does_nothing_leaves_ids_and_logprobs_as_they_are(engine, temperature):
    plain = drawn(engine, [None] * 6, temperature)
    assert drawn(engine, [Idle()] * 6, temperature) == plain
    assert drawn(engine, [Idle(), None, Idle(), None, Idle("other"), None], temperature) == plain


def test_log_probabilities_stay_the_policys_own(engine):
    ((ids, logprobs),) = drawn(engine, [Only(7)])
    assert ids == [7] * 12
    scored = asyncio.run(engine.logprobs(engine.render(prompt(0)), ids))
    assert logprobs == pytest.approx(scored, abs=1e-4)


def test_equal_hooks_are_called_together_and_keep_their_notes(engine):
    hooks = [Idle("a"), Idle("b"), Idle("a")]
    drawn(engine, hooks)
    together = hooks[0].seen + hooks[2].seen  # one of the equal ones is called
    first = together[0]
    assert (len(first.ids), len(hooks[1].seen[0].ids)) == (2, 1)
    assert {id(hook) for hook in first.hooks} == {id(hooks[0]), id(hooks[2])}
    assert first.positions == [0, 0]
    for rows in together:
        assert all(note["tokens"] > place for note, place in zip(rows.notes, rows.positions, strict=True))


def test_a_model_that_changes_logits_behind_its_head_is_refused(engine, monkeypatch):
    @dataclass(frozen=True)
    class Reads:
        reads = True

        def logits(self, rows):
            rows.hidden([0])
            return rows.logits

    head = Reader.head
    monkeypatch.setattr(Reader, "head", lambda self, states: head(self, states) / 4)
    with pytest.raises(ValueError, match="hidden states and output head do not give this model's logits"):
        drawn(engine, [Reads()])


def test_hidden_states_that_were_kept_are_those_of_reading_anew(engine):
    """Six rows in four slots, three of one prompt: rows move, and prompts are read when their first row asks."""

    @dataclass(frozen=True)
    class Reads:
        far: list = field(default_factory=list, compare=False)
        reads = True

        def logits(self, rows):
            numbers = [i for i, place in enumerate(rows.positions) if place % 2]
            for i, states in zip(numbers, rows.hidden(numbers), strict=True):
                anew = engine.model.base_model(torch.tensor([rows.ids[i]])).last_hidden_state[0]
                assert states.shape == anew.shape
                self.far.append(float((states - anew).abs().max()))
            return rows.logits

    async def everything(hook):
        policy = Policy(engine, 3, max_tokens=12)
        asked = (policy.sample(prompt(i), 3 if i else 1, temperature=1.0, hook=hook) for i in (0, 1, 2, 3))
        return await asyncio.gather(*asked)

    hook = Reads()
    asyncio.run(everything(hook))
    assert len(hook.far) > 9
    assert max(hook.far) < 1e-3


def test_a_hook_that_does_not_say_that_it_reads_gets_no_hidden_states(engine):
    @dataclass(frozen=True)
    class Forgot:
        reads = False

        def logits(self, rows):
            rows.hidden([0])

    with pytest.raises(ValueError, match="this hook's `reads` is False"):
        drawn(engine, [Forgot()])
