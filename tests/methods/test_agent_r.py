"""Agent-R: the search, the cut, the splice, what bears loss; and a whole small run, killed and resumed."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.env import action_of
from selfimprove.env.craft import expert, tasks, worth, wrong
from selfimprove.env.worlds import Worlds, play
from selfimprove.errors import ConfigError
from selfimprove.filter.spans import whole
from selfimprove.generate.act import episodes
from selfimprove.methods.agent_r import THOUGHTS, generate, revised
from selfimprove.policy import Policy, Request
from selfimprove.policy.models import load_tokenizer, resolve
from selfimprove.policy.scripted import END, TURN, ScriptedEngine
from selfimprove.report.tree import show
from selfimprove.studies.made import crafter
from selfimprove.studies.tiny import SHIPPED
from selfimprove.types import Attempt, Example, Node, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Outcome
from selfimprove.verify.replayed import one
from tests.forks import drive

ASK = "Good, uncertain or bad?"


class Here:
    """Plays craft in this process, in the place of the pool."""

    async def check_one(self, text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
        return play(text, gold, metadata, env={"_target_": "selfimprove.env.craft.Craft"}, chars=200)

    def __enter__(self) -> Here:
        return self

    def __exit__(self) -> None: ...


class Player(ScriptedEngine):
    """Takes the right action with probability p, else a wrong one; judges rightly."""

    def __init__(self, p: float, max_length: int = 10_000) -> None:
        super().__init__({}, max_length=max_length)
        self.p, self.tasks = p, {problem.prompt: problem.metadata["task"] for problem in problems(20)}

    async def sample(self, request: Request) -> Sample:
        question, *turns, _ = "".join(map(chr, request.prompt_ids)).split(TURN)
        task, actions = self.tasks[question], [action_of(turn.partition(END)[0]) or "" for turn in turns]
        if turns and turns[-1].endswith(ASK):
            text = worth(task, actions)
        else:
            rng = random.Random(request.seed)
            wanders = request.temperature and rng.random() >= self.p
            text = f"Action: {wrong(task, actions, rng)}" if wanders else expert(task, actions)
        ids = self.encode(text + END)
        return Sample(list(request.prompt_ids), ids, [-0.1] * len(ids), text, "stop", request.seed)

    def turn(self, text: str, ended: bool) -> list[int]:
        return self.encode(text + TURN)

    def render(self, prompt: Any) -> list[int]:
        return [*super().render(prompt), *self.encode(TURN)]


def problems(count: int) -> list[Problem]:
    return [Problem(row.id, row.question, row.gold, metadata=row.metadata) for row in tasks("train", count, 0)]


def grown(p: float, count: int = 10, actions: int = 8, **options: Any) -> list[tuple[Problem, list[Trajectory]]]:
    policy, tools = Policy(Player(p, **options), 0), {"env": Worlds(Here())}  # type: ignore[arg-type]
    search: dict[str, Any] = {"iterations": 4, "n": 4, "actions": actions, "exploration": 0.25, "ask": ASK, "seed": 1}

    async def everything() -> list[list[Trajectory]]:
        own = [(q, policy.for_problem(q)) for q in problems(count)]
        return await asyncio.gather(*(generate(q, policy, **search, tools=tools) for q, policy in own))

    return list(zip(problems(count), asyncio.run(everything()), strict=True))


def children_of(tree: list[Node], node: Node) -> list[Node]:
    return [child for child in tree if child.parent == node.id]


def test_a_policy_that_is_always_right_grows_a_single_path() -> None:
    for problem, (path, *others) in grown(1.0):
        assert others == []
        assert [action_of(s.text) for s in path.samples] == [
            action_of(s) for s in (problem.gold or "").split("For")[1:]
        ]
        assert [node.visits for node in path.tree] == [1] * len(path.tree)
        assert "cut" not in path.metadata


def test_every_end_is_counted_up_to_the_root_and_means_are_of_rewards() -> None:
    several = 0
    for _, found in grown(0.6):
        tree = found[0].tree
        ends = [node for node in tree if node.terminal]
        several += len(ends) > 1
        assert (tree[0].visits, tree[0].q) == (len(ends), pytest.approx(sum(e.value for e in ends) / len(ends)))
        for node in tree:
            below = children_of(tree, node)
            assert node.visits == (1 if node.terminal else sum(child.visits for child in below))
            assert len({action_of(child.text) for child in below}) == len(below)  # equal ones once
            assert node.terminal == (node.status is not None)
            assert node.depth <= 8
        assert len(found) == len(ends)
    assert several > 5


def test_an_iteration_goes_down_by_uct_to_an_end() -> None:
    """One iteration expands nodes of one path alone; at its end no node of the path is left to go on to."""
    policy, tools = Policy(Player(0.6), 0), {"env": Worlds(Here())}  # type: ignore[arg-type]
    search: dict[str, Any] = {"n": 4, "actions": 6, "exploration": 0.25, "ask": ASK, "seed": 1, "tools": tools}
    for problem in problems(5):
        trees = [
            asyncio.run(generate(problem, policy.for_problem(problem), iterations=i, **search))[0].tree for i in (1, 2)
        ]
        inner = [[node for node in tree if children_of(tree, node)] for tree in trees]
        assert len({node.depth for node in inner[0]}) == len(inner[0])
        assert {node.id for node in inner[0]} != {node.id for node in inner[1]} or len(trees[0]) == len(trees[1])


def test_paths_are_dialogues_that_gain_what_they_say_when_they_are_played_again() -> None:
    for problem, found in grown(0.6):
        assert [t.metadata["seen"][-1][1] for t in found] == sorted(
            (t.metadata["seen"][-1][1] for t in found), reverse=True
        )
        for path in found:
            example = whole(path)
            assert sum(example.mask or []) == path.sampled_tokens
            outcome = asyncio.run(one(Worlds(Here()), problem, path))  # type: ignore[arg-type]
            assert outcome.step_rewards == [reward for _, reward in path.metadata["seen"]]


def test_the_cut_is_the_first_action_that_the_policy_calls_bad() -> None:
    cuts = 0
    for problem, found in grown(0.5):
        for path in (t for t in found if "cut" in t.metadata):
            actions = [action_of(sample.text) or "" for sample in path.samples]
            judged = [worth(problem.metadata["task"], actions[: i + 1]) for i in range(len(actions))]
            assert path.metadata["cut"] == judged.index("bad")
            cuts += 1
    assert cuts > 10


def test_a_full_window_ends_a_path() -> None:
    for _, found in grown(0.5, max_length=200):
        for path in found:
            assert all(len(s.prompt_ids) + len(s.completion_ids) <= 200 + 60 for s in path.samples)


TEXT: Any = SimpleNamespace(
    encode=lambda t: [ord(c) for c in t], turn=lambda t, ended: [ord(c) for c in f"<{t}>"], end=3
)


def path(name: str, steps: str, reward: float, cut: int | None = None) -> Attempt:
    """A path whose actions are letters; after each, the same letter is seen as a capital one."""
    samples, ids = list[Sample](), [1]
    for letter in steps:
        samples.append(Sample(ids, [ord(letter)], [0.0], f"Action: {letter}", "stop", 0))
        ids = [*ids, ord(letter), *TEXT.turn(letter.upper(), True)]
    metadata = {"seen": [[letter.upper(), 0.0] for letter in steps]} | ({"cut": cut} if reward < 1 else {})
    status: Any = "correct" if reward >= 1 else "wrong"
    return Attempt(Problem("p", "q"), Trajectory("p", samples, metadata, name), Verdict(name, status, reward))


def rows(group: list[Attempt], **options: Any) -> list[Example]:
    given: dict[str, Any] = {"alpha": [0.5], "beta": 0.2, "text": TEXT, "step": SimpleNamespace(round=0), "seed": 0}
    return list(revised([group], **(given | options)))


def learnt(row: Example) -> str:
    return "".join(chr(i) for i, bears in zip(row.completion_ids, row.mask or [], strict=True) if bears)


def test_a_bad_path_is_left_at_its_cut_and_goes_on_behind_what_both_share() -> None:
    row, good = rows([path("good", "abcd", 1.0), path("bad", "abxyz", 0.0, cut=2)])
    said = "".join(map(chr, row.completion_ids))
    before, _, after = said.partition("\nAction: wait\x03")
    thought = before.removeprefix("a<A>b<B>x<X>")
    assert thought in THOUGHTS
    assert after == "<ok.>c<C>d"
    assert learnt(row) == f"{thought}\nAction: wait\x03cd"
    assert row.trajectory_ids == ["good", "bad"]
    assert (good.trajectory_ids, learnt(good)) == (["good"], "abcd")


def test_a_cut_among_the_shared_steps_leaves_the_rest_of_the_good_path() -> None:
    row, _ = rows([path("good", "abcd", 1.0), path("bad", "abx", 0.0, cut=0)])
    assert "".join(map(chr, row.completion_ids)).endswith("<ok.>b<B>c<C>d")


def test_controls_leave_a_bad_path_at_its_end_or_take_good_paths_alone() -> None:
    group = [path("good", "abcd", 1.0), path("bad", "abxyz", 0.0, cut=None)]
    assert [row.trajectory_ids for row in rows(group)] == [["good"]]  # no action was called bad
    late, _ = rows(group, cut="end")
    assert "".join(map(chr, late.completion_ids)).startswith("a<A>b<B>x<X>y<Y>z<Z>")
    assert [row.trajectory_ids for row in rows(group, cut="none")] == [["good"]]


def test_a_path_that_ends_without_an_action_is_left_at_an_action() -> None:
    good, bad = path("good", "abcd", 1.0), path("bad", "abx", 0.0, cut=2)
    del bad.trajectory.metadata["seen"][-1]  # the text x did nothing
    assert [row.trajectory_ids for row in rows([good, bad])] == [["good"]]
    late, _ = rows([good, bad], cut="end")
    assert "".join(map(chr, late.completion_ids)).startswith("a<A>b<B>")
    assert late.metadata["cut"] == 1


def test_alpha_and_beta_choose_by_reward_and_alpha_rises_by_round() -> None:
    group = [
        path("a", "ab", 1.0),
        path("b", "ac", 0.6, cut=1),
        path("c", "ad", 0.5, cut=1),
        path("d", "ae", 0.0, cut=1),
    ]
    names = [row.trajectory_ids for row in rows(group, alpha=[0.5, 0.7])]
    assert sorted(names[:4]) == [["a", "b"], ["a", "c"], ["a", "d"], ["b", "d"]]  # .6 - .5 is not above .2
    assert names[4:] == [["a"], ["b"]]
    later = rows(group, alpha=[0.5, 0.7], step=SimpleNamespace(round=5))
    assert [row.trajectory_ids[0] for row in later] == ["a"] * 4
    assert len(rows(group, per_problem=1)) == 2


def test_an_episode_ends_with_its_goal_or_after_its_actions() -> None:
    tools, (problem,) = {"env": Worlds(Here())}, problems(1)  # type: ignore[arg-type]
    for p, ended in ((1.0, "done"), (0.0, "actions")):
        (found,) = asyncio.run(episodes(problem, Policy(Player(p), 0), actions=8, tools=tools, temperature=1.0))
        assert found.metadata["ended"] == ended
        assert len(found.metadata["seen"]) == len(found.samples)
        assert math.isclose(sum(reward for _, reward in found.metadata["seen"]), p)


# The shipped model knows no action here: all its paths are equal, and with this alpha each is learnt.
SIZES = ["method=agent_r", "model=tiny", "rounds=2", "dataset.train_size=4", "dataset.heldout_size=2", "tracker=none",
         "+method.tools.env.workers=1", "+dataset.verifier.workers=1", "method.problems.count=2",
         "method.generate.iterations=1", "method.evaluate.actions=2", "model.max_tokens=12", "method.generate.n=2",
         "method.filter.alpha=[-1]", "method.train.epochs=1"]  # fmt: skip


def test_a_small_run_searches_learns_and_is_drawn(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    trajectories = list(store.read_records(tmp_path / "rounds/000/trajectories.parquet", Trajectory))
    assert {t.problem_id for t in trajectories if t.tree} == {t.problem_id for t in trajectories}
    learnt_rows = list(store.read_records(tmp_path / "rounds/000/examples.parquet", Example))
    assert len(learnt_rows) == len(trajectories)
    metrics = json.loads((tmp_path / "rounds/001/metrics.json").read_text())
    assert "evaluate/accuracy" in metrics
    out = io.StringIO()
    show(tmp_path, trajectories[0].problem_id, 0, Console(file=out, width=120))
    assert "start  N" in out.getvalue()


@pytest.mark.slow
def test_a_run_killed_in_its_search_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(word for word in SIZES if not word.startswith("tracker"))
    drive(tmp_path, f"{small} rounds=1 dataset=craft hardware.shard=1", ["step:60", "manifest:0/generate"])


@pytest.mark.parametrize("control", ["method.filter.cut=end", "method.filter.cut=none"])
def test_controls_are_overrides(control: str) -> None:
    assert compose(["method=agent_r", control]).method.name == "agent_r"


@pytest.mark.parametrize(
    ("wrong_word", "message"),
    [
        ("dataset=arithmetic", "needs episodes"),
        ("~method.tools.env", "method.tools.env: needs a tool of this name"),
        ("method.filter.alpha=[]", "method.filter.alpha"),
        ("method.filter.cut=late", "method.filter.cut=late"),
        ("method.generate.n=0", "method.generate.n=0"),
    ],
)
def test_bad_input_is_one_line(wrong_word: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose(["method=agent_r", wrong_word])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_policy_that_is_made_learns_from_episodes_without_a_mistake_and_from_what_actions_are_worth() -> None:
    rng, said = random.Random(0), list[str]()
    for problem in problems(40):
        task = problem.metadata["task"]
        assert "\n".join(words for words, _ in crafter.episode(task)) == problem.gold
        *before, (_, asked), (judged, _) = crafter.judgement(rng, task)
        assert asked.endswith(ASK)
        assert all(worth(task, [action_of(w) or "" for w, _ in before[: i + 1]]) == "good" for i in range(len(before)))
        said.append(judged)
    assert set(said) == {"good", "bad"}
    assert ASK == crafter.ASK == compose(["method=agent_r"]).stages[""].generate["ask"]  # type: ignore[index]


def test_of_a_judgement_the_last_word_alone_is_learnt() -> None:
    tokenizer, (problem,) = load_tokenizer(str(SHIPPED)), problems(1)
    for turns in (
        crafter.episode(problem.metadata["task"]),
        crafter.judgement(random.Random(0), problem.metadata["task"]),
    ):
        row = crafter.example(tokenizer, "x", str(problem.prompt), turns)
        told = tokenizer.decode([i for i, bears in zip(row.completion_ids, row.mask or [], strict=True) if bears])
        whole_episode = "".join(f"{words}<eos>" for words, _ in turns)
        assert told == (f"{turns[-1][0]}<eos>" if turns[-1][0] in ("good", "bad") else whole_episode)


def test_a_model_that_the_package_does_not_make_is_named() -> None:
    with pytest.raises(ConfigError, match="the package makes no model nobody"):
        resolve("nobody", "made")
