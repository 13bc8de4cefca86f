"""The sections of a resolved configuration, with the type and range of every fixed key."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_serializer, field_validator
from pydantic_core import PydanticCustomError

from selfimprove.binding import Target
from selfimprove.errors import ConfigError
from selfimprove.types import Count, NonNegative, Seconds, Share

Slot = Literal["generate", "filter", "train"]
SLOTS: tuple[Slot, ...] = get_args(Slot)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


NAME = "must be the name of a folder: 1 to 200 bytes, without slashes"


def is_folder_name(value: object) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[^/\\\x00-\x1f\x7f]+", value):
        return False
    return value.strip(" .") != "" and len(value.encode(errors="replace")) <= 200


def _folder_name(value: str) -> str:
    if not is_folder_name(value):
        raise PydanticCustomError("name", NAME)
    return value


Name = Annotated[str, AfterValidator(_folder_name)]  # part of a run folder's name


class Lora(Section):
    r: Annotated[int, Field(ge=1, le=65_536)]
    alpha: Count
    dropout: Share = 0.0
    target_modules: str | list[str] = "all-linear"
    quantize: Literal["nf4"] | None = None  # hold the frozen base in 4 bits while training (QLoRA)


class LearningRates(Section):
    sft: Share
    dpo: Share
    step_dpo: Share | None = None  # DPO between single steps; None: as between whole answers
    policy_gradient: Share | None = None  # None: what the method says
    new_form: Share | None = None  # SFT on answers of a form not learnt yet: a check, turns; None: as other SFT


class Shape(Section):
    """What of a decoder's config.json decides how much memory it takes."""

    parameters: Count
    layers: Count
    hidden: Count
    intermediate: Count
    heads: Count
    kv_heads: Count
    head_size: Count
    vocabulary: Count


class Model(Section):
    name: Name
    path: str  # a hub id, a folder, or `package` for the model that is shipped
    max_length: Count  # tokens of prompt and completion together
    max_tokens: Count  # of one completion, unless a method says otherwise
    dtype: Literal["float32", "bfloat16"]
    lora: Lora | None
    learning_rate: LearningRates  # by kind of loss: what suits this model
    trust_remote_code: bool
    shape: Shape | None = None  # for the estimate of memory; None: it is read where the model is


class Training(Section):
    """How a training phase runs on the hardware. It changes what is learned by rounding only."""

    processes: Count = 1  # one a GPU, on one machine
    strategy: Literal["auto", "ddp", "fsdp2", "zero2", "zero3"] = "ddp"  # how several processes share the model
    own_process: bool = False  # a separate process even if processes is 1, so that its memory is free afterwards
    checkpoint_steps: Count | None = None  # optimizer steps between checkpoints: what a kill in training can lose
    checkpoint_minutes: Annotated[float, Field(gt=0)] | None = None  # the same by time
    packing: bool = False  # a device step's rows end to end in one sequence, without padding
    liger: bool = False  # Liger's kernels


class Hardware(Section):
    name: str
    device: Literal["cpu", "cuda"]
    gpus: Annotated[int, Field(ge=0)] = 0  # of one machine
    memory_gb: Annotated[float, Field(gt=0)] | None = None  # of one GPU; None: without a GPU, this machine's memory
    max_batch: Count  # completions in flight
    micro_batch: Count  # training rows a device step
    gradient_checkpointing: bool
    shard: Count  # problems whose trajectories are written together; a kill loses at most these
    sleep: bool = False  # the sampler frees the GPU's memory while the policy is trained on the same GPU
    price_per_hour: Annotated[float, Field(gt=0)] | None = None  # of the whole machine, in a currency of yours
    training: Training = Training()


