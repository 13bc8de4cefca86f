"""The small language of outline: its grammar, its sides, its limits, and the verifier of both."""

import random

import pytest

from selfimprove.datasets import outline
from selfimprove.errors import ConfigError
from selfimprove.verify.length import check
from selfimprove.verify.length import outline as check_outline
from selfimprove.verify.text_checks import fault, repetition, whole

ASK = "Write about animals and waters."


def load(**changes):
    options = {"words": (20, 60), "unit": 10, "seed": 0, "prompt": "{question}", "train_size": 40, "dev_size": 10}
    return outline.load(**options | {"heldout_size": 20} | changes)


def test_a_sentence_is_valid_where_it_is_of_the_grammar_and_about_a_topic():
    text = "The wolf waits quietly.\nThe river shines again.\nThe hammer falls alone.\nThe wolf quietly waits."
    assert outline.valid(text, ASK) == [True, True, False, False]
    assert outline.valid("", ASK) == [False]
    assert outline.valid("The wolf waits quietly.", "Write anything.") == [False]


@pytest.mark.parametrize("seed", range(5))
def test_what_the_grammar_draws_is_valid(seed):
    assert outline.valid(outline.sentence(random.Random(seed), ["animals", "waters"]), ASK) == [True]


def test_a_thing_is_of_one_topic():
    things = [thing for topic in outline.TOPICS.values() for thing in topic]
    assert len(set(things)) == len(things)


def test_sides_share_no_set_of_topics_and_only_held_out_instructions_have_a_limit():
    problems = load()
    sets = {side: {frozenset(outline.topics_of(str(p.metadata["question"]))) for p in problems if p.split == side}
            for side in ("train", "dev", "test")}  # fmt: skip
    assert not sets["train"] & sets["test"]
    assert not sets["dev"] & sets["test"]
    assert all(("limit" in p.metadata) == (p.split != "train") for p in problems)
    assert [p.id for p in load(seed=1) if p.split == "test"] == [p.id for p in problems if p.split == "test"]


def test_a_larger_size_keeps_the_problems_of_a_smaller_one():
    names = [{p.id for p in load(train_size=size) if p.split == "train"} for size in (10, 40)]
    assert names[0] < names[1]


def test_bounds_without_a_multiple_are_refused():
    with pytest.raises(ConfigError, match=r"dataset\.words"):
        load(words=(21, 29))


def test_the_reward_is_of_the_length_and_correct_is_of_the_grammar_too():
    limit = {"limit": {"kind": "about", "words": [10]}, "question": ASK}
    right = "The wolf waits quietly.\nThe river shines again."
    assert (check_outline(right, None, limit).status, check_outline(right, None, limit).reward) == ("correct", 100.0)
    broken = check_outline(right.replace("waits", "waited"), None, limit)
    assert (broken.status, broken.reward, broken.reason) == ("wrong", 100.0, "line 1 breaks the grammar")
    short = check("The wolf waits quietly again.", None, limit)  # 5 words where 8 to 12 are allowed: 2 x 5 / 8 - 1
    assert (short.status, short.reward) == ("wrong", pytest.approx(25.0))
    assert check(" ", None, limit).status == "unparseable"
    assert check("word", None, {}).status == "error"


def test_repetition_by_hand_and_what_makes_a_text_whole():
    assert repetition("a b a b a b", 2) == pytest.approx(3 / 5)
    assert repetition("a", 2) == 0
    assert fault("One two three.", 3) is None
    assert fault("One two three", 3) == "ends with 'e', in the middle of a sentence"
    assert fault("One two. One two.", 2) == "repeats 2 words in a row"
    assert whole("One two three.", None, {}, ngram=3).reward == 3
    assert whole("", None, {}, ngram=3).status == "unparseable"
