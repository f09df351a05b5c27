"""The update of the weights a rank holds: clip, step, clear. In bf16 it is that of an fp32 master copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.config.runspec import RunSpec
from vitscale.worker import tensor
from vitscale.worker.engines import state
from vitscale.worker.optimizers import exchange

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "bf16_autocast": torch.float32,
}
"""Of weights, gradients and inputs."""


class Update:
    """A torch optimizer over a model's weights, or over their master copy.

    As DeepSpeed does it, bf16 rounds the initial weights before the master copy is taken of them.

    Args:
        spec: its precision is any but `fp16`.
        model: converted to the precision, its parameters stay the same objects.
        optimizer: over the model's parameters; exchanged for the master copy in bf16.
    """

    def __init__(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._clip = optimizer, spec.optimizer.clip
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._splits = tensor.splits(model)
        part = f".tensor{tensor.rank(self._splits)}" if self._splits else ""
        self._file = f"state{part}.safetensors"
        self._masters: dict[str, nn.Parameter] = self._weights
        if DTYPES[spec.precision] != torch.float32:
            model.to(DTYPES[spec.precision])
            self._masters = {name: nn.Parameter(weight.detach().float()) for name, weight in self._weights.items()}
            exchange(optimizer, {weight: self._masters[name] for name, weight in self._weights.items()})

    def step(self) -> None:
        """Clip by the global norm, update, clear the gradients."""
        if self._masters is not self._weights:
            for name, weight in self._weights.items():
                assert weight.grad is not None
                self._masters[name].grad, weight.grad = weight.grad.float(), None
        if self._clip:
            gradients = {name: one.grad for name, one in self._masters.items() if one.grad is not None}
            norm = tensor.total_norm(gradients, self._splits)
            nn.utils.clip_grads_with_norm_(self._masters.values(), self._clip, norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._copy_back()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights the model computes with, whole, fp32, on the CPU. All ranks that share them at once."""
        keys: dict[str, Any] = {"copy": True, "memory_format": torch.contiguous_format}
        wholes = ((name, tensor.whole(one, self._splits.get(name))) for name, one in self._weights.items())
        return {name: one.detach().to("cpu", torch.float32, **keys) for name, one in wholes}

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state."""
        state.save(folder / self._file, self._masters, self._optimizer)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        state.load(folder / self._file, self._masters, self._optimizer)
        self._copy_back()

    def held(self) -> list[Tensor]:
        """The master copy, and what the optimizer keeps of it."""
        return [*self._masters.values(), *state.tensors(self._optimizer)]

    def close(self) -> None:
        """Free weights, gradients and optimizer state, whoever still holds the model."""
        self._optimizer.state.clear()
        for parameter in (*self._weights.values(), *self._masters.values()):
            parameter.data, parameter.grad = parameter.new_empty(0), None

    @torch.no_grad()
    def _copy_back(self) -> None:
        if self._masters is not self._weights:
            torch._foreach_copy_(list(self._weights.values()), list(self._masters.values()))
