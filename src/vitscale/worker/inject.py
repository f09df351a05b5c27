"""Faults on demand, for the tests of what happens when things go wrong.

`VITSCALE_INJECT="kill rank=1 step=2"`: kinds `kill` (SIGKILL), `stop` (SIGTERM), `raise`, `oom`, `hang`; optional
`launch=<run_id part>` and `once=<file>`, which is made when the fault strikes and keeps it from striking again.
Several are parted by `;`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


class Injected(RuntimeError):
    """The fault that a test asked for."""


def fault(run_id: str, rank: int, environ: Mapping[str, str]) -> Callable[[int], None] | None:
    """What to call after each step of a launch, or None where nothing was asked for."""
    asked = [_asked(text, run_id, rank) for text in environ.get("VITSCALE_INJECT", "").split(";")]
    strikes = [strike for strike in asked if strike is not None]
    if not strikes:
        return None

    def strike_all(step: int) -> None:
        for strike in strikes:
            strike(step)

    return strike_all


def _asked(text: str, run_id: str, rank: int) -> Callable[[int], None] | None:
    kind, *pairs = text.split() or [""]
    given = dict(pair.partition("=")[::2] for pair in pairs)
    if not kind or rank != int(given.get("rank", 0)) or given.get("launch", "") not in run_id:
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
