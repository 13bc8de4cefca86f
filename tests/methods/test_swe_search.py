"""SWE-Search: each term of the score, rules, stops, feedback, debate, the choice of a patch; and a whole small
evaluation."""

from __future__ import annotations

import asyncio
import io
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfimprove import solving, store
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.datasets.envs import load
from selfimprove.env import action_of
from selfimprove.env.repository import MAJOR, MINOR
from selfimprove.env.worlds import Worlds, play
from selfimprove.errors import ConfigError
from selfimprove.evaluation import choose
from selfimprove.generate.debate import Debate, chosen
from selfimprove.generate.tree import Branch
from selfimprove.methods import swe_search
from selfimprove.methods.swe_search import Selection, best, debated, mean, patches, ruled, score, stops, terms
from selfimprove.policy import Policy, Request
from selfimprove.policy.mender import CHOOSE, CONCLUDE, RATE, USELESS, Mender, State, mends
from selfimprove.report.tree import show
from selfimprove.studies.solving import solve
from selfimprove.types import Node, Problem, Sample, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.replayed import one

ENV = {"_target_": "selfimprove.env.swe_mini.repository"}
CODE = Selection()
PAPER = bind(compose(["method=swe_search_paper"], needs=False).solver, "method.generate").keywords["select"]  # type: ignore[attr-defined]
EXACT: dict[str, float] = {"rel": 0, "abs": 1e-9}


# Nodes by hand


def sample(text: str) -> Sample:
    return Sample([1], [2], [-0.1], text, "stop", 0)


def child(parent: Branch, action: str, value: float, seen: str = "", visits: int = 1, **more: Any) -> Branch:
    node = parent.add(sample(f"Action: {action}"), 1.0)
    node.value, node.visits, node.q = value, visits, value
    node.metadata = {"action": action, "duplicate": False, "observed": seen, "why": ""} | more
    return node


def top(visits: int = 10) -> Branch:
    return Branch([1], value=100.0, visits=visits, q=40.0)


def test_value_visits_and_depth() -> None:
    a = child(top(), "view a.py 1 2", 30, visits=4)
    found = terms(a, CODE)
    assert found["exploit"] == 30
    assert found["explore"] == pytest.approx(math.sqrt(math.log(10) / 4), **EXACT)
    assert found["depth"] == pytest.approx(-0.8, **EXACT)
    assert found["depth bonus"] == 0
    assert terms(child(a, "test", 30), CODE)["depth"] == pytest.approx(-0.8 * math.sqrt(2), **EXACT)
    assert terms(a.parent or a, CODE)["explore"] == 0  # of the root
    a.visits = 0
    assert score(a, CODE) == math.inf


def test_a_high_leaf_and_one_below_a_high_parent() -> None:
    a = child(top(), "view a.py 1 2", 50)
    assert terms(a, CODE)["leaf"] == 50
    b = child(a, "test", -20)
    assert terms(a, CODE)["leaf"] == 0  # it has a child
    assert terms(b, CODE)["parent"] == 0  # 50 is not above 50
    a.value = 60
    assert terms(b, CODE)["parent"] == 70  # 50 - -20
    child(b, "test", 0)
    assert terms(b, CODE)["parent"] == 0


def test_a_high_node_with_one_bad_edit_is_tried_again() -> None:
    a = child(top(), "view a.py 1 2", 60)
    b = child(a, 'replace a.py "a" "b"', -40)
    assert terms(a, CODE)["bad child"] == 5 * (60 - -40)
    b.value = 10
    assert terms(a, CODE)["bad child"] == 0
    b.value = -40
    b.metadata["action"] = "view a.py 3 4"
    assert terms(a, CODE)["bad child"] == 0  # no edit
    b.metadata["action"] = 'insert a.py 1 "b"'
    child(a, "test", -40)
    assert terms(a, CODE)["bad child"] == 0  # two children


def test_a_very_good_child_counts_against_a_node() -> None:
    a = child(top(), "view a.py 1 2", 60)
    b = child(a, "test", 74)
    assert terms(a, CODE)["good child"] == 0
    b.value = 75
    assert terms(a, CODE)["good child"] == -5


