"""The rules of the verdict: what each cause costs of a step. Definitions are in `docs/concepts/verdict.md`.

Costs of different causes do not overlap, but for those of `settings.py`, which are a part of communication's. What a
cause costs is measured where it can be (blocked, waiting, idle), else taken beyond the baseline's ideal: the time that
the baseline's typical rank would take for the same work per rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, median, median_high, median_low

from vitscale.analysis import exposed
from vitscale.analysis.case import Case, Found, calls
from vitscale.analysis.cause import Kind
from vitscale.analysis.device_findings import SLOW_MEMORY, THROTTLED_SHARE, in_words
from vitscale.analysis.ranks import latest
from vitscale.config.labels import ranks
from vitscale.units import decimal, percent, seconds, size

INPUT_SHARE = 0.05
"""`input`: from this share of the step on all waiting for images is the cost; below it, what exceeds the ideal. Small
models on CPUs take 1 to 3 % for resizing and normalising."""

OPTIMIZER_SHARE = 1 / 3
"""`optimizer`: from this share of the step on all of the update is the cost; below it, what exceeds the ideal. Small
models in micro-batches of 8 take a quarter."""

LATENCY_SHARE = 0.5
"""`communication` is bound by latency from this share of its time on the wire on, else by the link."""

UNEVEN_IMAGES = 0.02
"""`imbalance` instead of `straggler`: the late rank takes this much more images than the median rank."""

SLOW_CLOCK = 0.03
"""`throttled`: the median clock is this much below the best of the study on the same kind of device."""

_PHASES = ("data", "forward", "backward", "optimizer", "launch_gap")


def communication(case: Case) -> Iterator[Found]:
    """Blocked in transfers that nothing hides."""
    values = case.mean_s("comm_exposed")
    if case.ranks == 1 or not any(values):
        return
    link = case.link
    told = ""
    if link is not None:
        idle = f", the idle link gives {decimal(link.idle_bytes_per_s, 'B/s')}" if link.idle_bytes_per_s else ""
        rate = f" at {decimal(link.busbw_bytes_per_s, 'B/s')} bus bandwidth{idle}" if link.busbw_bytes_per_s else ""
        told = f"; {size(link.bytes)} per step in {calls(link.calls)}{rate}"
    hidden = case.result.overlapped_share
    hides = f", {percent(hidden, 0)} of all communication is hidden" if hidden is not None else ""
    yield Found(
        "communication",
        values,
        f"ranks are blocked in transfers for {seconds(median(values))} of a step{hides}{told}",
        detail=None if link is None else "latency" if link.latency_share >= LATENCY_SHARE else "link",
    )


def comm_and_wait(case: Case) -> Iterator[Found]:
    """Both in one figure where arrivals tell neither: by the steps without collectives, else by the profiler."""
    if case.communication_told:
        return
    by_silence, by_profiler = (exposed.seconds_by(case.run, one) for one in (exposed.SILENCE, exposed.PROFILER))
    if exposed.few_pairs(case.run.devices) and len(by_silence) == 1:
        by_silence = []  # too few to judge by
    values = by_silence or by_profiler
    if not values:
        return
    told = [f"a step without collectives is {seconds(median(by_silence))} shorter"] if by_silence else []
    told += [f"the profiler sees {seconds(median(by_profiler))} that nothing hides"] if by_profiler else []
    trusted = "; the first is what the step would save" if by_silence and by_profiler else ""
    yield Found("comm_and_wait", values, f"{', and '.join(told)}{trusted}")


def late_ranks(case: Case) -> tuple[int, ...]:
    """The `latest` ranks of a run, by their means over the launches."""
    waits = case.rank_s("wait")
    return latest([fmean(of_rank) for of_rank in zip(*waits, strict=True)]) if waits else ()


def _lateness_s(case: Case, late: Sequence[int]) -> list[float]:
    """Of each launch how much longer the typical rank waited than the late ones."""
    return [median_high(waits) - fmean(waits[rank] for rank in late) for waits in case.rank_s("wait")]


def straggler(case: Case) -> Iterator[Found]:
    """Ranks for which the others wait, launch after launch."""
    late = late_ranks(case)
    if not late:
        return
    values = _lateness_s(case, late)
    rank = min(late, key=lambda one: fmean(waits[one] for waits in case.rank_s("wait")))
    more = _more_images(case, rank)
    node = _node(case, late)
    who = f"rank {rank}" if len(late) == 1 else f"{len(late)} ranks (the slowest is {rank})"
    where = "" if node is None else f" on node {node}"
    phase, excess_s = _phase(case, rank)
    by = f", {seconds(excess_s)} of it in {phase.replace('_', ' ')}" if excess_s > 0 else ""
    uneven = f"; it takes {percent(more)} more images than the median rank" if more > UNEVEN_IMAGES else ""
    yield Found(
        "imbalance" if uneven else "straggler",
        values,
        f"the other ranks wait for {who}{where} for {seconds(median(values))} of a step{by}{uneven}",
        detail=phase if excess_s > 0 else None,
        rank=rank if len(late) == 1 else None,
        node=node,
        signed=True,
    )


def _more_images(case: Case, rank: int) -> float:
    """Share of images that a rank takes beyond the median rank.

    Ranks that take the same images are one, and in the records its first counts them.
    """
    shared = case.spec.ranks_per_replica
    shares = [one.by_rank["images"][::shared] for one in case.figures if "images" in one.by_rank]
    return fmean(images[case.spec.data_rank(rank)] / median_low(images) for images in shares) - 1 if shares else 0.0


def _node(case: Case, late: Sequence[int]) -> int | None:
    """The host that all late ranks are on, as the first manifest tells it."""
    manifest = next((one.record.manifest for one in case.run.counted if one.record.manifest), None)
    nodes = {one.node for one in manifest.devices if one.rank in late} if manifest else set()
    return nodes.pop() if len(nodes) == 1 else None


def _phase(case: Case, rank: int) -> tuple[str, float]:
    """The part of the step in which a rank is furthest behind the others' median, and by how much."""
    excess = {
        name: fmean(ranks[rank] - median_low(ranks) for ranks in by_launch)
        for name in _PHASES
        if (by_launch := case.rank_s(name))
    }
    return max(excess.items(), key=lambda one: one[1], default=("", 0.0))


