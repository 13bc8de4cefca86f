"""Episodes in processes: copies, hung and dying worlds, what is shown, and the grading that plays them again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from selfimprove.config import compose
from selfimprove.datasets.envs import load
from selfimprove.env import Seen, action_of
from selfimprove.env.craft import BOOK, RAW, Craft, expert, plan, tasks, worth, wrong
from selfimprove.env.worlds import Worlds, play, worlds
from selfimprove.errors import ConfigError
from selfimprove.types import Problem, Sample, Trajectory
from selfimprove.verify.replayed import one

T = TypeVar("T")
CRAFT = {"_target_": "selfimprove.env.craft.Craft"}
ODD = {"_target_": "tests.env.odd_world.Odd"}
AXE = Problem("p", "Make axe.", metadata={"task": {"goal": "axe", "have": ["bar"]}})


def using(work: Callable[[Worlds], Awaitable[T]], env: dict[str, Any] = CRAFT, **options: Any) -> T:
    async def run() -> T:
        opened = worlds(env=env, workers=1, **options)
        try:
            return await work(opened)
        finally:
            opened.close()

    return asyncio.run(run())


def said(*actions: str) -> Trajectory:
    return Trajectory("p", [Sample([1], [2], [0.0], f"For it.\nAction: {action}", "stop", 0) for action in actions])


def test_the_last_action_of_a_text_counts() -> None:
    assert action_of("I think.\nAction: get log \nAction: craft axe") == "craft axe"
    assert action_of("get log") is None


def test_recipes_are_followed_and_use_up_what_they_take() -> None:
    world = Craft({"goal": "axe", "have": ["bar", "wax"]})
    assert world.reset() == Seen("Make axe.\nYou have bar, wax.")
    shown = [world.step(action) for action in ("craft axe", "get log", "get axe", "craft axe", "inventory")]
    assert shown == [
        Seen("You lack log."),
        Seen("Got log."),
        Seen("That cannot be done."),
        Seen("Made axe.", 1.0, True),
        Seen("You have wax, axe."),
    ]


@pytest.mark.parametrize("goal", BOOK)
def test_a_plan_makes_its_goal_and_no_step_of_it_can_be_left_out(goal: str) -> None:
    actions = [action for _, action in plan(goal, ["ash", "rod"])]
    for missing in range(-1, len(actions)):
        world = Craft({"goal": goal, "have": ["ash", "rod"]})
        seen = [world.step(action) for i, action in enumerate(actions) if i != missing]
        assert seen[-1].done == (missing == -1)


def test_tasks_of_different_sides_have_nothing_in_common_and_do_not_depend_on_the_hash_seed() -> None:
    sides = {side: {row.id for row in tasks(side, 100, 0)} for side in ("train", "dev", "test")}  # type: ignore[arg-type]
    assert [len(found) for found in sides.values()] == [100, 100, 100]
    assert len(set.union(*sides.values())) == 300
    code = "from selfimprove.env.craft import tasks; print(list(tasks('train', 100, 0)))"
    here = hashlib.sha256(f"{list(tasks('train', 100, 0))}\n".encode()).hexdigest()
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
        )
        assert hashlib.sha256(there.stdout).hexdigest() == here


def test_the_expert_solves_every_task_and_wrong_actions_are_told_from_right_ones() -> None:
    rng = random.Random(0)
    for row in tasks("dev", 100, 0):
        task, actions, world = row.metadata["task"], list[str](), Craft(row.metadata["task"])
        done = False
        while not done:
            bad = wrong(task, actions, rng)
            assert worth(task, [*actions, bad]) == "bad"
            actions.append(action_of(expert(task, actions)) or "")
            assert worth(task, actions) == "good"
            done = world.step(actions[-1]).done
        assert len(actions) == len(plan(task["goal"], task["have"]))
    assert worth(AXE.metadata["task"], ["inventory"]) == "uncertain"
    assert worth(AXE.metadata["task"], ["get ash"]) == "bad"


def test_a_copy_goes_on_by_itself_and_wait_touches_nothing() -> None:
    async def work(tool: Worlds) -> list[Any]:
        first = tool.start(AXE)
        begin = await first.reset()
        other = first.copy()
        await other.step("get ore")
        seen = [await first.step(action) for action in ("wait", "get log", "craft axe")]
        return [begin, seen, first.reward, other.actions, await other.step("craft axe"), tool.take()]

    begin, seen, reward, actions, lacking, ended = using(work)
    assert begin.text == "Make axe.\nYou have bar."
    assert [step.text for step in seen] == ["ok.", "Got log.", "Made axe."]
    assert (seen[-1].done, reward, actions) == (True, 1.0, ["get ore"])
    assert lacking.text == "You lack log."
    assert ended == {"ok": 5}


@pytest.mark.parametrize(("action", "status"), [("hang", "timeout"), ("die", "error"), ("raise", "error")])
def test_a_world_that_hangs_or_dies_ends_its_own_episode_alone(action: str, status: str) -> None:
    async def work(tool: Worlds) -> tuple[Seen, Seen, Any]:
        problems = [Problem(name, "", metadata={"task": {"name": name}}) for name in "ab"]
        broken, whole = await asyncio.gather(tool.start(problems[0]).step(action), tool.start(problems[1]).step("go"))
        return broken, whole, await one(tool, problems[0], said("go", action))

    broken, whole, outcome = using(work, ODD, seconds=1.0)
    assert (broken.status, broken.done) == (status, True)
    assert (whole.status, whole.text) == ("ok", "Step 1.")
    assert (outcome.status, outcome.reward) == (status, 0.0)


def test_what_is_seen_is_written_out_and_bounded() -> None:
    seen = using(lambda tool: tool.start(AXE).step("say"), ODD, chars=60)
    assert seen.text.startswith("\\x1b[2Jx")
    assert "characters left out" in seen.text


def test_an_episode_is_played_again_whatever_it_claims() -> None:
    async def work(tool: Worlds) -> list[Any]:
        claims = said("craft axe")
        claims.metadata["seen"] = [["Made axe.", 1.0]]
        texts = [said("wait", "get log", "craft axe"), claims, said(), said("get log", "craft axe", "get log")]
        return [await one(tool, AXE, text) for text in texts]

    right, lied, silent, more = using(work)
    assert (right.status, right.reward, right.extracted) == ("correct", 1.0, "wait; get log; craft axe")
    assert right.step_rewards == [0.0, 1.0]
    assert (lied.status, lied.reward) == ("wrong", 0.0)
    assert silent.status == "unparseable"
    assert (more.status, more.step_rewards) == ("correct", [0.0, 1.0])  # what is behind the end is not played


def test_rewards_of_steps_add_up_and_fewer_than_one_are_no_success() -> None:
    outcome = using(lambda tool: one(tool, AXE, said("go", "go", "end")), ODD)
    assert (outcome.status, outcome.reward, outcome.step_rewards) == ("wrong", 0.75, [0.25] * 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.env._target_=selfimprove.env.craft.Nothing"], "no such function"),
        (["dataset.env._target_=selfimprove.env.worlds.Worlds"], "its module needs tasks"),
        (["dataset.heldout_size=100000"], "there are only"),
    ],
)
def test_bad_input_is_one_line(overrides: list[str], message: str) -> None:
    def run() -> None:
        node = compose(["method=agent_r", "tracker=none", *overrides]).dataset.model_dump(by_alias=True)
        load(env=node["env"], seed=0, prompt="{question}", train_size=1, heldout_size=node["heldout_size"])

    with pytest.raises(ConfigError, match=message) as error:
        run()
    assert "\n" not in str(error.value)


def test_a_method_that_acts_needs_an_environment() -> None:
    with pytest.raises(ConfigError, match="needs episodes"):
        compose(["method=agent_r", "dataset=arithmetic"])


def test_play_reads_json_alone() -> None:
    task = {"goal": "axe", "have": ["bar", "log"]}
    outcome = play(json.dumps(["craft axe"]), None, {"task": task}, env=CRAFT, chars=100)
    assert (outcome.status, outcome.reason) == ("correct", "done")
    assert set(RAW).isdisjoint(BOOK)


def test_the_environment_of_the_page_can_be_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/environments.md").read_text()
    (tmp_path / "door.py").write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    env = {"_target_": "door.Door"}
    problems = load(env=env, seed=0, prompt="{question}", train_size=20, dev_size=20, heldout_size=20)
    assert len({p.id for p in problems}) == 60
    metadata = {"task": problems[0].metadata["task"]}
    actions = [f"try {number}" for number in range(50, -1, -1)] + [f"try {number}" for number in range(51, 60)]
    outcome = play(json.dumps(actions), None, metadata, env=env, chars=100)
    assert (outcome.status, outcome.extracted, outcome.reason) == ("correct", "The door opens.", "done")
    assert play('["push"]', None, metadata, env=env, chars=100).extracted == "You can say: try 50"
