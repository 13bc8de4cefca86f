"""TRL's trainers with our row order and our log, and without figures that nobody reads.

This module is imported only when training starts.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import shutil
import time
import types
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import DistributedType
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather, pad_across_processes
from datasets import Dataset
from peft import PeftModel
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl.models.utils import prepare_deepspeed
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from selfimprove import store
from selfimprove.errors import RunError
from selfimprove.train import TrainContext, device_steps, schedules
from selfimprove.train.carry import steps_of
from selfimprove.train.checkpoints import SAVING, checkpoint, seal

LOGGED = (
    *("loss", "learning_rate", "grad_norm", "rewards/", "logps/", "entropy", "clip_ratio/region", "kl", "sampler_"),
    *("accuracy", "margin"),
)
# Under FSDP TRL reads the policy a second time as the reference, in every process, and it hashes all weights for a
# cache of what the reference says. `_precompute_ref_logps` below needs neither.
_patched: Any = dpo_trainer
_patched.create_model_from_path = lambda *arguments, **options: None
_patched.hash_module = lambda module: ""

SPENT = "seconds.json"  # in a checkpoint: how long training took until then


class Steps(TrainerCallback):
    """Follows a phase step by step.

    At the start it checks that training runs as asked. Each step's figures go to `log`. A loss that is no longer a
    number stops the phase. A phase that goes on from a checkpoint logs the steps before it again.
    """

    def __init__(self, trainer: _Planned) -> None:
        self.trainer = trainer
        self.saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        require_as_asked(self.trainer)
        if state.is_world_process_zero:
            if self.trainer.context.parts:
                shutil.rmtree(self.trainer.context.parts / SAVING, ignore_errors=True)  # what a kill cut short
            for logs in state.log_history:
                self._emit(logs["step"], state, logs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        how = self.trainer.context.training
        if self.trainer.context.parts and state.global_step < state.max_steps:
            due = how.checkpoint_steps is not None and state.global_step % how.checkpoint_steps == 0
            control.should_save = due or (how.checkpoint_minutes is not None and self._late(how.checkpoint_minutes))

    def _late(self, minutes: float) -> bool:
        """Whether it is time for a checkpoint, by the clock of any process, since all processes save together."""
        late = torch.tensor(float(time.monotonic() - self.saved > 60 * minutes), device=self.trainer.accelerator.device)
        return bool(self.trainer.accelerator.reduce(late, "sum") > 0)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        if "loss" not in logs or not state.is_world_process_zero:
            return  # the summary at the end
        if not math.isfinite(logs["loss"]):
            raise RunError(f"the loss is {logs['loss']} at step {state.global_step}: a lower learning_rate may help")
        self._emit(state.global_step, state, logs)

    def _emit(self, step: int, state: Any, logs: dict[str, float]) -> None:
        where = {"step": step, "progress": step / state.max_steps}
        self.trainer.context.log(where | {k: v for k, v in logs.items() if k.startswith(LOGGED)})


def require_as_asked(trainer: _Planned) -> None:
    """Raises RunError if training does not run as the configuration says.

    Without this, a launcher that starts one process and a Trainer that leaves a strategy out would pass unnoticed.
    """
    context, accelerator = trainer.context, trainer.accelerator
    wanted, found = context.training, trainer.model_wrapped
    shared = "" if wanted.processes == 1 else f" by {wanted.strategy}"
    asked = f"{_processes(wanted.processes)} on {context.device}{shared} in {context.dtype}"
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        shared = f" by zero{accelerator.deepspeed_plugin.zero_stage}"
    elif kind == DistributedType.FSDP:
        whole = sum(not isinstance(weight, DTensor) for weight in found.parameters())
        shared = f" by fsdp{accelerator.state.fsdp_plugin.fsdp_version}" + f" with {whole} whole weights" * bool(whole)
    elif isinstance(found, DistributedDataParallel):
        shared = " by ddp"
    else:
        shared = " by DataParallel" if isinstance(found, torch.nn.DataParallel) else ""
    dtype = {"no": "float32", "bf16": "bfloat16"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    running = f"{_processes(accelerator.num_processes)} on {accelerator.device.type}{shared} in {dtype}"
    if running != asked:
        raise RunError(f"training was to run as {asked}, and runs as {running} (hardware.training, model.dtype)")


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def score_labelled_positions(model: Any, entropy: bool = False) -> None:
    """On a CPU, replace the head that TRL puts on a model by one that only scores positions with a label.

    Without a GPU, TRL 1.16's fused head (`add_fused_lm_head` in trl/trainer/utils.py) multiplies every position by the
    whole vocabulary, twice, even those of prompt and padding. It also adds passes for entropy and accuracy. This head
    asks the model's own forward for the columns in which some row has a label. Fields that only feed metrics are zero,
    except the entropy (nats) if it is asked for. Models whose forward cannot choose columns keep TRL's head, and so do
    mixtures of experts (router loss).
    """
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    plain, fused = type(model).forward, model.forward
    if "logits_to_keep" not in inspect.signature(plain).parameters or hasattr(model.config, "output_router_logits"):
        return

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return fused(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        mask = labels != -100  # (rows, length - 1)
        columns = mask.any(dim=0).nonzero().squeeze(1)
        logits = plain(self, *args, logits_to_keep=columns, **kwargs).logits
        chosen = mask[:, columns]
        nll = F.cross_entropy(logits[chosen].float(), labels[:, columns][chosen], reduction="none")
        log_probs = nll.new_zeros(mask.shape).masked_scatter(mask, -nll)
        zeros = torch.zeros_like(log_probs)
        spread = zeros
        if entropy:
            with torch.no_grad():
                table = logits[chosen].float().log_softmax(-1)
                spread = zeros.masked_scatter(mask, -(table.exp() * table).sum(-1))
        return FusedCausalLMOutput(
            log_probs=log_probs, label_mask=mask, entropy=spread, mean_logits=zeros, is_top1=zeros.bool()
        )

    model.forward = types.MethodType(forward, model)


class _Planned(Trainer):
    """A trainer that takes rows in a planned order and logs to the context. It prints and sends nothing.

    A checkpoint is complete or not there. `blank` is the number of a row that counts for nothing.
    """

    def __init__(self, *, order: list[int], blank: int, context: TrainContext, **kwargs: Any) -> None:
        self.context = context
        args, processes = kwargs["args"], context.training.processes
        micro = args.per_device_train_batch_size
        batch_size = micro * args.gradient_accumulation_steps * processes
        self.device_steps = device_steps(order, batch_size, micro, processes, blank)
        last = checkpoint(context.parts)
        self.before = store.read_json(last / SPENT) if last else 0.0  # seconds, of processes that were killed
        super().__init__(callbacks=[Steps(self)], **kwargs)
        self.remove_callback(PrinterCallback)
        self.begin = time.monotonic()

    def create_accelerator_and_postprocess(self) -> None:
        """With FSDP in bfloat16, keep sums in float32: gradients over processes, and a completion's log-probability.

        accelerate would round both: a sum of -600 nats to the next multiple of 4.
        """
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and self.accelerator.mixed_precision == "bf16":
            plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    @property
    def seconds(self) -> float:
        """How long training took so far, with the parts before a kill."""
        return self.before + time.monotonic() - self.begin

    def get_train_dataloader(self) -> Any:
        own = self.device_steps[self.args.process_index :: self.context.training.processes]
        rows: Any = self.train_dataset
        loader = DataLoader(
            rows,
            batch_sampler=own,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's scheduler, or with `carry` one that goes on over the run's phases of this policy."""
        context, args, steps = self.context, self.args, num_training_steps
        if context.state and self.lr_scheduler is None:
            own: Any = args.lr_scheduler_kwargs or {}
            if "infinite" in own:
                share = schedules.infinite(own["infinite"], steps, steps_of(context.last_state))
            else:
                kind: Any = args.lr_scheduler_type.removeprefix("constant_with_")
                share = schedules.spanning(kind, args.warmup_steps, steps, context.round, context.rounds)
            used: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(used, share)
        return super().create_scheduler(num_training_steps, optimizer)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save without TRL's model card. A folder with its final name holds a complete checkpoint."""
        Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            assert self.context.parts
            made = self.context.parts / SAVING / f"checkpoint-{self.state.global_step}"
            store.write_json(made / SPENT, self.seconds)
            seal(made, self.context.parts)
            os.sync()
            older = checkpoint(self.context.parts)
            made.rename(self.context.parts / made.name)
            if older:
                shutil.rmtree(older)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do not warn of tied weights, which a checkpoint holds once."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _send_telemetry(self) -> None:
        """Report nothing. TRL would report each start to its authors."""


class WeightedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, with the rows' weights beside their ids, shape (rows, 1).

    For rows laid end to end there is a weight for each token but the first, (1, tokens - 1).
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        weight = torch.tensor([row["weight"] for row in examples])[:, None]
        if self.padding_free:
            weight = weight[:, 0].repeat_interleave(torch.tensor([len(row["input_ids"]) for row in examples]))[None, 1:]
        return super().torch_call(examples) | {"weight": weight}


class SupervisedTrainer(_Planned, SFTTrainer):
    """TRL's SFT. A step's loss is the sum of weight * NLL over its labelled tokens, divided by their number."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.use_cpu:
            score_labelled_positions(self.model)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weight = inputs.pop("weight")

        def weighted(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            outputs.log_probs = outputs.log_probs * weight
            return outputs

        return super().compute_loss(weighted, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]


OWN = ("label_smoothing", "weight", "counts")  # a pair's fields besides its ids


class PreferenceCollator(DataCollatorForPreference):
    """TRL's collator, with the rows' label smoothing, weight and whether they count (1 or 0) beside their ids."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        own = {key: torch.tensor([row[key] for row in examples]) for key in OWN}
        return super().torch_call(examples) | own


class PreferenceTrainer(_Planned, DPOTrainer):
    """TRL's DPO on rows of `prompt_ids`, `chosen_ids`, `rejected_ids` and the keys of `OWN`, taken as they are.

    A step's loss is a mean over its pairs of the pair's weight times the sum of three terms: TRL's loss; the pair's
    label smoothing times beta times its margin; and `sft_weight` times the chosen completion's NLL divided by its
    length (iterative reasoning preference optimization, arXiv:2404.19733, eq. 2). TRL's own `sft` term and its mean
    over device steps are not used, because both depend on how many pairs share a device step. TRL's `label_smoothing`
    is one number for all pairs.
    """

    def __init__(self, *, sft_weight: float, reference: str, **kwargs: Any) -> None:
        self.sft_weight, self.reference = sft_weight, reference
        super().__init__(**kwargs)
        sizes = [len(step) for step in self.device_steps]
        processes = self.context.training.processes
        if any(len(set(sizes[i : i + processes])) > 1 for i in range(0, len(sizes), processes)):
            self.accelerator.gather = functools.partial(_gather_uneven, self.accelerator)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset  # it already has the columns that TRL's tokenisation would make

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Compute log-probabilities under the reference once, before the first step; then let the reference go.

        TRL's own version does the same through a cache file and with progress bars. The reference is `ref_model` if
        there is one. Else it is the policy itself, which has not changed yet. For `start` the policy keeps its adapter:
        TRL's copy `ref` of a continued adapter, or none for a new one, which is zero. For `base` it has no adapter.
        """
        policy: Any = self.model
        if self.args.use_cpu:
            score_labelled_positions(policy)
            if self.ref_model is not None:
                score_labelled_positions(self.ref_model)
        copied = isinstance(policy, PeftModel) and "ref" in policy.peft_config
        if copied and self.reference == "base":
            policy.delete_adapter("ref")
        model = self.ref_model or policy
        if self.is_fsdp_enabled and self.ref_model is None:
            model = self._as_split(policy)
        elif self.is_deepspeed_enabled and self.ref_model is None:
            model = prepare_deepspeed(policy, self.accelerator)
        loader = DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator)
        chosen, rejected = list[float](), list[float]()
        for batch in self.accelerator.prepare(loader):
            batch = {key: value for key, value in batch.items() if key not in OWN}  # the rest goes to the model
            logps = self.compute_ref_log_probs(model, batch)  # type: ignore[no-untyped-call]
            logps = self.accelerator.gather_for_metrics(logps)
            chosen += logps[0].tolist()
            rejected += logps[1].tolist()
        if copied and self.reference == "start":
            policy.delete_adapter("ref")
        self.ref_model = None
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def _as_split(self, policy: Any) -> Any:
        """The policy as it will compute once FSDP has split it: with its weights in the dtype of the device steps.

        At this point it is neither split nor on the device.
        """
        device = self.accelerator.device
        dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        weights = {name: weight.detach().to(device, dtype) for name, weight in policy.named_parameters()}
        weights |= {name: buffer.to(device) for name, buffer in policy.named_buffers()}

        def compute(**inputs: Any) -> Any:
            with torch.autocast(device.type, enabled=False):
                return functional_call(policy, weights, (), inputs)

        return compute

    def get_batch_samples(self, *args: Any) -> Any:
        batches, items = super().get_batch_samples(*args)
        pairs = sum(batch["counts"].sum() for batch in batches)
        # Gradients are averaged over processes, so each divides by its part of all pairs of the step.
        self.pairs = self.accelerator.reduce(pairs, "mean").item()
        return batches, items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        smoothing, weight, counts = (inputs.pop(key) for key in OWN)
        seen: list[Any] = []

        def recorded(**kwargs: Any) -> Any:
            seen.append(model(**kwargs))
            return seen[-1]

        loss: Any = super().compute_loss(recorded, inputs)  # type: ignore[no-untyped-call]
        pairs = len(inputs["input_ids"]) // 2
        outputs = seen[0]
        weighted = bool((weight != 1).any())
        if smoothing.any() or weighted:
            logps = outputs.log_probs.sum(dim=1)
            chosen = logps[:pairs] - inputs["ref_chosen_logps"]
            rejected = logps[pairs:] - inputs["ref_rejected_logps"]
            z = self.beta * (chosen - rejected)
            if smoothing.any():
                loss = loss + (weight * smoothing * z).mean()
            if weighted:  # TRL's loss counts each pair once
                loss = loss - ((weight - 1) * torch.nn.functional.logsigmoid(z)).mean()
        if self.sft_weight:
            nll = -outputs.log_probs[:pairs].sum(dim=1) / outputs.label_mask[:pairs].sum(dim=1)
            loss = loss + self.sft_weight * (weight * nll).mean()
        # The trainer will divide by the number of device steps, but the loss has to be a mean over pairs.
        # Either all pairs of a device step count, or none does.
        return loss * counts.sum() * self.current_gradient_accumulation_steps / self.pairs


def _gather_uneven(accelerator: Any, tensor: torch.Tensor) -> torch.Tensor:
    """The values of all processes, (all,), for figures that TRL logs. Processes may have different numbers of them."""
    gathered: torch.Tensor = gather(pad_across_processes(tensor, pad_index=math.nan))
    return gathered[~gathered.isnan()]
