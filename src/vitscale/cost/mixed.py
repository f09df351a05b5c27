"""Ranks of unlike speed: how many images each takes of a micro-step, and the step that follows. Pure functions.

1. A rank computes b images in b / rate seconds. All ranks meet at the reduction of gradients, so a step takes
   `grad_accum · max(b_r / rate_r)` and what no image changes: communication, the update.
2. The largest of the quotients is least where b_r is in proportion to rate_r: then all are done at once.
3. The gradient of the global batch is the mean over images. Engines average over ranks, so rank r's mean loss is
   weighted by `b_r · ranks / sum(b)`.
4. A rank that takes its b images in equal parts, one after another, has the same mean loss: the mean over its parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

ALIKE = 0.05
"""Rates that differ by less than this are one rate: timing a few micro-steps cannot tell them apart."""


class Shares(NamedTuple):
    """What each rank takes of the images of a micro-step."""

    images: tuple[int, ...]
    parts: tuple[int, ...]
    """Equal parts in which a rank takes its images, one after another; 1 is all at once."""


def proportional(images: int, rates: Sequence[float]) -> tuple[int, ...]:
    """Deal the images of a micro-step to ranks in proportion to their rates: largest remainder, at least one each.

    Args:
        images: in all, at least one for each rank.
        rates: of each rank, images per second or any other unit, above 0.
    """
    assert images >= len(rates)
    assert all(rate > 0 for rate in rates)
    quotas = [images * rate / sum(rates) for rate in rates]
    dealt = [max(1, math.floor(quota)) for quota in quotas]
    by_remainder = sorted(range(len(rates)), key=lambda rank: (dealt[rank] - quotas[rank], rank))
    for rank in by_remainder[: max(0, images - sum(dealt))]:
        dealt[rank] += 1
    while sum(dealt) > images:  # the least of one is given back by who has most beyond its quota
        able = (rank for rank in range(len(rates)) if dealt[rank] > 1)
        dealt[max(able, key=lambda rank: dealt[rank] - quotas[rank])] -= 1
    return tuple(dealt)


def within(images: int, rates: Sequence[float], most: Sequence[int]) -> tuple[int, ...]:
    """Deal as `proportional` does, to no rank more than it can hold: what one cannot take the others take, by rate.

    Args:
        images: in all, at least one for each rank.
        rates: of each rank, as there.
        most: images that each rank can hold, at least one each and all images together.
    """
    assert sum(most) >= images
    full: dict[int, int] = {}
    while True:
        free = [rank for rank in range(len(rates)) if rank not in full]
        dealt = proportional(images - sum(full.values()), [rates[rank] for rank in free]) if free else ()
        over = {rank: most[rank] for rank, own in zip(free, dealt, strict=True) if own > most[rank]}
        if not over:
            found = full | dict(zip(free, dealt, strict=True))
            return tuple(found[rank] for rank in range(len(rates)))
        full |= over


def in_parts(images: int, rates: Sequence[float], most: Sequence[int]) -> Shares:
    """Deal as `proportional` does; a rank that cannot hold its share at once takes it in as few equal parts as it can.

    What such a share has beyond equal parts the ranks that hold theirs take, as `within` deals it. They have room for
    it: a share in k parts exceeds what its rank holds by at least the k - 1 images that may be left over.

    Args:
        images: in all, at least one for each rank.
        rates: of each rank, as there.
        most: images that each rank can hold at once, at least one each and all images together.
    """
    asked = proportional(images, rates)
    parts = [math.ceil(own / held) for own, held in zip(asked, most, strict=True)]
    found = {rank: asked[rank] - asked[rank] % count for rank, count in enumerate(parts) if count > 1}
    free = [rank for rank, count in enumerate(parts) if count == 1]
    rest = within(images - sum(found.values()), [rates[rank] for rank in free], [most[rank] for rank in free])
    found |= dict(zip(free, rest, strict=True))
    shares = tuple(found[rank] for rank in range(len(rates)))
    return Shares(shares, tuple(1 if own <= most[rank] else parts[rank] for rank, own in enumerate(shares)))


def alike(rates: Sequence[float]) -> list[float]:
    """Rates in which those within `ALIKE` of their group's slowest have its mean, so that equal devices stay equal."""
    order = sorted(range(len(rates)), key=lambda rank: rates[rank])
    groups: list[list[int]] = []
    for rank in order:
        if groups and rates[rank] < rates[groups[-1][0]] * (1 + ALIKE):
            groups[-1].append(rank)
        else:
            groups.append([rank])
    means = {rank: sum(rates[one] for one in group) / len(group) for group in groups for rank in group}
    return [means[rank] for rank in range(len(rates))]


def images_per_s(
    micro_batches: Sequence[int], rates: Sequence[float], grad_accum: int = 1, fixed_s: float = 0
) -> float:
    """Throughput of all ranks together, by step 1 at the top.

    Args:
        micro_batches: images of each rank in a micro-step.
        rates: images per second that each rank computes.
        grad_accum: micro-steps.
        fixed_s: seconds of a step that the number of images does not change.
    """
    slowest_s = max(images / rate for images, rate in zip(micro_batches, rates, strict=True))
    return grad_accum * sum(micro_batches) / (grad_accum * slowest_s + fixed_s)


def weight(micro_batches: Sequence[int], rank: int) -> float:
    """What a rank's mean loss is multiplied by, so that the mean over ranks is that over images: step 3 at the top."""
    return micro_batches[rank] * len(micro_batches) / sum(micro_batches)
