"""A training phase in separate processes. Their memory is free again when it ends, and several can share a phase.

A single process is started directly. Several are started by accelerate's launcher, in a process that runs this module:
`python -m selfimprove.train.launch JOB PARENT`. Launchers and trainers can ignore a setting silently. So each process
checks that training runs as the configuration says (`trainers.require_as_asked`).

Everything goes through the folder of unfinished work (`TrainContext.parts`): the job, step figures, the result, errors.
The processes' output is in train.log, beside that folder. `Workers` that stay for several phases write to the train.log
of their first phase.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from selfimprove import store
from selfimprove.binding import Target
from selfimprove.errors import ConfigError, RunError
from selfimprove.processes import die_with
from selfimprove.train import TrainContext, require
from selfimprove.train.worker import PATHS, RESULT, STEPS

JOB, ACCELERATE, DEEPSPEED = "job.json", "accelerate.json", "deepspeed.json"
KILLED = "killed"  # a file that says which of several processes was killed, and by what signal

log = logging.getLogger("selfimprove")


@dataclass
class Workers:
    """Processes that train. With `stay` they wait for the next phase's job when one is done.

    Between phases they hold the imports and the process group, but no weights. Each job starts from files.
    """

    stay: bool = True
    child: subprocess.Popen[bytes] | None = None
    setup: Any = None  # the settings they were started with
    jobs: int = 0  # how many jobs they have got
    log: Path = Path()
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="selfimprove-")))

    @property
    def next(self) -> Path:
        """The file that names the next job."""
        return self.folder / "next.json"

    def take(self, path: Path, context: TrainContext) -> bool:
        """Give the job in the file `path` to these processes, or start new ones. Returns whether they were running."""
        setup = [store.read_json(path.with_name(name)) for name in (ACCELERATE, DEEPSPEED)] + [context.device]
        there = self.child is not None and self.child.poll() is None and self.setup == setup
        if there:
            self.jobs += 1
            store.write_json(self.next, {"number": self.jobs, "job": str(path)})
        else:
            self.start(path, context, setup)
        return there

    def start(self, path: Path, context: TrainContext, setup: Any) -> None:
        self.end()
        self.next.unlink(missing_ok=True)
        self.setup, self.jobs, self.log = setup, 1, path.parent.parent / "train.log"
        module = "selfimprove.train.launch" if context.training.processes > 1 else "selfimprove.train.worker"
        with self.log.open("ab") as sink:
            self.child = subprocess.Popen(
                [sys.executable, "-m", module, path, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=_environment(context),
                start_new_session=True,  # Ctrl-C reaches the run only, which ends them
            )

    def wait(self, folder: Path, context: TrainContext) -> None:
        """Wait until the job in `folder` is done or its processes have ended. Each step reaches `context.log`."""
        assert self.child is not None
        done = [folder / RESULT, *(folder / f"done-{rank}" for rank in range(1, context.training.processes))]
        with (folder / STEPS).open(encoding="utf-8") as lines:
            while self.child.poll() is None and not (self.stay and all(path.exists() for path in done)):
                for record in _complete(lines):
                    context.log(record)
                time.sleep(0.05)
            for record in _complete(lines):
                context.log(record)

    def end(self) -> None:
        """End the processes: first by SIGTERM, so that the launcher ends its own, then by SIGKILL."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                pass
            finally:
                self.child.kill()
                self.child.wait()

    def close(self) -> None:
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)


def train(node: Target, rows: Path, context: TrainContext, workers: Workers | None = None) -> dict[str, float]:
    """Run a node's train function on the examples in the file `rows`, in separate processes. Returns its figures.

    The processes are `workers`, if there are some that stay. Else they end with the phase. If running workers were
    killed, they are started again once, and a phase with checkpoints goes on from the last one. Each step reaches
    `context.log` when it is done. Raises the ConfigError or RunError of a process, and RunError with one line for
    anything else that ends a process. The processes end with this one, and when it is interrupted.
    """
    require(context.lora, context.training, context.device)
    folder = context.parts
    assert folder is not None
    used = workers or Workers(stay=False)
    _prepare(folder, context)
    store.write_json(folder / JOB, job(node, rows, context) | {"next": str(used.next) if used.stay else None})
    try:
        there = used.take(folder / JOB, context)
        used.wait(folder, context)
        if there and not (folder / RESULT).exists() and not list(folder.glob("error-*.json")):
            log.warning("training: its processes were killed, and are started again")
            _prepare(folder, context)
            used.take(folder / JOB, context)
            used.wait(folder, context)
        assert used.child is not None
        if (used.child.poll() and not used.stay) or not (folder / RESULT).exists():
            raise _failure(folder, used.child.poll() or 0, used.log)
    except BaseException:
        used.end()
        raise
    finally:
        if workers is None:
            used.close()
    return store.read_json(folder / RESULT)  # type: ignore[no-any-return]


