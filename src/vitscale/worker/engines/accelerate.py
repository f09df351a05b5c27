"""Hugging Face Accelerate over DDP as its users drive it: `prepare`, and per micro-step `accumulate` and `backward`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vitscale.config.runspec import RunSpec
from vitscale.worker.engines import Held, state
from vitscale.worker.engines.single import SingleEngine

AUTOCASTS = True


def prepare(_device: str) -> None:
    """Nothing to do once per process."""


class AccelerateEngine(SingleEngine):
    """An `Accelerator` behind our protocol; its mixed precision is autocast over fp32 weights."""

    def __init__(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        from accelerate import Accelerator

        super().__init__(spec, model, optimizer)
        self._weights, self._clip = list(model.parameters()), spec.optimizer.clip
        threads = torch.get_num_threads()
        self._accelerator = Accelerator(
            cpu=spec.device == "cpu",
            mixed_precision="bf16" if spec.precision == "bf16_autocast" else "no",
            gradient_accumulation_steps=spec.grad_accum,
        )
        torch.set_num_threads(threads)  # on a CPU Accelerate takes all cores of the host where OMP_NUM_THREADS is unset
        self._optimizer: Any
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._micro_step = contextlib.ExitStack()

    def __call__(self, images: Tensor) -> Tensor:
        """Logits; a forward that trains opens the micro-step, as `accumulate` decides about its communication."""
        if torch.is_grad_enabled():
            self._micro_step.enter_context(self._accelerator.accumulate(self._model))
        return super().__call__(images)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-step; Accelerate scales by the accumulation."""
        self._accelerator.backward(loss)
        if not last:
            self._micro_step.close()

    def step(self) -> None:
        """Clip, update, clear the gradients."""
        if self._clip:
            self._accelerator.clip_grad_norm_(self._weights, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._micro_step.close()

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state once: the ranks have the same."""
        if dist.get_rank() == 0:
            super().save(folder)

    def weights(self) -> dict[str, Tensor] | None:
        """All weights, fp32, on rank 0."""
        return super().weights() if dist.get_rank() == 0 else None

    def held(self) -> Held:
        """Whole weights and gradients, and the optimizer's state; DDP's buckets are inside torch."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        return Held(self._weights, gradients, state.tensors(self._optimizer.optimizer))

    def close(self) -> None:
        """Free what Accelerate holds, its process-wide state too: the next run of the round has its own."""
        from accelerate.state import AcceleratorState, GradientState

        self._accelerator.free_memory()
        self._weights, self._optimizer = [], None
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        super().close()


build = AccelerateEngine
