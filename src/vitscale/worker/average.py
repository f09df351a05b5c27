"""An exponential moving average of the weights, in fp32, beside the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of every parameter. Needs whole parameters on each rank: ZeRO stages 0 to 2.

    Args:
        model: the model that is trained.
        decay: share of the old average in the new one, per step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self._average = {name: weight.detach().float().clone() for name, weight in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step in."""
        averages = list(self._average.values())
        weights = [weight.detach().float() for weight in self._parameters.values()]
        torch._foreach_lerp_(averages, weights, 1 - self._decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model, and the weights back afterwards, to the last bit."""
        held = {name: weight.detach().clone() for name, weight in self._parameters.items()}
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(held)

    def state(self) -> dict[str, Tensor]:
        """The average by parameter name, fp32."""
        return self._average

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved average."""
        assert state.keys() == self._average.keys()
        for name, value in state.items():
            self._average[name].copy_(value)

    @torch.no_grad()
    def _copy(self, source: dict[str, Tensor]) -> None:
        for name, weight in self._parameters.items():
            weight.copy_(source[name])
