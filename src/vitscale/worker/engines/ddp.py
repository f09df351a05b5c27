"""torch's DistributedDataParallel: whole weights on every rank, gradients averaged in buckets while backward runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from vitscale.config.knobs import DdpHook, EngineSection
from vitscale.config.runspec import RunSpec
from vitscale.worker import tensor
from vitscale.worker.engines.single import SingleEngine


def prepare(_device: str) -> None:
    """Nothing to do once per process."""


class DDPEngine(SingleEngine):
    """The single engine's update, of gradients that DDP has averaged over ranks."""

    _model: DistributedDataParallel

    def __init__(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(spec, model, optimizer)  # first: buckets hold gradients in the weights' type
        self._replicas = tensor.data_group(spec.device, spec.tensor_parallel)
        knobs = spec.knobs or EngineSection()
        self._model = DistributedDataParallel(
            model,
            process_group=self._replicas,
            gradient_as_bucket_view=knobs.gradient_as_bucket_view is not False,
            bucket_cap_mb=knobs.bucket_mb,
            static_graph=knobs.static_graph is True,
        )
        if knobs.ddp_hook:
            self._model.register_comm_hook(*_hook(knobs.ddp_hook))
        self._micro_step = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Logits; forward already decides whether the backward that follows sends gradients."""
        sends = self._micro_step == self._grad_accum - 1
        with contextlib.nullcontext() if sends else self._model.no_sync():
            return super().__call__(images)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-step; after the last one they are the mean over ranks."""
        super().backward(loss, last=last)
        self._micro_step = 0 if last else self._micro_step + 1

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state once: the replicas have the same."""
        if dist.get_rank(self._replicas) == 0:
            super().save(folder)

    def weights(self) -> dict[str, Tensor] | None:
        """All weights, fp32, on rank 0."""
        found = super().weights() if dist.get_rank(self._replicas) == 0 else None
        return found if dist.get_rank() == 0 else None


def _hook(name: DdpHook) -> tuple[object, Callable[..., Any]]:
    """What DDP's communication hook keeps, and the hook."""
    if name == "powersgd":
        # Earlier, its error feedback meets gradients that change too fast; DDP makes its buckets anew after one step.
        return powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=10), powerSGD_hook.powerSGD_hook
    hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
    return None, hooks[name]


build = DDPEngine
