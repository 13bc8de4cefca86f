"""The pool against checks that hang, die, flood and lie."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import selfimprove
from selfimprove.errors import ConfigError
from selfimprove.verify import Outcome
from selfimprove.verify import pool as pool_module
from selfimprove.verify.pool import WINDOW, Pool
from tests.waiting import wait_for

HOSTILE = f"{__name__.removesuffix('test_pool')}hostile_checks"
CHECK = f"{HOSTILE}.check"
LIMIT = 2.0


def good(i):
    return "good", str(i), {"answer": str(i - i % 3)}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


EXPECTED = {
    "sleep": "timeout",
    "regex": "timeout",
    "power": "timeout",
    "exit": "error",
    "kill": "error",
    "recurse": "error",
    "memory": "error",
    "flood": "wrong",
    "raise": "error",
    "leave": "error",
    "garbage": "error",
    "nan": "error",
}


def test_a_hostile_check_costs_its_own_item_alone_whatever_the_number_of_workers():
    hostile = list(EXPECTED)
    items = []
    for i in range(1200):
        items.append(good(i))
        if i % 97 == 5 and hostile:
            items.append((hostile.pop(), None, {}))
    outcomes = {}
    for workers in (1, 3):
        with Pool(CHECK, {}, workers=workers, seconds=LIMIT) as pool:
            outcomes[workers] = list(pool.run(items))
    assert not hostile
    for item, outcome in zip(items, outcomes[1], strict=True):
        if item[0] == "good":
            status, gold = ("wrong" if int(item[1]) % 3 else "correct"), f"{item[1]}\n\u2028\ud800"
            assert outcome == Outcome(status, float(status == "correct"), extracted=gold)
        else:
            assert (item[0], outcome.status, outcome.reward) == (item[0], EXPECTED[item[0]], 0.0)
            assert outcome.reason if outcome.status != "wrong" else outcome.extracted == ""
    assert outcomes[1] == outcomes[3]


def test_the_reason_says_what_happened():
    with Pool(CHECK, {}, workers=1, seconds=LIMIT, memory_mb=1024) as pool:
        reasons = [outcome.reason for outcome in pool.run((text, None, {}) for text in ("kill", "memory", "raise"))]
    assert reasons == ["its process died: killed by SIGKILL", "needs more than 1024 MiB", "ValueError: no such thing"]


def test_no_item_pays_for_what_earlier_ones_left_in_the_worker():
    items = [("big", None, {"n": i}) for i in range(3)] + [("small", None, {})]
    with Pool(f"{HOSTILE}.leak", {}, workers=1, memory_mb=700) as pool:
        assert [outcome.status for outcome in pool.run(items)] == ["correct"] * 4


def test_a_window_of_the_items_is_read_ahead_and_order_is_kept():
    read = 0

    def items():
        nonlocal read
        for read in range(20_000):
            yield good(read)

    with Pool(CHECK, {}, workers=2) as pool:
        for i, outcome in enumerate(pool.run(items())):
            assert outcome.extracted.startswith(f"{i}\n")
            assert read - i <= WINDOW
    assert i == 19_999


def test_options_reach_the_check_and_a_run_given_up_leaves_the_pool_usable():
    with Pool(CHECK, {"reward": 0.5}, workers=2) as pool:
        first = pool.run(good(3 * i) for i in range(10_000))
        assert next(first).reward == 0.5
        first.close()
        assert [outcome.reward for outcome in pool.run([good(0), good(1)])] == [0.5, 0.0]


def test_asyncio_runs_many_at_once():
    async def main(pool):
        return await asyncio.gather(*(pool.check_one(*good(i)) for i in range(300)), pool.check_one("exit", None, {}))

    with Pool(CHECK, {}, workers=2) as pool:
        *outcomes, last = asyncio.run(main(pool))
    assert sum(outcome.status == "correct" for outcome in outcomes) == 100
    assert last.status == "error"


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("selfimprove.verify.nothing.check", {}, "No module named"),
        (f"{HOSTILE}.nothing", {}, "has no attribute 'nothing'"),
        (CHECK, {"rewards": 1}, "unexpected keyword argument 'rewards'"),
    ],
)
def test_a_check_that_cannot_be_loaded_is_the_users_error(target, options, words):
    with Pool(target, options, workers=2) as pool, pytest.raises(ConfigError, match=words):
        list(pool.run([good(0), good(1), good(2)]))


def test_leaving_the_block_ends_hung_workers_at_once():
    with Pool(CHECK, {}, workers=1, seconds=1000) as pool:
        (outcome,) = pool.run([("pid", None, {})])
        assert alive(outcome.extracted)
        hung = pool._submit(b'["sleep", null, {}]')
        while not hung.running():
            time.sleep(0.02)
    assert "closed" in str(hung.exception())  # nobody waited for it
    assert not alive(outcome.extracted)


def test_a_timeout_ends_what_the_check_started(tmp_path):
    file = tmp_path / "pid"
    with Pool(CHECK, {}, workers=1, seconds=LIMIT) as pool:
        (outcome,) = pool.run([("child", None, {"file": str(file)})])
    assert outcome.status == "timeout"
    assert not alive(file.read_text())


def test_a_killed_parent_leaves_no_workers():
    code = f"""