class Dataset(BaseModel):
    """The keys every data set has; the others are arguments of its loader."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Name
    target: str = Field(alias="_target_")
    gives: list[str]
    verifier: Target
    score: str = "accuracy"  # the unit of a held-out problem's score: a name in selfimprove.scores.UNITS
    sealed_size: Annotated[int, Field(ge=0)] = 0  # the last held-out problems, for `compare --sealed` alone


class Role(Section):
    """A policy besides the one that is evaluated. It has its own weights."""

    model: Model | None = None  # None: the run's
    kind: Literal["causal", "sequence", "token", "own"] = "causal"
    # causal, own: the run's kind of engine samples from it. sequence, token: a reward model of answers or of tokens,
    # which a verifier opens by its folder.


class Stage(Section):
    """A part of a round: generate → verify → filter → train by one learner. A method of one stage is this itself.

    In `method.stages` a key that is not given is the method's own, and the keys of a slot are merged into the method's.
    """

    role: str | None = "policy"  # who learns; None: nobody, e.g. in a stage that makes problems or fills a memory
    by: str | None = None  # whose samples these are; None: the learner's
    of: str | None = None  # learn from the attempts of that stage of this round, instead of generating
    when: Literal["every", "first", "last"] = "every"  # the rounds that have this stage
    parts: Count = 1  # passes, each over a part of the problems; a pass samples from the policy of the pass before
    start: str = "last"  # training starts from this policy: last, base, or the last one of the stage of this name
    sampler: Literal["last", "base"] = "last"  # the policy that generates
    keep: Count | None = None  # k: every k-th pass's trained policy stays on disk; None: all of them
    problems: Target | None = None  # which problems a pass uses; None: its part of the training problems
    probe: Target | None = None  # a solver that runs on the dev problems when a pass begins
    adapt: Target | None = None  # other options for this pass's slots, from the probe or from earlier figures
    generate: Target | None = None
    verifier: Target | None = None  # in place of the data set's own, for training
    make: Target | None = None  # new problems, from verified attempts
    filter: Target | None = None  # None, like `train`, if no weights change
    remember: Target | None = None  # what the next passes know besides weights
    train: Target | None = None


class Method(Stage):
    name: Name
    title: str
    paper: str
    kind: str
    summary: str
    needs: list[str]
    brings: dict[str, str] = {}  # choices of groups, and keys, that the method is made for: `overrides.brought`
    roles: dict[str, Role] = {}
    stages: dict[str, Stage] = {}  # in order; none: the method itself is the only one
    tools: dict[str, Target] = {}  # what solvers may call, opened once a session
    evaluate: Target | None = None  # a solver for held-out problems; None: one greedy answer, and eval.samples
    baseline: Target | None = None  # what `selfimprove eval` compares the solver with; None: plain samples
    answer: Target | None = None  # which of a problem's candidates is its answer; None: the first
    figures: Target | None = None  # figures from all rounds' scores that are not means over problems

    @field_serializer("stages")
    def _as_given(self, stages: dict[str, Stage]) -> dict[str, Any]:
        """Only the keys that were given: the others are the method's own."""
        return {name: stage.model_dump(exclude_unset=True) for name, stage in stages.items()}


class Consistency(Section):
    samples: Annotated[int, Field(ge=2)] = 16  # per held-out problem, whose answers are compared
    temperature: NonNegative = 0.7
    layers: bool = False  # also what each layer would answer
    heads: list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]] = []
    """[layer, head], from 0: also what the model would answer with no other attention head in that layer."""


