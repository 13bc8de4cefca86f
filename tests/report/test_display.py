from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from selfimprove.report import display
from selfimprove.report.display import Display, setup_logging
from tests.counting import lines


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [h for h in root.handlers if h.get_name() == display.__name__]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def configuration() -> Any:
    names = {
        group: SimpleNamespace(name=name) for group, name in [("method", "sft"), ("model", "tiny"), ("dataset", "d")]
    }
    names["dataset"].score = "accuracy"
    stages = {"": SimpleNamespace(generate={"n": 4})}
    return SimpleNamespace(**names, seed=0, rounds=2, stages=stages, eval=SimpleNamespace(called="held-out"))


def figures(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05, "n": 200}


def summary(**other: Any) -> dict[str, Any]:
    row = {
        "verdicts": {"correct": 1203, "wrong": 456, "unparseable": 12, "timeout": 1, "error": 0},
        "examples": 1100,
        "tokens": {"prompt": 9500, "sampled": 1_234_567, "trained": 45_600},
        "seconds": {"generate": 61.2, "verify": 4.4, "filter": 0.1, "train": 30, "evaluate": 7},
    }
    rounds = [{"round": 0, **row, "evaluation": figures(0.25)}, {"round": 1, **row, "evaluation": figures(0.31)}]
    ended = {"status": "complete", "reason": None, "base": figures(0.2), "final": figures(0.31), "rounds": rounds}
    return ended | other


def log_to(tmp_path: Path, clock: Clock, **options: Any) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=120, **options)
    setup_logging(tmp_path, console)
    return Display(tmp_path, configuration(), console, clock), file


def test_plain_progress_is_a_line_each_quarter_minute(tmp_path: Path) -> None:
    clock = Clock()
    shown, file = log_to(tmp_path, clock)
    with shown.phase(0, 2, "generate", 400, "problems") as phase:
        for _ in range(400):
            clock.now += 0.125  # exact in binary
            phase.advance(tokens=50)
    lines = [line.split("INFO ")[1] for line in file.getvalue().splitlines()]
    assert lines == [
        "round 0 (1 of 2) generate: 400 problems",
        "round 0 (1 of 2) generate: 120 of 400 problems, 8.0 problems/s, 400 tokens/s, 0:35 left",
        "round 0 (1 of 2) generate: 240 of 400 problems, 8.0 problems/s, 400 tokens/s, 0:20 left",
        "round 0 (1 of 2) generate: 360 of 400 problems, 8.0 problems/s, 400 tokens/s, 0:05 left",
        "round 0 (1 of 2) generate: done, 400 problems in 50.0 s, 8.0 problems/s, 400 tokens/s",
    ]
    assert len((tmp_path / "run.log").read_text().splitlines()) == 5


def test_what_an_interrupted_run_did_is_not_in_the_rate(tmp_path: Path) -> None:
    clock = Clock()
    shown, file = log_to(tmp_path, clock)
    with shown.phase(0, 2, "generate", 100, "problems") as phase:
        phase.skip(60)
        clock.now = 20
        phase.advance(20)
    assert "80 of 100 problems, 1.0 problems/s, 0:20 left" in file.getvalue()


def test_share_and_early_end(tmp_path: Path) -> None:
    shown, file = log_to(tmp_path, Clock())
    with pytest.raises(KeyError), shown.phase(-1, 2, "train", 64, "examples") as phase:  # noqa: PT012
        phase.set(0.25)
        phase.set(0.5)
        raise KeyError
    assert "base model train: ended early, 32 of 64 examples" in file.getvalue()


def test_terminal_shows_a_bar_and_run_log_the_lines(tmp_path: Path) -> None:
    clock = Clock()
    shown, file = log_to(tmp_path, clock, force_terminal=True, legacy_windows=False)
    with shown.phase(1, 2, "generate", 40, "problems") as phase:
        for _ in range(40):
            clock.now += 1
            phase.advance(tokens=100)
    assert re.search(r"40/40.*1\.0 problems/s, 100 tokens/s", file.getvalue())
    assert "left" not in file.getvalue()  # the lines of a plain log
    assert "15 of 40 problems, 1.0 problems/s, 100 tokens/s, 0:25 left" in (tmp_path / "run.log").read_text()


def test_table_after_each_round(tmp_path: Path) -> None:
    shown, file = log_to(tmp_path, Clock())
    shown.round(summary(rounds=[]), -1)
    assert "base model: held-out accuracy 20.0 % [15.0, 25.0] (n=200)" in file.getvalue()
    shown.round(summary(), 0)
    shown.round(summary(), 1)
    text = file.getvalue()
    rows = [line for line in text.splitlines() if line.startswith(("base ", "0 ", "1 "))]
    assert [row.split()[0] for row in rows] == ["base", "0", "base", "0", "1"]  # all rounds so far, each time
    expected = "1 31.0 % [26.0, 36.0] +11.0 1,100 1203/456/12/1/0 9.5k/1.2M/46k 61/4/0/30/7"
    assert " ".join(rows[-1].split()) == expected
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert rows[-1] in (tmp_path / "run.log").read_text()


