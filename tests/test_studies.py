"""What studies share: paired intervals over problems and seeds, runs that are found again, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from selfimprove import studies
from selfimprove.errors import RunError
from selfimprove.report.metrics import Estimate
from selfimprove.studies import Claim, Lab, advantage, claim_above, difference, gain

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


def test_a_claim_holds_when_its_whole_interval_is_above_zero_and_its_value_is_enough():
    assert claim_above("c", Estimate(0.06, 0.01, 0.1, 9), "x", "y", least=0.05).holds is True
    assert claim_above("c", Estimate(0.04, 0.01, 0.1, 9), "x", "y", least=0.05).holds is False
    assert claim_above("c", Estimate(0.06, -0.01, 0.1, 9), "x", "y", least=0.05).holds is False


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
    ]
    monkeypatch.setattr("selfimprove.studies.curated_loop.study", lambda lab: iter(claims))
    studies.run_study("curated_loop", True, Path("claims.json"))
    said = capsys.readouterr().out
    assert "Not reproduced here: it never falls." in said
    written = json.loads(Path("claims.json").read_text())
    assert written["study"] == "curated_loop"
    assert written["claims"][0] == {
        "claim": "it rises",
        "holds": True,
        "value": 0.25,
        "interval": [0.125, 0.5],
        "control": "the start",
        "command": "selfimprove run",
    }


def test_an_unknown_study_and_a_run_without_trees_are_one_line(cli, tmp_path):
    done = cli("study", "nope", check=2)
    assert done.stderr.startswith("selfimprove: study nope: no such study; there are ")
    assert not (tmp_path / "outputs").exists()
    assert len(cli("show", "nowhere", "--problem", "x", check=2).stderr.splitlines()) == 1
