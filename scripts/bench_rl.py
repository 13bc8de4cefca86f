"""The benchmarks of reinforcement learning of scripts/bench.py: GRPO on the shipped model, float32, on a CPU."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench_round import Clock
from children import python, selfimprove

from selfimprove import config as configuration
from selfimprove import store
from selfimprove.binding import Target, bind
from selfimprove.schema import Config
from selfimprove.types import Example, Problem, Trajectory

STEPS = 5  # optimizer steps; the first warms up
PROBLEMS, SAMPLES, MICRO, RATE = 16, 8, 32, 1e-6  # a step's; at such a rate lengths of answers stay as they are


class StepClock(Clock):
    """A tracker that writes down when each optimizer step was done."""

    def step(self, number: int, record: Mapping[str, float]) -> None:
        self.times.append(time.perf_counter())
        store.write_json(self.path, self.times)

    def round(self, number: int, metrics: Mapping[str, Any]) -> None:
        pass


def clock(node: Target, run_dir: Path, config: Config) -> StepClock:
    return StepClock(run_dir / "clock.json")


def rl_step_vs_parts(repeats: int = 3) -> dict[str, Any]:
    """Seconds of a GRPO step through the runner over its parts done by hand: the same problems sampled by the same
    engine from the policy of that step, the answers checked, and one step of TRL's loss on the same rows with a model
    and an optimizer that stay in memory. Nothing is saved or handed over by hand. The ratio of medians."""
    return _compare(repeats, "parts")


def rl_vs_trl(repeats: int = 3) -> dict[str, Any]:
    """Seconds of a GRPO step through the runner over one of TRL's own GRPOTrainer, which samples by transformers'
    generate: the same model, prompts, answers a prompt, longest answer and rows of a device step. The ratio of
    medians."""
    return _compare(repeats, "by_trl")


def _compare(repeats: int, other: str) -> dict[str, Any]:
    ours: list[float] = []
    theirs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(repeats):
            path = Path(name) / f"run{repeat}"
            selfimprove(
                path,
                *("method=grpo", "rounds=1", f"method.parts={STEPS}", f"dataset.train_size={STEPS * PROBLEMS}"),
                *(f"method.generate.n={SAMPLES}", f"method.train.batch_size={PROBLEMS * SAMPLES}"),
                *(f"method.train.learning_rate={RATE}", f"hardware.micro_batch={MICRO}", "dataset.heldout_size=4"),
                *("method.keep=null", f"seed={repeat}", "tracker=none", "tracker._target_=bench_rl.clock"),
            )
            times = store.read_json(path / "clock.json")
            ours.append((times[-1] - times[0]) / (len(times) - 1))
            theirs.append(json.loads(python("bench_rl", other, str(path))))
    seconds = [found["seconds"] for found in theirs]
    return {
        "value": statistics.median(ours) / statistics.median(seconds),
        "step_seconds": ours,
        f"{other}_seconds": seconds,
        f"{other}": theirs,
    }


def _passes(path: Path) -> list[Path]:
    return sorted(found for found in (path / "rounds").iterdir() if (found / "examples.parquet").exists())


def _sampled(path: Path) -> float:
    """Tokens that a step of the run sampled, the first one left out."""
    rows = [e for folder in _passes(path)[1:] for e in store.read_records(folder / "examples.parquet", Example)]
    return sum(len(e.completion_ids) for e in rows) / (STEPS - 1)


def parts(folder: str) -> None:
    """Print the mean seconds of each part of a step of a run, done by hand."""
    from selfimprove.policy import Policy
    from selfimprove.policy.models import resolve
    from selfimprove.session import open_engine

    path = Path(folder)
    config = configuration.read(path / "config.yaml")
    by_id = {p.id: p for p in store.read_records(path / "problems.parquet", Problem)}
    check = bind(config.dataset.verifier, "verifier")
    start = resolve(config.model.name, config.model.path)
    engine = open_engine(config, start, ())
    step = _loss_step(start, config)
    seconds: dict[str, list[float]] = {"sample": [], "verify": [], "train": []}

    def timed(name: str, work: Callable[..., Any], *given: Any) -> Any:
        begun = time.perf_counter()
        found = work(*given)
        seconds[name].append(time.perf_counter() - begun)
        return found

    async def answers(number: int, asked: list[Problem]) -> Any:
        policy = Policy(engine, config.seed, max_tokens=config.model.max_tokens, scope=(number,))
        return await asyncio.gather(*(policy.for_problem(p).sample(p.prompt, SAMPLES, temperature=1.0) for p in asked))

    def checked(asked: list[Problem], found: Any) -> Any:
        return [[check(s.text, p.gold, p.metadata) for s in ss] for p, ss in zip(asked, found, strict=True)]

    with asyncio.Runner() as loop:
        for number, one in enumerate(_passes(path)):
            names = [t.problem_id for t in store.read_records(one / "trajectories.parquet", Trajectory)]
            problems = [by_id[name] for name in dict.fromkeys(names)]
            rows = list(store.read_records(one / "examples.parquet", Example))
            found = timed("sample", lambda number, asked: loop.run(answers(number, asked)), number, problems)
            timed("verify", checked, problems, found)
            timed("train", step, rows)
            engine.load(str(one / "policy"))
    means = {name: statistics.mean(values[1:]) for name, values in seconds.items()}
    print(json.dumps({"seconds": sum(means.values()), **means, "run_tokens": _sampled(path)}))


def _loss_step(start: str, config: Config) -> Callable[[list[Example]], None]:
    """One optimizer step of TRL's GRPO loss on rows as they are, with its KL term to the model at the start."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    args = _arguments(tempfile.mkdtemp(), config)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda **columns: [],
        args=GRPOConfig(**args),
        train_dataset=Dataset.from_list([{"prompt": "?"}] * PROBLEMS),
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    trainer.current_gradient_accumulation_steps = args["gradient_accumulation_steps"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)

    def padded(rows: list[list[float]], left: bool, dtype: Any) -> Any:
        width = max(map(len, rows))
        return torch.tensor(
            [[0] * (width - len(r)) + r if left else r + [0] * (width - len(r)) for r in rows], dtype=dtype
        )

    def step(rows: list[Example]) -> None:
        model.train()
        for i in range(0, len(rows), MICRO):
            part = rows[i : i + MICRO]
            prompts, answers = [r.prompt_ids for r in part], [r.completion_ids for r in part]
            batch = {
                "prompt_ids": padded(prompts, True, torch.long),
                "prompt_mask": padded([[1] * len(p) for p in prompts], True, torch.long),
                "completion_ids": padded(answers, False, torch.long),
                "completion_mask": padded([[1] * len(a) for a in answers], False, torch.long),
                "advantages": torch.tensor([(r.advantages or [0.0])[0] for r in part]),
                "num_items_in_batch": torch.tensor(sum(len(r.completion_ids) for r in rows)),
            }
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            with torch.no_grad():
                batch["ref_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
                    trainer.ref_model, ids, mask, batch["completion_ids"].size(1)
                )[0]
            trainer._compute_loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _arguments(folder: str, config: Config) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": PROBLEMS * SAMPLES // MICRO,
        "num_generations": SAMPLES,
        "max_completion_length": config.model.max_tokens,
        "temperature": 1.0,
        "beta": config.stages[""].train["beta"],  # type: ignore[index]
        "loss_type": "grpo",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_steps": STEPS,
        "shuffle_dataset": False,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "report_to": [],
        "save_strategy": "no",
    }


def by_trl(folder: str) -> None:
    """Print the mean seconds of a step of TRL's GRPOTrainer on the prompts of a run, and the tokens that it sampled."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from selfimprove.policy.models import resolve

    path = Path(folder)
    config = configuration.read(path / "config.yaml")
    problems = [p for p in store.read_records(path / "problems.parquet", Problem) if p.split == "train"]
    by_name = {p.id: p for p in problems}
    check = bind(config.dataset.verifier, "verifier")
    times, tokens = list[float](), list[int]()

    def rewards(completions: Any, completion_ids: Any, name: list[str], **columns: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        asked = zip(completions, (by_name[one] for one in name), strict=True)
        return [check(said[0]["content"], p.gold, p.metadata).reward for said, p in asked]

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=resolve(config.model.name, config.model.path),
            reward_funcs=rewards,
            args=GRPOConfig(**_arguments(out, config), model_init_kwargs={"dtype": "float32"}),
            train_dataset=Dataset.from_list([{"prompt": p.prompt, "name": p.id} for p in problems]),
            callbacks=[Steps()],
        )
        trainer.train()
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    found = {"seconds": seconds, "tokens": statistics.mean(tokens[1:]), "run_tokens": _sampled(path)}
    print(json.dumps(found))