class Evaluation(Section):
    samples: Annotated[int, Field(ge=0, le=1_000_000)]  # per held-out problem, beside the greedy one
    by: str | None = None  # a key of held-out problems' metadata, for figures of each of its values
    temperature: NonNegative
    max_tokens: Count | None
    consistency: Consistency | None = None
    drift: Annotated[int, Field(ge=2)] | None = None  # held-out problems on which KL from the base policy is estimated
    also: Dataset | None = None  # a second data set, on whose held-out problems forgetting is measured
    side: Literal["heldout", "dev"] = "heldout"  # dev: for choices, so that held-out problems stay unseen

    @property
    def called(self) -> str:
        """What the evaluated problems are called."""
        return "dev" if self.side == "dev" else "held-out"

    @field_validator("also", mode="before")
    @classmethod
    def _chosen(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise PydanticCustomError("choice", "is a choice of the group: dataset@eval.also={name}", {"name": value})
        return value


class Verification(Section):
    workers: Annotated[int, Field(ge=1, le=1024)] | None  # None: as many as there are cores
    seconds: Seconds  # a check that takes longer ends as `timeout`
    memory_mb: Annotated[int, Field(ge=128)]  # less than a worker itself needs would make an `error` of every check
    stop_above: Share  # share of `timeout` and `error` verdicts that stops a run
    drop_gold_above: Share  # share of gold answers failing their own verifier that stops a run
    drop_long_above: Share = 0.1  # share of prompts that do not fit the model's window that stops a run
    outcomes: dict[Literal["wrong", "unparseable", "timeout", "error"], Literal["keep", "drop"] | float]


class Overlap(Section):
    action: Literal["drop", "report", "refuse"]
    ngram: Count  # words
    share: Share


class Handover(Section):
    """After training, sampler and trainer must agree on the log-probabilities of a few answers."""

    answers: Count = 4
    tolerance: Annotated[float, Field(gt=0)] | None = None  # mean nats a token; None: what rounding in the dtype allows


class Budget(Section):
    """What a run may spend: it stops at the end of the round in which one is reached. None: no limit."""

    sampled_tokens: Count | None = None  # for learning: generation, probes and judges, not the evaluation
    seconds: Annotated[float, Field(gt=0)] | None = None  # of all phases, evaluations too
    rounds: Count | None = None  # stop after so many, while training follows the schedule of the config's `rounds`
    cost: Annotated[float, Field(gt=0)] | None = None  # of those seconds, at hardware.price_per_hour


class Config(Section):
    """A whole run, resolved."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    control: Literal["shuffled_verdicts"] | None
    group: str | None
    method: Method
    model: Model
    dataset: Dataset
    hardware: Hardware
    engine: Target
    tracker: Target
    generate: Target | None = None
    verifier: Target | None = None
    filter: Target | None = None
    train: Target | None = None
    eval: Evaluation
    budget: Budget = Budget()
    handover: Handover = Handover()
    verify: Verification
    overlap: Overlap
    rates: dict[str, Share] = {}  # learning rate of each method, as `selfimprove tune` chose it; see conf/rates

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """The stages of a round in order, each with all its keys; "" is the stage of a method that is one."""
        chosen = {name: getattr(self, name) for name in (*SLOTS, "verifier") if getattr(self, name)}
        own = {name: getattr(self.method, name) for name in Stage.model_fields} | chosen
        if not self.method.stages:
            return {"": Stage(**own)}
        found = {}
        for name, stage in self.method.stages.items():
            values = dict(own)
            for key in stage.model_fields_set:
                values[key] = merged(values[key], getattr(stage, key))
            found[name] = Stage(**values)
        return found

    @property
    def roles(self) -> dict[str, Role]:
        """Role -> policy of the method. `policy` is the one that is evaluated."""
        return {"policy": Role(), **self.method.roles}

    def model_of(self, role: str) -> Model:
        return self.roles[role].model or self.model

    def training_of(self, role: str = "policy") -> Training:
        """How a role is trained. `auto` is ddp for an adapter, whose gradients are small, and else fsdp2."""
        how = self.hardware.training
        if how.strategy != "auto":
            return how
        shared = "ddp" if how.processes == 1 or self.model_of(role).lora else "fsdp2"
        return how.model_copy(update={"strategy": shared})

    @property
    def solver(self) -> Target:
        """What `selfimprove eval method=NAME` evaluates: the chosen solver, else the method's own way to answer.

        Raises ConfigError for a method that has none.
        """
        found = self.generate or self.method.evaluate or self.method.generate
        if found is None:
            raise ConfigError(f"method={self.method.name} has no solver of its own: give generate=...", "generate")
        return found

    def verifier_of(self, stage: Stage) -> Target:
        """The verifier of a stage's attempts."""
        return stage.verifier or self.dataset.verifier

    @property
    def training_verifier(self) -> Target:
        """The verifier of a method of one stage."""
        return self.verifier or self.method.verifier or self.dataset.verifier


def merged(own: Any, given: Any) -> Any:
    """A stage's value over the method's: mappings key by key, unless the stage names another function."""
    if not isinstance(own, dict) or not isinstance(given, dict):
        return given
    if given.get("_target_", own.get("_target_")) != own.get("_target_"):
        return given
    return own | {key: merged(own.get(key), value) for key, value in given.items()}
