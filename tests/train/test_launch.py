"""Training in processes of its own: one or several, what they leave, and how they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import train_parts
from small_rows import LORA, advantaged, rows, timeless, weights

from selfimprove import store
from selfimprove.errors import ConfigError, RunError, Stopped
from selfimprove.schema import Training
from selfimprove.train import TrainContext, checkpoint, launch, unfinished
from selfimprove.train.refit import categorical
from selfimprove.train.sft import sft
from selfimprove.types import Example
from tests.waiting import wait_for

Make = Callable[..., TrainContext]
Figures = list[dict[str, float]]
TRAIN = "train_parts.train"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tests themselves have, see conftest.py: the number of threads decides the last bit of a sum."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def own(context: Make, tmp_path: Path) -> Make:
    """Makes a context with a folder for unfinished work."""

    def make(out: str, **fields: Any) -> TrainContext:
        return context(out, parts=unfinished(tmp_path / f"{out}.parts", "key"), **fields)

    return make


def launched(
    data: list[Example], context: TrainContext, workers: launch.Workers | None = None, **options: Any
) -> dict[str, float]:
    assert context.parts
    path = context.parts.with_name("examples.parquet")
    store.write_records(path, data, Example)
    return launch.train({"_target_": TRAIN, **options}, path, context, workers)


@pytest.fixture
def workers() -> Iterator[launch.Workers]:
    staff = launch.Workers()
    yield staff
    staff.close()


def processes_of(folder: Path) -> list[int]:
    """The processes whose command line names something in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [pid for pid in found if pid != os.getpid()]


def difference(one: Path, other: Path) -> float:
    before, after = weights(one), weights(other)
    assert before.keys() == after.keys()
    return max((before[name].float() - after[name].float()).abs().max().item() for name in before)


def test_a_process_of_its_own_makes_the_same_policy_and_tells_each_step_as_it_is_done(own: Make, context: Make) -> None:
    data, here, there, early = rows(9), Figures(), Figures(), list[bool]()
    data[2].weight, data[4].mask = 0.25, [0] + [1] * (len(data[4].completion_ids) - 1)
    expected = train_parts.train(data, context("here", log=here.append), batch_size=4, epochs=40)
    target = own("there")

    def log(figures: dict[str, float]) -> None:
        early.append(not (target.parts / launch.RESULT).exists())  # type: ignore[operator]
        there.append(figures)

    result = launched(data, own("there", log=log), batch_size=4, epochs=40)
    assert store.file_digest(target.out) == store.file_digest(context("here").out)
    assert there == here
    assert early[0]
    assert timeless(result) == timeless(expected)


