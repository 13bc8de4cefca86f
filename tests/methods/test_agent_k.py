"""Agent K: stages and their tests, retries and blame, the memory, the order of tasks, and a whole small run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from selfimprove import run, scores, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.agent_k import code_of, figures, following, generate, prompt, remember, retrieved
from selfimprove.policy import Policy, Request
from selfimprove.policy.templates import FAULTS, TEMPLATES, TemplatesEngine, written
from selfimprove.tools.pipeline import SETUP, SOLUTION, Broken, Pipeline
from selfimprove.types import Attempt, Memory, Problem, Sample, Trajectory, Verdict
from selfimprove.verify.leaderboard import check
from tests.forks import drive
from tests.methods.pipelines import Here, codes, lowest, problems, request

pytest.importorskip("sklearn.ensemble")

STAGES = (*SETUP, *SOLUTION)


class Breaks(TemplatesEngine):
    """Writes right code, but the fault `number` of a stage at its first `times` tries."""

    def __init__(self, stage: str = "", times: int = 0, number: int = 0) -> None:
        super().__init__(fault=0.0)
        self.stage, self.times, self.number, self.prompts = stage, times, number, list[str]()

    async def sample(self, request: Request) -> Sample:
        sample = await super().sample(request)
        self.prompts.append("".join(map(chr, request.prompt_ids)))
        if f"Stage: {self.stage}\n" in self.prompts[-1] and self.times:
            self.times -= 1
            sample.text = sample.text.replace(*FAULTS[self.stage][self.number])
        return sample


def solved(engine: TemplatesEngine, name: str = "iris", **options: Any) -> Trajectory:
    given: dict[str, Any] = {"retries": 3, "tests": True, "trials": 2, "members": 2, "top": 3, "sampler": "random"}
    given |= {"memory": [], "seed": 0, "tools": {"stages": Here()}, **options}
    policy = Policy(engine, 0, max_tokens=100)
    (found,) = asyncio.run(generate(problems()[name], policy.for_problem(problems()[name]), **given))
    return found


def verdict(found: Trajectory, name: str = "iris") -> str:
    return check(found.text, problems()[name].gold, problems()[name].metadata).status


@pytest.mark.parametrize("name", ["iris", "friedman"])
def test_the_right_code_of_every_template_gives_a_valid_submission(name: str) -> None:
    problem = problems()[name]
    for template in TEMPLATES:
        made = Pipeline(request(problem, codes(problem, template)), lowest, lambda stage: None).run()
        outcome = check(json.dumps(made), problem.gold, problem.metadata)
        assert outcome.status == "correct", (template, outcome.reason)
        assert made["validation"] <= 1


@pytest.mark.parametrize(("stage", "number"), [(stage, i) for stage in STAGES for i in range(len(FAULTS[stage]))])
@pytest.mark.parametrize("name", ["iris", "friedman"])
def test_every_fault_is_really_broken_and_its_own_stage_is_blamed(stage: str, number: int, name: str) -> None:
    problem = problems()[name]
    right = codes(problem)
    broken = right[stage].replace(*FAULTS[stage][number])
    assert broken != right[stage]
    with pytest.raises(Broken) as caught:
        Pipeline(request(problem, right | {stage: broken}), lowest, lambda stage: None).run()
    assert caught.value.stage == stage


def test_a_failed_test_is_told_and_its_stage_alone_is_written_again() -> None:
    engine = Breaks("model", 2)
    found = solved(engine)
    assert found.metadata["tried"] == {stage: 3 if stage == "model" else 1 for stage in STAGES}
    assert found.metadata["failed"] is None
    assert "The last try failed: ModuleNotFoundError" in engine.prompts[-1]
    assert verdict(found) == "correct"
    assert found.samples[-1].role == "tool"


def test_what_the_maps_show_goes_back_to_the_modality() -> None:
    found = solved(Breaks("modality", 1))  # the identifier is called a number, which no test of its own sees
    assert found.metadata["tried"] == {stage: 2 if stage == "modality" else 1 for stage in STAGES}
    assert verdict(found) == "correct"


def test_a_stage_is_given_up_after_its_retries() -> None:
    found = solved(Breaks("space", 4), retries=3)
    assert (found.metadata["tried"]["space"], found.metadata["failed"]) == (4, "space")
    assert verdict(found) == "unparseable"
    assert solved(Breaks("space", 3), retries=3).metadata["failed"] is None
    assert solved(Breaks("fetch", 1), retries=0).metadata["failed"] == "fetch"


def test_without_tests_a_submission_of_another_form_is_handed_in() -> None:
    found = solved(Breaks("form", 1), tests=False, retries=0)
    assert found.metadata["failed"] is None
    assert verdict(found) == "unparseable"


def test_code_that_hangs_is_a_timeout() -> None:
    class Hangs(Here):
        async def __call__(self, text: str) -> str:
            return json.dumps({"broken": "fetch", "said": "TimeoutError: took more than 30 s", "status": "timeout"})

    assert verdict(solved(Breaks(), tools={"stages": Hangs()})) == "timeout"


def test_the_search_is_not_done_again_for_an_ensemble_that_failed() -> None:
    class Fails(Here):
        async def __call__(self, text: str) -> str:
            reply = json.loads(await super().__call__(text))
            if len(self.asked) == 2:
                reply = {"broken": "ensemble", "said": "no", "status": "failed", "found": [[0.5, {"C": 7.0}]]}
            return json.dumps(reply)

    tool = Fails()
    assert solved(Breaks(), tools={"stages": tool}).metadata["validation"] == 0.5
    assert [one["found"] for one in tool.asked] == [None, None, [[0.5, {"C": 7.0}]]]


def test_code_is_the_last_block_that_defines_the_stage() -> None:
    text = "```python\ndef fetch(text):\n    return 1\n```\nand\n```python\nprint(2)\n```"
    assert code_of(text, "fetch") == "def fetch(text):\n    return 1\n"
    assert code_of("def fetch(text): return 3", "fetch") == "def fetch(text): return 3"


# The policy by script


def test_a_share_of_the_code_is_broken_and_draws_are_of_all_templates() -> None:
    asked = prompt(problems()["iris"], "features", {}, None, [])
    engine, policy = TemplatesEngine(0.3), list[str]()
    for seed in range(400):
        ids = tuple(engine.render(asked))
        policy.append(asyncio.run(engine.sample(Request(ids, 9, seed=seed))).text)
    right = {f"```python\n{written('features', name, True)}\n```" for name in TEMPLATES}
    assert sum(text not in right for text in policy) / 400 == pytest.approx(0.3, abs=0.07)
    assert right <= set(policy)


@pytest.mark.parametrize(("scored", "taken"), [(0.9, True), (0.4, False)])
def test_the_template_of_a_good_case_is_taken_over(scored: float, taken: bool) -> None:
    cases = [case("a", scored, "support"), case("b", 0.3, "stump")]
    found = {
        solved(TemplatesEngine(0.0), memory=cases, seed=0, trials=1).metadata["codes"]["space"].splitlines()[0],
        solved(TemplatesEngine(0.0), "moons", memory=cases, trials=1).metadata["codes"]["space"].splitlines()[0],
    }
    assert (found == {"# template: support"}) == taken


# The memory


def case(key: str, score: float, template: str | None, descriptor: str = "classification numbers") -> Memory:
    text = json.dumps(codes(problems()["iris"], template)) if template else None
    return Memory(key, text, metadata={"descriptor": descriptor, "score": score, "tries": 1})


def attempt(problem: Problem, reward: float, status: Any = "correct", code: str = "x") -> Attempt:
    trajectory = Trajectory(problem.id, [], {"codes": {"model": code}}, f"r0/{problem.id}/0")
    return Attempt(problem, trajectory, Verdict(trajectory.id, status, reward))


def test_a_case_is_written_where_it_is_valid_and_better() -> None:
    iris, moons = problems()["iris"], problems()["moons"]
    first = list(remember([[attempt(iris, 0.4, code="a")], [attempt(moons, 0.0, "unparseable")]], memory=[]))
    assert [(m.key, m.text, m.metadata["score"]) for m in first] == [
        ("iris", '{"model": "a"}', 0.4),
        ("moons", None, 0),
    ]
    worse = list(remember([[attempt(iris, 0.3, code="b")]], memory=first))
    assert (worse[0].text, worse[0].metadata["score"], worse[0].metadata["tries"]) == ('{"model": "a"}', 0.4, 2)
    (better,) = [m for m in remember([[attempt(iris, 0.6, code="c")]], memory=worse) if m.key == "iris"]
    assert (better.text, better.metadata["score"]) == ('{"model": "c"}', 0.6)


def test_cases_are_the_valid_ones_that_fit_best() -> None:
    memory = [
        case("none", 0.0, None, "regression numbers rowsj"),
        case("far", 0.9, "tree", "classification categories rowsc"),
        case("near", 0.2, "tree", "regression numbers rowsj"),
        case("half", 0.5, "tree", "regression categories rowsk"),
    ]
    assert [m.key for m in retrieved(memory, "regression numbers rowsj", 2)] == ["near", "half"]
    assert retrieved(memory, "regression", 0) == []
    assert retrieved([], "regression", 3) == []


def test_the_next_task_is_like_successes_and_unlike_failures() -> None:
    def task(name: str, words: str) -> Problem:
        return Problem(name, "", metadata={"descriptor": words})

    tasks = [task("both", "a b c"), task("bad", "x y"), task("good", "a b"), task("done", "a b")]
    memory = [case("done", 0.8, None, "a b"), case("other", 0.2, None, "x y c")]
    assert following(tasks, memory=[], count=1)[0].id == "both"
    # likeness to the success and to the failure: 2/3 - 1/5, 0 - 2/3, 1 - 0; what was tried comes last
    assert [p.id for p in following(tasks, memory=memory, count=4)] == ["good", "both", "bad", "done"]


def test_the_figures_are_valid_submissions_and_a_rating() -> None:
    pytest.importorskip("elo_mmr_py")
    found = figures([scores.Scores(["a", "b"], [1.0, 0.0], ["entrant p0 p1 p2", None], [None, None])])
    assert found == {"valid": 0.5, "elo_mmr": pytest.approx(1758.24, abs=0.01)}
    assert figures([scores.Scores(["a"], [0.0], [None], [None])]) == {"valid": 0.0}


# A whole run

SIZES = ["method=agent_k", "dataset.tables=[iris,moons]", "dataset.train_size=1", "dataset.heldout_size=1",
         "dataset.rows=80", "dataset.players=4", "method.parts=2", "method.generate.trials=2", "verify.workers=1",
         "tracker=none", "method.generate.sampler=random"]  # fmt: skip


def test_a_small_run_remembers_and_shows_what_it_remembers(tmp_path: Path) -> None:
    own = ["~method.tools.stages", "+method.tools.stages._target_=tests.methods.pipelines.here", "engine.fault=0"]
    summary = run.start(compose([*SIZES, *own]), tmp_path)
    assert summary["unit"] == "quantile"
    assert summary["rounds"][0]["evaluation"]["valid"] == 1
    (kept,) = store.read_records(tmp_path / "rounds/000.1/memory.parquet", Memory)
    assert (kept.key, kept.metadata["tries"]) == ("iris", 2)
    last = next(iter(store.read_records(tmp_path / "rounds/000.1/evaluation/trajectories.parquet", Trajectory)))
    shown = "".join(map(chr, next(s for s in last.samples if "def features" in s.text).prompt_ids))
    assert f"Case with a score of {kept.metadata['score']:.2f}:" in shown


@pytest.mark.slow
def test_a_run_killed_in_its_tasks_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(o for o in SIZES if not o.startswith(("tracker", "verify.")))
    drive(
        tmp_path,
        f"{small} dataset=tabular rounds=1",
        ["manifest:0/generate", "manifest:0/remember", "manifest:1/verify"],
    )


@pytest.mark.slow
def test_a_run_in_the_sandbox_is_the_same_twice(tmp_path: Path) -> None:
    found = [run.start(compose([o for o in SIZES if "sampler" not in o]), tmp_path / name) for name in ("a", "b")]
    memories = [(tmp_path / name / "rounds/000.1/memory.parquet").read_bytes() for name in ("a", "b")]
    assert found[0]["final"]["quantile"] == found[1]["final"]["quantile"]
    assert memories[0] == memories[1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("dataset=arithmetic", "method=agent_k needs tables"),
        ("method.generate.sampler=grid", "method.generate.sampler=grid"),
        ("method.generate.retries=-1", "method.generate.retries=-1"),
        ("~method.tools.stages", "method.tools.stages: needs a tool of this name"),
        ("method.tools.stages.sandbox=docker", "method.tools.stages.sandbox=docker"),
        ("engine.fault=2", "engine.fault=2"),
    ],
)
def test_a_wrong_choice_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=agent_k", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
