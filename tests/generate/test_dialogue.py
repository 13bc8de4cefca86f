"""Dialogues go on id for id as the chat template has them; prompts about solutions are filled, and verdicts read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from selfimprove.datasets.arithmetic import load
from selfimprove.generate.critique import after_reasoning, fill, verdict
from selfimprove.generate.dialogue import Dialogue
from selfimprove.generate.until import until
from selfimprove.policy import Policy, chat
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import PACKAGED, load_tokenizer
from selfimprove.policy.scripted import ANSWER, END, VERIFY, ScriptedEngine
from selfimprove.types import Problem

# As ChatML: the end token is not the last thing of a turn, and a system message is put in front.
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|user|>Be brief.\n{% endif %}"
    "<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHAT = [
    {"role": "user", "content": "Start with 7. Add 5. What is the result?"},
    {"role": "assistant", "content": "7 + 5 = 12\nThe answer is 12."},
    {"role": "user", "content": "Improve this solution."},
]


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("ended", [True, False])
def test_a_turn_is_what_the_chat_template_puts_between_two_answers(template: str | None, ended: bool) -> None:
    tokenizer: Any = load_tokenizer(str(PACKAGED / "tiny"))
    tokenizer.chat_template = template or tokenizer.chat_template
    answer = chat.encode(tokenizer, CHAT[1]["content"]) + [tokenizer.eos_token_id] * ended
    pieced = chat.render(tokenizer, CHAT[:1]) + answer + chat.turn(tokenizer, CHAT[2]["content"], ended)
    assert pieced == chat.render(tokenizer, CHAT)
    assert tokenizer.decode(pieced) == tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)


def test_a_dialogue_without_a_chat_template_is_text_and_blank_lines() -> None:
    tokenizer: Any = load_tokenizer(str(PACKAGED / "tiny"))
    tokenizer.chat_template = None
    whole = chat.render(tokenizer, "7 + 5") + chat.encode(tokenizer, " = 12") + chat.turn(tokenizer, "And 1?", False)
    assert tokenizer.decode(whole, skip_special_tokens=True) == "7 + 5 = 12\n\nAnd 1?"


def test_replies_are_kept_id_for_id_and_a_turn_that_ended_can_go_on() -> None:
    torch.set_num_threads(1)
    engine = TransformersEngine(str(PACKAGED / "tiny"), device="cpu", max_batch=8)
    problem = load(seed=0, train_size=0, heldout_size=1)[0]

    async def talk() -> tuple[Dialogue, Dialogue]:
        dialogue = Dialogue(Policy(engine, 0, max_tokens=96), problem.prompt)
        await dialogue.reply(temperature=0)
        other = Dialogue(Policy(engine, 0, max_tokens=96), problem.prompt)
        await other.reply(temperature=0)
        dialogue.user("Is this solution correct? Give a reason and a verdict.")
        await dialogue.reply(temperature=0)
        other.append("\n")
        await other.reply(temperature=0, max_tokens=4)
        return dialogue, other

    dialogue, other = asyncio.run(talk())
    draft, review = dialogue.samples
    assert draft.finish == "stop"
    assert review.prompt_ids[: len(draft.prompt_ids + draft.completion_ids)] == draft.prompt_ids + draft.completion_ids
    assert dialogue.ids == review.prompt_ids + review.completion_ids
    assert "Verdict: " in review.text
    assert other.samples[0].completion_ids == draft.completion_ids
    assert len(dialogue.samples) == len(other.samples) == 2
    so_far = draft.prompt_ids + draft.completion_ids[:-1]  # the end token is taken back: the turn goes on
    assert other.samples[1].prompt_ids == so_far + engine.encode("\n")


def test_a_scripted_policy_follows_a_dialogue() -> None:
    engine = ScriptedEngine({"Question?": "7"}, p_correct=0.0, p_improve=1.0)

    async def talk() -> list[str]:
        dialogue = Dialogue(Policy(engine, 0), "Question?")
        for text in (VERIFY, "Mend it.", VERIFY):
            await dialogue.reply()
            dialogue.user(text)
        await dialogue.reply()
        dialogue.append(" Wait.")
        assert END not in "".join(map(chr, dialogue.ids[-7:]))
        return [sample.text for sample in dialogue.samples]

    assert asyncio.run(talk()) == [f"{ANSWER}8", "No", f"{ANSWER}7", "Yes"]


def test_blanks_of_a_prompt_are_filled_once() -> None:
    problem = Problem("p", "asked at length", "B", metadata={"question": "{review}?", "options": ["x", "y"]})
    prompt = [{"role": "user", "content": "{question} {options} [{solution}] [{review}] {gold} {else}"}]
    (message,) = fill(prompt, problem, " {gold}\n", review=" good ")
    assert message["content"] == "{review}? \nA) x\nB) y [{gold}] [good] (B) y {else}"
    with pytest.raises(ValueError, match=r"\{review\}, and nothing was reviewed"):
        fill(prompt, problem, "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Yes", True),
        ("No, it is not.\nLine 2 is wrong. No", False),
        ("Yes: there is no mistake", True),
        ("all fine, yes", True),
        ("Nobody knows, and Yesterday", None),
        ("", None),
    ],
)
def test_the_last_verdict_word_counts(text: str, found: bool | None) -> None:
    assert verdict(text, "Yes", "No") is found
    assert verdict("Verdict: incorrect", "Verdict: correct", "Verdict: incorrect") is False
    assert verdict("so it is incorrect", "correct", "incorrect") is False


def test_reasoning_is_not_shown() -> None:
    assert after_reasoning("<think>hm</think>\nThe answer is 3. ") == "The answer is 3."
    assert after_reasoning("The answer is 3.") == "The answer is 3."


def test_plain_samples_until_so_many_tokens_are_the_fewest() -> None:
    engine = ScriptedEngine({"Question?": "7"})
    length = len(ANSWER) + 2  # the value and the end token

    def sampled(tokens: float) -> list[Any]:
        return asyncio.run(until(Problem("p", "Question?"), Policy(engine, 3, max_tokens=64), tokens=tokens))

    for tokens, count in ((0, 1), (1, 1), (length, 1), (length + 1, 2), (10 * length, 10), (10.5 * length, 11)):
        assert len(sampled(tokens)) == count
    seeds = [t.samples[0].seed for t in sampled(10 * length)]
    assert [t.samples[0].seed for t in sampled(30 * length)][:10] == seeds


def test_a_policy_of_draws_holds_no_dialogue() -> None:
    from selfimprove.policy.draws import DrawsEngine

    engine = DrawsEngine(lambda path: lambda seeds: [], "")
    dialogue = Dialogue(Policy(engine, 0), "anything")
    with pytest.raises(ValueError, match="no dialogue"):
        dialogue.user("Again.")