def _prepare(folder: Path, context: TrainContext) -> None:
    """Remove what an earlier try left, and write the launcher's files."""
    for leftover in (folder / RESULT, folder / KILLED, *folder.glob("error-*.json"), *folder.glob("done-*")):
        leftover.unlink(missing_ok=True)
    (folder / STEPS).write_text("")
    store.write_json(folder / ACCELERATE, accelerate_config(context, folder / DEEPSPEED))
    store.write_json(folder / DEEPSPEED, deepspeed_config(context))


def job(node: Target, rows: Path, context: TrainContext) -> dict[str, Any]:
    """What a worker needs, as JSON."""
    told = {field.name: getattr(context, field.name) for field in fields(context) if field.name not in ("log", "held")}
    told |= {key: told[key] and str(told[key]) for key in PATHS} | {"training": context.training.model_dump()}
    return {"node": node, "rows": str(rows), "context": told}


def accelerate_config(context: TrainContext, deepspeed: Path) -> dict[str, Any]:
    """The configuration file of `accelerate launch`. `deepspeed` is the path of DeepSpeed's configuration.

    It counts a CPU as a GPU, because without a GPU the launcher would start only one process.
    """
    strategy = context.training.strategy
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(strategy, "DEEPSPEED")
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "num_processes": context.training.processes,
        "num_machines": 1,
        "machine_rank": 0,
        "main_process_port": 0,  # a free one
        "use_cpu": False,
        "debug": False,
    }
    if kind == "DEEPSPEED":
        return config | {"deepspeed_config": {"deepspeed_config_file": str(deepspeed), "zero3_init_flag": False}}
    config["mixed_precision"] = "bf16" if context.dtype == "bfloat16" else "no"
    if kind == "FSDP":
        config["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",  # of checkpoints; the policy is saved whole
            "fsdp_cpu_ram_efficient_loading": False,  # every process reads the weights
        }
    return config


def deepspeed_config(context: TrainContext) -> dict[str, Any]:
    """DeepSpeed's configuration; `auto` takes a value from the Trainer's arguments."""
    stage = 3 if context.training.strategy == "zero3" else 2
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "bf16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def _environment(context: TrainContext) -> dict[str, str]:
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    environment = os.environ | {"PYTHONPATH": path}
    if context.device == "cpu":
        # The device has no number: accelerate would add the process's, and PyTorch cannot load a checkpoint to that.
        environment |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
        return environment
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys():
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # rows of all lengths leave few holes then
    if context.training.processes == 1:  # if it saw more GPUs, the Trainer would split its batches over all of them
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return environment


def _complete(lines: IO[str]) -> Iterator[dict[str, float]]:
    """The records that were added to a file of JSON lines, without one that is not written to its end."""
    while (where := lines.tell(), line := lines.readline())[1]:
        if not line.endswith("\n"):
            lines.seek(where)
            return
        yield json.loads(line)


def _failure(folder: Path, code: int, log: Path) -> Exception:
    """The error of the process that ended first. The others may have failed only because that one was missing."""
    errors = [store.read_json(path) for path in folder.glob("error-*.json")]
    if (folder / KILLED).exists():
        return RunError(f"training: {(folder / KILLED).read_text()}; what it printed is in {log}")
    if not errors:
        return RunError(f"training: its process ended {_died(code)}; what it printed is in {log}")
    first = min(errors, key=lambda error: error["time"])
    line = first["message"].strip().partition("\n")[0]
    if first["kind"] == "ConfigError":
        return ConfigError(line, first["key"])
    if first["kind"] == "RunError":
        return RunError(line)
    if first["kind"] == "OutOfMemoryError":
        return RunError(
            "training: the GPU's memory is full: a lower hardware.micro_batch, hardware.gradient_checkpointing=true or "
            f"model.lora need less ({line})"
        )
    return RunError(f"training: {first['kind']}: {line}; what it printed is in {log}")


def _died(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name
    return f"by {name} (out of memory?)" if name == "SIGKILL" else f"by {name}"


def main() -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    path, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    options = ["--config_file", str(path.with_name(ACCELERATE)), "--module", "selfimprove.train.worker"]
    arguments = launch_command_parser().parse_args([*options, str(path), str(os.getpid())])
    try:
        launch_command(arguments)
    except ChildFailedError as problem:
        for rank, failure in problem.failures.items():
            # The launcher ends the others by SIGTERM. The folder is gone where the first job was done long ago.
            if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM and path.parent.exists():
                (path.parent / KILLED).write_text(f"process {rank} ended {_died(failure.exitcode)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
