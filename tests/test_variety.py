"""Lost variety is said where it is lost, and only there."""

import re

import numpy as np
import pytest

from selfimprove import run
from selfimprove.config import compose
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict
from selfimprove.variety import Variety, alarm, variety

RNG = np.random.default_rng(0)
BASE = {f"p{i}": Variety(int(RNG.binomial(8, 0.4)), 8, int(RNG.integers(3, 7))) for i in range(80)}


def changed(**to):
    """The base policy's answers with what each problem has replaced by a function of it."""
    return {
        name: Variety(*(to.get(field, getattr)(v, field) for field in ("correct", "n", "distinct")))
        for name, v in BASE.items()
    }


def test_the_same_answers_raise_no_alarm():
    assert alarm(BASE, BASE) is None


def test_many_tries_that_solve_less_do():
    # Each problem is solved always or never: a single answer as often, several less often.
    sure = changed(correct=lambda v, _: 8 if v.correct >= 4 else 0, distinct=lambda v, _: 1)
    line = alarm(BASE, sure)
    lost = 100 * (np.mean([v.correct > 0 for v in BASE.values()]) - np.mean([v.correct > 0 for v in sure.values()]))
    assert re.match(rf"variety is lost: pass@8 is {lost:.1f} points \[\d", line)


def test_answers_that_are_alike_do_only_where_nothing_was_gained():
    alike = changed(distinct=lambda v, _: 1)
    line = alarm(BASE, alike)
    assert "8 sampled answers to a problem have 1.0 different ones" in line
    better = changed(correct=lambda v, _: min(8, v.correct + 2), distinct=lambda v, _: 1)
    assert alarm(BASE, better) is None


@pytest.mark.parametrize("after", [{}, dict(list(BASE.items())[1:])])
def test_other_problems_are_not_compared(after):
    assert alarm(BASE, after) is None
    assert alarm({}, {}) is None


def test_equal_answers_are_one_and_greedy_ones_are_left_out():
    def attempt(extracted, decoding):
        sample = Sample([1], [2], [-0.1], extracted, "stop", 0, 1.0)
        verdict = Verdict("p/0", "correct" if extracted == "1/2" else "wrong", 0.0, extracted=extracted)
        return Attempt(Problem("p", []), Trajectory("p", [sample], {"decoding": decoding}), verdict)

    group = [attempt("9", "greedy"), *(attempt(text, "sampled") for text in ("1/2", "0.5", "3"))]
    assert variety([group]) == {"p": Variety(1, 3, 2)}
    assert variety([group[:2]]) == {}


def test_a_run_compares_its_samples_with_the_base_policys_and_says_the_line(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "alarm", lambda before, after: seen.append((before, after)) or "variety is lost: so")
    words = "method=rejection_sampling rounds=1 dataset.train_size=1 dataset.heldout_size=2 dataset.levels=[2] "
    run.start(compose([*words.split(), "eval.samples=3", "verify.workers=1", "tracker=none"]), tmp_path)
    ((before, after),) = seen
    assert before.keys() == after.keys()
    assert [v.n for v in before.values()] == [3, 3]
    assert re.search(r"WARNING \S+ round 0: variety is lost: so", (tmp_path / "run.log").read_text())