def test_an_edited_path_that_has_finished_with_a_hundred_is_left() -> None:
    a = child(top(), "view a.py 1 2", 60)
    b = child(a, 'replace a.py "a" "b"', 60, "Changed.\na.py:1-1")
    end = child(child(b, "test", 50), "finish", 100, terminal=True)
    assert terms(b, CODE)["finished"] == -50
    assert terms(a, CODE)["finished"] == 0  # nothing was edited up to there
    end.value = 99
    assert terms(b, CODE)["finished"] == 0
    end.value, b.metadata["observed"] = 100, f"{MAJOR}no"
    assert terms(b, CODE)["finished"] == 0  # the edit was not done


def test_a_correction_is_expected_where_an_action_failed_for_the_first_time() -> None:
    a = child(top(), "view a.py 9 9", -50, f"{MAJOR}no such lines")
    assert terms(a, CODE)["correction"] == 50
    b = child(a, "view a.py 8 8", -25, f"{MINOR}too much")
    assert terms(a, CODE)["correction"] == 25  # 50 / (1 + 1)
    assert terms(b, CODE)["correction"] == 0  # its parent failed too
    child(a, "test", 0)
    assert terms(a, CODE)["correction"] == 10  # 50 / (1 + 4)


def test_what_others_have_not_seen_is_a_bonus() -> None:
    root = top()
    a = child(root, "view a.py 1 4", 0, "a.py:1-4")
    assert terms(child(root, "test", 0), CODE)["diversity"] == 0  # it has seen nothing
    child(a, "test", 0)
    b = child(root, "view a.py 3 6", 0, "a.py:3-6")
    overlaps = [0.0, 2 / 6]  # with the root, which has seen nothing, and with a
    assert terms(b, CODE)["diversity"] == pytest.approx(100 * (1 - sum(overlaps) / 2), **EXACT)
    alone = child(Branch([1], visits=1), "view a.py 1 1", 0, "a.py:1-1")
    assert alone.parent is not None
    alone.parent.children = None
    assert terms(alone, CODE)["diversity"] == 100


def test_equal_children_and_equal_kinds_of_actions_count_against_a_node() -> None:
    a = child(top(), "view a.py 1 2", 0)
    child(a, "find b", 0)
    assert (terms(a, CODE)["duplicate child"], terms(a, CODE)["duplicate action"]) == (0, 0)
    child(a, "find c", 0)
    assert terms(a, CODE)["duplicate action"] == -50
    for _ in range(2):
        child(a, "find c", 0, duplicate=True)
    assert terms(a, CODE)["duplicate child"] == -25 * 4
    assert terms(a, CODE)["duplicate action"] == -50 * 9


def test_the_score_is_the_sum_of_its_terms() -> None:
    a = child(top(), "view a.py 1 4", 60, "a.py:1-4", visits=3)
    child(a, 'replace a.py "a" "b"', -40)
    hand = 60 + math.sqrt(math.log(10) / 3) - 0.8 + 500 + 100
    assert score(a, CODE) == pytest.approx(hand, **EXACT)


def test_the_score_of_the_paper() -> None:
    a = child(top(), "view a.py 1 4", 60, "a.py:1-4", visits=3)
    b = child(a, 'replace a.py "a" "b"', -40, visits=2)
    b.q = 12.0
    hand = 12 + 1.41 * math.sqrt(math.log(3) / 2) + 200 * math.exp(-0.8) - 0.8 * math.sqrt(2)
    assert score(b, PAPER) == pytest.approx(hand, **EXACT)
    assert set(terms(a, PAPER)) == set(terms(a, CODE))


@pytest.mark.parametrize(
    ("action", "seen", "value"),
    [
        ("find a", "a.py:4-5\ndef a():", 100),
        ("find a", "a.py:1-2\ndef a():", 0),
        ("view a.py 9 9", f"{MAJOR}no", -50),
        ("view a.py 1 999", f"{MINOR}too much", -25),
        ("reject", "Rejected.", -100),
    ],
)
def test_rules_set_values(action: str, seen: str, value: float) -> None:
    before = child(top(), "view a.py 1 3", 0, "a.py:1-3")
    found = ruled(child(before, action, 0, seen))
    assert found is not None
    assert found[0] == value


