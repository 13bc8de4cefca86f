"""ReLoop2: compensation against its closed forms, both memories, and the loop: what it reads and when it forgets."""

from __future__ import annotations

import numpy as np
import pytest

from selfimprove import store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods import reloop2
from selfimprove.methods.reloop2 import Readout, buckets, compensate, exact, recall, sketch
from selfimprove.plan import Pass
from selfimprove.studies import Lab
from selfimprove.types import Attempt, Memory, Problem, Sample, Trajectory, Verdict
from selfimprove.verify.clicks import check

SMALL = ["method=reloop2", "rounds=2", "method.stages.stream.parts=1", "dataset.warmup=300", "dataset.chunk=60"]
SMALL += ["dataset.train_size=2", "dataset.heldout_size=2", "method.train.epochs=1", "verify.workers=1"]


def chunk(labels, predicted, keys):
    """A group as `remember` gets it."""
    rows = np.column_stack([predicted, keys])
    sample = Sample([], [], [], "", "stop", 0, array=rows.flatten().tolist())
    problem = Problem("chunk-001", "", metadata={"labels": list(labels)})
    return [Attempt(problem, Trajectory(problem.id, [sample], id="t"), Verdict("t", "correct", 0.0))]


def test_compensation_is_its_closed_form():
    y, found = np.array([0.2, 0.9]), Readout(np.array([1.0, 0.5]), np.array([0.4, 0.7]))
    assert compensate(y, found, 0.3, 1.0) == pytest.approx(0.7 * y + 0.3 * found.labels)
    assert compensate(y, found, 0.3, 0.0) == pytest.approx(y + 0.3 * (found.labels - found.predicted))
    assert compensate(np.array([0.9]), Readout(np.array([1.0]), np.array([0.0])), 1.0, 0.0) == [1.0], "clipped"
    assert compensate(y, found, 0.0, 1.0).tobytes() == y.tobytes()
    assert compensate(y, Readout(np.array([np.nan, 1]), np.array([np.nan, 1])), 1.0, 1.0).tolist() == [0.2, 1.0]
    assert compensate(y, None, 1.0, 1.0) is y


def test_the_exact_memory_weighs_its_nearest_by_a_softmax():
    keys = np.array([[1.0, 0], [2, 0], [1, 1], [-1, 0]])
    (one,) = exact([chunk([1, 0, 1, 1], [0.5, 0.6, 0.7, 0.8], keys)], memory=[], sigma=0, share=1, seed=0)
    found = recall([one], np.array([[3.0, 0]]), neighbours=3, tau=0.1)
    a = np.exp(np.array([1, 1, np.sqrt(0.5)]) / 0.1)
    a /= a.sum()
    assert found.labels == pytest.approx([a @ [1, 0, 1]])
    assert found.predicted == pytest.approx([a @ [0.5, 0.6, 0.7]])
    (few,) = exact([chunk([1, 0], [0.5, 0.1], keys[:2])], memory=[], sigma=0.3, share=1, seed=0)
    assert few.array == pytest.approx([1, 0.5, 1, 0]), "an error of .1 is not kept"


def test_the_sketch_adds_up_buckets_and_does_not_grow():
    rng = np.random.default_rng(0)
    groups = [chunk(rng.integers(2, size=500), rng.random(500), rng.normal(size=(500, 3))) for _ in range(3)]
    memory = list(sketch(groups[:1], memory=[], arrays=2, bits=4, seed=0))
    size = [len(one.array) for one in memory]
    for group in groups[1:]:
        memory = list(sketch([group], memory=memory, arrays=2, bits=4, seed=9))
    assert [len(one.array) for one in memory] == size == [4 * 3 + 16 * 3] * 2
    rows = np.concatenate([reloop2._events(group[0]) for group in groups])
    asked, byhand = rng.normal(size=(5, 3)), []
    for one in memory:
        directions = np.array(one.array[:12]).reshape(4, 3)
        own, other = buckets(directions, rows[:, 2:]), buckets(directions, asked)
        byhand.append([rows[own == b, :2].mean(0) for b in other])
    found = recall(memory, asked, 1, 1.0)
    assert np.column_stack(found) == pytest.approx(np.mean(byhand, axis=0))


def test_an_empty_bucket_says_nothing():
    directions = np.eye(2)
    sums = np.zeros((4, 3))
    sums[3] = 2, 1, 0.5  # both signs positive
    memory = [Memory("array 0", array=[*directions.flatten(), *sums.flatten()], metadata={"bits": 2})]
    found = recall(memory, np.array([[1.0, 1], [-1, 1]]), 1, 1.0)
    assert found.labels[0] == 0.5
    assert np.isnan(found.labels[1])


def test_chunks_are_gone_through_in_order():
    problems = [Problem(str(i), "", metadata={"chunk": i}) for i in range(5)]
    seen = []
    for round in range(2):
        seen.append([p.id for p in reloop2.arrived(problems, step=Pass(0, round), parts=2)])
        for part in range(2):
            step = Pass(0, round, part=part, turn=2 * round + part)
            seen.append([p.id for p in reloop2.following(problems, step=step)])
    assert seen == [["0"], ["1"], ["2"], ["1", "2"], ["3"], ["4"]]


def test_the_reward_is_the_mean_log_likelihood():
    metadata = {"labels": [1, 0], "users": [0, 0]}
    found = check("0.8 0.4", None, metadata)
    assert found.reward == pytest.approx((np.log(0.8) + np.log(0.6)) / 2)
    assert float(found.extracted) == 1.0
    assert np.isfinite(check("0 1", None, metadata).reward)
    assert check("0.8", None, metadata).status == check("0.8 1.2", None, metadata).status == "unparseable"


def test_a_run_without_compensation_is_the_base_model_and_memories_are_reset_with_it(tmp_path):
    result = Lab(quick=True, folder=tmp_path).run(*SMALL, "method.generate.lam=0")
    for path in sorted(result.path.glob("rounds/*/evaluation/trajectories.parquet")):
        for trajectory in store.read_records(path, Trajectory):
            base, answer = trajectory.samples
            assert answer.array == np.array(base.array).reshape(60, -1)[:, 0].tolist()
    left = sorted(result.path.glob("rounds/*/memory.parquet"))
    assert [store.count_records(path) for path in left] == [0, 16, 0, 16]
    assert 0 < store.read_json(result.evaluation("last").parent / "metrics.json")["evaluate/gauc"] < 1


def test_more_rounds_than_chunks_are_refused():
    with pytest.raises(ConfigError, match=r"rounds=9: of 8 chunks each .* and dataset.train_size=24"):
        compose(["method=reloop2", "rounds=9"])
