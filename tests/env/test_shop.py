"""The embedded shop: its reward against hand values, and what can be done in it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from selfimprove.env.shop import PAGE, Shop, instruction, plan, results, reward, stock, tasks
from tests.conftest import environment_of

TASK = {"type": "kettle", "attributes": ["quiet", "steel"], "colour": "red", "size": "small", "price": 30}
KETTLE = replace(
    next(iter(stock().values())),
    department="kitchen",
    type="kettle",
    attributes=("steel", "glass", "quiet"),
    colours=("blue", "red"),
    sizes=("large", "small"),
    price=30,
)


def all_tasks() -> str:
    return str([list(tasks(side, 40, 3)) for side in ("train", "dev", "test")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "chosen", "gained"),
    [
        ({}, ["red", "small"], 1),
        ({"price": 31}, ["red", "small"], 4 / 5),
        ({}, ["red"], 4 / 5),
        ({}, ["blue", "large"], 3 / 5),
        ({"attributes": ("steel", "glass", "heavy")}, ["red", "small"], 4 / 5),
        ({"type": "pan"}, ["red", "small"], 1 / 2),
        ({"type": "pan", "price": 99}, [], 0.5 * 2 / 5),
        ({"type": "lamp", "department": "home"}, ["red", "small"], 0),
    ],
)
def test_the_reward_is_that_of_the_formula(changes, chosen, gained) -> None:
    assert reward(TASK, replace(KETTLE, **changes), chosen) == pytest.approx(gained)


def test_the_plan_gains_all_and_sides_share_no_wish() -> None:
    rows = {side: list(tasks(side, 60, 0)) for side in ("train", "dev", "test")}  # type: ignore[arg-type]
    tasks_of = {side: [row.metadata["task"] for row in found] for side, found in rows.items()}
    wanted = {side: {(task["type"], *task["attributes"]) for task in found} for side, found in tasks_of.items()}
    assert not wanted["train"] & (wanted["test"] | wanted["dev"])
    for row in [row for found in rows.values() for row in found]:
        shop, task = Shop(row.metadata["task"]), row.metadata["task"]
        assert row.question == shop.reset().text
        *steps, last = [shop.step(action) for action in plan(task)]
        assert not any(seen.reward or seen.done for seen in steps)
        assert (last.reward, last.done) == (1.0, True), instruction(task)
        assert row.gold == "\n".join(f"Action: {action}" for action in plan(task))


def test_tasks_do_not_depend_on_the_hash_seed(tmp_path) -> None:
    code = "from tests.env.test_shop import all_tasks; print(all_tasks())"
    own = hashlib.sha256(f"{all_tasks()}\n".encode()).hexdigest()
    environment = environment_of(tmp_path, PYTHONHASHSEED="1", PYTHONPATH=os.pathsep.join(sys.path))
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert hashlib.sha256(found.stdout).hexdigest() == own


def test_pages_options_and_what_cannot_be_done() -> None:
    shop = Shop(TASK)
    for action in ("click[buy]", "click[next]", "buy", "search[]", "click[a000]", ""):
        assert shop.step(action).text in ("That cannot be done.", "That cannot be clicked.")
    assert shop.step("search[zebra]").text == "Nothing found."
    found = results("quiet kettle")
    assert {"quiet", "kettle"} <= {*found[0].attributes, found[0].type}
    first = shop.step("search[Quiet kettle]").text.splitlines()
    assert first[0] == f"{len(found)} articles, from 1:"
    assert [line[1:5] for line in first[1:]] == [article.number for article in found[:PAGE]]
    assert shop.step("click[back]").text == "That cannot be clicked."
    assert shop.step("click[next]").text.startswith(f"{len(found)} articles, from {PAGE + 1}:")
    assert shop.step(f"click[{found[0].number}]").text == "That cannot be clicked."  # it is on the page before
    shop.step("click[back]")
    page = shop.step(f"click[{found[0].number}]").text
    assert page.startswith(f"{found[0].title}, {found[0].price} dollars; color: ")
    assert "Chosen" not in page
    colour, other = found[0].colours[:2]
    shop.step(f"click[{colour}]")
    assert shop.step(f"click[{other}]").text.endswith(f" Chosen: {other}.")  # one of each kind
    assert shop.step("click[features]").text == f"It is {', '.join(found[0].attributes)}."
    bought = shop.step("click[buy]")
    assert bought.done
    assert bought.reward == reward(TASK, found[0], [other])
    assert "Chosen" not in Shop(TASK).reset().text
