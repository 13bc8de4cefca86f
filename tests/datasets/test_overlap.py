"""Train problems that are like held-out ones are found, and those that only share a template are not."""

import random

from selfimprove.datasets import arithmetic
from selfimprove.datasets import overlap as overlaps
from selfimprove.datasets.overlap import overlap
from selfimprove.types import Problem
from tests.counting import lines

HELD = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)


def problem(name: str, question: str, **metadata: object) -> Problem:
    return Problem(name, question, metadata={"question": question, **metadata})


def found(question: str, held: str = HELD) -> dict[str, tuple[str, float]]:
    return overlap([problem("a", question)], [problem("h", held)], n=5, share=0.6)


def test_an_equal_question_whatever_its_case_and_punctuation():
    assert found(HELD.upper().replace(",", " ;")) == {"a": ("h", 1.0)}
    assert found("Two and two?", "two AND two") == {"a": ("h", 1.0)}


def test_a_paraphrase_that_keeps_most_words_and_a_question_inside_a_longer_one():
    share = found(HELD.replace("clips to 48 of her friends", "clips to 48 of her colleagues"))["a"][1]
    assert 0.6 <= share < 1
    assert found("Please read the following with care. " + HELD) == {"a": ("h", 1.0)}


def test_a_template_with_other_numbers_and_names_is_another_question():
    assert not found(HELD.replace("48", "17").replace("Natalia", "Boris").replace("half", "twice"))
    assert not found("What is 4 + 4?", "What is 5 + 4?")
    assert not found(HELD.replace("48", "52")), "one number differs, and with it the answer"


def test_the_code_of_a_figure_is_no_part_of_a_question():
    figure = "[asy] draw((0,0)--(1,0)--(1,1)--cycle); label(A, (0,0), S); [/asy]"
    assert not found(f"What is the area? {figure}", f"What is the length of the hypotenuse? {figure}")


def test_choice_questions_count_with_their_options():
    held = problem("h", "Which is a mammal?", options=["cat", "trout", "wren", "moth"])
    other = problem("a", "Which is a mammal?", options=["dog", "shark", "crow", "wasp"])
    assert not overlap([other], [held], n=5, share=0.6)
    assert overlap([problem("b", "Which is a mammal?", options=held.metadata["options"])], [held], n=5, share=0.6)


def test_no_generated_problem_is_lost():
    problems = arithmetic.load(train_size=500, heldout_size=500, seed=0)
    like = overlap(problems[:500], problems[500:], n=5, share=0.6)
    assert len(like) <= 5, like


def test_work_grows_with_the_number_of_problems_and_not_with_its_square():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(5000)]

    def some(n: int, side: str) -> list[Problem]:
        return [
            problem(f"{side}{i}", " ".join(rng.choices(words, k=40)) + " how many are left in the end")
            for i in range(n)
        ]

    def work(n: int) -> int:
        train, heldout = some(n, "t"), some(n, "h")
        return lines(lambda: overlap(train, heldout, n=5, share=0.6), overlaps)

    small, large = work(100), work(800)
    assert large < 8.2 * small, "8 times the problems: 8 times the steps, though all have a phrase in common"
