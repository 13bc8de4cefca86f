"""How much memory a run will need, from the shape of its model and its configuration: a rough estimate, in bytes.

The figures are per GPU, or per machine without one. `estimate` says what the sampler and the trainer hold, by part.
`warning` says what does not fit, and what would. No model is loaded. A model's files are read only if conf/model does
not have its shape.

Notation of the formulas: P parameters, L layers, h hidden size, i intermediate size, q = heads x head size,
k = key-value heads x head size, V vocabulary, e bytes of a number in `model.dtype`, T tokens of a device step.

Four things are not modelled: fragmentation beyond the fixed overheads; mixtures of experts (all experts count as if
each token used them); windows of sliding attention (the cache is an upper bound); models that are not decoders with
gated MLPs.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from selfimprove.binding import Target, asks_for, function, module_of, options_of
from selfimprove.policy.models import local, quiet_hub, resolve
from selfimprove.policy.vllm import CPU_CACHE
from selfimprove.schema import Config, Model, Shape
from selfimprove.train import BATCH_SIZE

GB = 1e9

# Overheads that no formula gives, in bytes.
SAMPLER = 2.0e9  # vLLM on a GPU: CUDA context, compiled graphs, one batch of prompts being read
SAMPLER_CPU = 1.0e9  # vLLM on a CPU: its process
SLEEPING = 2.5e9  # a sleeping vLLM: CUDA context, cuBLAS, pools of graphs, buffers outside of its own allocator
MOVED = 0.6e9  # a model that has left the device: its process keeps the CUDA context
TRAINER = 1.5e9  # CUDA context, workspaces, fragments
PROCESS = 0.65e9  # Python with torch, transformers and TRL, without a GPU
PREFILL = 8192  # tokens of one forward pass without sampling (PREFILL_TOKENS in policy/hf_reader.py)
PREFIXES = 2**28  # of the transformers engine (KEPT_BYTES in policy/slots.py)

# TRL 1.16's fused head scores tiles of so many tokens by so much vocabulary (trl/kernels/chunked_logprob.py)
TILE = (4096, 32768)

ADAM = 8  # bytes a trained parameter: two float32 moments (arXiv 1910.02054, section 3.1)


@dataclass(frozen=True)
class Estimate:
    """Bytes by part, for one GPU or, without one, for the machine."""

    sampler: dict[str, float]
    trainer: dict[str, float]  # {} where nothing is trained
    second: dict[str, float]  # models that a verifier opens, such as a judge; {} if it opens none
    room: float | None  # memory of the GPU or machine; None: not known
    share: float  # of the room that the sampler may take
    together: bool  # whether sampler and trainer hold their memory at the same time
    asked: bool  # whether sampler and second models do, because solvers ask these as they go
    row: int  # tokens of a training row
    sequences: int | None  # full-length sequences that the sampler's cache holds; None: it grows as needed

    @property
    def peak(self) -> float:
        sampler, trainer, second = (sum(part.values()) for part in (self.sampler, self.trainer, self.second))
        if self.together:
            return sampler + trainer + second
        return max(sampler + second, trainer) if self.asked else max(sampler, trainer, second)

    @property
    def fits(self) -> bool:
        """Whether all of it fits. True if the room is not known."""
        if self.room is None:
            return True
        return self.peak <= self.room and sum(self.sampler.values()) <= self.share * self.room * (1 + 1e-9)


def estimate(config: Config, row: int | None = None) -> Estimate | None:
    """What a run needs. None if the model's shape is not known, or the policy is not a language model.

    A device step is assumed to have `row` tokens a row. The default is 2 x `model.max_tokens` (a completion at its
    limit behind a prompt of the same length), and at most the model's window.
    """
    if not {"weights", "logprobs"} <= set(config.engine["gives"]):  # no language model, or one without weights
        return None
    shape = shape_of(config.model)
    if shape is None:
        return None
    hardware = config.hardware
    gpu = hardware.device == "cuda"
    room = GB * hardware.memory_gb if hardware.memory_gb else None if gpu else machine_memory()
    row = min(row or 2 * config.model.max_tokens, config.model.max_length)
    engine = engine_of(config)
    share = float(engine["memory"]) if gpu and engine["name"] == "vllm" else 1.0
    sampler, sequences = _sampler(config, shape, room, share, row)
    trainer, second = _trainer(config, shape, row), _second(config, row)
    sleeps = gpu and hardware.sleep and bool(sampler)
    asked = bool(second) and any(
        asks_for(s.generate) & {"judge", "scorers"} for s in config.stages.values() if s.generate
    )
    if sleeps:
        asleep = SLEEPING if engine["name"] == "vllm" else MOVED
        if trainer:
            trainer["sleeping sampler"] = asleep
        if trainer and second:
            trainer["context of the second model"] = MOVED
        if second and not asked:
            second["sleeping sampler"] = asleep
    return Estimate(sampler, trainer, second, room, share, not sleeps, asked, row, sequences)


def engine_of(config: Config) -> Target:
    """The engine that holds the model. Of engine=ray it is the one that each actor has."""
    inner: Target | None = config.engine.get("inner")
    return inner or config.engine


def shape_of(model: Model) -> Shape | None:
    """The model's shape, from conf/model or else from config.json in its folder or on the hub. None: neither has it."""
    if model.shape is not None or model.path == "package":
        return model.shape
    return _shape_in(resolve(model.name, model.path))


