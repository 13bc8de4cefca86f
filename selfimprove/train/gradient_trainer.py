"""TRL's GRPO loss on rows that were sampled and judged before. Imported only when training starts.

TRL's trainer would sample answers itself. Here `_prepare_inputs` passes on the collator's rows instead. These private
names of TRL are used: `_compute_loss`, `_get_per_token_logps_and_entropies`, `_prepare_inputs` and `_metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from selfimprove.policy.models import load_model
from selfimprove.train.trainers import _Planned, score_labelled_positions

TRUNCATED = 2.0  # the figure `sampler_ratio` counts a larger ratio as this
BEFORE = "before.safetensors"  # in the folder of unfinished work: log-probabilities from before the first step


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows as tensors of shape (rows, longest), padded on the right; `counts` and `row` have shape (rows,),
    `clip_high` (rows, 1).

    TRL wants prompts and completions apart. So a row's first token, which is never predicted, is the prompt, and the
    rest is the completion. `tool_mask` says which of its tokens bear loss.
    """

    def padded(key: str, value: float, dtype: torch.dtype) -> torch.Tensor:
        width = max(len(row["input_ids"]) for row in rows)
        return torch.tensor([[*row[key], *[value] * (width - len(row[key]))] for row in rows], dtype=dtype)

    ids = padded("input_ids", pad, torch.long)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    there = (torch.arange(ids.size(1))[None] < lengths[:, None]).long()
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": there[:, :1],
        "completion_ids": ids[:, 1:],
        "completion_mask": there[:, 1:],
        "tool_mask": padded("bears", 0, torch.long)[:, 1:],
        **{key: padded(key, 0.0, torch.float32)[:, 1:] for key in ("advantages", "logprobs", "kl")},
        "clip_high": torch.tensor([row["clip_high"] for row in rows])[:, None],
        "counts": torch.tensor([row["counts"] for row in rows]),
        "row": torch.tensor([row["row"] for row in rows]),
    }


