"""report.html: what it holds is what the run folder holds, and in a browser it does what a reader asks of it."""

import base64
import gzip
import json
import re
import resource
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from selfimprove import cli, store
from selfimprove import config as configuration
from selfimprove import run as running
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.policy.models import PACKAGED
from selfimprove.report import calibration, explorer, html
from selfimprove.report.compare import compare
from selfimprove.report.html import write_report
from selfimprove.report.runs import RunData
from selfimprove.report.statistics import matrix, over_seeds
from selfimprove.types import STATUSES, Example, Node, Problem, Sample, Trajectory, Verdict
from selfimprove.units import UNITS
from tests.conftest import CHROMEDRIVER, CHROMIUM
from tests.waiting import wait_for

EVIL = '</script><img src=x onerror="window.harmed = 1"><b>bold</b> <!-- {{data}} ${1} \\u003c'


def sample(text, **more):
    ids = list(range(len(text.split())))
    return Sample([1, 2], ids, [-0.5] * len(ids), text, "stop", 0, **more)


def node(number, parent, text, status=None, chosen=False, value=0.5, **metadata):
    return Node(
        number, parent, 0 if parent < 0 else 1, [1], [-1.0], text, "stop", 0, 0, prior=0.25, visits=3, q=0.5,
        value=value, reward=0.0, terminal=status is not None, chosen=chosen, status=status, metadata=metadata,
    )  # fmt: skip


def write_answers(folder, answers, prefix):
    """`answers`: problem id, samples, metadata, status, tree."""
    trajectories, verdicts = [], []
    for i, (problem, samples, metadata, status, tree) in enumerate(answers):
        name = f"{prefix}/{problem}/{i}"
        trajectories.append(Trajectory(problem, samples, metadata, name, tree))
        verdicts.append(Verdict(name, status, float(status == "correct"), samples[-1].text.split()[-1]))
    store.write_records(folder / "trajectories.parquet", trajectories, Trajectory, chunk=50)
    store.write_records(folder / "verdicts.parquet", verdicts, Verdict)
    return trajectories


def make_run(path, seed=0, rounds=2, train=6, heldout=8, n=3, words=None, overrides=()):
    """A run folder of made-up answers. Held-out problem i is right from evaluation i % (rounds + 2) on."""
    config = compose([f"seed={seed}", f"rounds={rounds}", "tracker=none", *overrides])
    store.write_text(path / "config.yaml", configuration.dump(config))
    metadata = {"form": "expression", "start": 7, "steps": [["+", 5]]}
    problems = [
        Problem(f"{split}-{i}", [{"role": "user", "content": f"What is {i} plus {split}?"}], "12", split, metadata)
        for split, count in (("train", train), ("test", heldout))
        for i in range(count)
    ]
    store.write_records(path / "problems.parquet", problems, Problem)
    store.write_json(path / "environment.json", {"command": "selfimprove run", "versions": {"torch": "2"}})
    text = (lambda i: " ".join(words.choice(WORDS, 45))) if words is not None else (lambda i: f"So it is {i}")
    accuracies, entries = [], []
    for number in range(-1, rounds):
        folder = path / "base" if number < 0 else path / "rounds" / f"{number:03d}"
        if number >= 0:
            answers = [
                (f"train-{i}", [sample(text(j))], {}, STATUSES[(i + j) % 3], []) for i in range(train) for j in range(n)
            ]
            made = write_answers(folder, answers, f"r{number}")
            kept = [Example(t.problem_id, [t.id], [1], [2]) for t in made[::n]]
            store.write_records(folder / "examples.parquet", kept, Example)
            store.write_json(folder / "verify.manifest.json", {})
            figures = {"filter/explore/pass@1": 0.3, "filter/explore/pass@2": 0.5, "filter/exploit/keep_rate": 0.4}
            loss = {"train/loss": 1 / (number + 1 + seed), "round": number}
            store.write_json(folder / "metrics.json", figures | loss)
        right = [number + 1 >= (i + seed) % (rounds + 2) for i in range(heldout)]
        answers = [
            (f"test-{i}", [sample(text(i))], {"decoding": "greedy"}, "correct" if good else "wrong", [])
            for i, good in enumerate(right)
        ]
        write_answers(folder / "evaluation", answers, f"e{number}")
        store.write_json(folder / "evaluate.manifest.json", {})
        share = sum(right) / heldout
        accuracies.append(
            {"accuracy": share, "accuracy_low": max(0, share - 0.2), "accuracy_high": share + 0.2, "n": heldout}
        )
        if number >= 0:
            entries.append(
                {
                    "round": number, "trajectories": train * n, "examples": train,
                    "verdicts": {"correct": 6, "wrong": 12},
                    "tokens": {"prompt": 10, "sampled": 1000 * (number + 1), "scored": 0, "trained": 50},
                    "seconds": {"generate": 1.0, "train": 2.0, "evaluate": 1.0}, "evaluation": accuracies[-1],
                }
            )  # fmt: skip
    summary = {"status": "complete", "reason": None, "base": accuracies[0], "final": accuracies[-1], "rounds": entries}
    summary["change"] = {"accuracy": 0.1, "accuracy_low": -0.1, "accuracy_high": 0.3}
    store.write_json(path / "summary.json", summary)
    return RunData(path)