def test_what_no_rule_knows_is_judged() -> None:
    assert ruled(child(top(), "view a.py 1 3", 0, "a.py:1-3")) is None
    assert ruled(child(top(), "finish", 0, "Finished.")) is None


def test_stops_count_the_first_patch_of_each_parent() -> None:
    root = top()
    a, b = child(root, "test", 0), child(root, "view a.py 1 2", 0)
    first, _, other = child(a, "finish", 20), child(a, "finish", 90), child(b, "finish", 40)
    assert patches(root) == [first, other]
    enough = [(2, 1, None), (None, 2, 40.0), (None, 1, 40.0)]
    assert all(stops(root, *rule) for rule in enough)
    assert not any(stops(root, *rule) for rule in [(3, 1, None), (None, 3, 40.0), (None, 1, 41.0), (None, 1, None)])


DEBATE = Debate(
    3, 2, 1.0, f"{{question}}\n{{solutions}}\n{CHOOSE}?", "{answers}", f"{{question}} {CONCLUDE} {{answers}}"
)


def test_the_best_patch_and_the_one_of_the_best_path() -> None:
    root = top()
    a, b = child(root, "test", 0), child(root, "view a.py 1 2", 0)
    a.q, b.q = -50.0, 60.0
    high, steady = child(a, "finish", 80), child(b, "finish", 70)
    choose = [asyncio.run(rule(Problem("p", "q"), None, [high, steady], DEBATE)) for rule in (best, mean)]  # type: ignore[arg-type]
    assert choose == [high, steady]  # means of (40, -50, 80) and of (40, 60, 70)


# The policy of set chances


def problems(count: int) -> list[Problem]:
    return load(env=ENV, seed=0, prompt="{question}", train_size=0, heldout_size=count)


PROBLEMS = problems(6)


def test_the_policy_knows_how_far_a_path_is() -> None:
    state = State(["find a", "view a", "fix", "finish"], ["find b", "view b", "spoil", "undo"])
    worth = []
    actions = ["find a", "find b", "fix", "spoil", "undo", "view a", "fix"]
    for action, seen in zip(actions, ["ok", "ok", "Error: no", "ok", "ok", "ok", "ok"], strict=True):
        state.act(action, seen)
        worth.append(state.worth)
    assert worth == [25, -50, -50, -50, 25, 50, 75]
    assert (state.next(), state.others()) == ("finish", ["find b", "view b", "spoil", "reject"])
    state.act("finish", "Finished.")
    assert state.worth == 100
    early = State(["find a", "view a", "fix", "finish"], ["find b", "view b", "spoil", "undo"])
    early.act("finish", "Finished.")
    assert early.worth == -100


def drawn(engine: Mender, text: str, count: int = 400) -> list[str]:
    ids = tuple(engine.render(text))

    async def everything() -> list[Sample]:
        return list(await asyncio.gather(*(engine.sample(Request(ids, 999, seed)) for seed in range(count))))

    return [action_of(s.text) or s.text for s in asyncio.run(everything())]


def test_it_acts_rightly_with_p_and_reads_what_does_not_help() -> None:
    problem, engine = PROBLEMS[0], Mender(PROBLEMS, 0.3, 50.0, True, 10**6)
    right = str(problem.gold).splitlines()[0].removeprefix("Action: ")
    useless = [problem.metadata["wrong"][0], "finish"]
    asked = str(problem.metadata["question"])
    told = "\n".join([asked, *(f"The action `{action}` was tried here. It {USELESS}." for action in useless)])
    plain, heeding = drawn(engine, asked), drawn(engine, told)
    assert plain.count(right) / 400 == pytest.approx(0.3, abs=0.07)
    assert not set(useless) & set(heeding)
    assert heeding.count(right) / 400 == pytest.approx(0.3 / 0.65, abs=0.08)
    engine.heeds = False
    assert drawn(engine, told) == plain