def noise(case: Case) -> Iterator[Found]:
    """Waiting that no late rank explains: ranks take turns in being late."""
    waits = case.mean_s("wait")
    if case.ranks == 1 or not any(waits):
        return
    late = late_ranks(case)
    explained = [0.0] * len(waits)
    if late and any(case.stands(found.seconds) for found in straggler(case)):
        waiting = (case.ranks - len(late)) / case.ranks
        explained = [max(0.0, lateness) * waiting for lateness in _lateness_s(case, late)]
    values = [max(0.0, wait - part) for wait, part in zip(waits, explained, strict=True)]
    if any(values):
        lates = case.rank_s("late")
        means = [fmean(of_rank) for of_rank in zip(*lates, strict=True)] if lates else []
        turns = f" (late by {', '.join(seconds(one) for one in means)} a step)" if 0 < len(means) <= 4 else ""
        yield Found("noise", values, f"ranks wait {seconds(median(values))} of a step for each other, in turns{turns}")


def input_bound(case: Case) -> Iterator[Found]:
    """Waiting for images, as far as every rank does."""
    values, ideal = case.typical_s("data"), case.ideal_s("data")
    if not values:
        return
    share = median(values) / case.step_s
    told = f"every rank waits for its images for {seconds(median(values))} of a step, {percent(share)}"
    if share >= INPUT_SHARE:
        yield Found("input", values, told)
    elif ideal:
        yield Found("input", values, f"{told}, where {seconds(median(ideal))} are the baseline's", ideal, case.base)


def launch_bound(case: Case) -> Iterator[Found]:
    """The device idle while the host prepares its work."""
    values = case.mean_s("launch_gap")
    if any(values):
        yield Found(
            "launch", values, f"the device is idle for {seconds(median(values))} of a step while the host works"
        )


def optimizer_bound(case: Case) -> Iterator[Found]:
    """The update, beyond what the baseline takes for as much work per rank."""
    values = _update_s(case)
    ideal = [case.ratio * value for value in _update_s(case.base)] if case.base else []
    if not values or not case.communication_told:
        return
    share = median(values) / case.step_s
    told = f"the update takes {seconds(median(values))}, {percent(share)} of a step"
    if share >= OPTIMIZER_SHARE:
        yield Found("optimizer", values, told)
    elif ideal:
        told = f"{told}, where {seconds(median(ideal))} would keep up with the baseline"
        yield Found("optimizer", values, told, ideal, case.base)


