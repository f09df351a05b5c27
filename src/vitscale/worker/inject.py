"""Faults on demand, for the tests of what happens when things go wrong.

`VITSCALE_INJECT="kill rank=1 step=2"`: kinds `kill` (SIGKILL), `stop` (SIGTERM), `raise`, `oom`, `hang`; optional
`launch=<run_id part>`, `phase=closer` (steps after the steady window, from 1), and `once=<file>`, which is made when
the fault strikes and keeps it from striking again.
`VITSCALE_INJECT="sleep rank=1 where=backward seconds=0.02"` slows a rank: a sleep in every step (or in `step=` only) as
`data`, `forward`, `backward` or `optimizer` begins. `VITSCALE_INJECT="slow rank=1 factor=3"` makes a slower device
of it: each forward pass takes three times as long, in proportion to its images. Several are parted by `;`.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitscale.worker.engines import Engine
from vitscale.worker.pipeline import Batch, Batches

_SLOWING = ("sleep", "slow")


class Injected(RuntimeError):
    """The fault that a test asked for."""


def fault(run_id: str, rank: int, environ: Mapping[str, str], phase: str = "steps") -> Callable[[int], None] | None:
    """What to call after each step of a launch's phase, or None where nothing was asked for."""
    asked = [_asked(text, run_id, rank, phase) for text in environ.get("VITSCALE_INJECT", "").split(";")]
    strikes = [strike for strike in asked if strike is not None]
    if not strikes:
        return None

    def strike_all(step: int) -> None:
        for strike in strikes:
            strike(step)

    return strike_all


class Delay(NamedTuple):
    """A sleep in one part of a step, or as long as a forward pass took."""

    where: str
    seconds: float
    step: int | None
    """None: every step."""
    factor: float = 1.0
    """Of the time of each forward pass."""


def delays(run_id: str, rank: int, environ: Mapping[str, str]) -> list[Delay]:
    """The sleeps that were asked for of this rank."""
    given = [_given(text, run_id, rank) for text in environ.get("VITSCALE_INJECT", "").split(";")]
    return [
        Delay(
            one.get("where", "forward"),
            float(one.get("seconds", 0)),
            int(one["step"]) if "step" in one else None,
            float(one.get("factor", 1)),
        )
        for one in given
        if one.get("kind") in _SLOWING
    ]


def slowed(engine: Engine, batches: Batches, asked: list[Delay], first: int = 0) -> tuple[Engine, Batches]:
    """The engine and the batches, with sleeps in them where any were asked for; `first`: number of the next step."""
    if not asked:
        return engine, batches
    slow: Any = _Slowed(engine, batches, asked, first)
    return slow, slow


class _Slowed:
    """An engine and its batches that sleep at the start of a part of a step."""

    def __init__(self, engine: Engine, batches: Batches, asked: list[Delay], first: int) -> None:
        self._engine, self._batches, self._asked = engine, batches, asked
        self._factor = math.prod(one.factor for one in asked)
        self._step = first
        self._done: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _sleep(self, where: str) -> None:
        for one in self._asked:
            if one.seconds and one.where == where and where not in self._done and one.step in (None, self._step):
                time.sleep(one.seconds)
        self._done.add(where)

    def __next__(self) -> Batch:
        self._sleep("data")
        return next(self._batches)

    def __call__(self, images: Tensor) -> Tensor:
        self._sleep("forward")
        began = time.perf_counter()
        logits = self._engine(images)
        if self._factor > 1:
            time.sleep((self._factor - 1) * (time.perf_counter() - began))
        return logits

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Asleep, then the engine's."""
        self._sleep("backward")
        self._engine.backward(loss, last=last)

    def step(self) -> None:
        """Asleep, then the engine's."""
        self._sleep("optimizer")
        self._engine.step()
        self._step, self._done = self._step + 1, set()


def _given(text: str, run_id: str, rank: int) -> dict[str, str]:
    """What one fault was given, and its kind; empty where it is not for this launch and rank."""
    kind, *pairs = text.split() or [""]
    given = dict(pair.partition("=")[::2] for pair in pairs)
    if not kind or rank != int(given.get("rank", 0)) or given.get("launch", "") not in run_id:
        return {}
    return {"kind": kind, **given}


def _asked(text: str, run_id: str, rank: int, phase: str) -> Callable[[int], None] | None:
    given = _given(text, run_id, rank)
    kind = given.get("kind", "sleep")
    if kind in _SLOWING or given.get("phase", "steps") != phase:
        return None

    def strike(step: int) -> None:
        if step != int(given.get("step", 0)):
            return
        once = given.get("once")
        if once and Path(once).exists():
            return
        if once:
            Path(once).touch()
        _FAULTS[kind]()

    return strike


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _raise() -> None:
    raise Injected("asked for by VITSCALE_INJECT")


def _oom() -> None:
    raise torch.OutOfMemoryError("asked for by VITSCALE_INJECT")


def _hang() -> None:
    time.sleep(3600)


_FAULTS = {"kill": _kill, "stop": _stop, "raise": _raise, "oom": _oom, "hang": _hang}
