"""What selfimprove adds to vLLM's worker processes, through `worker_extension_cls`: its methods are called by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


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