def test_a_diff_mends_the_bug_or_does_not() -> None:
    problem = PROBLEMS[0]
    task = problem.metadata["task"]
    lines = [*(f"-{line}" for line in task["bad"]), *(f"+{line}" for line in task["good"])]
    assert mends("\n".join(["--- a.py", "+++ a.py", *lines]), problem)
    assert not mends("\n".join([*lines, "+x = 1"]), problem)
    assert not mends("No changes.", problem)


def test_a_debate_follows_the_most_and_is_right_without_noise() -> None:
    problem = PROBLEMS[0]
    task = problem.metadata["task"]
    right = "\n".join([*(f"-{line}" for line in task["bad"]), *(f"+{line}" for line in task["good"])])
    for place in range(3):
        texts = ["value 90: fine\nNo changes."] * 3
        texts[place] = f"value -90: poor\n{right}"
        policy = Policy(Mender(PROBLEMS, 0.3, 0.0, True, 10**6), 0).for_problem(problem)
        assert asyncio.run(chosen(problem, policy, texts, DEBATE)) == place
        assert policy.meter.take()["calls"] == 3 * 2 + 1
    small = Policy(Mender(PROBLEMS, 0.3, 0.0, True, 300), 0).for_problem(problem)
    with pytest.raises(ValueError, match="window"):
        asyncio.run(small.sample("x" * 400))


# The search


