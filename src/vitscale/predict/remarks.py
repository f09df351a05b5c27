"""What is said beside a prediction: thin or contradictory data, layouts far from measured ones, too little memory."""

from __future__ import annotations

import numpy as np

from vitscale.cost.calibrated import CHECKED_TIMES, beyond
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict.fit import Evidence, Posterior, log_ratios
from vitscale.predict.priors import PARAMETERS
from vitscale.predict.result import Memory
from vitscale.predict.series import Series
from vitscale.units import percent, probability, size

FARTHEST_TIMES = 4096
"""Times the largest world size of a series; beyond it nothing is predicted."""

NOISY = 3.0
"""Noise over its prior median from which the steps of a series contradict each other."""

LARGEST_BATCH = 65_536
"""Images of a global batch that training is known to bear (cited: BERT by LAMB, You et al., ICLR 2020)."""

SURE = 0.9
"""Probability of fitting the memory below which it is said."""


def refuse_beyond(series: Series, world_size: int) -> None:
    """Refuse world sizes that nothing of the series says anything of.

    Raises:
        UsageError: below 1, or beyond `FARTHEST_TIMES` the largest of the series.
    """
    largest = max(one.layout.world_size for one in series.measured or series.observations)
    if not 1 <= world_size <= FARTHEST_TIMES * largest:
        raise UsageError(
            f"a world size of {world_size:,} is not predicted from {largest:,}",
            f"1 to {FARTHEST_TIMES * largest:,}, {FARTHEST_TIMES:,} times as many; published tables check errors up "
            f"to {CHECKED_TIMES} times",
        )


def of_data(series: Series) -> tuple[str, ...]:
    """How little was measured."""
    sizes = {one.layout.world_size for one in series.measured}
    if not sizes:
        return ("nothing was measured: data sheets and priors only",)
    if len(sizes) == 1:
        return ("one world size was measured: how the step changes with it is the priors' alone",)
    return ()


def of_fit(seen: Evidence, posterior: Posterior) -> tuple[str, ...]:
    """Measured steps that no mechanism brings together, and the run that is farthest from the others."""
    steps = [index for index, row in enumerate(seen.rows) if row.kind == "step"]
    noise = PARAMETERS.index("noise")
    usual = float(seen.priors.parameters(np.zeros((1, len(PARAMETERS))))[0, noise])
    found = float(np.median(posterior.parameters[:, noise]))
    if len(steps) < 2 or found <= NOISY * usual:
        return ()
    rows = [seen.rows[index] for index in steps]
    own = log_ratios(seen, posterior.parameters, [(row.layout, row.kind) for row in rows]).mean(axis=0)
    off = np.array([row.log_value for row in rows]) - own
    at = rows[int(np.argmax(np.abs(off - np.median(off))))].layout
    where = f"{at.world_size:,} ranks on {at.nodes:,} node{'s' * (at.nodes > 1)}"
    return (
        f"the measured steps contradict each other: launches seem to differ by {percent(found)}, where "
        f"{percent(usual)} is usual; the farthest off is that of {where}: repeat it, or give it a series of its own",
    )


def of_layout(series: Series, layout: Layout, memory: Memory | None) -> tuple[str, ...]:
    """How far a layout is from what was measured, a global batch beyond experience, and memory that is not there."""
    own = [(one.layout.world_size, one.layout.nodes) for one in series.measured]
    return (*beyond(own, layout.world_size, layout.nodes), *_batch(series, layout), *_memory(memory))


def _batch(series: Series, layout: Layout) -> list[str]:
    images, told = layout.global_batch, f"a global batch of {layout.global_batch:,.0f}"
    if not series.batch_told:
        return []
    if series.protocol != "weak" and series.images_per_epoch and images > series.images_per_epoch:
        return [f"{told} is more than the {series.images_per_epoch:,} images of an epoch"]
    if images > LARGEST_BATCH:
        return [f"{told} is more than the {LARGEST_BATCH:,} that training is known to bear: whether it learns is open"]
    return []


def _memory(memory: Memory | None) -> list[str]:
    if memory is None or memory.fit_probability is None or memory.fit_probability >= SURE:
        return []
    needed, there, likely = memory.needed_bytes.median, memory.limit_bytes, probability(memory.fit_probability)
    return [f"a rank needs about {size(needed)} of {size(there)}: the probability that it fits is {likely}"]
