"""What sampling the devices costs: the train loop with a sampler on each node against the same loop without.

Blocks of steps alternate as in `instrumentation`, everything else that measures being on in both. At one sample a
second the difference drowns in the noise of a step, so the sampled blocks take 20 a second and the difference is
divided by 20: samples cost the same whenever they are taken. What noise leaves open the second figure decides: the time
of a sample over the time between two.
"""

from __future__ import annotations

from benchmarks.figure import Figure, below, within
from benchmarks.instrumentation import at_each_size, ranks_of
from benchmarks.instrumented_rank import FASTER
from vitscale import units
from vitscale.config.runspec import RunSpec
from vitscale.statistics import interval, median_of
from vitscale.worker.sampling import DEFAULT_S

TARGET_SHARE = 0.005
COMMAND = "python -m benchmarks sampling"


def measure(short: bool) -> list[Figure]:
    """World sizes 1 and 2, 30 pairs of blocks of 8 steps each."""
    return at_each_size("sampling", "sampling", TARGET_SHARE, COMMAND, _figures, *((4, 1) if short else (30, 8)))


def _figures(spec: RunSpec, seen: dict[str, list[float]]) -> list[Figure]:
    ratios = [on / off for on, off in zip(seen["on_s"], seen["off_s"], strict=True)]
    ratio = interval(ratios)
    met = None
    if ratio.low is not None and ratio.high is not None:
        low, high = ((end - 1) / FASTER for end in (ratio.low, ratio.high))
        met = True if high < TARGET_SHARE else False if low >= TARGET_SHARE else None
    return [
        Figure(
            f"step time that sampling adds, {ranks_of(spec)}",
            f"{(ratio.median - 1) / FASTER:+.3%}",
            within(ratio, lambda value: f"{(value - 1) / FASTER:+.3%}", len(ratios)),
            f"< {TARGET_SHARE:.1%}",
            met,
            COMMAND,
            f"blocks with {FASTER / DEFAULT_S:.0f} samples a second are {ratio.median - 1:+.2%} longer",
        ),
        below(
            f"time of a sample over the time between two, {ranks_of(spec)}",
            [sample_s / DEFAULT_S for sample_s in seen["alone_s"]],
            TARGET_SHARE,
            "{:.3%}".format,
            COMMAND,
            f"{units.seconds(median_of(seen['alone_s']))} a sample",
        ),
    ]
