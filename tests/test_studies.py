"""What studies share: paired intervals over problems and seeds, runs that are found again, and the command."""

import json
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from selfimprove import studies
from selfimprove.errors import RunError
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.metrics import Estimate
from selfimprove.studies import (
    Claim,
    Lab,
    Result,
    advantage,
    as_check,
    claim_above,
    claim_sign,
    difference,
    gain,
    gen_vs_mc,
    lessons,
    tiny,
    untestable,
)
from selfimprove.studies.arms import arms_table, each_round, evaluated, learning_table, rate_of, rows_of, tuned
from selfimprove.studies.costs import Answers, cost, cost_table
from selfimprove.studies.online import MARGIN, alike, below
from selfimprove.studies.solving import attempts, by_stage, grader, resampled, solved
from selfimprove.studies.staged import best_rates, between
from selfimprove.types import Problem, Sample, Trajectory
from selfimprove.verify.answers import best, last
from selfimprove.verify.text import exact

SMALL = (
    "rounds=1",
    "dataset.train_size=10",
    "dataset.heldout_size=8",
    "verify.workers=1",
    "method.generate.n=2",
    "method.train.epochs=1",
)


def scores(rng, p, n=200):
    return {f"p{i}": float(rng.random() < p) for i in range(n)}


def test_a_difference_is_paired_over_problems_and_its_interval_is_over_seeds_too():
    rng = np.random.default_rng(0)
    before = [scores(rng, 0.4) for _ in range(3)]
    after = [{p: max(v, float(rng.random() < 0.3)) for p, v in run.items()} for run in before]
    found = difference(after, before)
    expected = np.mean([[a[p] - b[p] for p in a] for a, b in zip(after, before, strict=True)])
    assert found.value == pytest.approx(expected)
    assert 0 < found.low < found.value < found.high
    apart = [{p: v for p, v in run.items()} for run in before]
    apart[0] = dict.fromkeys(before[0], 1.0)  # one seed that went otherwise widens the interval
    assert difference(apart, before).high - difference(apart, before).low > found.high - found.low


class Measured:
    """A finished run by what its policies solve: before any training, and after the last round."""

    def __init__(self, base, last):
        self.scores = {"base": {"p": base, "q": base}, "last": {"p": last, "q": last}}

    def heldout(self, folder="last"):
        return self.scores[folder]


def test_a_gain_is_last_minus_base_and_an_advantage_that_over_the_others():
    ours, theirs = [Measured(0.25, 0.75)], [Measured(0.25, 0.5)]
    assert gain(ours).value == pytest.approx(0.5)
    assert gain([Measured(0.75, 0.25)]).value == pytest.approx(-0.5)
    assert advantage(ours, theirs).value == pytest.approx(0.25)
    assert advantage(theirs, ours).value == pytest.approx(-0.25)


def test_a_difference_of_other_problems_is_refused():
    with pytest.raises(ValueError, match="different held-out problems"):
        difference([{"a": 1.0}], [{"b": 1.0}])


def test_no_difference_has_an_interval_around_zero():
    rng = np.random.default_rng(1)
    before = [scores(rng, 0.5) for _ in range(3)]
    after = [scores(rng, 0.5) for _ in range(3)]
    assert difference(after, before).low < 0 < difference(after, before).high


@pytest.mark.parametrize(("ends", "holds"), [((0.06, 0.1), True), ((0.01, 0.1), None), ((-0.1, 0.04), False)])
def test_a_claim_of_a_bound_needs_the_whole_interval_on_one_side(ends, holds):
    assert claim_above("c", Estimate(0.05, *ends, 9), "x", "y", least=0.05).holds is holds


@pytest.mark.parametrize(
    ("interval", "above", "holds"),
    [
        ((0.1, 0.01, 0.2), True, True),
        ((0.1, 0.01, 0.2), False, False),
        ((-0.1, -0.2, -0.01), True, False),
        ((-0.1, -0.2, -0.01), False, True),
        ((0.1, -0.01, 0.2), True, None),
        ((0.1, -0.01, 0.2), False, None),
    ],
)
def test_a_claim_of_a_sign_is_not_clear_where_the_interval_holds_zero(interval, above, holds):
    claim = claim_sign("c", Estimate(*interval, 9), "x", "y", above)
    assert claim == Claim("c", holds, interval[0], interval[1:], "x", "y")


@pytest.mark.parametrize(
    ("ends", "as_good", "little"),
    [((-0.04, 0.04), True, True), ((-0.06, 0.04), None, True), ((0.01, 0.06), None, None), ((0.06, 0.1), False, False),
     ((-0.2, -0.06), False, True)],
)  # fmt: skip
def test_as_good_as_and_less_than_need_the_whole_interval(ends, as_good, little):
    estimate = Estimate(sum(ends) / 2, *ends, 9)
    assert alike("c", estimate, "x", "y").holds is as_good
    assert below("c", estimate, MARGIN, "x", "y").holds is little


