"""Self-Lengthen: how a text is extended, what is dropped, the rows of three learners, and a whole small run."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.datasets import lengths
from selfimprove.errors import ConfigError
from selfimprove.methods import self_lengthen as method
from selfimprove.overrides import brought
from selfimprove.policy import Policy, Request
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from tests.forks import drive

ASK = "{instruction}|{response}"


class Spelled:
    """An engine whose tokens are characters. It answers from a list, and notes what it was asked."""

    max_length = 200
    end = 0

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def render(self, prompt: Any) -> list[int]:
        return self.encode(prompt if isinstance(prompt, str) else prompt[-1]["content"])

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    async def sample(self, request: Request) -> Sample:
        self.asked.append("".join(map(chr, request.prompt_ids)))
        said = self.answers.pop(0)
        ids = [*self.encode(said), 0]
        return Sample([*request.prompt_ids], ids, [-1.0] * len(ids), said, "stop", request.seed)

    async def logprobs(self, prompt_ids: Any, completion_ids: Any) -> list[float]:
        return [-2.0] * len(completion_ids)


def policy(engine: Any) -> Policy:
    return Policy(engine, 0, max_tokens=64)


def extended(engine: Spelled, text: str) -> Sample | None:
    return asyncio.run(method.enriched(policy(engine), ASK, "Do.", text, {"temperature": 0.7}))


def test_a_pass_extends_the_first_half_alone_and_goes_on_behind_two_thirds_of_that() -> None:
    engine = Spelled("A.\na.\nB.", "\nB.\nC.\nD.")
    found = extended(engine, "A.\nB.\nC.\nD.\nE.")
    assert engine.asked == ["Do.|A.\nB.", "Do.|A.\nB.\nC.\nD.\nE.A.\na."]  # floor(5 / 2) lines, then floor(2 x 3 / 3)
    assert found is not None
    assert found.text == "A.\na.\nB.\nC.\nD."
    assert "".join(map(chr, found.prompt_ids)) == "Do.|A.\nB.\nC.\nD.\nE."
    assert "".join(map(chr, found.completion_ids)) == found.text + "\0"
    assert found.logprobs == [-2.0] * 5 + [-1.0] * 10


def test_a_pass_without_room_in_the_window_gives_nothing() -> None:
    assert extended(Spelled(), "A." * 100) is None


def test_blank_lines_part_a_text_that_has_three_parts_of_them() -> None:
    assert method.paragraphs("a\nb\n\nc\n\nd") == (["a\nb", "c", "d"], "\n\n")
    assert method.paragraphs("a\nb\n\nc") == (["a", "b", "", "c"], "\n")


def made(response: str = "A b.") -> Problem:
    return Problem("p", "Do.", metadata={"question": "Do.", "response": response, "ids": [1, 2]})


async def longer(engine: Spelled, **options: Any) -> list[Trajectory]:
    base = policy(engine)
    settings = {"n": 1, "passes": 2, "tries": 1, "growth": 1.2, "ngram": 10, "seed": 0} | options
    return await method.lengthen(made(), base, extend=ASK, roles={"extender": base}, **settings)


def test_a_pass_goes_on_from_the_last_one_that_was_longer_and_whole() -> None:
    (found,) = asyncio.run(longer(Spelled("x.", "A b c.", "x.", "A b c d.")))
    assert found.text == "A b c d."
    (found,) = asyncio.run(longer(Spelled("x.", "A b c.", "x.", "A b c d e")))  # no full stop
    assert found.text == "A b c."


def test_a_text_that_has_not_grown_enough_is_tried_again_and_then_given_up() -> None:
    (found,) = asyncio.run(longer(Spelled("x.", "A b.", "x.", "A b c."), passes=1, tries=2))
    assert found.text == "A b c."
    assert asyncio.run(longer(Spelled("x.", "A b.", "x.", "A b."), passes=1, tries=2)) == []


def attempt(trajectory: Trajectory, problem: Problem | None = None, status: Any = "correct") -> Attempt:
    return Attempt(problem or made(), trajectory, Verdict(trajectory.id, status, 1.0))


def text(said: str, u: float, name: str = "t") -> Attempt:
    sample = Sample([9], [len(said)], [0.0], said, "stop", 0)
    return attempt(Trajectory("p", [sample], {"u": u}, id=name))


def test_the_shortest_is_always_dropped_and_the_longest_nearly_never() -> None:
    """Of four, ranks are 1/4, 1/2, 3/4 and 1: kept where u is above 2 rank^3 = .03125, .25, .84375 and 2."""
    lengths_of = {"aaaa": 0.04, "aaa": 0.24, "aa": 0.85, "a": 0.999}
    kept = method.survivors([text(said, u) for said, u in lengths_of.items()])
    assert [a.trajectory.text for a in kept] == ["aaaa", "aa"]


def test_two_learners_have_the_same_texts_and_one_sees_the_draft_without_some_of_its_lines() -> None:
    attempts = [text("A b c d.", 0.9, "long"), text("A b c.", 0.9, "short")]
    tools: Any = SimpleNamespace(render=lambda prompt: [ord(c) for c in prompt])
    (first,) = method.generator_rows([attempts], text=tools)
    assert ("".join(map(chr, first.prompt_ids)), first.completion_ids, first.trajectory_ids) == ("Do.", [8], ["long"])
    for dropped, shown in ((0.0, "A b."), (1.0, "")):
        (second,) = method.extender_rows([attempts], extend=ASK, dropped=dropped, text=tools, seed=0)
        assert "".join(map(chr, second.prompt_ids)) == f"Do.|{shown}"
        assert second.completion_ids == first.completion_ids


def test_the_last_learner_has_drafts_and_longer_texts_each_with_a_limit_and_the_rows_of_earlier_rounds() -> None:
    tools: Any = SimpleNamespace(render=lambda prompt: [ord(c) for c in prompt])
    old = Example("q", ["old"], [1], [2], metadata={"row": "longer old"})
    earlier: Any = SimpleNamespace(examples=lambda stage: iter([old, old]))
    attempts = [text("A b c d e f g h i j.", 0.99, "long"), text("A b.", 0.99, "short")]
    rows = list(method.limited_rows([attempts], unit=10, text=tools, seed=0, made=earlier))
    assert [row.metadata["row"] for row in rows] == ["longer old", "draft long", "longer long"]
    assert [row.completion_ids for row in rows] == [[2], [1, 2], [20]]
    assert all("".join(map(chr, row.prompt_ids)).startswith("Do. Use ") for row in rows[1:])


@pytest.mark.parametrize(
    ("kind", "words", "allowed"),
    [("about", [50], (40, 60)), ("range", [30, 40], (30, 40)), ("above", [40], (40, 60)), ("below", [40], (20, 40))],
)
def test_the_length_score_by_hand(kind: lengths.Kind, words: list[int], allowed: tuple[int, int]) -> None:
    limit: lengths.Limit = {"kind": kind, "words": words}
    a, b = allowed
    assert lengths.allowed(limit) == allowed
    scores = [lengths.score(length, limit) for length in (0, a // 2, 3 * a // 4, a, b, 5 * b // 4, 3 * b // 2, 9 * b)]
    assert scores == pytest.approx([0, 0, 2 * (3 * a // 4) / a - 1, 1, 1, 3 - 2 * (5 * b // 4) / b, 0, 0])


def test_a_drawn_limit_is_one_that_the_text_keeps_or_nearly() -> None:
    rng = random.Random(0)
    kinds = [lengths.drawn(rng, words, 10) for words in range(20, 120) for _ in range(20)]
    assert min(lengths.score(words, kinds[20 * (words - 20) + i]) for words in range(30, 120) for i in range(20)) >= 0.5
    share = [
        sum(limit["kind"] == kind for limit in kinds) / len(kinds) for kind in ("about", "range", "above", "below")
    ]
    assert share == pytest.approx([0.4, 0.25, 0.1, 0.25], abs=0.04)


SIZES = ["method=self_lengthen", "rounds=1", "dataset.train_size=12", "dataset.heldout_size=2", "tracker=none",
         "verify.workers=1", "method.stages.ask.problems.count=6", "model.max_tokens=60",
         "method.stages.lengthen.generate.passes=1",
         "method.stages.lengthen.generate.tries=4"]  # fmt: skip


def test_a_small_run_trains_three_policies_on_longer_texts(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    rounds = tmp_path / "rounds"
    for stage in ("2_lengthen", "3_extend", "4_align"):
        assert (rounds / f"000.{stage}" / "policy" / "model.safetensors").exists()
    rows = list(store.read_records(rounds / "000.2_lengthen" / "examples.parquet", Example))
    problems = {p.id: p for p in store.read_records(rounds / "000.1_draft" / "made.parquet", Problem)}
    drafted = [len(str(problems[r.problem_id].metadata["response"]).split()) for r in rows]
    assert all(r.metadata["words"] > 1.2 * words for r, words in zip(rows, drafted, strict=True))


def test_what_the_user_types_wins_over_the_methods_own_model_and_data() -> None:
    own = compose(["method=self_lengthen"])
    assert (own.model.name, own.dataset.name) == ("writer", "outline")
    assert compose(["experiment=smollm2_asdiv"]).model.name == "smollm2_135m"
    with pytest.raises(ConfigError, match=r"different choices; give dataset=\.\.\."):
        brought(["method=rise,self_lengthen", "model=tiny"])
    typed = compose(["method=self_lengthen", "model=tiny", "dataset=arithmetic"])
    assert (typed.model.name, typed.dataset.name) == ("tiny", "arithmetic")


@pytest.mark.parametrize(
    "control",
    [
        ["method.stages.lengthen.generate.passes=1", "method.stages.lengthen.generate.tries=4"],
        ["method.stages.extend.filter.dropped=0"],
        ["~method.stages.extend"],
    ],
)
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=self_lengthen", *control]).method.name == "self_lengthen"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.stages.extend.filter.dropped=2", "method.stages.extend.filter.dropped=2"),
        ("method.generate.tries=0", "method.generate.tries=0"),
        ("dataset.words=[21,29]", "holds no multiple of dataset.unit=10"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run.start(compose([*SIZES, wrong]), tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_between_two_learners_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(["hardware.max_batch=1", *SIZES])
    drive(tmp_path, small, ["manifest:0/generate"])
