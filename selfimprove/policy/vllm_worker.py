"""What selfimprove adds to vLLM's worker processes, through `worker_extension_cls`. Its methods are called by name.

A worker imports this module before it takes memory. From then on the engine core ends with the process that started
it. In vLLM 0.31 workers watch their core, but nobody watches the process that started the core. So a killed run would
leave the GPU's memory taken.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.processes import children_of, end_together, parent_of

RUNNER = "SELFIMPROVE_RUNNER"  # environment variable: the id of the process that starts the engine
COORDINATOR = "VLLM::DPCoord"  # the name of the process that several cores share, which nobody ends either


def end_with(runner: int) -> None:
    """Let this worker and its core end when the runner ends. The core is this process, or has started it."""
    parent = os.getppid()
    if not Path(f"/proc/{runner}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    elif parent == runner or parent_of(parent) == runner:
        core = os.getpid() if parent == runner else parent
        end_together(core, runner, children_of(runner, COORDINATOR))


if runner := os.environ.get(RUNNER):
    end_with(int(runner))


class Extension:
    """Methods that a vLLM worker has besides its own."""

    if TYPE_CHECKING:
        reload_weights: Any
        get_model: Any

    def takes_weights(self) -> None:
        """Does nothing. A server whose workers have this method can take new weights."""

    def take_weights(self, folder: str) -> None:
        """Read the weights of a folder into the model in place.

        On a CPU, vLLM 0.31 repacks a matrix when it is loaded. An output head that shares its weights with the
        embedding is not loaded by itself, so `reload_weights` leaves it as it was. It is repacked here.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        self.reload_weights(weights_path=folder)
        if current_platform.is_cpu():
            for layer in self.get_model().modules():
                if isinstance(layer, ParallelLMHead):
                    layer.quant_method.process_weights_after_loading(layer)