@pytest.mark.parametrize(
    ("ends", "holds"),
    [((0.4, 0.6), True), ((0.2, 0.6), None), ((0.6, 0.8), None), ((0.1, 0.2), False), ((0.8, 0.9), False)],
)
def test_between_two_bounds_needs_the_whole_interval(ends, holds):
    assert between("c", Estimate(sum(ends) / 2, *ends, 9), 0.3, 0.7, "x", "y").holds is holds


def test_a_bootstrap_of_rows_is_centred_on_their_figure_and_narrows_with_them():
    rows = np.arange(100.0)
    found = resampled(lambda places: float(rows[places].mean()), len(rows))
    assert (found.value, found.n) == (rows.mean(), 100)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * rows.std() / 10, rel=0.1)


def test_each_arm_has_the_rate_that_is_best_on_dev_and_of_equal_ones_the_smallest(tmp_path):
    notes = []
    dev = {("a", 0.1): 0.5, ("a", 0.2): 0.5, ("b", 0.1): 0.25, ("b", 0.2): 0.75}
    arms = {"one": ["a"], "other": ["b"]}
    rates = best_rates(
        Lab(False, tmp_path, notes.append), arms, (0.1, 0.2), lambda own, rate: dev[own[0], rate], "score"
    )
    assert rates == {"one": 0.1, "other": 0.2}
    assert notes[1] == "other: dev score by learning rate: 0.1: 0.250, 0.2: 0.750; chosen 0.2"
    words = tuned(arms, rates)
    assert words == {"one": ["a", "method.train.learning_rate=0.1"], "other": ["b", "method.train.learning_rate=0.2"]}
    assert rate_of(Result(tmp_path, {}, tuple(words["other"]))) == 0.2


def test_each_round_of_each_arm_is_a_row(tmp_path):
    rounds = [{"evaluation": {"accuracy": 0.25}, "examples": 4}, {"evaluation": {"accuracy": 0.5}, "examples": 6}]
    higher = [{**row, "evaluation": {"accuracy": 1.0}, "examples": 8} for row in rounds]
    results = [Result(tmp_path, {"rounds": found}, ()) for found in (rounds, higher)]
    rows = each_round({"arm": results})
    assert list(rows) == ["arm, round 1", "arm, round 2"]
    assert [evaluated(row, "accuracy") for row in rows.values()] == [0.625, 0.75]
    assert rows_of(results) == 7


def cells(table):
    return [[str(cell) for cell in column.cells] for column in table.columns]


def test_arms_are_rows_of_one_table(tmp_path):
    columns = {"sum": lambda arm: str(sum(arm)), "n": lambda arm: str(len(arm))}
    table = arms_table("t", {"one": [1, 3], "two": [5]}, columns)
    assert [column.header for column in table.columns] == ["arm", "sum", "n"]
    assert cells(table) == [["one", "two"], ["4", "5"], ["2", "1"]]
    rounds = [{"examples": 10, "tokens": {"sampled": 1500}}, {"examples": 20, "tokens": {"sampled": 500}}]
    summary = {"base": {"accuracy": 0.5}, "final": {"accuracy": 0.625}, "rounds": rounds}
    runs = [Result(tmp_path, summary, ()), Result(tmp_path, {**summary, "final": {"accuracy": 0.375}}, ())]
    assert cells(learning_table({"arm": runs}, "t")) == [["arm"], ["50.0 %"], ["50.0 %"], ["15"], ["2,000"]]


def chain(problem, *texts):
    """A problem's answers, each with all samples that led to it; a sample reads 10 tokens and has one a character."""
    samples = [Sample(list(range(10)), [ord(c) for c in text], [0.0] * len(text), text, "stop", 0) for text in texts]
    return [Trajectory(problem.id, samples[: i + 1], {"stage": i}) for i in range(len(samples))]


def test_what_chains_solve_and_cost_beside_plain_samples_of_as_many_tokens():
    problems = [Problem("a", "A?", "7"), Problem("b", "B?", "8")]
    engine = ScriptedEngine({"A?": "7", "B?": "8"}, {"A?": 1.0, "B?": 0.0})
    check = grader(exact)
    chains = [chain(problems[0], "7", "1"), chain(problems[1], "2", "8")]
    groups = attempts(problems, chains, check)
    assert solved(groups, last) == {"a": 0.0, "b": 1.0}
    assert solved(groups, best) == {"a": 1.0, "b": 1.0}
    assert solved(groups, lambda group: None) == {"a": 0.0, "b": 0.0}
    assert by_stage([groups, [groups[0][:1], groups[1][:1]]], best) == [0.5, 0.75]
    whole = cost(engine, [Answers(groups, 3.0), Answers(groups, 5.0)], check)
    assert (whole.tokens, whole.prompt_tokens, whole.calls, whole.seconds) == (2.0, 20.0, 2.0, 2.0)
    assert (whole.passed, whole.majority) == (0.5, 0.5), "one plain sample a problem has as many tokens, and more"
    assert cost(engine, [Answers(groups, 0.0)], check, separate=True).tokens == 3.0
    table = cost_table({"chains": whole}, {"chains": 0.5}, "last")
    assert cells(table) == [["chains"], ["2"], ["20"], ["2.0"], ["2.00"], ["0.500"], ["0.500"], ["0.500"]]


