"""The vLLM engine: one AsyncLLM on GPUs or, for trials, on a CPU. Its engine cores are processes of their own.

A request is token ids and a seed. The answer is ids with log-probabilities. vLLM caches prefixes.

New weights are read into the running engine, and the prefix cache is emptied. An adapter is merged into its base before
that, or it goes along with each request. A sleeping engine holds no GPU memory. If an engine core dies, it is started
again with the same weights, and the requests that it had not answered are sent again.

The engine starts with the first request, inside the event loop of that request. `load` takes effect before the next
request.

Not supported: beam search.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import models
from selfimprove.policy.served import Answer, ServedEngine, absolute
from selfimprove.schema import Hardware, Lora, Model

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs

log = logging.getLogger("selfimprove")

Adapters = Literal["merge", "request"]
STARTS = 3  # after so many starts of the engine core without an answer in between, the run stops
RUNNER = "SELFIMPROVE_RUNNER"  # as in vllm_worker.py, which only workers import
BATCHED_TOKENS = 8192  # tokens of prompts and samples in one step on a GPU
CPU_CACHE = 2  # GiB of keys and values
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM takes for the largest rank of an adapter


def require() -> None:
    """Raises ConfigError if vLLM is not installed."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when it is imported
    try:
        import vllm  # noqa: F401
    except ImportError:
        raise ConfigError(
            "engine=vllm: vLLM is not installed: pip install 'selfimprove[vllm]', or engine=transformers", "engine"
        ) from None


def replicas_of(hardware: Hardware, parallel: int = 1, replicas: int | None = None) -> int:
    """How many engines share the requests: as many as the GPUs allow, and one on a CPU.

    Raises ConfigError if there are too few GPUs for them.
    """
    gpus = max(hardware.gpus, 1)
    if hardware.device == "cuda" and (replicas or 1) * parallel > gpus:
        key = "parallel" if parallel > gpus else "replicas"
        raise ConfigError(
            f"engine.{key}: {replicas or 1} x {parallel} GPUs are asked for, and hardware.gpus is {hardware.gpus}",
            "engine",
        )
    return replicas or (gpus // parallel if hardware.device == "cuda" else 1)


def engine_args(
    path: str,
    model: Model,
    hardware: Hardware,
    *,
    memory: float = 0.9,
    parallel: int = 1,
    replicas: int | None = None,
    eager: bool = False,
    adapters: Adapters = "merge",
) -> AsyncEngineArgs:
    """The arguments with which the engine for the weights in `path` starts. Starts nothing, and needs no GPU.

    Raises ConfigError if there are too few GPUs, or if adapters cannot go along with requests.
    """
    from vllm import AsyncEngineArgs

    options: dict[str, Any] = {}
    if hardware.device == "cpu":
        options |= {"block_size": 32}  # only whole blocks of a prefix are shared, and the default is 128 tokens
        options |= {"logits_processors": ["selfimprove.policy.vllm_draw:Draw"]}
    else:
        options |= {"gpu_memory_utilization": memory, "enable_sleep_mode": hardware.sleep}
        # AsyncLLM's default is 2048, which suits a server that has to answer at once.
        options |= {"max_num_batched_tokens": max(BATCHED_TOKENS, hardware.max_batch)}
    if adapters == "request" and model.lora:
        options |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": _rank(model.lora),
            "lora_target_modules": _targets(path, model.lora, model.trust_remote_code),
        }
    return AsyncEngineArgs(
        model=path,
        dtype=model.dtype,
        max_model_len=model.max_length,
        max_num_seqs=hardware.max_batch,
        tensor_parallel_size=parallel,
        data_parallel_size=replicas_of(hardware, parallel, replicas),
        enable_prefix_caching=True,
        trust_remote_code=model.trust_remote_code,
        enforce_eager=eager,
        use_tqdm_on_load=False,
        worker_extension_cls="selfimprove.policy.vllm_worker.Extension",
        logprobs_mode="raw_logprobs",  # those of the policy itself, whatever the temperature
        disable_log_stats=True,
        **options,
    )


