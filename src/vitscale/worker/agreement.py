"""Stopping together without a wait in every step: what one rank saw, all ranks know a few steps later.

After each step a rank adds three flags to a running maximum over ranks (asked to stop; loss not finite; records are
due) and looks at the result of `DELAY` steps ago, which has long arrived. Every rank looks at the same result at the
same step.
"""

from __future__ import annotations

import signal
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from vitscale.worker.distributed import Ranks, start_maximum

DELAY = 2
"""Steps between a flag and the step after which all ranks act on it."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)


class Verdict(NamedTuple):
    """What the ranks together know."""

    stop: bool
    not_finite_step: int | None
    """First step whose loss was not finite on some rank, where there is one."""
    flush: bool = False
    """Whether some rank wants to write its records now."""


class Agreement:
    """One rank's part.

    Args:
        ranks: all of them take part.
        hear: whether a signal to this process asks all ranks to stop, between `__enter__` and `__exit__`.
    """

    def __init__(self, ranks: Ranks, *, hear: bool) -> None:
        self._ranks = ranks
        self._signals = _SIGNALS if hear else ()
        self._asked = False
        self._open: deque[tuple[int, Tensor, object]] = deque()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Agreement:
        self._before = {number: signal.signal(number, self._hear) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _hear(self, _signum: int, _frame: object) -> None:
        self._asked = True

    def after_step(self, step: int, loss: Tensor, *, flush: bool = False) -> Verdict:
        """Hand in this rank's flags of a step; the verdict is about step `step - DELAY` and those before."""
        asked, due = (torch.full_like(loss, float(flag)) for flag in (self._asked, flush))
        flags = torch.stack([asked, (~torch.isfinite(loss)).to(loss.dtype), due])
        self._open.append((step, flags, start_maximum(flags)))
        return self._resolve() if len(self._open) > DELAY else Verdict(False, None)

    def settle(self) -> Verdict:
        """Wait for all flags handed in: nothing later is built on a step that was not looked at."""
        verdict = Verdict(False, None)
        while self._open:
            latest = self._resolve()
            first = latest.not_finite_step if verdict.not_finite_step is None else verdict.not_finite_step
            verdict = Verdict(verdict.stop or latest.stop, first)
        return verdict

    def _resolve(self) -> Verdict:
        step, flags, work = self._open.popleft()
        work.wait()  # type: ignore[attr-defined]
        stop, bad, due = flags.tolist()
        return Verdict(stop > 0, step if bad > 0 else None, due > 0)