def test_a_small_model_is_made_once(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 32}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    made = []

    def rows():
        from selfimprove.policy.models import load_tokenizer

        made.append(1)
        return [lessons.answer_row(load_tokenizer(str(tiny.SHIPPED)), f"{i} + 1?", f"It is {i + 1}.") for i in range(4)]

    def make():
        start = partial(tiny.untrained, **sizes)
        return tiny.trained(tmp_path / "small", rows, start, 4, epochs=1, learning_rate=1e-3, batch_size=4)

    assert make() == make() == tmp_path / "small"
    assert made == [1]
    engine = tiny.shipped(tmp_path / "small", max_batch=2, max_length=100)
    assert (engine.max_length, engine.model.config.hidden_size) == (100, 32)
    assert engine.tokenizer.get_vocab() == tiny.shipped().tokenizer.get_vocab()


def test_a_run_of_a_study_is_done_once_and_the_base_is_given_the_same_tokens(tmp_path):
    lab = Lab(True, tmp_path)
    first = lab.run("method=rejection_sampling", *SMALL)
    written = (first.path / "summary.json").stat().st_mtime_ns
    again = lab.run("method=rejection_sampling", *SMALL)
    assert again == first
    assert (first.path / "summary.json").stat().st_mtime_ns == written
    assert first.heldout("base").keys() == first.heldout().keys()
    found = lab.at_equal_tokens([first])
    (best, majority) = found
    n = int(best.rpartition("=")[2])
    assert majority.endswith(f"n={n}")
    answer = sum(group[0].trajectory.sampled_tokens for group in first.attempts(first.evaluation("base")))
    assert n == max(2, round(first.sampled_tokens / answer)), "equal means equal: there is no cap"
    assert found[best].value >= found[majority].value


def test_a_run_of_other_code_is_no_evidence(tmp_path, monkeypatch):
    lab = Lab(True, tmp_path)
    first = lab.run("method=rejection_sampling", *SMALL)
    monkeypatch.setattr(studies, "code", lambda: "edited")
    assert lab.run("method=rejection_sampling", *SMALL).path != first.path


def test_a_run_that_did_not_end_is_no_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr("selfimprove.run.start", lambda config, path: {"status": "stopped", "reason": "SIGTERM"})
    with pytest.raises(RunError, match=r"is stopped \(SIGTERM\)"):
        Lab(True, tmp_path).run("method=rejection_sampling", *SMALL)


def test_the_command_prints_claims_and_writes_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    claims = [
        Claim("it rises", True, 0.25, (0.125, 0.5), "the start", "selfimprove run"),
        Claim("it never falls", False, "2 of 3 rounds", None, "", "selfimprove run"),
        as_check(Claim("the sum is 3", True, "3", None, "closed form", "selfimprove run")),
        as_check(Claim("the sum is 4", False, "3", None, "closed form", "selfimprove run")),
    ]
    monkeypatch.setattr("selfimprove.studies.curated_loop.study", lambda lab: iter(claims))
    studies.run_study("curated_loop", True, Path("claims.json"))
    said = capsys.readouterr().out
    assert "Not reproduced here: it never falls." in said
    assert "Checks that do not hold: the sum is 4." in said
    paper, _, code = said.partition("the code does what it says")
    assert "it rises" in paper
    assert "the sum is 3" in code
    assert "the sum is 3" not in paper
    written = json.loads(Path("claims.json").read_text())
    assert written["study"] == "curated_loop"
    assert written["claims"][0] == {
        "claim": "it rises",
        "holds": True,
        "value": 0.25,
        "interval": [0.125, 0.5],
        "control": "the start",
        "command": "selfimprove run",
        "check": False,
    }
    assert [line["claim"] for line in written["claims"]] == ["it rises", "it never falls"]
    assert [line["claim"] for line in written["checks"]] == ["the sum is 3", "the sum is 4"]


def test_a_claim_without_its_premise_is_neither_yes_nor_no():
    claim = untestable("it rises", "the judge is at chance", "x", "y")
    assert (claim.holds, claim.value) == (None, "cannot be tested here: the judge is at chance")


def test_what_a_script_of_known_chances_shows_is_a_check():
    """Of a policy whose chances a study sets, nothing is claimed."""
    lab = Lab(True, Path("nowhere"), note=lambda table: None)
    assert all(line.check for line in islice(gen_vs_mc.study(lab), 4))


def test_an_unknown_study_and_a_run_without_trees_are_one_line(cli, tmp_path):
    done = cli("study", "nope", check=2)
    assert done.stderr.startswith("selfimprove: study nope: no such study; there are ")
    assert not (tmp_path / "outputs").exists()
    assert len(cli("show", "nowhere", "--problem", "x", check=2).stderr.splitlines()) == 1
