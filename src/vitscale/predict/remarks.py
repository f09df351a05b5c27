"""What is said beside a prediction: thin or odd data, layouts far from measured ones, too little memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np

from vitscale.cost.calibrated import CHECKED_TIMES, beyond
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict.fit import DRAWS, Evidence, Posterior, log_ratios
from vitscale.predict.priors import PARAMETERS
from vitscale.predict.result import Memory
from vitscale.predict.series import Series, place
from vitscale.units import percent, probability, ranks, size

FARTHEST_TIMES = 4096
"""Times the largest world size of a series; beyond it nothing is predicted."""

NOISY = 3.0
"""Noise over its prior median from which the steps of a series do not fit the mechanisms."""

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


def of_input(series: Series) -> tuple[str, ...]:
    """How much of a step its images take, and what is taken as known of that."""
    shares = [one.input_s / one.step_s for one in series.measured if one.input_s is not None and one.step_s]
    if not shares:
        return ()
    told = f"images: to read, copy and prepare them is up to {percent(max(shares))} of a step"
    return (f"{told}; it is taken to stay as long whatever computes, with hosts like the measured ones",)


def of_fit(series: Series, seen: Evidence, posterior: Posterior) -> tuple[str, ...]:
    """Measured steps that the mechanisms do not explain, and whether a run, the work or the network is to be doubted.

    Of two layouts nothing is said: too little to tell a slow network from noise.
    """
    noise = PARAMETERS.index("noise")
    usual = float(seen.priors.parameters(np.zeros((1, len(PARAMETERS))))[0, noise])
    found = float(np.median(posterior.parameters[:, noise]))
    if len({one.layout for one in series.measured}) < 3 or found <= NOISY * usual:
        return ()
    if not series.batch_told:
        doubt = "the work of a rank, which is not told, may not be the same in every run"
    elif (odd := _out_of_line(seen, posterior, NOISY * usual)) is not None:
        doubt = f"no mechanism makes {place(odd)} so unlike the others: repeat it, or give it a series of its own"
    else:
        doubt = "the priors, above all of the network, may not be this machine's"
    told = f"the steps do not fit the mechanisms: noise of {percent(found)}, where {percent(usual)} is usual"
    return (f"{told}; {doubt}",)


def _out_of_line(seen: Evidence, posterior: Posterior, margin: float) -> Layout | None:
    """The run by which more ranks are faster, by a factor of e^margin, than in any draw of the priors."""
    rows = [row for row in seen.rows if row.kind == "step"]
    asked, logs = [(row.layout, row.kind) for row in rows], np.array([row.log_value for row in rows])
    z = np.random.default_rng(0).standard_normal((DRAWS, len(PARAMETERS)))
    allowed = log_ratios(seen, seen.priors.parameters(z), asked)
    often: Counter[int] = Counter()
    for fewer, more in permutations(range(len(rows)), 2):
        if rows[fewer].layout.world_size < rows[more].layout.world_size:
            least = float((allowed[:, more] - allowed[:, fewer]).min())
            if logs[more] - logs[fewer] < least - margin:
                often.update((fewer, more))
    if not often:
        return None
    off = logs - log_ratios(seen, posterior.parameters, asked).mean(axis=0)
    away = np.abs(off - np.median(off))
    return rows[max(often, key=lambda index: (often[index], float(away[index])))].layout


def of_layout(series: Series, wanted: Series, layout: Layout, memory: Memory | None) -> tuple[str, ...]:
    """How far a layout is from what was measured, a global batch beyond experience, and memory that is not there.

    Args:
        series: the calibrated one.
        wanted: the same with what is asked.
        layout: the asked one.
        memory: of one rank of it.
    """
    own = [one.layout for one in series.measured]
    ran = layout in own and series.source != "simulated" and replace(wanted, protocol=series.protocol) == series
    far = beyond([(one.world_size, one.nodes) for one in own], layout.world_size, layout.nodes)
    read = series.input.assumptions(layout)
    return (*far, *read, *_batch(series, wanted, layout), *_memory(layout, memory, ran))


def _batch(series: Series, wanted: Series, layout: Layout) -> list[str]:
    images, told = layout.global_batch, f"a global batch of {layout.global_batch:,.0f}"
    if not series.batch_told:
        return []
    # In weak scaling the images of an epoch grow with the ranks.
    grows = "weak" in (series.protocol, wanted.protocol)
    if not grows and series.images_per_epoch and images > series.images_per_epoch:
        return [f"{told} is more than the {series.images_per_epoch:,} images of an epoch"]
    if images > LARGEST_BATCH:
        return [f"{told} is more than the {LARGEST_BATCH:,} that training is known to bear: whether it learns is open"]
    return []


def _memory(layout: Layout, memory: Memory | None, ran: bool) -> list[str]:
    if memory is None or memory.fit_probability is None or memory.fit_probability >= SURE:
        return []
    needed, there, likely = memory.needed_bytes.median, memory.limit_bytes, probability(memory.fit_probability)
    needs, at = f"{size(needed)} of {size(there)}", ranks(layout.world_size)
    if ran:
        return [f"the form of memory is off at {at}: it ran; the form needs {needs}"]
    return [f"at {at} a rank needs about {needs}: the probability that it fits is {likely}"]
