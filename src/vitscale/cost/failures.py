"""What failures and checkpoints add to a training: how often to save, and how long it then takes.

With M the mean time between failures of all devices together, C seconds of a checkpoint and R seconds of a restart:

1. Failures come at random and independently (exponential), so N devices of mean time m fail every M = m / N.
2. Young (CACM 17, 1974): saving every sqrt(2 C M) seconds is best to first order.
3. Daly (Future Generation Computer Systems 22, 2006), equation 37: the next orders, for C < 2M
   sqrt(2 C M) · (1 + sqrt(C / 2M) / 3 + C / 2M / 9) - C, else M.
4. Daly, equation 20: the expected wall time of T seconds of work saved every tau is
   M · e^(R/M) · (e^((tau + C)/M) - 1) · T / tau: what is lost, done again, and lost again in doing so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHECKPOINT_BYTES_PER_S = 1e9
"""Assumed rate at which a node writes to storage; every node writes its share."""

RESTART_S = 300.0
"""Assumed from a failure to the first step after it."""

DEVICE_MTBF_S = 50_000 * 3600.0
"""Mean time between failures of one device with its share of the node: 419 unexpected interruptions of 16,384 H100 in
54 days (cited: Llama 3, arXiv 2407.21783, section 3.3.4), one in 50,700 device-hours."""

ASSUMED = (
    f"failures: a device with its share of the node stops every {DEVICE_MTBF_S / 3600:,.0f} hours, starting again "
    f"takes {RESTART_S:.0f} s, a node saves {CHECKPOINT_BYTES_PER_S / 1e9:g} GB/s"
)
"""The figures above in words."""


def mean_between_failures_s(devices: int, device_mtbf_s: float = DEVICE_MTBF_S) -> float:
    """Return the mean time between failures of all devices together."""
    return device_mtbf_s / devices


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return the seconds of work between checkpoints, to first order."""
    return math.sqrt(2 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return the seconds of work between checkpoints that cost least."""
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = checkpoint_s / (2 * mtbf_s)
    return young_interval_s(checkpoint_s, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint_s


def wall_s(work_s: float, *, interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> float | None:
    """Return the expected wall time of `work_s` seconds of steps; None where it would never end (beyond any float).

    Args:
        work_s: of steps alone.
        interval_s: work between two checkpoints; 0 or less is none to be had.
        checkpoint_s, restart_s: of saving, and of starting again from what was saved.
        mtbf_s: of all devices together; infinite is no failures.
    """
    if work_s <= 0 or interval_s <= 0:
        return 0.0 if work_s <= 0 else None
    segments = work_s / interval_s
    if math.isinf(mtbf_s):
        return work_s + segments * checkpoint_s
    try:
        return mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1((interval_s + checkpoint_s) / mtbf_s) * segments
    except OverflowError:
        return None


@dataclass(frozen=True)
class TrainingTime:
    """A whole training, seconds; checkpoints as often as Daly has it."""

    steps_s: float
    """Of steps alone."""
    wall_s: float | None
    """With checkpoints, failures and what they cost; None where it would not end."""
    interval_s: float
    """Work between checkpoints."""
    checkpoint_s: float
    restart_s: float
    mtbf_s: float
    """Of all devices together."""


def training_time(steps_s: float, devices: int, checkpoint_bytes: float, nodes: int) -> TrainingTime:
    """Return a training's wall time under failures, by the assumptions at the top."""
    mtbf_s = mean_between_failures_s(devices)
    checkpoint_s = checkpoint_bytes / nodes / CHECKPOINT_BYTES_PER_S
    interval_s = daly_interval_s(checkpoint_s, mtbf_s)
    keys = {"checkpoint_s": checkpoint_s, "restart_s": RESTART_S, "mtbf_s": mtbf_s}
    return TrainingTime(steps_s, wall_s(steps_s, interval_s=interval_s, **keys), interval_s, **keys)
