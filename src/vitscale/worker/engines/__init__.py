"""Engines: who owns parallelism. One file each, one small protocol; the loop knows nothing else of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

from vitscale.config.runspec import RunSpec


@dataclass(frozen=True)
class Held:
    """Tensors a rank holds at one moment, by what they are for. The same memory may be told several times."""

    parameters: Sequence[Tensor]
    """Weights, or the rank's shards of them."""
    gradients: Sequence[Tensor]
    """Gradients, or the rank's shards of them."""
    optimizer: Sequence[Tensor]
    """Moments, and master weights where the weights are not their own."""
    gathered: Sequence[Tensor] = ()
    """Whole weights beside the shards."""
    buckets: Sequence[Tensor] = ()
    """What gradients travel in, as far as it can be filled."""


class Engine(Protocol):
    """A model wrapped for training on all ranks."""

    dtype: torch.dtype
    """What the model's inputs have to be."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, height, width]."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-step; `loss` is its images' mean. `last`: the optimizer step follows."""

    def step(self) -> None:
        """Clip, update, and clear the gradients.

        Raises:
            DivergedError: gradients overflow at the smallest loss scale (fp16).
        """

    @property
    def skipped(self) -> int:
        """Updates left out so far, because gradients overflowed at the loss scale of their step (fp16)."""

    def train(self, *, mode: bool) -> None:
        """Training mode (dropout, drop path) or evaluation mode."""

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights, optimizer and counters into an empty folder; all ranks at once."""

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, to the last bit, at the same world size."""

    def weights(self) -> dict[str, Tensor] | None:
        """All weights by parameter name, on the CPU, on rank 0; None on the others. All ranks at once."""

    def held(self) -> Held:
        """What this rank holds now; it is asked in the middle of a step too, and must not start a collective."""

    def close(self) -> None:
        """Free what the engine holds, so that the next run of the round starts from an empty device."""


def build(spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> Engine:
    """Wrap a model, already on its device, with the engine the run asks for.

    With `precision = bf16_autocast` forward runs under `torch.autocast`, unless the engine's file says that it does so
    itself (`AUTOCASTS = True`).
    """
    file = _file(spec.engine)
    if spec.precision == "bf16_autocast" and not getattr(file, "AUTOCASTS", False):
        model.forward = torch.autocast(spec.device, torch.bfloat16)(model.forward)
    engine: Engine = file.build(spec, model, optimizer)
    return engine


def prepare(name: str, device: str) -> None:
    """What an engine has to do once per process, before any model is built."""
    _file(name).prepare(device)


def _file(name: str) -> ModuleType:
    """An engine's own file. Its packages are imported there, and only when it is used."""
    return import_module(f"vitscale.worker.engines.{name}")
