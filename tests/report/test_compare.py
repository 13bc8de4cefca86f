"""`selfimprove compare`: groups, paired differences, equal compute, and what is refused."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from folders import problems, write_answers, write_run

from selfimprove.binding import bind
from selfimprove.cli import _main
from selfimprove.errors import ConfigError
from selfimprove.evaluation import base_answers
from selfimprove.report import compute, fair
from selfimprove.report import statistics as st
from selfimprove.report.compare import compare, shown
from selfimprove.report.export import export, latex
from selfimprove.report.metrics import pass_at_k
from selfimprove.report.runs import RunData
from selfimprove.store import write_json
from tests.conftest import run_here

N = 40
RNG = np.random.default_rng(0)
BASE = RNG.random(N) < 0.4
BETTER = BASE | (RNG.random(N) < 0.5)


def table(found, title):
    return next(t for t in found.tables if t.title == title)


def row(found, title, group):
    rows = [dict(zip((c for c, _ in t.columns), r, strict=True)) for t in [table(found, title)] for r in t.rows]
    return next(r for r in rows if r["group"] == group)


@pytest.fixture
def two(tmp_path):
    """Rejection sampling, which helps, and DPO, which does not, on two seeds each."""
    for seed in (0, 1):
        write_run(tmp_path / f"rs{seed}", [BASE, BASE, BETTER], seed=seed)
        write_run(tmp_path / f"dpo{seed}", [BASE, BASE, BASE], seed=seed, method__name="iterative_dpo", tokens=1500)
    return tmp_path


def test_groups_ignore_seeds_and_differences_are_paired(two):
    found = compare([two])
    assert [group.name for group in found.groups] == ["iterative_dpo", "rejection_sampling"]
    assert [group.seeds for group in found.groups] == [[0, 1], [0, 1]]
    assert found.baseline is found.groups[1]
    dpo = row(found, "Held-out accuracy", "iterative_dpo")
    expected = st.paired_difference(BETTER, BASE)
    assert dpo["difference from rejection_sampling"] == expected
    assert dpo["change from base"].value == 0
    assert not dpo["change from base"].apart
    assert row(found, "Held-out accuracy", "rejection_sampling")["final"] == st.accuracy(BETTER)
    assert found.warnings == []


def test_tokens_and_flops(two):
    found = compare([two])
    cost = row(found, "Tokens", "iterative_dpo")
    n = RunData(two / "dpo0").parameters
    assert (cost["prompt"], cost["sampled"], cost["trained"]) == (600, 3000, 200)
    assert cost["FLOPs"] == 2 * n * 3600 + 6 * n * 200
    assert f"N = {n:,}" in table(found, "Tokens").note
    assert row(found, "Seconds and verdicts", "iterative_dpo")["generate"] == 4


def test_runs_are_grouped_by_any_key(two):
    write_run(two / "n8", [BASE, BASE, BETTER], method__generate={"n": 8})
    names = {group.name for group in compare([two]).groups}
    assert names == {
        "iterative_dpo",
        "rejection_sampling, method.generate.n=4",
        "rejection_sampling, method.generate.n=8",
    }
    by = compare([two], by="method.generate.n")
    assert [group.name for group in by.groups] == ["method.generate.n=4", "method.generate.n=8"]
    assert any("differ in method.name" in said for said in by.warnings)
    assert [group.name for group in compare([two / "rs0", two / "rs1"], by="seed").groups] == ["seed=0", "seed=1"]
    with pytest.raises(ConfigError, match=r"--by method\.generate\.m: no run's"):
        compare([two], by="method.generate.m")


def test_the_baseline_is_chosen_by_name(two):
    assert compare([two], baseline="dpo").baseline.name == "iterative_dpo"
    for name in ("nothing", "i"):
        with pytest.raises(ConfigError, match=f"--baseline {name}: fits"):
            compare([two], baseline=name)


# What is refused


def refused(paths, said, **options):
    with pytest.raises(ConfigError, match=said) as problem:
        compare(paths, **options)
    assert "\n" not in str(problem.value)


def test_other_held_out_problems_prompts_and_verifiers_are_refused(tmp_path):
    one = write_run(tmp_path / "one", [BASE, BETTER])
    fewer = write_run(tmp_path / "fewer", [BASE[:-1], BETTER[:-1]])
    words = write_run(tmp_path / "words", [BASE, BETTER], heldout=problems(N, words="Say {}."))
    graded = write_run(tmp_path / "graded", [BASE, BETTER], dataset__verifier={"_target_": "v", "form": "choice"})
    refused([one, fewer], r"different held-out problems: 1 .* test-39")
    refused([one, words], "in different words: 40 prompts differ")
    refused([one, graded], "grade held-out answers differently")


def test_other_base_policies_are_refused_unless_they_are_what_is_compared(tmp_path, two):
    other = tmp_path / "other_model"
    shutil.copytree(RunData(two / "rs0").base_folder, other)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\0\1")  # one number differs
    run = write_run(tmp_path / "x", [BASE, BETTER, BETTER], model__path=str(other), model__name="o")
    refused([two / "rs0", run], "different base policies .* --by model")
    assert [g.name for g in compare([two / "rs0", run], by="model").groups] == ["model=tiny", "model=o"]
    copied = tmp_path / "copy"
    shutil.copytree(RunData(two / "rs0").base_folder, copied)
    same = write_run(tmp_path / "y", [BASE, BETTER, BETTER], model__path=str(copied))
    assert fair.base_of(RunData(same)) == fair.base_of(RunData(two / "rs0"))


def test_a_policy_that_saw_held_out_problems_is_refused(tmp_path):
    clean = write_run(tmp_path / "clean", [BASE, BETTER])
    leaked = write_run(tmp_path / "leaked", [BASE, BETTER], train=problems(3, "train")[:2] + _as_train("a"))
    refused([clean, leaked], r"leaked trained on 1 of 40 held-out problems, e\.g\. a")
    by_id = _as_train("test-3", "the same problem asked otherwise")
    refused([clean, write_run(tmp_path / "id", [BASE, BETTER], train=by_id)], "trained on 1 of 40 .* test-3")


def _as_train(name, prompt="What is   test 3?"):
    (one,) = problems(1, "train")
    one.id, one.prompt = name, prompt
    return [one]


def test_so_is_one_whose_base_policy_an_earlier_run_trained_on_them(tmp_path, two):
    earlier = write_run(tmp_path / "earlier", [BASE, BETTER], train=_as_train("a"))
    policy = earlier / "rounds" / "000" / "policy"
    shutil.copytree(RunData(two / "rs0").base_folder, policy)
    later = write_run(tmp_path / "later", [BASE, BETTER], model__path=str(policy))
    refused([later], r"earlier, whose policy .*later starts from, trained on 1 of 40")


# What is said


def test_unfinished_runs_are_left_out_and_said(two, tmp_path):
    write_run(two / "half", [BASE, BETTER, BETTER], seed=7, status="failed")
    found = compare([two])
    assert any("half is left out: failed" in said for said in found.warnings)
    assert 7 not in found.groups[1].seeds
    alone = write_run(tmp_path / "alone", [BASE, BETTER], status="running")
    refused([alone], "no finished run to compare: .*alone is left out: running")


def test_other_seeds_are_said_and_differences_are_over_the_common_ones(two):
    shutil.rmtree(two / "dpo1")
    found = compare([two])
    assert any("seeds differ (iterative_dpo: 0; rejection_sampling: 0, 1)" in said for said in found.warnings)
    assert row(found, "Held-out accuracy", "iterative_dpo")["difference from rejection_sampling"].apart
    shutil.rmtree(two / "rs0")
    assert row(compare([two]), "Held-out accuracy", "iterative_dpo")["difference from rejection_sampling"] == (
        "no seed in common"
    )


def test_other_code_is_said(two):
    write_json(two / "rs0" / "environment.json", {"git_commit": "def"})
    assert "the code's commit differs between runs: abc, def" in compare([two]).warnings


# Equal compute


def test_the_base_policy_is_given_as_many_tokens(tmp_path):
    rng = np.random.default_rng(1)
    answers = [[str(i) if rng.random() < 0.3 else "no" for _ in range(8)] for i in range(N)]
    run = write_run(tmp_path / "r", [BASE, BASE, BETTER], sampled=answers, tokens=1000)
    found = compare([run])
    first, second = table(found, "Equal sampled tokens").rows
    one = 10 * N  # each answer has two samples, of 2 and 8 tokens
    assert (first[3], first[5]) == (1000, str(round(1000 / one)))
    assert (second[3], second[5]) == (2000, "5")
    correct = [group.count(str(i)) for i, group in enumerate(answers)]
    assert second[6].value == pytest.approx(np.mean([pass_at_k(8, c, 5) for c in correct]))
    assert second[4] == st.accuracy(BETTER)
    assert found.curves["base, best of n"][0][0] == one
    dear = table(found, "Equal FLOPs")
    assert dear.rows[0][6] is not None
    more = table(compare([write_run(tmp_path / "more", [BASE, BETTER], sampled=answers, tokens=9000)]), first_title())
    assert more.rows[0][6] is None
    assert "only 8 answers a problem were sampled; --baselines samples them" in more.note


def first_title():
    return "Equal sampled tokens"


def test_the_baseline_at_no_more_is_its_last_policy_that_was_paid_for(tmp_path):
    dear = write_run(tmp_path / "rs", [BASE, BASE, BETTER], tokens=1000)
    cheap = write_run(tmp_path / "dpo", [BASE, BETTER, BETTER], method__name="iterative_dpo", tokens=600)
    rows = [r for r in table(compare([dear, cheap]), first_title()).rows if r[0] == "iterative_dpo"]
    assert [r[-2] for r in rows] == [st.accuracy(BASE)] * 2  # 600 and 1,200 tokens: before and after its first round
    near = write_run(tmp_path / "near", [BASE, BETTER, BETTER], method__name="bstar", tokens=970)
    rows = [r for r in table(compare([dear, near]), first_title()).rows if r[0] == "bstar"]
    assert [r[-2] for r in rows] == [st.accuracy(BASE), st.accuracy(BETTER)]  # 1,940 for 2,000: within 5 %


def test_drift_and_forgetting_stand_in_a_table(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = write_run(tmp_path / "r", [BASE, BETTER])
    assert "Drift and forgetting" not in [t.title for t in compare([run]).tables]
    rng = np.random.default_rng(2)
    tokens, nats = rng.integers(5, 30, N), rng.random(N)
    last = run / "rounds" / "000"
    (last / "drift").mkdir()
    rows = {"problem_id": [f"test-{i}" for i in range(N)], "tokens": tokens, "nats": nats}
    pq.write_table(pa.table(rows), last / "drift" / "scores.parquet")
    write_json(last / "drift.manifest.json", {})
    for folder, solved in ((run / "base", BETTER), (last, BASE)):
        write_answers(folder / "also", problems(N), solved)
        write_json(folder / "also.manifest.json", {})
    config = (run / "config.yaml").read_text().replace("eval:\n", "eval:\n  also: {name: second}\n")
    (run / "config.yaml").write_text(config)
    found = row(compare([run]), "Drift and forgetting", "rejection_sampling")
    assert found["nats a token"].value == pytest.approx(nats.sum() / tokens.sum())
    assert found["nats an answer"].value == pytest.approx(nats.mean())
    assert found["change"] == st.paired_difference(BETTER, BASE)
    assert found["change"].high < 0


# What is written


def test_an_export_has_tables_with_numbers_and_plots(two, tmp_path):
    files = {path.name: path for path in export(compare([two]), tmp_path / "out")}
    with files["held_out_accuracy.csv"].open() as file:
        rows = list(csv.DictReader(file))
    expected = st.paired_difference(BETTER, BASE)
    assert float(rows[0]["difference from rejection_sampling low"]) == pytest.approx(expected.low)
    assert rows[1]["difference from rejection_sampling"] == "baseline"
    tex = files["held_out_accuracy.tex"].read_text()
    body = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")]
    columns = len(re.search(r"\\begin{tabular}{(\w+)}", tex)[1])
    assert [line.count("&") for line in body.splitlines() if "&" in line] == [columns - 1] * 2
    assert r"iterative\_dpo" in body
    assert files["accuracy_over_rounds.pdf"].read_bytes().startswith(b"%PDF")
    assert files["accuracy_over_tokens.png"].read_bytes().startswith(b"\x89PNG")
    written = json.loads(files["comparison.json"].read_text())
    assert [name for name, _ in written["groups"]] == ["iterative_dpo", "rejection_sampling"]
    assert latex(r"a_b 5% \x") == r"a\_b 5\% \textbackslash{}x"


def test_cells_are_shown_in_percent_and_points():
    estimate = st.Estimate(0.125, 0.01, 0.25, 9)
    assert shown(estimate, "percent") == "12.5 [1.0, 25.0]"
    assert shown(estimate, "points") == "+12.5 [+1.0, +25.0]*"
    assert shown(st.Estimate(0.1, -0.1, 0.3, 9), "points") == "+10.0 [-10.0, +30.0]"
    assert (shown(None, "number"), shown(1234567.0, "number"), shown(2.5e11, "flops")) == ("-", "1,234,567", "2.50e+11")


# The command, on runs that were run


def test_the_command_samples_base_policies_and_measures_drift_and_forgetting(tmp_path, monkeypatch, capfd):
    small = ["rounds=1", "dataset.train_size=24", "dataset.heldout_size=12", "method.generate.n=2"]
    more = ["eval.drift=8", "dataset@eval.also=arithmetic", "eval.also.form=expression", "eval.also.heldout_size=10"]
    run_here(tmp_path / "r", *small, *more)
    run = RunData(tmp_path / "r")
    assert [len(found) for found in run.also] == [10, 10]
    assert [len(found) for found in run.drift] == [8]
    assert all(nats >= 0 and tokens > 0 for nats, tokens in run.drift[0].values())
    assert run.rounds[0]["drift/kl_per_answer"] == pytest.approx(np.mean([n for n, _ in run.drift[0].values()]))
    assert run.rounds[0]["also/n"] == 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    capfd.readouterr()
    assert _main(["compare", "r", "--baselines", "--export", "e"]) == 0
    printed = capfd.readouterr().out
    for title in ("Held-out accuracy", "Drift and forgetting", "Equal sampled tokens", "Equal FLOPs"):
        assert f"\n{title}\n" in "\n" + printed
    assert max(map(len, printed.splitlines())) <= 120
    kept = compute.samples(run)
    n = round(run.tokens[0]["sampled"] / compute.Base(kept, run.parameters).cost("sampled"))
    assert compute.per_problem(kept) >= n
    assert (tmp_path / "e" / "accuracy_over_tokens.pdf").exists()
    assert "--baselines samples them" not in printed
    before = (tmp_path / "r" / compute.FILE).stat().st_mtime_ns
    compare([tmp_path / "r"], ask=base_answers)
    assert (tmp_path / "r" / compute.FILE).stat().st_mtime_ns == before, "they are sampled once"


def test_what_cannot_be_compared_or_measured_is_one_line(cli):
    refusal = cli("compare", "nowhere", check=2)
    assert refusal.stderr == "selfimprove: nowhere: no such folder\n"
    wrong = cli("run", "eval.also=asdiv", check=2)
    assert "dataset@eval.also=asdiv" in wrong.stderr


def test_a_policy_does_not_drift_from_itself_and_nats_are_never_negative():
    from selfimprove.drift import kl

    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(6), size=2)
    drawn = rng.choice(6, size=200_000, p=p)
    each = [kl([a], [b]) for a, b in zip(np.log(p[drawn[:2000]]), np.log(q[drawn[:2000]]), strict=True)]
    assert min(each) >= 0
    whole = kl(np.log(p[drawn]), np.log(q[drawn])) / len(drawn)
    assert whole == pytest.approx(float((p * np.log(p / q)).sum()), rel=0.03)
    assert kl(list(np.log(p)), list(np.log(p))) == 0


def test_the_section_of_a_second_data_set_is_checked():
    with pytest.raises(ConfigError, match=r"eval\.also\.lvels: unknown key"):
        bind({"_target_": "selfimprove.datasets.arithmetic.load", "lvels": [2]}, "eval.also")


def test_a_leaderboard_has_the_best_first_with_cost_command_and_commit(two, monkeypatch):
    for run in two.iterdir():
        began = f"/x/bin/python /x/bin/selfimprove run method={run.name} hydra.run.dir={run}"
        write_json(run / "environment.json", {"command": began, "git_commit": "0123456789ab"})
    page = two.parent / "board.md"
    monkeypatch.setattr("sys.argv", ["/x/bin/selfimprove", "compare", str(two), "--out", str(page)])
    assert _main(["compare", str(two), "--out", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert lines[2] == f"Made by `selfimprove compare {two} --out {page}`."
    begin = next(i for i, line in enumerate(lines) if line.startswith("| group |"))
    heads, first, second = ([c.strip() for c in lines[i].split("|")[1:-1]] for i in (begin, begin + 2, begin + 3))
    assert [first[0], second[0]] == ["rejection_sampling", "iterative_dpo"]
    best = dict(zip(heads, first, strict=True))
    assert best["final, %"] == shown(st.accuracy(BETTER), "percent")
    assert best["commit"] == "0123456789"
    assert float(dict(zip(heads, second, strict=True))["sampled tokens"].replace(",", "")) == 2 * 1500
    assert "    selfimprove run method=dpo0  # iterative_dpo" in lines
    assert any(line.startswith("## Equal sampled tokens") for line in lines)
