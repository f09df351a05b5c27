"""What unequal shares of a micro-step gave, as data in `analysis.json`."""

from __future__ import annotations

from vitscale.analysis.interval import Frozen, Interval


class RankShare(Frozen):
    """One rank, mean over its steps and launches."""

    rank: int
    device: str | None
    """Name of its device; null where no manifest tells."""
    micro_batch: float
    """Images of a forward pass."""
    micro_steps: int
    """In how many passes of that size it takes its share of a micro-step; more than 1 where its memory holds less."""
    images_per_s: float
    """Images that it computes per second of its forward and backward passes, without waiting and communication."""
    idle_share: float
    """Share of the step in which it waits for slower ranks."""


class Without(Frozen):
    """What leaving the slowest rank out would give: an estimate, nothing of it was run.

    The others take the same global batch in proportion to their rates; what the number of images does not change
    (communication, update) stays as it is.
    """

    rank: int
    """The rank left out."""
    images_per_s: float
    """Throughput of the others."""
    gain: float
    """Over this run's throughput."""


class Dealt(Frozen):
    """How a micro-step's images were dealt to the ranks, and what that gave."""

    ranks: tuple[RankShare, ...]
    gain: Interval | None
    """Throughput over that of the same run with the even split; null where there is none, and of that run itself."""
    without_slowest: Without
