"""torch's DistributedDataParallel: whole weights on every rank, gradients averaged in buckets while backward runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import RunSpec
from vitscale.worker import tensor
from vitscale.worker.engines.single import SingleEngine

_HOOKS = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}


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
            self._model.register_comm_hook(None, _HOOKS[knobs.ddp_hook])
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


build = DDPEngine
