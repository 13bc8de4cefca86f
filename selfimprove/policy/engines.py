"""The engines of conf/engine/. Each function opens a model's weights, and imports heavy packages only then.

An engine NAME may have `require_NAME(config, trains)`. It is called before a run writes anything, and raises
ConfigError for what this machine or a server lacks. `trains` says whether the policy will get new weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge

from selfimprove.binding import Target
from selfimprove.errors import ConfigError
from selfimprove.policy import Engine
from selfimprove.schema import Config, Hardware, Model
from selfimprove.types import Count, NonNegative, Problem, Share


def transformers(path: str, model: Model, hardware: Hardware, problems: Sequence[Problem]) -> Engine:
    """Hugging Face transformers with continuous batching, on CPU or one GPU."""
    from selfimprove.policy.hf import TransformersEngine

    return TransformersEngine(
        path,
        device=hardware.device,
        dtype=model.dtype,
        max_batch=hardware.max_batch,
        max_length=model.max_length,
        trust_remote_code=model.trust_remote_code,
    )


def require_transformers(config: Config, trains: bool) -> None:
    """Raises ConfigError if the config asks for a GPU and PyTorch finds none."""
    from selfimprove.policy.models import require_device

    require_device(config.hardware.device)


def vllm(
    path: str,
    model: Model,
    hardware: Hardware,
    problems: Sequence[Problem],
    *,
    memory: Share = 0.9,
    parallel: Count = 1,
    replicas: Count | None = None,
    eager: bool = False,
    adapters: Literal["merge", "request"] = "merge",
) -> Engine:
    """vLLM in separate processes, on GPUs or, for trials, on a CPU."""
    from selfimprove.policy.vllm import VllmEngine

    return VllmEngine(
        path,
        model,
        hardware,
        memory=memory,
        parallel=parallel,
        replicas=replicas,
        eager=eager,
        adapters=adapters,
    )


def require_vllm(config: Config, trains: bool) -> None:
    """Raises ConfigError if vLLM is not installed or there are too few GPUs."""
    from selfimprove.policy.vllm import replicas_of, require

    require()
    replicas_of(config.hardware, config.engine.get("parallel", 1), config.engine.get("replicas"))


def openai(
    path: str,
    policy: Model,
    hardware: Hardware,
    problems: Sequence[Problem],
    *,
    url: str,
    model: str | None = None,
    key_env: str | None = "OPENAI_API_KEY",
    concurrency: Count = 256,
    timeout: NonNegative = 600.0,
    retries: Annotated[int, Ge(0)] = 6,
) -> Engine:
    """A server with OpenAI's completions interface, such as `vllm serve`, usually on another machine."""
    from selfimprove.policy.openai import OpenAIEngine

    return OpenAIEngine(
        path,
        policy,
        url=url,
        name=model,
        key_env=key_env,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
    )


def require_openai(config: Config, trains: bool) -> None:
    """Raises ConfigError if the server cannot be used as configured, or lacks what the run needs."""
    from selfimprove.policy.openai import require

    node = config.engine
    require(config.model, trains, url=node["url"], name=node.get("model"), key_env=node.get("key_env"))


def ray(
    path: str,
    model: Model,
    hardware: Hardware,
    problems: Sequence[Problem],
    *,
    inner: Target,
    address: str | None = "auto",
    actors: Count | None = None,
    cpus: Count = 1,
) -> Engine:
    """Several actors on the machines of a Ray cluster, each with an engine `inner`."""
    from selfimprove.policy.ray import RayEngine

    return RayEngine(path, model, hardware, problems, inner=inner, address=address, actors=actors, cpus=cpus)


def require_ray(config: Config, trains: bool) -> None:
    """Raises ConfigError if Ray is not installed, or the cluster is not found or has no room."""
    from selfimprove.policy.ray import require

    require(config.engine, config.hardware)


def scripted(
    path: str,
    model: Model,
    hardware: Hardware,
    problems: Sequence[Problem],
    *,
    p_correct: Share = 0.5,
    p_improve: Share = 0.0,
    p_degrade: Share = 0.0,
    tpr: Share = 1.0,
    fpr: Share = 0.0,
    wrong_values: Count = 1,
) -> Engine:
    """A policy with set probabilities that knows each problem's gold answer. It loads no model."""
    from selfimprove.policy.scripted import ScriptedEngine

    gold = {p.prompt if isinstance(p.prompt, str) else p.prompt[-1]["content"]: p.gold or "" for p in problems}
    return ScriptedEngine(
        gold,
        p_correct,
        p_improve=p_improve,
        p_degrade=p_degrade,
        tpr=tpr,
        fpr=fpr,
        wrong_values=wrong_values,
        max_length=model.max_length,
    )


def mender(
    path: str,
    model: Model,
    hardware: Hardware,
    problems: Sequence[Problem],
    *,
    p: Share = 0.3,
    noise: NonNegative = 50.0,
    heeds: bool = True,
) -> Engine:
    """A policy with set probabilities that knows how each problem's bug is mended. It loads no model."""
    from selfimprove.policy.mender import Mender

    return Mender(problems, p, noise, heeds, model.max_length)


def require_mender(config: Config, trains: bool) -> None:
    """Raises ConfigError for a data set without bugs, and for a model, which the engine would not load."""
    if config.dataset.name not in ("swe_mini", "repositories"):
        what = f"mends the bugs of dataset=swe_mini and dataset=repositories, not {config.dataset.name}"
        raise ConfigError(f"engine=mender {what}", "engine")
    if config.model.name != "script":
        what = f"loads no model: model={config.model.name} needs another engine, e.g. engine=transformers"
        raise ConfigError(f"engine=mender {what}", "engine")


def templates(
    path: str, model: Model, hardware: Hardware, problems: Sequence[Problem], *, fault: Share = 0.3
) -> Engine:
    """A script that writes data-science pipelines by templates, and broken code with the probability `fault`. It loads
    no model."""
    from selfimprove.policy.templates import TemplatesEngine

    return TemplatesEngine(fault)


def categorical(path: str, model: Model, hardware: Hardware, problems: Sequence[Problem]) -> Engine:
    """A table of probabilities."""
    from selfimprove.policy.categorical import read
    from selfimprove.policy.draws import DrawsEngine

    return DrawsEngine(read, path)


def flow(path: str, model: Model, hardware: Hardware, problems: Sequence[Problem]) -> Engine:
    """A normalising flow over points in the plane."""
    from selfimprove.policy.draws import DrawsEngine
    from selfimprove.policy.flow import read

    return DrawsEngine(read, path)


def net(path: str, model: Model, hardware: Hardware, problems: Sequence[Problem]) -> Engine:
    """A torch module over arrays, of the class that the policy folder names."""
    from selfimprove.policy import nets
    from selfimprove.policy.draws import DrawsEngine

    return DrawsEngine(partial(nets.read, device=hardware.device), path)


def require_net(config: Config, trains: bool) -> None:
    """Raises ConfigError if the model's folder has no net."""
    from selfimprove.policy import models, nets

    nets.load(models.resolve(config.model.name, config.model.path))
