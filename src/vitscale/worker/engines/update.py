"""The update where every rank holds whole weights: clip, step, clear. In bf16 it is that of an fp32 master copy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vitscale.config.runspec import RunSpec
from vitscale.worker.engines import state
from vitscale.worker.optimizers import exchange

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FILE = "state.safetensors"


class Update:
    """A torch optimizer over a model's weights, or over their master copy.

    As DeepSpeed does it, bf16 rounds the initial weights before the master copy is taken of them.

    Args:
        spec: its precision is `fp32` or `bf16`.
        model: converted to the precision, its parameters stay the same objects.
        optimizer: over the model's parameters; exchanged for the master copy in bf16.
    """

    def __init__(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._clip = optimizer, spec.optimizer.clip
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._masters: dict[str, nn.Parameter] = self._weights
        if spec.precision != "fp32":
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
            nn.utils.clip_grad_norm_(self._masters.values(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._copy_back()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights the model computes with, fp32, on the CPU."""
        return {name: one.detach().to("cpu", torch.float32, copy=True) for name, one in self._weights.items()}

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state."""
        state.save(folder / _FILE, self._masters, self._optimizer)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        state.load(folder / _FILE, self._masters, self._optimizer)
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
