"""Tree search with the trees of all problems together, against one problem at a time with one `generate` call a step.

    python scripts/bench_mcts.py                            # the shipped model, transformers
    python scripts/bench_mcts.py experiment=smollm2_openbookqa engine=vllm engine.eager=true   # or any other setting

The second is how the released code of MCTS-DPO searches (github.com/YuxiXie/MCTS-DPO, search_config.py): for each
problem in turn, for each candidate step, one call of the model's own `generate` at batch size 1, a forward pass for its
log-probabilities, and for each opinion a `generate` of four tokens. A lean form of it, also measured, reads the
log-probabilities off the first call and asks each opinion by one forward pass. All run the same search on the same
weights with the same budget, the method's own. With another engine than transformers a third runs on that engine
itself: one problem at a time, one request at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.policy import Engine, Meter, Policy, Request
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import resolve
from selfimprove.session import open_engine
from selfimprove.types import Problem, Sample, Trajectory
from selfimprove.verify import Outcome

Result = dict[str, Any]


class OneByOne(TransformersEngine):
    """Answers each request by itself: no batch, and no cache from one to the next."""

    lean = False

    async def sample(self, request: Request) -> Sample:
        import torch

        torch.manual_seed(request.seed % 2**63)
        ids = torch.tensor([request.prompt_ids])
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=request.temperature > 0,
                temperature=request.temperature or None,
                top_k=0,
                max_new_tokens=request.max_tokens,
                eos_token_id=sorted(self.eos | self._watch(request.stop)),  # all that can end a step: cheapest
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        sampled = out.sequences[0, len(request.prompt_ids) :]
        tokens = sampled.tolist()
        if self.lean:
            logprobs = torch.cat(out.logits).float().log_softmax(-1).gather(1, sampled[:, None])[:, 0].tolist()
        else:
            logprobs = self._forward(request.prompt_ids, tokens)
        self.stats.sampled_tokens += len(tokens)
        ended = tokens[-1] in self.eos
        stopped = ended or (bool(request.stop) and tokens[-1] in self._watch(request.stop))
        return Sample(
            prompt_ids=list(request.prompt_ids),
            completion_ids=tokens,
            logprobs=logprobs,
            text=self._text(tokens[:-1] if ended else tokens),
            finish="stop" if stopped else "length",
            seed=request.seed,
            temperature=request.temperature,
        )

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        import torch

        if self.lean:
            return self._forward(prompt_ids, completion_ids)
        ids = torch.tensor([prompt_ids])
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=4,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        first: float = out.logits[0][0].float().log_softmax(-1)[completion_ids[0]].item()
        return [first]

    def _forward(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        import torch

        with torch.inference_mode():
            logits = self.model(torch.tensor([[*prompt_ids, *completion_ids]]), use_cache=False).logits[0]
        rows = logits[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
        scores: list[float] = rows.gather(1, torch.tensor(completion_ids)[:, None])[:, 0].tolist()
        return scores


class OneRequest:
    """Hands an engine one request at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.max_length, self.lock = engine, engine.max_length, asyncio.Lock()

    def render(self, prompt: Any) -> list[int]:
        return self.engine.render(prompt)

    async def sample(self, request: Request) -> Sample:
        async with self.lock:
            return await self.engine.sample(request)

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        async with self.lock:
            return await self.engine.logprobs(prompt_ids, completion_ids)


def bench_mcts(*overrides: str, problems: int = 256, alone: int = 20, repeats: int = 3) -> Result:
    """Trees a second with all problems together over those one problem at a time; the value is the ratio of medians.

    `overrides` choose model, engine and data; the shipped model on arithmetic without any. `alone` of the problems,
    evenly over their levels, are also searched one at a time.
    """
    import torch

    config = compose(["method=mcts_dpo", *overrides, f"dataset.train_size={problems}", "tracker=none"])
    solve = bind(config.method.generate, "method.generate")
    folder = resolve(config.model.name, config.model.path)
    loaded: list[Problem] = bind(config.dataset.model_dump(by_alias=True), "dataset")(seed=0)
    some = [problem for problem in loaded if problem.split == "train"]
    few = some[:alone]
    judged = bind(config.dataset.verifier, "dataset.verifier")
    together = open_engine(config, folder, tuple(some))
    sequential = OneByOne(folder, max_length=config.model.max_length)

    async def check(text: str, problem: Problem) -> Outcome:
        outcome: Outcome = judged(text, problem.gold, problem.metadata)
        return outcome

    meters = {name: Meter() for name in ("together", "alone")}

    async def tree(engine: Any, seed: int, problem: Problem, meter: str = "alone") -> list[Trajectory]:
        policy = Policy(engine, seed, max_tokens=config.model.max_tokens, meter=meters[meter]).for_problem(problem)
        trajectories: list[Trajectory] = await solve(problem, policy, check=check)
        return trajectories

    async def gathered(seed: int) -> None:
        await asyncio.gather(*(tree(together, seed, problem, "together") for problem in some))

    async def one_at_a_time(seed: int, engine: Any, lean: bool = False) -> None:
        sequential.lean = lean
        for problem in few:
            await tree(engine, seed, problem)

    arms: dict[str, tuple[int, Callable[[int], Coroutine[Any, Any, None]]]] = {
        "together": (len(some), gathered),
        "generate": (len(few), lambda seed: one_at_a_time(seed, sequential)),
        "lean": (len(few), lambda seed: one_at_a_time(seed, sequential, lean=True)),
    }
    own = config.engine["name"] == "transformers"
    if not own:
        arms["engine"] = (len(few), lambda seed: one_at_a_time(seed, OneRequest(together)))
    speeds: dict[str, list[float]] = {name: [] for name in arms}  # trees a second of wall time
    costs: dict[str, list[float]] = {name: [] for name in arms}  # seconds of this process' CPU time a tree
    with asyncio.Runner() as runner:
        for engine in (together, sequential):  # warm
            runner.run(tree(engine, 99, some[0]))
        for meter in meters.values():
            meter.take()
        for seed in range(repeats):
            for name, (count, work) in arms.items():
                start, cpu = time.perf_counter(), time.process_time()
                runner.run(work(seed))
                speeds[name].append(count / (time.perf_counter() - start))
                costs[name].append((time.process_time() - cpu) / count)
        together.close()
    sampled = {name: meter.take()["sampled"] for name, meter in meters.items()}
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    cost = {name: statistics.median(values) for name, values in costs.items()}
    on_cpu = {
        "cpu_time_ratio": cost["generate"] / cost["together"],  # where other work goes on, steadier than the value
        "cpu_time_ratio_over_lean": cost["lean"] / cost["together"],
        "cpu_seconds_per_tree": cost["together"],
    }
    return {
        "value": speed["together"] / speed["generate"],
        "value_over_lean": speed["together"] / speed["lean"],
        **({} if own else {"value_over_engine": speed["together"] / speed["engine"]}),
        **(on_cpu if own else {}),  # other engines work in processes of their own
        "trees_per_second": speed,
        "tokens_per_tree": sampled["together"] / repeats / len(some),
        "sequential_tokens_per_tree": sampled["alone"] / repeats / len(few) / (len(arms) - 1),
        "speeds": speeds,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--problems", type=int, default=256, help="trees that grow together")
    parser.add_argument("--alone", type=int, default=20, help="of these, those that are also searched one at a time")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    figures = bench_mcts(*args.overrides, problems=args.problems, alone=args.alone, repeats=args.repeats)
    for key, figure in figures.items():
        print(key, figure)


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