def test_an_error_in_the_process_is_one_line_here_and_its_output_is_kept(own: Make, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^training: ValueError: no such luck; what it printed is in .*train\.log$"):
        launched(rows(2), own("policy"), batch_size=2, fail="no such luck\nand more")
    assert "Traceback" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_a_mistake_that_the_process_finds_is_a_mistake_here(own: Make) -> None:
    with pytest.raises(ConfigError, match=r"^model\.dtype is float16: training takes float32 or bfloat16$"):
        launched(rows(2), own("policy", dtype="float16"), batch_size=2)


@pytest.mark.slow
def test_workers_stay_from_phase_to_phase_and_are_started_again_once(
    own: Make, workers: launch.Workers, tmp_path: Path
) -> None:
    def train(name: str, start: Path | None = None, **options: Any) -> int:
        more = {"start": str(start)} if start else {}
        launched(rows(4), own(name, **more), workers, batch_size=2, **options)
        assert workers.child
        return workers.child.pid

    first = train("first")
    shutil.rmtree(tmp_path / "first.parts")  # as a phase that is done leaves it
    assert train("second", tmp_path / "first") == first
    os.kill(first, signal.SIGKILL)  # between phases
    third = train("third", tmp_path / "first")
    assert third != first
    assert store.file_digest(tmp_path / "third") == store.file_digest(tmp_path / "second")
    with pytest.raises(RunError, match=r"^training: ValueError: no"):
        train("wrong", fail="no")
    assert not processes_of(tmp_path)
    with pytest.raises(RunError, match=r"ended by SIGKILL \(out of memory\?\)"):  # a new one, which nothing can help
        train("killed", die_at=1)


@pytest.mark.slow
def test_workers_of_two_processes_stay_and_do_what_one_does(
    own: Make, context: Make, workers: launch.Workers, tmp_path: Path
) -> None:
    data, how = advantaged(8), Training(processes=2)
    train_parts.train(data, context("one"), batch_size=4)
    train_parts.train(data, context("one again", start=str(tmp_path / "one")), batch_size=4)
    launched(data, own("two", micro_batch=2, training=how), workers, batch_size=4)
    before = processes_of(tmp_path)
    shutil.rmtree(tmp_path / "two.parts")
    target = own("two again", start=str(tmp_path / "two"), micro_batch=2, training=how)
    launched(data, target, workers, batch_size=4)
    assert processes_of(tmp_path) == before
    assert difference(tmp_path / "one again", target.out) < 4e-6
    os.kill(max(before), signal.SIGKILL)  # one of the two
    target = own("two later", start=str(tmp_path / "two"), micro_batch=2, training=how)
    launched(data, target, workers, batch_size=4)
    assert difference(tmp_path / "one again", target.out) < 4e-6


@pytest.mark.slow
def test_two_processes_do_what_one_does(own: Make, context: Make) -> None:
    """By DDP. The last step has one row, which only one of the processes has."""
    data, one, two = rows(9), Figures(), Figures()
    data[3].weight = 0.25
    train_parts.train(data, context("one", log=one.append), batch_size=8)
    target = own("two", log=two.append, micro_batch=2, training=Training(processes=2))
    launched(data, target, batch_size=8)
    assert difference(context("one").out, target.out) < 2e-6
    for mine, other in zip(one, two, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_an_interruption_ends_the_process(own: Make, tmp_path: Path) -> None:
    def stop(figures: dict[str, float]) -> None:
        assert processes_of(tmp_path)
        raise Stopped("SIGTERM")

    with pytest.raises(Stopped):
        launched(rows(4), own("policy", log=stop), batch_size=2, epochs=10_000)
    assert not processes_of(tmp_path)


@pytest.mark.slow
def test_processes_end_with_a_run_that_is_killed(own: Make, tmp_path: Path) -> None:
    def kill(figures: dict[str, float]) -> None:
        (tmp_path / "seen").write_text(str(len(processes_of(tmp_path))))
        os.kill(os.getpid(), signal.SIGKILL)

    if (pid := os.fork()) == 0:
        try:
            launched(rows(4), own("policy", log=kill, training=Training(processes=2)), batch_size=2, epochs=10_000)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "seen").read_text() == "3"  # the launcher and its two
    wait_for(lambda: not processes_of(tmp_path))


@pytest.mark.parametrize(
    ("fields", "running"),
    [
        (
            {"training": Training(processes=2, strategy="zero3")},
            "2 processes on cpu by zero3 in float32, and runs as 1 ",
        ),
        ({"device": "cuda"}, "1 process on cuda in float32, and runs as 1 process on cpu in float32"),
    ],
)
def test_what_does_not_run_as_asked_is_refused_at_the_start(
    context: Make, fields: dict[str, Any], running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfimprove.train.require", lambda *arguments: None)  # deepspeed need not be here
    target = context(**fields)
    with pytest.raises(RunError, match=f"was to run as {running}"):
        sft(rows(4), target, batch_size=4, learning_rate=1e-3)
    assert not target.out.exists()


@pytest.mark.parametrize(
    ("lora", "training", "said"),
    [
        (
            LORA | {"quantize": "nf4"},
            Training(),
            r"model\.lora\.quantize=nf4 needs bitsandbytes, .*selfimprove\[qlora\]",
        ),
        (None, Training(liger=True), r"hardware\.training\.liger=true needs liger_kernel, .*selfimprove\[liger\]"),
        (None, Training(processes=2, strategy="zero2"), r"strategy=zero2 needs deepspeed, .*selfimprove\[deepspeed\]"),
    ],
)
def test_what_is_not_installed_is_said_before_a_model_loads(
    context: Make, lora: Any, training: Training, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "liger_kernel", "deepspeed"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=said):
        sft(rows(2), context(start="nowhere", lora=lora, training=training), batch_size=2, learning_rate=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])
def test_the_launcher_understands_its_configuration(
    own: Make, tmp_path: Path, strategy: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import launch as accelerate
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    target = own("policy", dtype=dtype, device="cuda", training=Training(processes=8, strategy=strategy))
    deepspeed = tmp_path / "deepspeed.json"
    store.write_json(deepspeed, launch.deepspeed_config(target))
    store.write_json(tmp_path / "accelerate.json", launch.accelerate_config(target, deepspeed))
    seen = list[Any]()
    starts = "deepspeed_launcher" if strategy.startswith("zero") else "multi_gpu_launcher"
    monkeypatch.setattr(accelerate, starts, seen.append)  # which would start the processes
    options = ["--config_file", str(tmp_path / "accelerate.json"), "--module", "selfimprove.train.worker", "job"]
    accelerate.launch_command(accelerate.launch_command_parser().parse_args(options))
    (arguments,) = seen
    assert arguments.num_processes == 8
    if strategy.startswith("zero"):
        environment = prepare_deepspeed_cmd_env(arguments)[1]
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(deepspeed)
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
        assert store.read_json(deepspeed)["zero_optimization"]["stage"] == int(strategy[-1])
    else:
        environment = prepare_multi_gpu_env(arguments)
        assert environment["ACCELERATE_MIXED_PRECISION"] == ("bf16" if dtype == "bfloat16" else "no")
        assert environment.get("ACCELERATE_USE_FSDP") == ("true" if strategy == "fsdp2" else None)
        if strategy == "fsdp2":
            assert environment["FSDP_VERSION"] == "2"
            assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_tables_are_trained_by_one_process(context: Make) -> None:
    with pytest.raises(ConfigError, match="processes=2: this policy is trained by one process"):
        categorical([Example("p", [], [], [0])], context(training=Training(processes=2)))


# What takes longer


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_strategies_do_what_one_process_does(
    own: Make, context: Make, strategy: Any, pairs: bool, lora: dict[str, Any] | None
) -> None:
    """The last step has five rows, which two processes cannot share evenly."""
    data, one, two = rows(13, pairs=pairs), Figures(), Figures()
    asked = [([5, 6, 7], [8, 9])]
    train_parts.train(data, context("one", log=one.append, lora=lora, probe=asked), batch_size=8)
    how = Training(processes=2, strategy=strategy)
    target = own("two", log=two.append, lora=lora, micro_batch=2, training=how, probe=asked)
    launched(data, target, batch_size=8, on_cpu=strategy == "fsdp2")
    for when in ("before", "after"):
        said, expected = (store.read_json(out / "handover.json")[when][0] for out in (target.out, context("one").out))
        assert said == pytest.approx(expected, rel=1e-5)
    assert difference(context("one").out, target.out) < 2e-6
    assert [record["loss"] for record in one] == pytest.approx([record["loss"] for record in two], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA])
def test_policy_gradients_of_two_processes_are_those_of_one(
    own: Make, context: Make, lora: dict[str, Any] | None
) -> None:
    """By DDP, with a KL term and a clipped ratio. The last step has one row, which one of the processes has."""
    data, one, two = advantaged(9), Figures(), Figures()
    train_parts.train(data, context("one", log=one.append, lora=lora), batch_size=4, epochs=2)
    target = own("two", log=two.append, lora=lora, micro_batch=2, training=Training(processes=2))
    launched(data, target, batch_size=4, epochs=2)
    assert difference(context("one").out, target.out) < 2e-6
    assert len(one) == len(two) == 5
    assert [record["loss"] for record in one] == pytest.approx([record["loss"] for record in two], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_strategies_in_bfloat16_stay_near_one_process_in_float32(
    own: Make, context: Make, strategy: Any, pairs: bool, lora: dict[str, Any] | None
) -> None:
    """Completions of 100 tokens, some -600 nats: sums that are rounded to bfloat16 would be multiples of 4.

    Alone in bfloat16 one process is up to 0.014 of a loss and 0.02 of a margin (beta times nats) from float32.
    """
    data, one, two = rows(12, pairs=pairs), Figures(), Figures()
    for example in data:
        for ids in filter(None, (example.completion_ids, example.rejected_ids)):
            ids *= 1 + 100 // len(ids)
            del ids[100:]
    train_parts.train(data, context("one", log=one.append, lora=lora), batch_size=4)
    how = Training(processes=2, strategy=strategy)
    target = own("two", log=two.append, lora=lora, micro_batch=2, training=how, dtype="bfloat16")
    launched(data, target, batch_size=4, on_cpu=strategy == "fsdp2")
    apart = [abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)]
    assert max(apart) < 0.05
    if pairs:
        assert apart[0] < 1e-3  # the reference is the policy itself
        margins = [abs(a["rewards/margins"] - b["rewards/margins"]) for a, b in zip(one, two, strict=True)]
        assert max(margins) < 0.1  # beta is 0.1: a nat
        assert all(abs(b["logps/chosen"] - round(b["logps/chosen"])) > 1e-3 for b in two)  # means of four pairs


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_phase_of_two_processes_goes_on_after_a_kill(own: Make, strategy: Any) -> None:
    data, how, log = rows(41), Training(processes=2, strategy=strategy, checkpoint_steps=2), Figures()
    options: dict[str, Any] = {"batch_size": 8, "on_cpu": strategy == "fsdp2"}
    launched(data, own("alone", training=how), **options)
    with pytest.raises(RunError, match=r"process 0 ended by SIGKILL \(out of memory\?\)"):
        launched(data, own("killed", training=how), **options, die_at=3)
    target = own("killed", training=how, log=log.append)
    assert checkpoint(target.parts).name == "checkpoint-2"  # type: ignore[union-attr]
    launched(data, target, **options)
    assert [record["step"] for record in log] == [1, 2, 3, 4, 5, 6]
    assert store.file_digest(target.out) == store.file_digest(own("alone").out)


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_is_found_out(own: Make, tmp_path: Path) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one, and says nothing."""
    target = own("policy", training=Training(processes=2))
    assert target.parts
    store.write_records(tmp_path / "examples.parquet", rows(4), Example)
    node = {"_target_": TRAIN, "batch_size": 4}
    path = target.parts / "job.json"
    store.write_json(path, launch.job(node, tmp_path / "examples.parquet", target))
    command = "import sys, os; sys.argv += [str(os.getpid())]; from accelerate.commands.launch import main; main()"
    options = ["launch", "--cpu", "--num_processes", "2", "--module", "selfimprove.train.worker", path]
    where = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", command, *options[1:]], env=os.environ | where, capture_output=True)
    assert done.returncode
    said = store.read_json(target.parts / "error-0.json")["message"]
    assert "was to run as 2 processes on cpu by ddp in float32, and runs as 1 process on cpu in float32" in said


@pytest.mark.slow
def test_a_trainer_that_leaves_fsdp_out_is_found_out(own: Make) -> None:
    """On a CPU accelerate turns FSDP into DDP, and says nothing."""
    target = own("policy", training=Training(processes=2, strategy="fsdp2"))
    with pytest.raises(RunError, match="2 processes on cpu by fsdp2 in float32, and runs as 2 processes on cpu by ddp"):
        launched(rows(4), target, batch_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_of_four_bits_learns_as_one_of_all_bits(own: Make, context: Make, dtype: Any) -> None:
    """Needs bitsandbytes, whose CPU build does."""
    data, loss = rows(8), {}
    for quantize in (None, "nf4"):
        target = context(str(quantize), dtype=dtype, lora=LORA | {"quantize": quantize})
        loss[quantize] = sft(data, target, batch_size=4, learning_rate=1e-2, epochs=5)["loss"]
        assert {weight.dtype for weight in weights(target.out).values()} == {torch.float32}
    assert loss["nf4"] == pytest.approx(loss[None], rel=0.1)
    assert loss["nf4"] != loss[None]