@contextmanager
def cpu_settings(args: AsyncEngineArgs) -> Iterator[None]:
    """While an engine starts, set the variables that vLLM's CPU build reads, unless the user has set them.

    They are removed afterwards, since the next engine of this process may need other values.
    """
    # By default vLLM leaves one core idle. Engines that share the cores are faster if they are not bound to them.
    alone = args.tensor_parallel_size * args.data_parallel_size == 1
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0)))) if alone else "nobind"
    ours = {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE), "VLLM_CPU_OMP_THREADS_BIND": cores}
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def named() -> Iterator[None]:
    """While an engine starts, this process's id is in the environment, so that its workers can end with it."""
    os.environ[RUNNER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[RUNNER]


def _rank(lora: Lora) -> int:
    """The smallest of vLLM's ranks that is large enough for the adapter. Raises ConfigError if there is none."""
    if lora.r > RANKS[-1]:
        raise ConfigError(f"model.lora.r={lora.r}: vLLM takes at most {RANKS[-1]}; set engine.adapters=merge", "model")
    return min(rank for rank in RANKS if rank >= lora.r)


def _targets(path: str, lora: Lora, trust_remote_code: bool) -> list[str]:
    """The names of the layers that an adapter changes, as PEFT finds them in the model without its weights.

    By default vLLM makes room for an adapter in the output head too. Then its CPU build (0.31) cannot score prompts:
    the head's adapter expects one row a request, and scoring gives it one row a token.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise models.not_found(path, error) from error
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)  # type: ignore[no-untyped-call]
        head = model.get_output_embeddings()
        adapter = LoraConfig(r=1, target_modules=lora.target_modules, task_type="CAUSAL_LM")
        tuned: Any = get_peft_model(model, adapter)
    names = {name.rpartition(".")[2] for name in tuned.base_model.targeted_module_names}
    if tuned.base_model.model.get_output_embeddings() is not head:
        raise ConfigError(
            "engine.adapters=request: model.lora.target_modules has the output head in it, and with that vLLM cannot "
            "score prompts; leave it out, or set engine.adapters=merge",
            "engine",
        )
    return sorted(names)


def _require_fit(adapter: str, args: AsyncEngineArgs) -> None:
    """Raises ConfigError for an adapter of a larger rank, or of other layers, than the engine has room for."""
    made = json.loads((Path(adapter) / "adapter_config.json").read_text())
    rank, names = made["r"], set(made["target_modules"])
    if rank > args.max_lora_rank or not names <= set(args.lora_target_modules):
        raise ConfigError(
            f"adapter {adapter}: rank {rank} in {', '.join(sorted(names))} is not what model.lora makes room for; "
            "set model.lora to the adapter's, or engine.adapters=merge",
            "model",
        )


class VllmEngine(ServedEngine):
    """The engine (selfimprove.policy.Engine) that runs a model with vLLM.

    `path` is a model folder, an adapter folder or a hub id. The options are those of `engine_args`. Raises ConfigError
    as `engine_args` does, and if vLLM is not installed.
    """

    name = "vllm"

    def __init__(self, path: str, model: Model, hardware: Hardware, **options: Any) -> None:
        require()
        super().__init__(path, model.max_length, model.trust_remote_code)
        self._model, self._sleeps = model, hardware.sleep
        self._args = engine_args(self.base, model, hardware, **options)
        self.merges = not self._args.enable_lora  # adapters are merged before they are loaded; a run does it once
        self._draws = bool(self._args.logits_processors)
        self._settings = cpu_settings if hardware.device == "cpu" else nullcontext
        self._llm: Any = None
        self._asleep = False
        self._adapter: Any = None  # the LoRARequest that goes along with each request
        self._versions = itertools.count(1)
        self._wanted = ""  # the policy that the next request needs
        self._current = ""  # the policy that the engine answers with now
        self._weights = ""  # the folder of the full weights that the engine holds
        self._merged = tempfile.TemporaryDirectory(prefix="selfimprove-merged-")
        self._change = asyncio.Lock()  # one start, one sleep or one change of weights at a time
        self._number = itertools.count()
        self._starts = 0  # since the last answer
        self.load(path)

    # What a policy calls

    def load(self, path: str) -> None:
        """Take the weights of a checkpoint or adapter folder before the next request.

        Raises RuntimeError while requests are in flight, and ConfigError for an adapter of another base. It also raises
        ConfigError for an adapter that goes along with requests and for which the engine has no room.
        """
        self._require_idle()
        if self._requested(path):
            models.check_base(path, self.base)
            _require_fit(path, self._args)
        self._wanted = path

    async def sleep(self) -> None:
        """Free the GPU's memory until the next request, which reads the weights again.

        Does nothing without hardware.sleep. Raises RuntimeError while requests are in flight.
        """
        self._require_idle()
        async with self._change:
            self._bury()  # it may have died since the last request
            if self._llm is not None and self._sleeps and not self._asleep:
                await self._llm.sleep(level=2)  # weights and cache are discarded, not copied to the host
                self._asleep, self._current, self._weights = True, "", ""

    def close(self) -> None:
        """End the engine core and free its memory."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
            gc.collect()  # else vLLM logs errors when the interpreter ends
        self._merged.cleanup()

    # The engine behind it

    async def _send(self, ids: Sequence[int], **settings: Any) -> Answer:
        """vLLM's answer. If its engine core dies meanwhile, the request is sent again."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._draws and settings.get("seed") is not None and settings["temperature"] > 0:
            from selfimprove.policy.vllm_draw import drawn

            settings = drawn(settings)
        params = SamplingParams(
            output_kind=RequestOutputKind.FINAL_ONLY, detokenize=bool(settings.get("stop")), **settings
        )
        prompt = {"prompt_token_ids": list(ids)}
        while True:
            try:
                llm = await self._ready()
                number = str(next(self._number))
                async for output in llm.generate(prompt, params, number, lora_request=self._adapter):
                    self._starts = 0
                    return _answer(ids, output)
                raise EngineDeadError
            except EngineDeadError:
                async with self._change:
                    self._bury()

    def _bury(self) -> None:
        """If the engine core is dead, drop it, so that the next request starts a new one."""
        if self._llm is not None and self._llm.errored:
            log.warning("vLLM's engine core died: it is started again, and its open requests are sent again")
            self._llm.shutdown()
            self._llm, self._asleep = None, False

    async def _ready(self) -> Any:
        """The engine, started and awake, with the wanted weights."""
        if self._llm is not None and self._current == self._wanted:
            return self._llm
        async with self._change:
            if self._llm is None:
                await self._start()
            elif self._current != self._wanted:
                await self._take()
        return self._llm

    async def _start(self) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        self._starts += 1
        if self._starts > STARTS:
            raise RunError(f"vLLM's engine core died {STARTS} times without an answer: see its messages above")
        folder = self._whole()
        try:
            with self._settings(self._args), named():
                self._llm = AsyncLLM.from_engine_args(dataclasses.replace(self._args, model=folder))
        except (RuntimeError, ValueError, OSError) as problem:
            reason = str(problem).strip().splitlines()[0]
            raise RunError(f"engine=vllm did not start for model {self._wanted}: {reason}") from problem
        self._settle(folder)

    async def _take(self) -> None:
        """Take the wanted policy. Its weights are read if the engine holds others, or dropped them in its sleep."""
        folder = self._whole()
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        if self._asleep:
            await self._llm.wake_up(tags=["weights"])
        if folder != self._weights or folder == self._merged.name:
            await self._llm.collective_rpc("take_weights", args=(absolute(folder),))
        if self._asleep:
            await self._llm.wake_up(tags=["kv_cache"])
        await self._llm.reset_prefix_cache()
        await self._llm.resume_generation()
        self._settle(folder)

    def _settle(self, folder: str) -> None:
        """Note that the engine holds the full weights of `folder` and answers with the wanted policy."""
        self._asleep, self._weights, self._current = False, folder, self._wanted
        self._adapter = None
        if self._requested(self._wanted):
            from vllm.lora.request import LoRARequest

            number = next(self._versions)  # a new id, since vLLM does not read an adapter again whose id it knows
            self._adapter = LoRARequest(f"version-{number}", number, absolute(self._wanted))

    def _requested(self, path: str) -> bool:
        """Whether `path` is an adapter that goes along with requests."""
        return not self.merges and models.is_adapter(path)

    def _whole(self) -> str:
        """The folder of the full weights that the wanted policy needs.

        An adapter that does not go along with requests is merged into the weights of its base.
        """
        path = self._wanted
        if not models.is_adapter(path):
            return path
        if self._requested(path):
            return self.base
        how: Any = {"dtype": self._model.dtype, "trust_remote_code": self._model.trust_remote_code}
        models.merge(path, self.base, self._merged.name, **how)
        return self._merged.name


def _answer(ids: Sequence[int], output: Any) -> Answer:
    """vLLM's RequestOutput for a prompt of these ids, as an Answer."""
    done, prompt = output.outputs[0], output.prompt_logprobs
    return Answer(
        list(done.token_ids),
        [float(p[token].logprob) for token, p in zip(done.token_ids, done.logprobs or [], strict=bool(done.logprobs))],
        [float(p[token].logprob) for token, p in zip(ids[1:], prompt[1:], strict=True)] if prompt else [],
        done.finish_reason == "stop",
    )