from selfimprove.verify.pool import Pool
with Pool({CHECK!r}, {{}}, workers=2, seconds=1000) as pool:
    while not all(pool._live):
        pass
    print(*(worker.process.pid for worker in pool._live), flush=True)
    list(pool.run([("power", None, {{}}), ("sleep", None, {{}})]))
"""
    path = os.pathsep.join([str(Path(selfimprove.__file__).parents[1]), *filter(None, sys.path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert parent.stdout is not None
    workers = parent.stdout.readline().split()
    assert len(workers) == 2
    assert all(map(alive, workers))
    time.sleep(0.5)  # until both hang in their checks
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(3000):  # it takes the kernel a moment
        if not any(map(alive, workers)):
            return
        time.sleep(0.02)
    raise AssertionError(workers)


def test_a_pool_closes_though_the_lock_of_an_outcome_stays_taken(monkeypatch):
    """As it does where a signal interrupts the thread that waits for the outcome at the wrong moment."""
    monkeypatch.setattr(pool_module, "CLOSING", 0.5)
    with Pool(CHECK, {}, workers=1, seconds=LIMIT) as pool:
        outcome = pool._submit(pool_module._encode(*good(0)))
        outcome._condition.acquire()
        time.sleep(0.5)  # the worker's thread has come to the lock
    assert any(thread.is_alive() for thread in pool._threads)  # it was not waited for
    outcome._condition.release()


KEEPS_TIME = True


def keeps_time(text, gold, metadata):
    time.sleep(float(text))
    return Outcome("correct", 1.0)


def test_a_check_that_keeps_its_own_time_is_waited_for():
    with Pool(f"{__name__}.keeps_time", {}, workers=1, seconds=0.05) as pool:
        (outcome,) = pool.run([("1", None, {})])
    assert outcome.status == "correct"


def counted(text, gold, metadata):
    """Writes a line to the file named by the gold answer each time it is called."""
    with open(gold, "a") as file:
        file.write(f"{text}\n")
    return Outcome("correct", 1.0, extracted=text)


def test_a_check_that_was_begun_runs_before_it_is_asked_for_and_only_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "AHEAD", 3)
    calls = tmp_path / "calls"
    items = [(text, str(calls), {}) for text in "abcda"]
    with Pool(f"{__name__}.counted", {}, workers=1) as pool:
        pool.begin(items)
        wait_for(lambda: calls.exists() and calls.read_text().split() == ["a", "b", "c"])
        assert [outcome.extracted for outcome in pool.run(items)] == list("abcda")
        assert sorted(calls.read_text().split()) == list("abcd")
        assert [outcome.extracted for outcome in pool.run(items)] == list("abcda"), "nothing is left of what was begun"
        assert len(calls.read_text().split()) == 8