def dialogue(draft, asked, answer):
    """Two samples, the second asked by a user's turn behind the first, in the tiny model's ids."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(PACKAGED / "tiny" / "tokenizer.json")).encode(asked).ids
    first = sample(draft)
    second = replace(sample(answer, role="critic"), prompt_ids=[*first.prompt_ids, *first.completion_ids, *ids])
    return [first, second]


WORDS = np.array([f"w{i:x}{'aeiou'[i % 5]}" for i in range(3000)])


def with_answers(run, number, answers):
    """The same run with other answers of a round's training problems."""
    folder = run.path / "rounds" / f"{number:03d}"
    write_answers(folder, answers, f"r{number}")
    return RunData(run.path)


def blocks(path):
    """The data of a report by block name, unpacked."""
    found = re.findall(r'<script type="text/plain" id="([\w-]+)">([^<]*)</script>', path.read_text(encoding="utf-8"))
    data = {name: gzip.decompress(base64.b64decode(coded)).decode() for name, coded in found}
    return {name: data[name] if name == "plotly" else json.loads(data[name]) for name in data}


TREE = [
    node(0, -1, ""), node(1, 0, "7 + 5 = 12", chosen=True, value=0.9),
    node(2, 0, "7 + 5 = 13", value=0.2, observed="A door."),
    node(3, 1, "It is 12", "correct", chosen=True), node(4, 2, "It is 13", "wrong"), node(5, 2, "It is 12?", "correct"),
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of a run; the first has a search tree, a dialogue, and an answer that is meant to do harm."""
    folder = tmp_path_factory.mktemp("runs")
    found = [make_run(folder / f"seed{seed}", seed) for seed in range(3)]
    answers = [
        ("train-0", [sample("It is 12")], {}, "correct", TREE),
        ("train-1", dialogue("A draft 11", "Is that right?", "Better 12"), {"score": 0.5}, "wrong", []),
        ("train-2", [sample(EVIL)], {"note": EVIL}, "unparseable", []),
    ]
    return [with_answers(found[0], 1, answers), *found[1:]]


@pytest.fixture(scope="module")
def one(runs, tmp_path_factory):
    return write_report(runs[:1], tmp_path_factory.mktemp("one") / "report.html")


@pytest.fixture(scope="module")
def many(runs, tmp_path_factory):
    comparison = compare([run.path for run in runs])
    chosen = [run for group in comparison.groups for run in group.runs]
    return write_report(chosen, tmp_path_factory.mktemp("many") / "report.html", comparison.as_json(chosen))


def test_the_blocks_hold_what_the_run_folder_holds(runs, one):
    data = blocks(one)
    report, block = data["report"], data["run-0"]
    assert data["plotly"].startswith("/**\n* plotly.js")
    assert [point["m"]["accuracy"][0] for point in report["groups"][0]["evals"]] == [
        e["accuracy"] for e in [runs[0].summary["base"], *(r["evaluation"] for r in runs[0].summary["rounds"])]
    ]
    assert [point["x"]["sampled"] for point in report["groups"][0]["evals"]] == [0, 1000, 3000]
    assert block["total"] == {"problems": 14, "trajectories": 3 * 8 + 6 * 3 + 3}
    assert len(block["rows"]) == block["total"]["trajectories"]
    assert [place[0] for place in block["places"]] == [
        "base policy: held-out", "round 0: training", "after round 0: held-out", "round 1: training",
        "after round 1: held-out",
    ]  # fmt: skip
    places = [row[1] for row in block["rows"]]
    first = block["rows"][places.index(1)]
    assert (block["problems"][first[0]][0], STATUSES[first[2]], first[3]) == ("train-0", "correct", 1.0)
    assert first[7] == 1  # trained on
    assert block["texts"][first[8][0][0]] == "So it is 0"
    assert first[8][0][1] == 4  # tokens


def test_a_tree_a_dialogue_and_harmful_text_are_kept_as_they_are(one):
    block = blocks(one)["run-0"]
    _, turns, harmful = (row for row in block["rows"] if row[1] == 3)
    (tree,) = block["trees"].values()
    assert [entry[0] for entry in tree] == [-1, 0, 0, 1, 2, 2]
    assert [STATUSES[entry[8]] for entry in tree[3:]] == ["correct", "wrong", "correct"]
    assert [entry[10] >= 0 and block["texts"][entry[10]] for entry in tree] == [False] * 2 + ["A door."] + [False] * 3
    assert [block["texts"][turn[0]] for turn in turns[8]] == ["A draft 11", "Better 12"]
    assert block["texts"][turns[8][1][6]] == "Is that right?"
    assert block["texts"][harmful[8][0][0]] == EVIL
    assert EVIL not in one.read_text(encoding="utf-8")


def test_the_file_names_no_address_that_a_browser_would_load(one):
    page = re.sub(r'<script type="text/plain".*?</script>', "", one.read_text(encoding="utf-8"))
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|import\(", page)
    assert re.findall(r'(?:src|href)="([^#"]*)"', page) == ["data:,"]


def test_a_group_of_seeds_has_the_interval_over_problems_and_seeds(runs, many):
    (group,) = blocks(many)["report"]["groups"]
    assert sorted(group["runs"]) == [0, 1, 2]
    for index, point in enumerate(group["evals"]):
        expected = over_seeds(matrix([run.heldout[index] for run in runs]), (0.0, 1.0))
        np.testing.assert_allclose(point["m"]["accuracy"], [expected.value, expected.low, expected.high], rtol=1e-4)
    losses = [1.0, 1 / 2, 1 / 3]  # of round 0; Student's t with two degrees of freedom
    half = 4.30265 * np.std(losses, ddof=1) / 3**0.5
    mean = np.mean(losses)
    np.testing.assert_allclose(group["rounds"][0]["m"]["train/loss"], [mean, mean - half, mean + half], rtol=1e-4)


def test_transitions_count_both_directions(runs):
    def flipped(right):
        return {f"p{i}": float(good) for i, good in enumerate(right)}

    run = RunData(runs[1].path)
    run.__dict__["heldout"] = [flipped([1, 1, 0, 0, 0]), flipped([0, 1, 1, 1, 0])]
    assert html._entry(run, "run", None)["transitions"] == [[2, 1]]


def test_what_is_left_out_is_said_and_is_the_same_in_all_runs(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "TRAJECTORIES", 45)
    chosen = [runs[1], runs[2]]
    data = blocks(write_report(chosen, tmp_path / "report.html"))
    first, second = data["run-0"], data["run-1"]
    assert first["problems"] == second["problems"]
    assert {problem[1] for problem in first["problems"]} == {"train", "test"}
    assert 0 < len(first["rows"]) <= 45 // 2
    (said,) = data["report"]["said"]
    shown, problems = len(first["rows"]) + len(second["rows"]), 2 * len(first["problems"])
    assert f"shows {problems} of 28 problems and {shown} of 120 answers" in said


def test_long_texts_are_cut_and_their_length_is_kept():
    texts = explorer.Texts()
    texts.add("short")
    texts.add("x" * (explorer.TEXT + 7))
    assert texts.as_json() == ["short", ["x" * explorer.TEXT, explorer.TEXT + 7]]


def test_characters_bound_what_is_read(runs):
    block = explorer.collect(runs[1], 100_000, 100)
    assert 2 <= len(block["problems"]) < 14
    assert block["total"]["trajectories"] == 60


def test_scores_by_task_are_a_heat_map_with_a_row_for_each_round():
    def entry(*shares):
        return {"accuracy": 0.5} | {f"accuracy/task={i}": share for i, share in enumerate(shares)}

    summary = {"base": entry(0.1, 0.2), "rounds": [{"round": 0, "evaluation": entry(0.9, 0.3)}]}
    run = SimpleNamespace(summary=summary, unit=UNITS["accuracy"], config={"eval": {"by": "task"}})
    (table,) = html._by_group(run)
    assert table["rows"] == [["base policy", 0.1, 0.2], ["round 0", 0.9, 0.3]]
    assert [column["kind"] for column in table["columns"]] == ["text", "shaded", "shaded"]
    run.config["eval"]["by"] = None
    assert html._by_group(run) == []


def test_an_unfinished_run_has_a_report_of_what_it_finished(tmp_path):
    run = make_run(tmp_path / "run")
    summary = run.summary | {"status": "stopped", "reason": "SIGTERM"}
    summary["rounds"] = [summary["rounds"][0], summary["rounds"][1] | {"evaluation": None}]
    store.write_json(run.path / "summary.json", summary)
    shutil.rmtree(run.path / "rounds" / "001" / "evaluation")
    (run.path / "rounds" / "001" / "evaluate.manifest.json").unlink()
    data = blocks(write_report([RunData(run.path)], tmp_path / "report.html"))
    assert data["report"]["warnings"] == ["run is stopped: SIGTERM. Figures are of what it finished."]
    assert len(data["report"]["runs"][0]["evals"]) == 2
    assert [place[0] for place in data["run-0"]["places"]][-1] == "round 1: training"


def test_a_run_killed_at_its_start_has_a_report(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    for name in ("summary.json", "base", "rounds"):
        path = run.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = blocks(write_report([RunData(run.path)], tmp_path / "report.html"))["report"]
    assert report["runs"][0]["block"] is None


def test_a_damaged_folder_is_one_line(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    (run.path / "rounds" / "000" / "trajectories.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"trajectories\.parquet: cannot be read"):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_fails_does_not_fail_the_run(tmp_path, caplog):
    running._write_report(tmp_path)
    assert len(caplog.records) == 1
    assert "report.html is not written" in caplog.text


def test_the_command_writes_the_report_into_the_run_folder_or_elsewhere(runs, one, tmp_path, capsys):
    assert cli._main(["report", str(runs[0].path)]) == 0
    assert blocks(runs[0].path / "report.html") == blocks(one)
    assert cli._main(["report", str(runs[0].path), "--out", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out.split() == [str(runs[0].path / "report.html"), str(tmp_path / "again.html")]
    assert cli._main(["report", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err


# Calibration


def test_rewards_stand_beside_the_data_sets_own_grade(tmp_path):
    overrides = ["dataset.form=expression", "verifier=consensus"]
    run = make_run(tmp_path / "run", rounds=1, overrides=overrides)
    answers = [("train-0", [sample(text)], {}, "correct", []) for text in ("7 + 5", "7 + 5", "7 + 6", "no answer")]
    run = with_answers(run, 0, answers)
    rows = [
        replace(v, reward=r)
        for v, r in zip(
            store.read_records(run.path / "rounds/000/verdicts.parquet", Verdict), [0.75, 0.75, 0.25, 0.1], strict=True
        )
    ]
    rows[3] = replace(rows[3], status="unparseable")  # the verifier itself did not judge it
    store.write_records(run.path / "rounds/000/verdicts.parquet", rows, Verdict)
    ((name, number, scores, right),) = calibration.signals(run, 100)
    assert (name, number) == ("reward by consensus.consensus", 0)
    assert sorted(zip(scores, right, strict=True)) == [(0.25, 0.0), (0.75, 1.0), (0.75, 1.0)]
    ((_, _, fewer, _),) = calibration.signals(run, 2)
    assert len(fewer) == 2


def test_nothing_is_graded_where_the_own_check_trained(runs):
    assert calibration.signals(runs[1], 100) == []


def test_a_trees_steps_stand_beside_the_solutions_below_them(runs):
    found = {
        name: list(zip(scores, right, strict=True)) for name, _, scores, right in calibration.signals(runs[0], 100)
    }
    assert found["worth v of unfinished steps"] == [(0.9, 1.0), (0.2, 0.5)]
    assert found["worth v of finished solutions"] == [(0.5, 1.0), (0.5, 0.0), (0.5, 1.0)]
    assert len(found["prior p of steps"]) == 5


def test_diagrams_sum_scores_and_outcomes_by_bin():
    one = ("s", 0, np.array([0.0, 0.05, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 0.5]))
    other = ("s", 1, np.array([0.5]), np.array([1.0]))
    (diagram,) = calibration.diagrams([(0, one), (3, other)])
    assert (diagram["low"], diagram["high"]) == (0.0, 1.0)
    assert diagram["rows"] == [[0, 0, [[0, 0.05, 1.0, 2], [9, 1.95, 1.5, 2]]], [3, 1, [[5, 0.5, 1.0, 1]]]]
    (wide,) = calibration.diagrams([(0, ("v", 0, np.array([-1.0, 3.0]), np.array([0.0, 1.0])))])
    assert (wide["low"], wide["high"]) == (-1.0, 3.0)


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "no-first-run",
        "window-size=1280,900",
        *(f"disable-{q}" for q in quiet),
    ):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def until(browser, script):
    """The value of a script once it is true."""
    return wait_for(lambda: browser.execute_script(f"return {script}"))


def open_page(browser, path):
    """Opens a report and waits until it is ready; returns the milliseconds that took."""
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(f"file://{path}")
    return until(browser, "performance.getEntriesByName('ready').map((mark) => mark.startTime)[0]")


@pytest.fixture
def page(browser):
    """Opens a report and has a look behind it in the end: no error was logged and nothing was asked of a network."""
    yield lambda path: open_page(browser, path) and browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [request["request"]["url"] for request in sent if request["documentURL"].startswith("file:")]
    assert {url.partition(":")[0] for url in asked} in ({"file"}, {"file", "data"})


def css(browser, selector):
    return browser.find_element("css selector", selector)


def words(browser, selector):
    return [found.text for found in browser.find_elements("css selector", selector)]


def pick(browser, label, option):
    """Choose an option of the select with this label, as a reader does."""
    from selenium.webdriver.support.ui import Select

    select = browser.find_element("xpath", f"//label[starts-with(normalize-space(), '{label}')]/select")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", select)
    Select(select).select_by_visible_text(option)


@pytest.mark.browser
def test_a_click_sorts_the_table(page, many):
    browser = page(many)
    table = "//h3[text()='Runs']/following-sibling::div"
    rows = f"{table}//tbody/tr/th"
    (head,) = (h for h in browser.find_elements("xpath", f"{table}//thead//button") if h.text.startswith("seed"))

    def order():
        return [found.text.split("seed ")[1] for found in browser.find_elements("xpath", rows)]

    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", head)
    head.click()
    assert order() == ["2", "1", "0"]
    head.click()
    assert order() == ["0", "1", "2"]
    assert head.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"


@pytest.mark.browser
def test_a_curve_is_switched_from_rounds_to_tokens(page, many):
    browser = page(many)
    until(browser, "document.querySelector('#curves .plot').data")
    points = "document.querySelector('#curves .plot').data.find((trace) => trace.mode === 'lines+markers').x"
    assert browser.execute_script(f"return {points}") == [0, 1, 2]
    pick(browser, "Over", "tokens sampled for learning")
    assert browser.execute_script(f"return {points}") == [0, 1000, 3000]
    assert "tokens sampled" in css(browser, "#curves .xtitle").text


@pytest.mark.browser
def test_a_problem_is_picked_by_click_and_by_key(page, one):
    from selenium.webdriver.common.keys import Keys

    browser = page(one)
    assert css(browser, ".detail h3").text == "train-0"
    entry = css(browser, ".list button:nth-child(3)")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", entry)
    entry.click()
    assert css(browser, ".detail h3").text == "train-2"
    entry.send_keys(Keys.ARROW_DOWN)
    assert css(browser, ".detail h3").text == "train-3"
    browser.switch_to.active_element.send_keys("k")
    assert css(browser, ".detail h3").text == "train-2"
    browser.switch_to.active_element.send_keys(Keys.END)
    assert css(browser, ".detail h3").text == "test-7"
    assert len(words(browser, ".sides .answer")) == 3  # greedy answers of the base policy and two rounds
    assert words(browser, ".sides .where") == ["base policy", "after round 0", "after round 1"]


@pytest.mark.browser
def test_problems_are_filtered_by_verdict_split_and_text(page, one):
    from selenium.webdriver.common.keys import Keys

    browser = page(one)
    assert len(words(browser, ".list button")) == 14
    pick(browser, "Verdict", "unparseable")
    assert set(words(browser, ".detail .status:not(.list .status)")) == {"? unparseable"}
    assert 0 < len(words(browser, ".list button")) <= 6
    pick(browser, "Verdict", "any")
    pick(browser, "Problems", "held-out")
    assert len(words(browser, ".list button")) == 8
    pick(browser, "Problems", "train and held-out")
    css(browser, "body").send_keys("/")
    browser.switch_to.active_element.send_keys("bEtTeR 12")
    until(browser, "document.querySelectorAll('.list button').length === 1")
    assert css(browser, ".detail h3").text == "train-1"
    assert [said.partition(" v")[0] for said in words(browser, ".answer .turn .who")] == [
        "turn 1 · policy", "asked", "turn 2 · critic",
    ]  # fmt: skip
    browser.switch_to.active_element.send_keys(Keys.CONTROL, "a")
    browser.switch_to.active_element.send_keys("no such text")
    until(browser, "document.querySelector('.detail .empty')")


@pytest.mark.browser
def test_a_tree_opens_step_by_step(page, one):
    browser = page(one)
    shown = [said for said in words(browser, ".tree .step") if said]
    assert shown == ["start", "★ 7 + 5 = 12", "★ It is 12", "7 + 5 = 13"]  # the chosen path is open
    closed = browser.find_element("xpath", "//div[@class='tree']//summary[contains(., '7 + 5 = 13')]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", closed)
    closed.click()
    until(browser, "[...document.querySelectorAll('.tree .step')].some((step) => step.textContent === 'It is 12?')")
    assert words(browser, ".tree .leaf .status") == ["✓ correct", "✗ wrong", "✓ correct"]
    assert "N 3 · Q 0.500 · v 0.200 · p 0.250" in closed.text
    assert "→ A door." in closed.text


@pytest.mark.browser
def test_what_a_model_wrote_is_text_and_nothing_else(page, one):
    browser = page(one)
    css(browser, ".list button:nth-child(3)").send_keys("\n")
    assert EVIL in [said.get_attribute("textContent") for said in browser.find_elements("css selector", ".detail pre")]
    assert browser.find_elements("css selector", ".detail img, .detail b, main script") == []
    assert browser.execute_script("return window.harmed") is None


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone_and_every_chart_is_drawn(page, browser, many, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page(many)
        plots = browser.find_elements("css selector", ".plot")
        assert len(plots) >= 6
        for plot in plots:
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
            until(
                browser,
                "[...document.querySelectorAll('.plot')].every((p) => top(p) > innerHeight || p.data)".replace(
                    "top(p)", "p.getBoundingClientRect().top"
                ),
            )
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
        for text in browser.find_elements("css selector", "figure .gtitle, figure .xtitle, figure .legendtext"):
            box = text.rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390, text.text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.browser
@pytest.mark.slow
def test_fifty_runs_of_a_hundred_thousand_answers_open_in_three_seconds(browser, tmp_path, capsys):
    made = [make_run(tmp_path / "run0", 0, rounds=3, train=150, heldout=50, n=4, words=np.random.default_rng(0))]
    for seed in range(1, 50):
        copy = shutil.copytree(made[0].path, tmp_path / f"run{seed}")
        config = (copy / "config.yaml").read_text(encoding="utf-8")
        (copy / "config.yaml").write_text(re.sub(r"(?m)^seed: 0$", f"seed: {seed}", config), encoding="utf-8")
        made.append(RunData(copy))
    begin = time.monotonic()
    comparison = compare([tmp_path])
    chosen = [run for group in comparison.groups for run in group.runs]
    path = write_report(chosen, tmp_path / "report.html", comparison.as_json(chosen))
    written, size = time.monotonic() - begin, path.stat().st_size
    shown = sum(len(block["rows"]) for name, block in blocks(path).items() if name.startswith("run-"))
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    ready = open_page(browser, path)
    metrics = {m["name"]: m["value"] for m in browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]}
    assert browser.execute_script("return document.querySelector('#curves .plot').data.length > 0")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with capsys.disabled():
        print(
            f"\n{len(chosen)} runs, {shown:,} answers: written in {written:.1f} s, {size / 1e6:.1f} MB, ready after "
            f"{ready / 1000:.2f} s ({metrics['ThreadTime']:.2f} s of CPU), peak memory {memory:.0f} MiB"
        )
    assert (len(chosen), shown) == (50, 100_000)
    assert size < 30e6
    assert metrics["ThreadTime"] < 3  # of the page's own thread: what a machine with nothing else to do takes
