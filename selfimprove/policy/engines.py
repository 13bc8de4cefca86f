"""The engines that conf/engine/ offers. Each opens a model's weights; heavy imports wait until then."""

from __future__ import annotations

from collections.abc import Sequence

from selfimprove.config import Hardware, Model
from selfimprove.policy import Engine
from selfimprove.types import Count, Problem, Share


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


def vllm(
    path: str,
    model: Model,
    hardware: Hardware,
    problems: Sequence[Problem],
    *,
    memory: Share = 0.9,
    parallel: Count = 1,
    eager: bool = False,
) -> Engine:
    """vLLM in a process of its own, on GPUs or, for trials, on a CPU."""
    from selfimprove.policy.vllm import VllmEngine

    return VllmEngine(
        path,
        device=hardware.device,
        dtype=model.dtype,
        max_batch=hardware.max_batch,
        max_length=model.max_length,
        memory=memory,
        parallel=parallel,
        eager=eager,
        trust_remote_code=model.trust_remote_code,
    )


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
    """A policy of set probabilities that knows each problem's gold answer; loads no model."""
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


def categorical(path: str, model: Model, hardware: Hardware, problems: Sequence[Problem]) -> Engine:
    """A table of probabilities."""
    from selfimprove.policy.categorical import read
    from selfimprove.policy.draws import DrawsEngine

    return DrawsEngine(read, path)


def flow(path: str, model: Model, hardware: Hardware, problems: Sequence[Problem]) -> Engine:
    """A normalising flow over points of the plane."""
    from selfimprove.policy.draws import DrawsEngine
    from selfimprove.policy.flow import read

    return DrawsEngine(read, path)
