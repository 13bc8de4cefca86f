"""Policy: seeds that depend on the problem alone, the window, stamps; and where models are looked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from selfimprove.policy import Policy
from selfimprove.policy.models import resolve
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.types import Problem, Sample

PROBLEMS = [Problem(f"p{i}", f"What is {i} + 1?", gold=str(i + 1)) for i in range(6)]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine({str(p.prompt): str(p.gold) for p in PROBLEMS}, p_correct=0.5)


def test_samples_depend_on_the_problem_and_its_own_calls(engine: ScriptedEngine) -> None:
    root = Policy(engine, seed=3, version=2, role="generator")

    async def solve(problem: Problem) -> list[Sample]:
        policy = root.for_problem(problem, "round", 0)
        return [*await policy.sample(problem.prompt, n=3), *await policy.sample(problem.prompt)]

    async def every(problems: list[Problem]) -> dict[str, list[Sample]]:
        answers = await asyncio.gather(*map(solve, problems))
        return dict(zip((p.id for p in problems), answers, strict=True))

    forwards, backwards = asyncio.run(every(PROBLEMS)), asyncio.run(every(PROBLEMS[::-1]))
    assert forwards == backwards
    assert forwards["p3"] == asyncio.run(every(PROBLEMS[3:4]))["p3"]
    seeds = [sample.seed for samples in forwards.values() for sample in samples]
    assert len(set(seeds)) == len(seeds) == 24
    assert {(s.role, s.version) for samples in forwards.values() for s in samples} == {("generator", 2)}


def test_the_window_bounds_a_sample(engine: ScriptedEngine) -> None:
    engine.max_length = len(PROBLEMS[0].prompt) + 4
    policy = Policy(engine, seed=0)
    sample = asyncio.run(policy.sample(PROBLEMS[0].prompt))[0]
    assert len(sample.completion_ids) == 4
    assert sample.finish == "length"
    with pytest.raises(ValueError, match="window"):
        asyncio.run(policy.sample(PROBLEMS[0].prompt + " And why is that so?"))


def test_token_ids_pass_through(engine: ScriptedEngine) -> None:
    policy = Policy(engine, seed=0)
    ids = policy.render("abc")
    assert policy.render(ids) == ids
    assert policy.render(tuple(ids)) == ids


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFIMPROVE_CACHE", str(tmp_path))
    assert resolve("small", "org/small") == "org/small"
    folder = tmp_path / "models" / "org" / "small"
    folder.mkdir(parents=True)
    assert resolve("small", "org/small") == "org/small"  # an empty folder is no model
    (folder / "config.json").write_text("{}")
    assert resolve("small", "org/small") == str(folder)
    assert resolve("small", "org/other") == "org/other"  # another model of the same name in conf/
    assert resolve("small", str(folder)) == str(folder)
    assert Path(resolve("tiny", "package")).is_dir()
