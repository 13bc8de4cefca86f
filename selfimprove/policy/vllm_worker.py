"""What selfimprove adds to vLLM's worker processes, through `worker_extension_cls`: its methods are called by name.

A worker imports this module before it takes memory. From then on the engine core ends with the process that started it:
vLLM 0.31 has its workers watch their core, and nobody the process that asked for it, so that one which was killed would
leave the GPU full.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.processes import children_of, end_together, parent_of

RUNNER = "SELFIMPROVE_RUNNER"  # environment variable: the id of the process that starts the engine
COORDINATOR = "VLLM::DPCoord"  # how the process is called that several cores share, which nobody ends either


def end_with(runner: int) -> None:
    """Have this worker and its core end with the runner. The core is this process, or has started it."""
    parent = os.getppid()
    if not Path(f"/proc/{runner}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    elif parent == runner or parent_of(parent) == runner:
        core = os.getpid() if parent == runner else parent
        end_together(core, runner, children_of(runner, COORDINATOR))


if runner := os.environ.get(RUNNER):
    end_with(int(runner))


class Extension:
    """Methods of a vLLM worker, beside its own."""

    if TYPE_CHECKING:
        reload_weights: Any
        get_model: Any

    def takes_weights(self) -> None:
        """Nothing: a server whose workers know this name can take weights."""

    def take_weights(self, folder: str) -> None:
        """Read the weights of a folder into the model in place.

        On a CPU a matrix is repacked when it is loaded, and the output head that a model shares with its embedding is
        not loaded by itself: vLLM 0.31's own `reload_weights` leaves it as it was.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        self.reload_weights(weights_path=folder)
        if current_platform.is_cpu():
            for layer in self.get_model().modules():
                if isinstance(layer, ParallelLMHead):
                    layer.quant_method.process_weights_after_loading(layer)
