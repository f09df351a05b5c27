"""The train loop: the one that is measured is the one that trains."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vitscale.worker.clock import Clock
from vitscale.worker.engines import Engine
from vitscale.worker.pipeline import Batches

Criterion = Callable[[Tensor, Tensor], Tensor]


class Losses:
    """Losses of micro-steps, left on the device until a flush reads all of them in one copy."""

    def __init__(self, grad_accum: int) -> None:
        self._grad_accum = grad_accum
        self._held: list[Tensor] = []
        self._last: float | None = None

    def of_last_step(self) -> Tensor:
        """Sum over the micro-steps of the last step, on the device: not finite where any of them is not."""
        return torch.stack(self._held[-self._grad_accum :]).sum()

    def glance(self) -> float | None:
        """Loss of the last micro-step, for whoever watches; on CUDA the last one drained: no device is waited for."""
        if self._held and self._held[-1].device.type == "cpu":
            self._last = float(self._held[-1])
        return self._last

    def add(self, loss: Tensor) -> None:
        """Hold the mean loss of a micro-step."""
        self._held.append(loss.detach())

    def drain(self) -> list[float]:
        """Mean loss of every step since the last drain; waits for the device."""
        held, self._held = self._held, []
        if not held:
            return []
        means: list[float] = torch.stack(held).float().view(-1, self._grad_accum).mean(1).tolist()
        self._last = means[-1]
        return means


class Skips:
    """Steps whose update the engine left out: they are shorter than the others, and are not counted."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._seen = engine, engine.skipped
        self.steps: set[int] = set()

    def see(self, step: int) -> None:
        """Look whether the step that was just taken was one."""
        if self._engine.skipped > self._seen:
            self._seen = self._engine.skipped
            self.steps.add(step)


def run_steps(
    steps: range,
    engine: Engine,
    batches: Batches,
    clock: Clock,
    losses: Losses,
    grad_accum: int,
    after_step: Callable[[int], None],
    criterion: Criterion = functional.cross_entropy,
) -> None:
    """Take optimizer steps.

    Args:
        steps: their numbers.
        engine: the wrapped model.
        batches: this rank's micro-batches.
        clock: is told where the time goes.
        losses: holds the loss of every micro-step.
        grad_accum: micro-steps per optimizer step.
        after_step: is told the number of each step once it is taken (on CUDA: queued).
        criterion: mean loss of logits [n, classes] and labels.
    """
    # Python looks for garbage among all objects there are, for 0.1 s and more with DeepSpeed imported, on one rank at a
    # time while the others wait. What is there now is not looked at until the steps are over.
    gc.freeze()
    clock.start()
    try:
        for step in steps:
            for micro_step in range(grad_accum):
                images, labels = next(batches)
                clock.mark("data")
                loss = criterion(engine(images).float(), labels)
                clock.mark("forward")
                engine.backward(loss, last=micro_step == grad_accum - 1)
                clock.mark("backward")
                losses.add(loss)
            engine.step()
            clock.mark("optimizer")
            clock.end_step()
            after_step(step)
    finally:
        clock.stop()
        gc.unfreeze()