def throttled(case: Case) -> Iterator[Found]:
    """Clocks that heat or the power limit hold below the best of the study."""
    values = _throttled_s(case)
    uses = case.uses
    if not values or case.clock_hz is None:
        return
    shares = {reason: fmean(use.throttled.get(reason, 0.0) for use in uses) for use in uses for reason in use.throttled}
    grave = {reason: share for reason, share in shares.items() if share >= THROTTLED_SHARE}
    if grave:
        why = ", ".join(f"{in_words(reason)} in {percent(share, 0)}" for reason, share in grave.items())
        yield Found(
            "throttled",
            values,
            f"GPUs ran at {decimal(case.clock_hz, 'Hz')}, {decimal(case.best.clock_hz, 'Hz')} is the study's best; "
            f"held down by {why} of the samples",
        )


def _throttled_s(case: Case) -> list[float]:
    """Computing at the clock there was, less what it would have taken at the best one."""
    clock, best = case.clock_hz, case.best.clock_hz
    if clock is None or not best or 1 - clock / best < SLOW_CLOCK:
        return []
    return [value * (1 - clock / best) for value in case.typical_s("forward", "backward")]


def memory_clock(case: Case) -> Iterator[Found]:
    """Memory of GPUs below its highest clock. The update streams through memory, and takes as much longer."""
    lacking, update = _memory_lacks(case), case.typical_s("optimizer")
    if lacking and update and case.communication_told:
        yield Found(
            "memory_clock",
            [lacking * value for value in update],
            f"the memory of the GPUs ran at {percent(1 - lacking, 0)} of its highest clock (median), and the update, "
            f"which streams through it, takes {seconds(median(update))}",
        )


def _memory_lacks(case: Case) -> float:
    """Share that the typical GPU's memory clock lacks of its highest; 0 where that is little or not told."""
    told = [share for use in case.uses for share in use.memory_clock_shares.values()]
    lacking = 1 - median(told) if told else 0.0
    return lacking if lacking > SLOW_MEMORY else 0.0


def _update_s(case: Case) -> list[float]:
    """The update, without what the memory's clock explains of it."""
    return [value * (1 - _memory_lacks(case)) for value in case.typical_s("optimizer")]


def compute(case: Case) -> Iterator[Found]:
    """Forward and backward per image slower than the baseline's, and what clocks do not explain of it."""
    held_down = any(found for one in (case, case.base) if one for found in throttled(one))
    values, ideal = (_computing_s(one, held_down) for one in (case, case.base))
    if not values or not ideal or not case.communication_told or case.base is None:
        return
    ideal = [case.ratio * value for value in ideal]
    micro, base_micro = case.spec.micro_batch, case.base.spec.micro_batch
    told = f"computing takes {seconds(median(values))}, at the baseline's pace per image {seconds(median(ideal))}"
    told += ", both without what held-down clocks cost" if held_down else ""
    batches = f"micro_batch is {micro}, the baseline's {base_micro}"
    kind: Kind = "oversubscribed" if case.run.facts.oversubscribed else "contention"
    kind = "micro_batch" if kind == "contention" and micro < base_micro else kind
    whole = Found(kind, values, f"{told}; {batches}", ideal, case.base)
    twin = _computing_s(case.twin, held_down or (case.twin is not None and any(throttled(case.twin))))
    if kind != "micro_batch" or not twin or not case.stands(whole.seconds):
        yield whole
        return
    alone = f"with this micro_batch {ranks(case.base.ranks, case.spec.device)} took {seconds(median(twin))}"
    yield Found("micro_batch", twin, f"{told}; {batches}, and {alone}", ideal, case.base)
    yield Found("contention", values, f"computing takes {seconds(median(values))}; {alone}", twin, case.twin)


def _computing_s(case: Case | None, held_down: bool) -> list[float]:
    """Forward and backward of the typical rank, less what clocks explain where these count; empty of no run."""
    values = [] if case is None else case.typical_s("forward", "backward")
    slow = _throttled_s(case) if case is not None and held_down else []
    return [value - part for value, part in zip(values, slow, strict=True)] if slow else values


RULES: tuple[Callable[[Case], Iterator[Found]], ...] = (
    communication,
    comm_and_wait,
    straggler,
    noise,
    input_bound,
    launch_bound,
    optimizer_bound,
    throttled,
    memory_clock,
    compute,
)
