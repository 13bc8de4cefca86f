"""Scores from a model that is not a policy: a classifier of sequences or tokens. Many coroutines can ask it at once.

This module imports torch. Import it when a phase begins, not with the configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from selfimprove.errors import ConfigError
from selfimprove.policy import models
from selfimprove.policy.hf import SETTLED
from selfimprove.policy.hf_reader import PREFILL_TOKENS
from selfimprove.types import Message
from selfimprove.verify import Opening

HEADS = ("score", "classifier")  # what classifiers of transformers call their last layer


@dataclass(eq=False, slots=True)
class _Row:
    ids: list[int]
    positions: list[int]


@dataclass(eq=False, slots=True)
class _Asked(_Row):
    future: asyncio.Future[list[list[float]]]


class Scorer:
    """A model's outputs for token ids, in batches of similar length.

    `auto` is a class of transformers, such as AutoModelForSequenceClassification. `path` is a model folder, a hub id,
    or the folder of a LoRA adapter with a head. Raises ConfigError if the model cannot be loaded, or has no trained
    head of that kind. Transformers would draw such a head at random, and its scores would mean nothing.
    """

    def __init__(self, auto: Any, path: str, opening: Opening, *, trust_remote_code: bool = False) -> None:
        path = models.resolve("", path)
        opening.room()
        self.path, self.max_batch = path, opening.hardware.max_batch
        self.tokenizer: Any = models.load_tokenizer(path, trust_remote_code=trust_remote_code)
        dtype = getattr(torch, opening.model.dtype)
        adapter = models.is_adapter(path)
        said = logging.get_verbosity()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # missing weights are an error of ours, below
        try:
            model, info = auto.from_pretrained(
                models.adapter_base(path) if adapter else path,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **({"num_labels": _labels(path)} if adapter else {}),
            )
            if adapter:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, path, torch_device="cpu")
        except OSError as error:
            raise models.not_found(path, error) from error
        finally:
            logging.set_verbosity(said)
        missing = sorted(name for name in info["missing_keys"] if not adapter or name.split(".")[0] not in HEADS)
        if missing:
            raise ConfigError(
                f"verifier.model={path}: no trained {auto.__name__.removeprefix('AutoModelFor')} model, its weights "
                f"lack {', '.join(missing)}",
                "verifier",
            )
        self.model: Any = model.to(opening.hardware.device).eval()
        config = model.config.get_text_config()
        self.labels = int(getattr(model.config, "num_labels", 0))
        window = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.max_length = min(window, self.tokenizer.model_max_length)
        self._padding: int | None = config.pad_token_id
        self._text_config = config
        self._waiting: list[_Asked] = []
        self._pump: asyncio.Task[None] | None = None

    async def logits(self, ids: Sequence[int], positions: Sequence[int] = ()) -> list[list[float]]:
        """The model's outputs at these positions, one row each. A sequence classifier has one row and no positions.

        Raises ValueError if there are more ids than the model's window holds.
        """
        self._require_room(ids)
        asked = _Asked(list(ids), list(positions), asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._run())
        return await asked.future

    def passes(self, ids: Sequence[int], n: int, seed: int) -> list[list[float]]:
        """A sequence classifier's row in each of `n` passes with dropout (Gal and Ghahramani 2015, arXiv 1506.02142).

        The passes are a batch of their own. So they depend on the weights, the ids and the seed alone, and not on other
        requests. A model without dropout gives the same row each time. Raises ValueError as `logits` does.
        """
        self._require_room(ids)
        with torch.random.fork_rng([self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.model.train()
            try:
                return [row for (row,) in self._forward([_Row(list(ids), [])] * n)]
            finally:
                self.model.eval()

    def _require_room(self, ids: Sequence[int]) -> None:
        if not ids or len(ids) > self.max_length:
            raise ValueError(f"{len(ids)} tokens, and the model reads 1 to {self.max_length}")

    def close(self) -> None:
        """Free the weights."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    async def _run(self) -> None:
        try:
            while True:
                await self._settle()
                self._waiting = [asked for asked in self._waiting if not asked.future.done()]  # drop cancelled ones
                if not self._waiting:
                    return
                self._waiting.sort(key=lambda asked: len(asked.ids), reverse=True)
                count = max(1, min(self.max_batch, PREFILL_TOKENS // len(self._waiting[0].ids)))
                batch = self._waiting[:count]
                for asked, rows in zip(batch, self._forward(batch), strict=True):
                    asked.future.set_result(rows)
        except Exception as error:  # nobody awaits the pump, so everybody who waits for an answer is told
            for asked in self._waiting:
                if not asked.future.done():
                    asked.future.set_exception(error)

    async def _settle(self) -> None:
        """Let coroutines make their requests until no new one comes."""
        quiet = 0
        while quiet < SETTLED:
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == before else 0

    @torch.inference_mode()
    def _forward(self, batch: Sequence[_Row]) -> list[list[list[float]]]:
        """The outputs of one batch, padded on the right.

        A sequence classifier may find its last token by the padding id. If the model names no padding id, an id is used
        that no row has.
        """
        padding = self._padding
        if padding is None:
            used = {token for asked in batch for token in asked.ids}
            padding = next((i for i in range(self._text_config.vocab_size) if i not in used), 0)
            self._text_config.pad_token_id = padding
        width = len(batch[0].ids)
        rows = [[*asked.ids, *[padding] * (width - len(asked.ids))] for asked in batch]
        mask = [[1] * len(asked.ids) + [0] * (width - len(asked.ids)) for asked in batch]
        device = self.model.device
        inputs = {"input_ids": torch.tensor(rows, device=device), "attention_mask": torch.tensor(mask, device=device)}
        if not batch[0].positions:
            return [[row] for row in self.model(**inputs).logits.float().tolist()]
        where = (
            torch.tensor([i for i, asked in enumerate(batch) for _ in asked.positions], device=device),
            torch.tensor([p for asked in batch for p in asked.positions], device=device),
        )
        head = self.model.get_output_embeddings()
        if head is None:
            found = self.model(**inputs).logits[where]
        else:  # a vocabulary is large, so the head sees only the positions that are asked for
            hook = head.register_forward_pre_hook(lambda _, args: (args[0][where][None],))
            try:
                found = self.model(**inputs, use_cache=False).logits[0]
            finally:
                hook.remove()
        parts = torch.split(found.float(), [len(asked.positions) for asked in batch])
        return [part.tolist() for part in parts]


def _labels(adapter: str) -> int:
    """The number of outputs of the head in an adapter's folder. Raises ConfigError if there is no head."""
    from safetensors import safe_open

    with safe_open(f"{adapter}/adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name.split(".")[-2] in HEADS:
                return int(file.get_slice(name).get_shape()[0])
    raise ConfigError(f"{adapter}: this adapter has no trained head", "verifier")


def prompt_text(prompt: str | list[Message]) -> str:
    """A prompt for a model without a chat template: its messages, joined by blank lines."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
