"""torch's FSDP2 (`fully_shard`): every rank holds a part of each weight, its gradient and its optimizer state.

Blocks gather their weights before they compute. In bf16 the parts are the fp32 master copy; what is gathered, computed
with and reduced is bf16.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vitscale.config.runspec import RunSpec
from vitscale.worker import tensor
from vitscale.worker.engines import Held, state
from vitscale.worker.engines.update import DTYPES
from vitscale.worker.optimizers import exchange


def prepare(_device: str) -> None:
    """Nothing to do once per process."""


class FSDPEngine:
    """A model sharded block by block behind our protocol."""

    def __init__(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.dtype = DTYPES[spec.precision]
        self._grad_accum, self._clip = spec.grad_accum, spec.optimizer.clip
        model.to(self.dtype).float()  # rounded at the start, as DeepSpeed's master copy is
        assert spec.fsdp is not None
        whole = dict(model.named_parameters())
        device = next(model.parameters()).device.type
        self._splits = tensor.splits(model)
        options: dict[str, Any] = {"mesh": tensor.mesh(device, spec.tensor_parallel or 1)["data"]}
        if self.dtype != torch.float32:
            options["mp_policy"] = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=self.dtype)
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, **options, reshard_after_forward=spec.fsdp.reshard_after_forward)
        self._model: Any = fully_shard(model, **options)  # the same object
        self._shards: dict[str, Any] = dict(model.named_parameters())
        # Updated as plain tensors: on a CPU, DTensor's dispatch costs several times the update.
        self._local = {name: nn.Parameter(shard.detach().to_local()) for name, shard in self._shards.items()}
        exchange(optimizer, {whole[name]: local for name, local in self._local.items()})
        self._optimizer = optimizer
        self._whole: dict[int, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, height, width]."""
        logits: Tensor = self._model(images)
        return logits

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-step; only the last one's backward reduces them over ranks."""
        self._model.set_requires_gradient_sync(last)
        (loss / self._grad_accum).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Clip by the norm over all ranks, update, clear the gradients."""
        for name, shard in self._shards.items():
            self._local[name].grad, shard.grad = shard.grad.to_local(), None
        if self._clip:
            gradients = {name: one.grad for name, one in self._local.items() if one.grad is not None}
            square = tensor.own_square(gradients, self._splits)
            dist.all_reduce(square)
            nn.utils.clip_grads_with_norm_(self._local.values(), self._clip, square.sqrt())
        self._optimizer.step()
        self._optimizer.zero_grad()

    @property
    def skipped(self) -> int:
        """None: without a loss scale every update is made."""
        return 0

    def train(self, *, mode: bool) -> None:
        """Training mode or evaluation mode."""
        self._model.train(mode)

    def save(self, folder: Path) -> None:
        """Write this rank's shards of weights and optimizer state."""
        state.save(_file(folder), self._local, self._optimizer)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        state.load(_file(folder), self._local, self._optimizer)

    def weights(self) -> dict[str, Tensor] | None:
        """All weights as the ranks compute with them, fp32, on rank 0."""
        gathered = {}
        for name, shard in self._shards.items():
            whole = tensor.whole(shard.full_tensor().detach(), self._splits.get(name)).to(self.dtype)
            if dist.get_rank() == 0:
                gathered[name] = whole.to("cpu", torch.float32, copy=True)
        return gathered if dist.get_rank() == 0 else None

    def held(self) -> Held:
        """Shards, what the optimizer keeps of them, whole weights at the moment, and gradients not reduced yet."""
        gradients = [one.grad.to_local() for one in self._shards.values() if one.grad is not None]
        whole = [weight for weight in self._model.parameters() if not isinstance(weight, DTensor)]
        self._whole |= {id(weight): weight for weight in whole}  # the same objects again at every gather
        unreduced = [weight.grad for weight in self._whole.values() if weight.grad is not None]
        kept = state.tensors(self._optimizer)
        return Held(list(self._local.values()), gradients, kept, gathered=whole, buckets=unreduced)

    def close(self) -> None:
        """Free shards, gathered weights, gradients and optimizer state."""
        self._optimizer.state.clear()
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for name, shard in self._shards.items():
            shard.grad = None
            for one in (shard.to_local(), self._local[name]):
                one.data = one.new_empty(0)
        self._shards, self._local, self._whole, self._model = {}, {}, {}, nn.Identity()
        gc.collect()


def _file(folder: Path) -> Path:
    return folder / f"rank{dist.get_rank():05d}.safetensors"


build = FSDPEngine