class Begin(TrainerCallback):
    """Lets the trainer compute the policy's log-probabilities before the first step."""

    def __init__(self, trainer: GradientTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.look_back(kwargs["model"])


class GradientTrainer(_Planned, GRPOTrainer):
    """TRL's GRPO loss with our KL term. It is normalised over the optimizer step, not over a device step.

    `several` says that there is more than one optimizer step, so that the ratio to the starting policy is not 1.
    """

    def __init__(self, *, reference: str, several: bool, collator: Any, **kwargs: Any) -> None:
        super().__init__(reward_funcs=_no_reward, **kwargs)
        self.data_collator = collator
        self.reference, self.several = reference, several
        rows: Any = self.train_dataset
        self.penalised = any(any(row["kl"]) for row in rows)
        self.bounded = any(math.isfinite(row["clip_high"]) for row in rows)  # some row has its own upper clip
        self.kept: dict[str, torch.Tensor] = {}  # "old.ROW", "reference.ROW": log-probabilities, (row's length - 1,)
        self._seen: list[torch.Tensor] = []  # log-probabilities of the forward pass that TRL's loss makes
        self._bears: torch.Tensor | None = None
        if self.args.use_cpu:
            score_labelled_positions(self.model, entropy=True)
        self.add_callback(Begin(self))

    def _prepare_inputs(self, inputs: Any) -> Any:
        return Trainer._prepare_inputs(self, inputs)

    def look_back(self, model: Any) -> None:
        """Fill `kept`, in the same device steps as training, so that the first step's ratio is exactly 1."""
        if not (self.several or self.penalised):
            return
        kept = self.context.parts and self.context.parts / f"{self.args.process_index}-{BEFORE}"
        if kept and kept.exists():
            self.kept = load_file(kept)
            return
        adapted = isinstance(self.accelerator.unwrap_model(model), PeftModel)
        own = self.context.start == self.context.base and not adapted
        if self.several or (self.penalised and (self.reference == "start" or own)):
            self._score(model, [*["old"] * self.several, *["reference"] * self.penalised])
        if self.penalised and self.reference == "base" and not own:
            without = self.accelerator.unwrap_model(model).disable_adapter() if adapted else nullcontext()
            with without:
                self._score(model if adapted else self._base(), ["reference"])
        if kept:
            save_file(self.kept, kept)

    def _base(self) -> Any:
        held = self.context.held.reference if self.context.held else {}
        if self.context.base in held:
            return held[self.context.base]
        model = load_model(self.context.base, dtype="float32", device="cpu").to(self.accelerator.device)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if self.args.use_cpu:
            score_labelled_positions(model, entropy=True)
        held[self.context.base] = model.eval()
        return model

    def _score(self, model: Any, names: list[str]) -> None:
        training = model.training
        model.eval()
        rows: Any = self.train_dataset
        known = set[int]()
        for step in self.device_steps[self.args.process_index :: self.context.training.processes]:
            if known.issuperset(step):
                continue
            batch = Trainer._prepare_inputs(self, self.data_collator([rows[i] for i in step]))
            with torch.no_grad():
                found = self._logprobs(model, batch)
            for i, row in enumerate(step):
                if row not in known:
                    known.add(row)
                    length = int(batch["completion_mask"][i].sum())
                    for name in names:
                        self.kept[f"{name}.{row}"] = found[i, :length].float().cpu().clone()
        model.train(training)

    def _logprobs(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """log pi of each token but the first, (rows, longest - 1)."""
        self._bears = batch["tool_mask"]
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        found = self._get_per_token_logps_and_entropies(model, ids, mask, ids.size(1) - 1)
        self._seen.clear()
        return found[0]  # type: ignore[no-any-return]

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        """As TRL's method, but it scores only the tokens that bear loss. TRL's would score the prompt too."""
        assert self._bears is not None
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, 1:][self._bears == 0] = -100
        labels[:, 0] = -100
        with self.accelerator.autocast():
            outputs = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True)
        self._seen.append(outputs.log_probs[:, -logits_to_keep:])
        return self._seen[-1], outputs.entropy[:, -logits_to_keep:], None

    def get_batch_samples(self, *args: Any) -> Any:
        batches, items = super().get_batch_samples(*args)
        sums = torch.stack(
            [
                sum(batch["counts"].sum() for batch in batches),
                sum((batch["completion_mask"] * batch["tool_mask"]).sum() for batch in batches).float(),
            ]
        )
        # Gradients are averaged over processes, so each divides by its part of all rows or tokens of the step.
        self.step_rows, self.step_tokens = self.accelerator.reduce(sums, "mean").tolist()
        return batches, items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mask = self._bears = inputs["completion_mask"] * inputs["tool_mask"]
        steps = self.current_gradient_accumulation_steps
        # TRL divides by these tokens times `steps` / `steps_per_generation`, each process by its part.
        args: Any = self.args
        items = self.step_tokens * self.accelerator.num_processes * args.steps_per_generation / steps
        given = inputs | {"num_items_in_batch": torch.tensor(items, device=mask.device)}
        if self.several:
            given["old_per_token_logps"] = self._known("old", inputs)
        if self.bounded:  # torch clamps by two tensors or by none
            own: torch.Tensor = inputs["clip_high"]
            common = args.epsilon if args.epsilon_high is None else args.epsilon_high
            self.epsilon_high = own.nan_to_num(common)  # type: ignore[assignment]
            self.epsilon_low = torch.full_like(own, args.epsilon)  # type: ignore[assignment]
        share = 1.0 if self.loss_type == "dapo" else len(mask) * steps / self.step_rows
        loss = self._compute_loss(model, given) * share  # type: ignore[no-untyped-call]
        logps = self._seen.pop()
        old = given.get("old_per_token_logps", logps.detach())
        self._note("sampler_ratio", (old - inputs["logprobs"]).exp().clamp(max=TRUNCATED), mask)
        if self.penalised:
            away = self._known("reference", inputs) - logps
            kl = away.exp() - away - 1
            self._note("kl", kl.detach(), mask)
            loss = loss + self._over_step(inputs["kl"] * kl * mask, mask)
        return loss

    def _over_step(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """This device step's part of the optimizer step's mean, by the loss type."""
        if self.loss_type == "dapo":
            part = values.sum() / self.step_tokens
        elif self.loss_type == "dr_grpo":
            part = values.sum() / (self.step_rows * self.max_completion_length)
        else:
            part = (values.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / self.step_rows
        return cast(torch.Tensor, part)

    def _known(self, name: str, inputs: dict[str, Any]) -> torch.Tensor:
        found = torch.zeros_like(inputs["advantages"])
        for i, row in enumerate(inputs["row"].tolist()):
            values = self.kept[f"{name}.{row}"]
            found[i, : len(values)] = values.to(found.device)
        return found

    def _note(self, name: str, values: torch.Tensor, mask: torch.Tensor) -> None:
        """Record a figure of the step: the mean over tokens, as TRL does for its own figures."""
        bears = (mask > 0) & values.isfinite()
        sums = torch.stack([values[bears].sum(), bears.sum().float()])
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        if count:
            self._metrics["train"][name].append(total / count)


def _no_reward(**columns: Any) -> list[float]:
    raise AssertionError("rows have their advantages already")
