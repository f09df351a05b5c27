"""One rank without any distribution: plain torch, what every other engine has to agree with."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from torch import Tensor, nn

from vitscale.config.runspec import RunSpec
from vitscale.worker.engines import Held
from vitscale.worker.engines.update import DTYPES, Update


def prepare(_device: str) -> None:
    """Nothing to do once per process."""


class SingleEngine:
    """A plain model and a plain optimizer behind our protocol."""

    def __init__(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.dtype = DTYPES[spec.precision]
        self._update = Update(spec, model, optimizer)
        self._model: nn.Module = model
        self._grad_accum = spec.grad_accum

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, height, width]."""
        logits: Tensor = self._model(images)
        return logits

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002 (every micro-step is alike here)
        """Add the gradients of one micro-step."""
        (loss / self._grad_accum).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Clip, update, clear the gradients."""
        self._update.step()

    @property
    def skipped(self) -> int:
        """None: without a loss scale every update is made."""
        return 0

    def train(self, *, mode: bool) -> None:
        """Training mode or evaluation mode."""
        self._model.train(mode)

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state."""
        self._update.save(folder)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        self._update.load(folder)

    def weights(self) -> dict[str, Tensor] | None:
        """All weights, fp32."""
        return self._update.weights()

    def held(self) -> Held:
        """Whole weights and gradients, and what the update keeps."""
        weights = list(self._model.parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        return Held(weights, gradients, self._update.held())

    def close(self) -> None:
        """Free weights, gradients and optimizer state."""
        self._update.close()
        self._model = nn.Identity()
        gc.collect()


build = SingleEngine
