"""BLEU and clusters against hand values."""

from __future__ import annotations

import math

import pytest

from selfimprove.verify.bleu import bleu, clusters, shares, words

# Letters stand for words: a text is a sequence of them.


def test_words_are_small_letters_numbers_and_marks() -> None:
    assert words("Add 5. Is it x_1?") == ["add", "5", ".", "is", "it", "x_1", "?"]


def test_a_text_against_itself_and_against_one_without_a_common_word() -> None:
    assert bleu("abcde", "abcde") == 1
    assert bleu("abcd", "efgh") == 0


def test_precisions_by_hand() -> None:
    """4/5, 3/4, 2/3 and 1/2: their product is 1/5."""
    assert bleu("abcdx", "abcdy") == pytest.approx(0.2**0.25)


def test_a_short_text_is_held_against_its_reference_s_length() -> None:
    assert bleu("abcd", "abcdef") == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu("abcdef", "abcd") == pytest.approx((4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_an_order_without_a_match_counts_a_tenth() -> None:
    """Words 2/4, pairs 1/3, then .1/2 and .1/1."""
    assert bleu("abcd", "abef") == pytest.approx((2 / 4 * 1 / 3 * 0.1 / 2 * 0.1) ** 0.25)


def test_a_repeated_word_matches_as_often_as_the_reference_has_it() -> None:
    assert bleu("aaaa", "abcd") == pytest.approx((1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1) ** 0.25)


def test_like_texts_are_one_cluster() -> None:
    texts = ["Start with 7. Add 5. Add 3.", "Start with 7. Add 5. Add 4.", "Who wrote this long book, and when?"]
    assert len(set(clusters(texts, 0.5))) == 2
    assert shares(texts, 0.5) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert shares(texts, 1.0) == [1, 1, 1]
    assert shares(texts[:1], 0.5) == [1]
    assert shares([], 0.5) == []


def test_linkage_is_the_average() -> None:
    """The first two texts are nearest. The third joins them at the mean of its distances to both."""
    texts = ["a b c d e", "a b c d f", "a b c g f"]
    far, near = (1 - bleu(text.split(), texts[2].split()) for text in texts[:2])
    middle = (far + near) / 2
    assert 1 - bleu(texts[0].split(), texts[1].split()) < near < far
    assert clusters(texts, middle - 1e-6)[2] != clusters(texts, middle - 1e-6)[1]
    assert len(set(clusters(texts, middle + 1e-6))) == 1
