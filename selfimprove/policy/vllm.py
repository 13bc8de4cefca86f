"""The vLLM engine: one AsyncLLM, whose engine core is a process of its own, on a GPU or, for trials, on a CPU.

Requests go in as token ids, each with its own seed, and come back as ids with log-probabilities; prefixes are cached.
New weights are read into the living engine, behind an emptied prefix cache. An engine core that dies is started again
with the same weights, and only what it had not answered is asked again.

The engine starts with the first request, inside the event loop that asks. `load` takes effect before the next one.

Not supported: beam search.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Request, chat, models, require_fit, require_room
from selfimprove.types import Message, Sample

log = logging.getLogger("selfimprove")

STARTS = 3  # of the engine core without a single answer in between, after which something is wrong with it
CPU_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # GiB; else a core stays idle


class VllmEngine:
    """Implements selfimprove.policy.Engine with vLLM.

    `path` is a model folder, an adapter folder or a hub id; `max_batch` the sequences in flight; `max_length` the
    window in tokens; `memory` the share of a GPU's memory to take, `parallel` the GPUs to spread the model over. Raises
    ConfigError when vLLM is not installed.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str,
        dtype: str,
        max_batch: int,
        max_length: int,
        memory: float = 0.9,
        parallel: int = 1,
        eager: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        try:
            import vllm  # noqa: F401
        except ImportError:
            raise ConfigError(
                "engine=vllm: vLLM is not installed: pip install 'selfimprove[vllm]', or engine=transformers", "engine"
            ) from None
        self.base = models.adapter_base(path) if models.is_adapter(path) else path
        self.tokenizer: Any = models.load_tokenizer(path, trust_remote_code=trust_remote_code)
        self.max_length = max_length
        self.trust_remote_code = trust_remote_code
        self._dtype, self._cpu = dtype, device == "cpu"
        self._options = {
            "dtype": dtype,
            "max_model_len": max_length,
            "max_num_seqs": max_batch,
            "enable_prefix_caching": True,
            "trust_remote_code": trust_remote_code,
            "enforce_eager": eager,
            "use_tqdm_on_load": False,
            "worker_extension_cls": "selfimprove.policy.vllm_worker.Extension",
            "logprobs_mode": "raw_logprobs",  # of the policy itself, whatever is sampled at
        }
        if self._cpu:
            for name, value in CPU_SETTINGS.items():
                os.environ.setdefault(name, value)
            # A seeded request whose prompt is read in chunks fails on CPU (vLLM 0.31).
            self._options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_length, 4096)}
        else:
            self._options |= {"gpu_memory_utilization": memory, "tensor_parallel_size": parallel}
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._llm: Any = None
        self._wanted = path  # the weights that the next request is to be answered with
        self._loaded = ""
        self._merged = tempfile.TemporaryDirectory(prefix="selfimprove-merged-")
        self._change = asyncio.Lock()  # one start, or one change of weights, at a time
        self._number = itertools.count()
        self._starts = 0  # since the last answer

    # What a policy calls

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Token ids of a prompt, as `selfimprove.policy.chat.render` says."""
        return chat.render(self.tokenizer, prompt)

    async def sample(self, request: Request) -> Sample:
        """One completion. Raises ValueError for a request that does not fit the window, RunError when vLLM does not
        stay up."""
        require_room(request, self.max_length)
        output = await self._ask(
            request.prompt_ids,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            seed=request.seed % 2**63,
            stop=list(request.stop),
            include_stop_str_in_output=True,
            detokenize=bool(request.stop),
            logprobs=0,
        )
        answer = output.outputs[0]
        ids = list(answer.token_ids)
        ended = ids[-1] in self._ends
        return Sample(
            prompt_ids=list(request.prompt_ids),
            completion_ids=ids,
            logprobs=[float(position[token].logprob) for token, position in zip(ids, answer.logprobs, strict=True)],
            text=chat.text(self.tokenizer, ids[:-1] if ended else ids),
            finish="stop" if answer.finish_reason == "stop" else "length",
            seed=request.seed,
            temperature=request.temperature,
        )

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Teacher-forced log pi of each completion token, in nats at temperature 1. Raises ValueError when too long."""
        if not completion_ids:
            return []
        require_fit(prompt_ids, completion_ids, self.max_length)
        # vLLM answers no request without sampling a token: what is scored leaves out the last one, which is then the
        # only one that it may sample, where the window is full.
        ids = (*prompt_ids, *completion_ids)
        full = len(ids) == self.max_length
        output = await self._ask(
            ids[:-1] if full else ids,
            max_tokens=1,
            temperature=1.0,
            prompt_logprobs=0,
            detokenize=False,
            **({"allowed_token_ids": [ids[-1]], "logprobs": 0} if full else {}),
        )
        scores = [position[token].logprob for token, position in zip(ids[1:], output.prompt_logprobs[1:], strict=False)]
        if full:
            scores.append(output.outputs[0].logprobs[0][ids[-1]].logprob)
        return list(map(float, scores[len(prompt_ids) - 1 :]))

    def turn(self, text: str, ended: bool) -> list[int]:
        return chat.turn(self.tokenizer, text, ended)

    def encode(self, text: str) -> list[int]:
        return chat.encode(self.tokenizer, text)

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        raise RunError("engine=vllm has no beam search: use engine=transformers")

    def load(self, path: str) -> None:
        """Take the weights of a checkpoint folder, or of an adapter folder merged into this engine's base, before the
        next request. Raises RuntimeError while requests are in flight, ConfigError for an adapter of another base."""
        if self._llm is not None and self._llm.output_processor.has_unfinished_requests():
            raise RuntimeError("the weights cannot change while requests are in flight")
        self._wanted = path

    def close(self) -> None:
        """End the engine core and free its memory."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
            gc.collect()  # or vLLM complains at the interpreter's end, when it takes itself apart
        self._merged.cleanup()

    # The engine behind it

    async def _ask(self, ids: Sequence[int], **settings: Any) -> Any:
        """vLLM's output for these prompt ids, asked again where its engine core died meanwhile."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **settings)
        while True:
            llm = await self._ready()
            try:
                async for output in llm.generate({"prompt_token_ids": list(ids)}, params, str(next(self._number))):
                    self._starts = 0
                    return output
                raise EngineDeadError
            except EngineDeadError:
                async with self._change:
                    if self._llm is llm:  # the first to notice
                        log.warning("vLLM's engine core died: it is started again, and asked what it had not answered")
                        llm.shutdown()
                        self._llm = None

    async def _ready(self) -> Any:
        """The engine, started, with the weights that are wanted."""
        if self._llm is not None and self._loaded == self._wanted:
            return self._llm
        async with self._change:
            if self._llm is None:
                await self._start()
            elif self._loaded != self._wanted:
                await self._take()
        return self._llm

    async def _start(self) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._starts += 1
        if self._starts > STARTS:
            raise RunError(f"vLLM's engine core died {STARTS} times without an answer: see its messages above")
        folder = self._whole(self._wanted)
        try:
            args = AsyncEngineArgs(model=folder, disable_log_stats=True, **self._options)
            self._llm = AsyncLLM.from_engine_args(args)
        except (RuntimeError, ValueError, OSError) as problem:
            reason = str(problem).strip().splitlines()[0]
            raise RunError(f"engine=vllm did not start for model {self._wanted}: {reason}") from problem
        self._loaded = self._wanted
        self._ends = frozenset(_end_tokens(self.tokenizer, folder))

    async def _take(self) -> None:
        folder = str(Path(self._whole(self._wanted)).resolve())
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        await self._llm.collective_rpc("take_weights", args=(folder,))
        await self._llm.reset_prefix_cache()
        await self._llm.resume_generation()
        self._loaded = self._wanted

    def _whole(self, path: str) -> str:
        """A folder with whole weights: an adapter's are merged into those of its base."""
        if not models.is_adapter(path):
            return path
        merged: Any = models.load_model(
            path, self.base, dtype=self._dtype, device="cpu", trust_remote_code=self.trust_remote_code
        )
        merged.save_pretrained(self._merged.name)
        self.tokenizer.save_pretrained(self._merged.name)
        return self._merged.name


def _end_tokens(tokenizer: Any, folder: str) -> set[int]:
    """Every id that vLLM ends a completion at: the tokenizer's end token, and those of the generation config."""
    from transformers import GenerationConfig

    try:
        more = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # a model without one
        more = None
    return {tokenizer.eos_token_id, *(more if isinstance(more, list) else [] if more is None else [more])}