class Here:
    """Plays the repositories in this process, in the place of the pool. `blind` hides what an episode gains."""

    blind = False

    async def check_one(self, text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
        outcome = play(text, gold, metadata, env=ENV, chars=4000)
        if not self.blind:
            return outcome
        return replace(outcome, status="wrong", reward=0.0, step_rewards=[0.0 for _ in outcome.step_rewards or []])

    def __enter__(self) -> Here:
        return self

    def __exit__(self) -> None: ...


def searched(
    *words: str, p: float = 0.3, noise: float = 50.0, heeds: bool = True, blind: bool = False, count: int = 2
) -> list[list[Trajectory]]:
    node = compose(["method=swe_search", "method.generate.iterations=25", *words], needs=False).solver
    pool = Here()
    pool.blind = blind
    solver: Any = partial(bind(node, "method.generate"), tools={"env": Worlds(pool)})  # type: ignore[arg-type]
    return solve(solver, Mender(PROBLEMS, p, noise, heeds, 10**6), PROBLEMS[:count], max_tokens=2000)


NO_END = "method.generate.finished=null"


def below(tree: list[Node], node: Node) -> list[Node]:
    return [other for other in tree if other.parent == node.id]


def test_a_policy_that_is_always_right_mends_each_bug_at_once() -> None:
    for problem, (path, *_) in zip(PROBLEMS, searched(p=1.0), strict=False):
        assert [action_of(s.text) for s in path.samples] == [
            line.removeprefix("Action: ") for line in str(problem.gold).splitlines()
        ]
        assert [node.chosen for node in path.tree[:2]] == [False, True]
        outcome = asyncio.run(one(Worlds(Here()), problem, path))  # type: ignore[arg-type]
        assert outcome.status == "correct"


def test_a_tree_keeps_its_limits_and_counts_what_was_judged() -> None:
    for found in searched(NO_END, "method.generate.depth=6"):
        tree = found[0].tree
        assert len(tree) == 26
        assert max(node.depth for node in tree) <= 6
        for node in tree:
            children = below(tree, node)
            assert len(children) <= 3
            judged = [c for c in children if not c.metadata["duplicate"]]
            assert len({action_of(c.text) for c in judged}) == len(judged)
            assert node.visits == sum(c.visits for c in children) + (
                node.parent >= 0 and not node.metadata["duplicate"]
            )
            assert not (children and (node.terminal or (node.parent >= 0 and node.metadata["duplicate"])))


def test_linear_rollouts_do_not_branch_below_the_root() -> None:
    for found in searched(NO_END, "method.generate.select=null", "method.generate.hindsight=false"):
        tree = found[0].tree
        assert len(tree) == 26
        assert all(len(below(tree, node)) <= 1 for node in tree[1:])
        assert not any(node.metadata["duplicate"] for node in tree[1:])
        assert len(below(tree, tree[0])) > 1


def test_the_search_does_not_see_what_the_held_back_tests_say() -> None:
    open_, blind = (
        [[(n.text, n.parent, n.value, n.chosen) for n in found[0].tree] for found in searched(NO_END, blind=hidden)]
        for hidden in (False, True)
    )
    assert open_ == blind


def test_feedback_stands_in_the_prompt_and_in_what_follows() -> None:
    feedback, plain = searched(NO_END), searched(NO_END, "method.generate.hindsight=false")
    asked = [n for found in feedback for n in found[0].tree if "asked_ids" in n.metadata]
    assert asked
    assert all("was tried here" in "".join(map(chr, node.metadata["asked_ids"])) for node in asked)
    assert not any("asked_ids" in n.metadata for found in plain for n in found[0].tree)
    for found in feedback:
        for path in found:
            for before, after in zip(path.samples, path.samples[1:], strict=False):
                whole = [*before.prompt_ids, *before.completion_ids]
                assert after.prompt_ids[: len(whole)] == whole


def test_feedback_changes_nothing_for_a_policy_that_does_not_read_it() -> None:
    texts = [
        [[n.text for n in found[0].tree] for found in searched(NO_END, word, heeds=False)]
        for word in ("method.generate.hindsight=true", "method.generate.hindsight=false")
    ]
    assert texts[0] == texts[1]


def test_without_noise_a_debate_chooses_as_the_largest_value_does() -> None:
    for debate, largest in zip(
        searched(NO_END, noise=0.0), searched(NO_END, "method.generate.pick=best", noise=0.0), strict=True
    ):
        assert debate[0].metadata["value"] == largest[0].metadata["value"]


def test_without_a_patch_an_unfinished_path_is_given() -> None:
    for (only,) in searched("method.generate.iterations=1", p=1.0):
        assert len(only.samples) == 1


def test_a_debate_needs_two_patches() -> None:
    end = child(top(), "finish", 0)
    assert asyncio.run(debated(Problem("p", "q"), None, [end], DEBATE)) is end  # type: ignore[arg-type]


def test_what_is_asked_is_what_the_scripted_policy_reads() -> None:
    node = bind(compose(["method=swe_search"], needs=False).solver, "method.generate").keywords  # type: ignore[attr-defined]
    assert RATE in node["ask"]
    assert "The action `{action}` was tried here." in node["feedback"]
    assert CHOOSE in node["debate"].ask
    assert CONCLUDE in node["debate"].conclude


def test_a_small_evaluation_is_graded_again_and_its_trees_are_drawn(tmp_path: Path) -> None:
    words = ["method=swe_search", "dataset.heldout_size=2", "method.generate.iterations=25", "verify.workers=1"]
    words += ["+method.tools.env.workers=1", "+dataset.verifier.workers=1", "engine.p=1"]
    summary = solving.evaluate_solver(None, words, tmp_path / "eval")
    assert (summary["accuracy"], summary["selection"]) == (1.0, "first; reads no gold answer")
    (first, *_) = store.read_records(tmp_path / "eval/solver/trajectories.parquet", Trajectory)
    out = io.StringIO()
    show(tmp_path / "eval", first.problem_id, None, Console(file=out, width=150))
    assert "start  N" in out.getvalue()
    assert "→ Finished." in out.getvalue()
    with pytest.raises(ConfigError, match="--round 0"):
        show(tmp_path / "eval", first.problem_id, 0)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dataset=arithmetic", "needs episodes"),
        ("~method.tools.env", "method.tools.env: needs a tool of this name"),
        ("method.generate.expansions=0", "method.generate.expansions=0"),
        ("method.generate.threshold=101", "method.generate.threshold=101"),
        ("method.generate.pick=vote", "method.generate.pick=vote"),
        ("+method.generate.select.luck=1", "method.generate.select.luck"),
        ("engine.p=2", "engine.p=2"),
        ("model=tiny", "engine=mender loads no model: model=tiny needs another engine"),
    ],
)
def test_bad_input_is_one_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose(None, ["method=swe_search", word], solver=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_method_names_its_needs() -> None:
    assert (swe_search.NEEDS, swe_search.TOOLS) == (("episodes",), ("env",))