@functools.cache
def _shape_in(path: str) -> Shape | None:
    from transformers import AutoConfig

    quiet_hub()
    try:
        return read_shape(AutoConfig.from_pretrained(path))
    except (OSError, ValueError):  # not there, or a kind of model that transformers does not know
        return None


def read_shape(found: Any) -> Shape | None:
    """The shape in a transformers configuration. Parameters are counted on a model without weights.

    None for a model that is not a decoder with a gated MLP.
    """
    import torch
    from transformers import AutoModelForCausalLM

    text = found.get_text_config()
    try:
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(found).num_parameters()  # type: ignore[no-untyped-call]
        heads = text.num_attention_heads
        return Shape(
            parameters=parameters,
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
        )
    except (AttributeError, ValueError):
        return None


# The sampler


def kv_bytes(shape: Shape, dtype: str, parallel: int = 1) -> int:
    """Bytes of one token's keys and values: 2 L k e. The heads are spread over up to `parallel` GPUs."""
    return 2 * shape.layers * max(1, shape.kv_heads // parallel) * shape.head_size * _size(dtype)


def _sampler(
    config: Config, shape: Shape, room: float | None, share: float, row: int
) -> tuple[dict[str, float], int | None]:
    """The sampler's parts, and how many sequences of the whole window its cache holds."""
    engine, model, hardware = engine_of(config), config.model, config.hardware
    if engine["name"] == "openai":  # on other machines
        return {}, None
    parallel = int(engine.get("parallel", 1))
    weights = shape.parameters * _size(model.dtype) / parallel
    token = kv_bytes(shape, model.dtype, parallel)
    if engine["name"] == "transformers":  # a slot for each sequence in flight, as long as the longest of them
        overhead = PROCESS if hardware.device == "cpu" else TRAINER
        slots = hardware.max_batch * row * token + PREFIXES
        return {"weights": weights, "keys and values": slots, "overhead": overhead}, None
    # The sampler's logits, and what choosing a token makes of them, are float32: four copies of (sequences, V).
    overhead = 4 * 4 * hardware.max_batch * shape.vocabulary
    overhead += SAMPLER_CPU if hardware.device == "cpu" else SAMPLER
    window = token * model.max_length
    rest = share * (room or 0.0) - weights - overhead  # on a GPU it takes all of its share
    cache = CPU_CACHE * 2**30 if hardware.device == "cpu" else rest
    sequences = int(max(0.0, cache) // window)
    return {"weights": weights, "keys and values": max(cache, window), "overhead": overhead}, sequences


# A verifier's models


def _second(config: Config, row: int) -> dict[str, float]:
    """The parts of the models that verifiers open beside the sampler, for the stage whose models are the largest.

    Rows are read in batches of PREFILL tokens. Only a judge that writes has a slot for each of its answers.
    """
    found: list[dict[str, float]] = []
    for stage in config.stages.values():
        verifier = config.verifier_of(stage)
        opens = getattr(module_of(verifier), "opens", None)
        parts = dict.fromkeys(("weights", "keys and values", "overhead"), 0.0)
        for name in opens(**options_of(verifier)) if opens else ():
            shape = _shape_of_second(config, name)
            if shape is None:
                continue
            token = kv_bytes(shape, config.model.dtype)
            slots = config.hardware.max_batch * row if verifier.get("reason") else 0
            parts["weights"] += shape.parameters * _size(config.model.dtype)
            parts["keys and values"] += max(slots, PREFILL) * token
            parts["overhead"] = TRAINER if config.hardware.device == "cuda" else 0.0
        found.append(parts)
    most = max(found, key=lambda parts: sum(parts.values()))
    return {name: size for name, size in most.items() if size}


def _shape_of_second(config: Config, name: str) -> Shape | None:
    """The shape of a model that a verifier names. None: its files are not on this machine."""
    if name == "base":
        return shape_of(config.model)
    if name in config.roles:
        own = config.model_of(name)
        return shape_of(config.model if own.path == config.model.path else own)
    folder = local(resolve("", name))
    return _shape_in(str(folder)) if folder else None


# The trainer


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """A layer's matrices by name: (inputs, outputs)."""
    h, i = shape.hidden, shape.intermediate
    q, k = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    attention = {"q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h)}
    return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


def lora_parameters(shape: Shape, r: int, target_modules: str | list[str]) -> int:
    """r (inputs + outputs) for every matrix that has an adapter (arXiv 2106.09685, section 4.1)."""
    chosen = matrices(shape)
    names = chosen if isinstance(target_modules, str) else set(target_modules) & set(chosen)
    return shape.layers * sum(r * sum(chosen[name]) for name in names)


def _trainer(config: Config, shape: Shape, row: int) -> dict[str, float]:
    """The trainer's parts at the peak of a step: after the forward pass, with the optimizer's states.

    DPO's reference is scored before the first step, without gradients and states. That needs less, even if the
    reference is a second model.
    """
    node = config.train or config.method.train
    if node is None:
        return {}
    model, hardware = config.model, config.hardware
    training, gpu = config.training_of(), hardware.device == "cuda"
    whole = {"ddp": 1, "zero2": 1, "fsdp2": training.processes, "zero3": training.processes}[training.strategy]
    rest = 1 if training.strategy == "ddp" else training.processes
    e = _size(model.dtype)
    lora = model.lora

    trained = shape.parameters if lora is None else lora_parameters(shape, lora.r, lora.target_modules)
    parts: dict[str, float] = {}
    if lora is None:
        parts["weights"] = 4 * shape.parameters / whole  # float32 masters, whatever the dtype
        if e == 2 and training.strategy != "fsdp2":  # which casts what it gathers
            parts["bfloat16 copies"] = 2 * shape.parameters / whole  # autocast keeps each weight that it has cast
    else:
        parts["weights"] = (_frozen(shape, e, lora.quantize) + 4 * trained) / whole
    parts["gradients"] = 4 * trained / rest
    if training.strategy == "ddp" and training.processes > 1:
        parts["gradient buckets"] = 4 * trained  # DDP's, beside the gradients (gradient_as_bucket_view=False)
    parts["optimizer"] = ADAM * trained / rest
    if whole > 1:  # gathered: the layer at work, the next one, and the embeddings, which stay
        largest = sum(a * b for a, b in matrices(shape).values())
        parts["gathered"] = e * (2 * largest + 2 * shape.vocabulary * shape.hidden)
    # A loss that compares with a reference reads two completions a row, both in one step.
    completions = 2 if "beta" in inspect.signature(function(node, "train")).parameters or "beta" in node else 1
    rows = completions * max(1, min(hardware.micro_batch, node.get("batch_size", BATCH_SIZE) // training.processes))
    tokens = rows * row
    parts["activations"] = tokens * _activations(shape, e, lora is not None, hardware.gradient_checkpointing)
    parts["vocabulary"] = _head(shape, e, tokens, rows * min(row, model.max_tokens), gpu, lora is None)
    parts["overhead"] = TRAINER if gpu else PROCESS
    if not gpu:  # all processes are on one machine
        parts = {name: size * training.processes for name, size in parts.items()}
    return parts


def _frozen(shape: Shape, e: int, quantize: str | None) -> float:
    """Bytes of the frozen base: e P; with nf4 its matrices at 4 bits a weight and 0.127 for scales that are quantized
    too (arXiv 2305.14314, section 3), and embeddings and norms in float32 (peft's prepare_model_for_kbit_training)."""
    if quantize is None:
        return float(e * shape.parameters)
    inner = shape.layers * sum(a * b for a, b in matrices(shape).values())
    return inner * (4 + 0.127) / 8 + 4 * (shape.parameters - inner)


def _activations(shape: Shape, e: int, lora: bool, checkpointing: bool) -> float:
    """Bytes that the backward pass needs of one token.

    Counted as in arXiv 2205.05198, section 4.1, by what each operation keeps, for a layer of transformers' Llama with
    sdpa attention, which keeps no attention matrix. Of each token and layer: two norms, their input and normalised
    input (2 x 2 h, in float32); the inputs of the matrices (2 h, q, i in float32; 5 h, q, i in bfloat16, where autocast
    makes a copy for each matrix or adapter); queries, keys, values, spread over all heads, and
    the output of attention (4 q); the MLP's gate, its activation and the other factor (3 i). A frozen norm keeps its
    input alone. With checkpointing (section 5 there) the residual stream at each layer's start, and one layer at a
    time, with the gradients of its MLP.
    """
    h, i, q = shape.hidden, shape.intermediate, shape.heads * shape.head_size
    norms = 2 * h if lora else 4 * h
    inputs = (2 if e == 4 else 5) * h + q + i
    layer = 4 * norms + e * (inputs + 4 * q + 3 * i)
    if not checkpointing:
        return float(shape.layers * layer)
    stream = e if lora else 4
    return float(shape.layers * stream * h + layer + 3 * e * i)


def _head(shape: Shape, e: int, tokens: int, labelled: int, gpu: bool, trained: bool) -> float:
    """Bytes of scoring a step's tokens against the vocabulary, gradients among them.

    On a GPU TRL's fused head: one tile of scores, the float32 gradient of its inputs, and of its weights where they are
    trained. On a CPU train/trainers.py scores the completions alone, and three arrays of (tokens, V) are there at once.
    """
    if not gpu:
        return 3.0 * 4 * labelled * shape.vocabulary
    tile = min(tokens, TILE[0]) * min(shape.vocabulary, TILE[1]) * e
    return tile + 4.0 * tokens * shape.hidden + (4.0 * shape.vocabulary * shape.hidden if trained else 0.0)


def _size(dtype: str) -> int:
    return {"float32": 4, "bfloat16": 2}[dtype]


def machine_memory() -> float:
    """Bytes of memory of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def host_memory(config: Config) -> float:
    """Bytes of the machine's own memory that training on GPUs takes while it loads the policy.

    Every process reads all of it, without an adapter in float32, before it goes to the GPU or is split. 0 without a
    GPU, or if the model's shape is not known.
    """
    node, shape = config.train or config.method.train, shape_of(config.model)
    if config.hardware.device != "cuda" or node is None or shape is None:
        return 0.0
    each = (4 if config.model.lora is None else _size(config.model.dtype)) * shape.parameters
    other = node.get("reference") == "base" and config.model.lora is None  # a second model
    return config.hardware.training.processes * (PROCESS + each * (2 if other else 1))


# What to say of it


def warning(config: Config) -> str | None:
    """One line on what does not fit, with the overrides that would make it fit. None: it fits, or nobody knows."""
    found = estimate(config)
    if found is not None and found.fits and (host := host_memory(config)) > machine_memory():
        return (
            f"model={config.model.name} may not load: {config.hardware.training.processes} processes read it into "
            f"{host / GB:.0f} GB of this machine's memory, which is {machine_memory() / GB:.0f} GB; fewer processes or "
            "model.lora need less"
        )
    if found is None or found.fits or found.room is None:
        return None
    where = f"one GPU of hardware={config.hardware.name}" if config.hardware.device == "cuda" else "this machine"
    sampler, trainer, second = (sum(part.values()) / GB for part in (found.sampler, found.trainer, found.second))
    room = found.room / GB
    has = f"{where} has {room:.0f} GB"
    if found.share < 1 and sampler > found.share * room:
        needs = f"the sampler, with one sequence of {config.model.max_length} tokens, needs {sampler:.0f} GB"
        has += f", of which it takes {100 * found.share:.0f} %"
    elif found.together and (trainer or second):
        parts = {"sampler": sampler, "trainer": trainer, "the verifier's model": second}
        said = " and ".join(f"{name} ({size:.0f} GB)" for name, size in parts.items() if size)
        needs = f"{said} together need {found.peak / GB:.0f} GB"
    elif found.asked and sampler + second > trainer:
        both = f"sampler ({sampler:.0f} GB) and the verifier's model ({second:.0f} GB)"
        needs = f"{both} together need {found.peak / GB:.0f} GB"
    else:
        parts = {"sampler": sampler, "trainer": trainer, "verifier's model": second}
        needs = f"the {max(parts, key=lambda name: parts[name])} needs {found.peak / GB:.0f} GB"
    said = f"model={config.model.name} may not fit: {needs}, {has}"
    remedy = advice(config)
    return f"{said}; it would with {' '.join(remedy)}" if remedy else said


def advice(config: Config) -> list[str]:
    """The fewest overrides, one or two, with which the estimate fits; [] where it fits as it is, or with none."""
    found = estimate(config)
    if found is None or found.fits:
        return []
    options = list(_options(config))
    for chosen in itertools.chain(itertools.combinations(options, 1), itertools.combinations(options, 2)):
        changed = config
        for key, value, _ in chosen:
            changed = _changed(changed, key, value)
        other = estimate(changed)
        if other is not None and other.fits:
            return [word for _, _, word in chosen]
    return []


def _options(config: Config) -> Iterator[tuple[str, Any, str]]:
    """Keys to change, each with its value and its word on the command line. The cheapest change comes first."""
    hardware, model, engine = config.hardware, config.model, engine_of(config)
    if hardware.device == "cuda" and not hardware.sleep:
        yield "hardware.sleep", True, "hardware.sleep=true"
    prefix = "engine.inner" if "inner" in config.engine else "engine"
    if engine.get("memory", 1) < 0.9:
        yield f"{prefix}.memory", 0.9, f"{prefix}.memory=0.9"
    if engine.get("memory", 0) > 0.5:  # a second model is asked beside the sampler
        yield f"{prefix}.memory", 0.5, f"{prefix}.memory=0.5"
    if hardware.micro_batch > 4:
        yield "hardware.micro_batch", 4, "hardware.micro_batch=4"
    if not hardware.gradient_checkpointing:
        yield "hardware.gradient_checkpointing", True, "hardware.gradient_checkpointing=true"
    if hardware.micro_batch > 1:
        yield "hardware.micro_batch", 1, "hardware.micro_batch=1"
    if engine["name"] == "transformers" and hardware.max_batch > 32:
        yield "hardware.max_batch", 32, "hardware.max_batch=32"
    if hardware.training.processes > 1 and config.training_of().strategy != "fsdp2":
        yield "hardware.training.strategy", "fsdp2", "hardware.training.strategy=fsdp2"
    if model.dtype == "float32" and hardware.device == "cuda":
        yield "model.dtype", "bfloat16", "model.dtype=bfloat16"
    if model.lora is None:
        yield "model.lora", {"r": 16, "alpha": 32}, "model.lora='{r: 16, alpha: 32}'"
    elif model.lora.quantize is None and hardware.device == "cuda":
        yield "model.lora.quantize", "nf4", "model.lora.quantize=nf4"
    if hardware.gpus > engine.get("parallel", hardware.gpus):
        yield f"{prefix}.parallel", hardware.gpus, f"{prefix}.parallel={hardware.gpus}"
    if model.max_length > 1024:
        yield "model.max_length", 1024, "model.max_length=1024"


def _changed(config: Config, key: str, value: Any) -> Config:
    plain = config.model_dump(by_alias=True)
    *path, last = key.split(".")
    node = plain
    for name in path:
        node = node[name]
    node[last] = value
    return Config.model_validate(plain)