def test_the_score_at_each_turn_is_a_line_of_its_own(tmp_path: Path) -> None:
    shown, file = log_to(tmp_path, Clock())
    turns = {"accuracy@t1": 0.25, "accuracy@t1_low": 0.2, "accuracy@t1_high": 0.3, "accuracy@t2": 0.5}
    told = summary(base=figures(0.2) | turns)
    told["rounds"][0]["evaluation"] |= turns | {"accuracy@t2": 0.625}
    for number in (-1, 0, 1):
        shown.round(told, number)
    said = [line.split("INFO ")[1] for line in file.getvalue().splitlines() if "by turn" in line]
    assert said == [
        "base model: held-out accuracy by turn: 25.0 %, 50.0 %",
        "round 0: held-out accuracy by turn: 25.0 %, 62.5 %",
    ]


def test_a_round_without_evaluation(tmp_path: Path) -> None:
    shown, file = log_to(tmp_path, Clock())
    unfinished = summary()
    unfinished["rounds"][1]["evaluation"] = None
    shown.round(unfinished, 1)
    assert " ".join(file.getvalue().splitlines()[-1].split()).startswith("1 - - 1,100")


def test_end_of_a_run(tmp_path: Path) -> None:
    shown, file = log_to(tmp_path, Clock())
    shown.finish(summary(change={"accuracy": 0.11, "accuracy_low": 0.04, "accuracy_high": 0.18}))
    text = " ".join(file.getvalue().split())
    assert "base 20.0 % [15.0, 25.0] final 31.0 % [26.0, 36.0] change +11.0 points [+4.0, +18.0]" in text
    assert f"selfimprove eval {tmp_path}" in text
    shown.finish(summary(forecast="after round 0: 5, 6 spent"))
    assert "forecast after round 0: 5, 6 spent run folder" in " ".join(file.getvalue().split())
    shown.finish(summary(status="stopped", reason="SIGTERM", base=None, final=None, rounds=[]))
    text = " ".join(file.getvalue().split())
    assert "stopped (SIGTERM)" in text
    assert f"selfimprove resume {tmp_path}" in text


@pytest.mark.parametrize(("encoding", "corner"), [("utf-8", "╭"), ("ascii", "+")])
def test_terminal_without_unicode(tmp_path: Path, encoding: str, corner: str) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, width=120, force_terminal=True, legacy_windows=False)
    setup_logging(None, console)
    shown = Display(tmp_path, configuration(), console)
    with shown.phase(0, 2, "verify", 10, "answers") as phase:
        phase.advance(5)
    shown.round(summary(), 1)
    shown.finish(summary())
    file.flush()
    assert corner in raw.getvalue().decode(encoding)


def test_figures_of_an_evaluation(tmp_path: Path) -> None:
    file = io.StringIO()
    values = figures(0.5) | {"pass@8": 0.75, "pass@8_low": 0.7, "pass@8_high": 0.8, "trajectories": 100}
    Display(tmp_path, configuration()).evaluation(values, configuration(), "a [b]", Console(file=file, width=100))
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert lines[0] == "a [b] on d: 200 held-out problems"
    assert lines[2:] == ["accuracy 50.0 % [45.0, 55.0]", "pass@8 75.0 % [70.0, 80.0]"]


def test_other_libraries_are_kept_quiet_and_logging_is_set_up_once(tmp_path: Path) -> None:
    log_to(tmp_path, Clock())
    shown, file = log_to(tmp_path, Clock())
    shown.start(train=1000, heldout=200, passes=8)
    logging.getLogger("accelerate.launch").info("chatter")
    logging.getLogger("accelerate.launch").warning("something to know")
    text = file.getvalue()
    head = "method=sft model=tiny dataset=d seed=0 rounds=2 (8 passes): 1,000 training and 200 held-out problems, 4"
    assert text.count(head) == 1
    assert "chatter" not in text
    assert "something to know" in text
    assert len((tmp_path / "run.log").read_text().splitlines()) == 3


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_of_a_sample_costs_a_few_lines_and_the_rest_ten_times_a_second(tmp_path: Path, terminal: bool) -> None:
    clock = Clock()
    shown, _ = log_to(tmp_path, clock, force_terminal=terminal)
    with shown.phase(0, 2, "generate", 10_000, "problems") as phase:

        def advance() -> None:
            for _ in range(10_000):
                clock.now += 0.001
                phase.advance(1, tokens=10)

        work = lines(advance, display)
    assert work < 10_000 * 5 + 10 * 10 * 20


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1.0k"), (9960, "10k"), (999_600, "1.0M"), (2.5e9, "2.5G")]
)
def test_short(count: float, text: str) -> None:
    assert display.short(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (59.7, "1:00"), (3661, "1:01:01")])
def test_clock_time(seconds: float, text: str) -> None:
    assert display.clock_time(seconds) == text
