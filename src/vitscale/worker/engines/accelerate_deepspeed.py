"""Hugging Face Accelerate over DeepSpeed as its users drive it: a `DeepSpeedPlugin`, `accumulate` and `backward`."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vitscale.config.runspec import RunSpec
from vitscale.worker.engines import deepspeed

_SWITCHES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_TORCH_DEVICE")
"""What Accelerate reads from the environment: the next engine of the process must not find it."""

prepare = deepspeed.prepare


class AccelerateDeepSpeedEngine(deepspeed.DeepSpeedEngine):
    """The DeepSpeed engine that Accelerate makes, driven by Accelerate.

    The update is part of the last `backward`: Accelerate's optimizer steps are empty with DeepSpeed.
    """

    def __init__(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(spec, model, optimizer)
        self._micro_step = contextlib.ExitStack()

    def _initialize(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs

        if spec.device == "cpu":
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        self._accelerator: Any = Accelerator(
            deepspeed_plugins=DeepSpeedPlugin(hf_ds_config=deepspeed.config(spec), zero3_init_flag=False),
            gradient_accumulation_steps=spec.grad_accum,
            # Accelerate takes a process group without a backend of its own, a CPU's, for one rank.
            kwargs_handlers=[InitProcessGroupKwargs(backend=dist.get_backend())],
        )
        engine, _ = self._accelerator.prepare(model, optimizer)
        return engine

    def __call__(self, images: Tensor) -> Tensor:
        """Logits; a forward that trains opens the micro-step, as `accumulate` decides about its update."""
        if torch.is_grad_enabled():
            self._micro_step.enter_context(self._accelerator.accumulate(self._engine))
        return super().__call__(images)

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002 (Accelerate counts micro-steps itself)
        """Add the gradients of one micro-step; the last one's is followed by the update."""
        with self._overflow_told():
            self._accelerator.backward(loss)
        self._micro_step.close()

    def step(self) -> None:
        """Nothing: it was taken in `backward`."""

    def close(self) -> None:
        """Free what DeepSpeed and Accelerate hold, its process-wide state too."""
        from accelerate.state import AcceleratorState, GradientState

        super().close()
        self._accelerator.deepspeed_engine_wrapped = None
        self._accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        for name in _SWITCHES:
            os.environ.pop(name, None)


build = AccelerateDeepSpeedEngine
