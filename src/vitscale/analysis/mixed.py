"""Ranks of unlike speed: what each computes and waits, the gain of unequal shares, and what fewer ranks would give.

Of a run with `engine.split`, of its twin with the even split, and of any run whose ranks' devices differ by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, median

from vitscale.analysis import text
from vitscale.analysis.dealt import Dealt, RankShare, Without
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Finding, Interval, RunResult
from vitscale.config.runspec import RunSpec
from vitscale.cost import mixed
from vitscale.statistics import ratio_interval
from vitscale.units import number, percent

WORTH_LEAVING = 1.05
"""Leaving the slowest rank out is advised from this estimated gain on."""

_LISTED = 8
"""Ranks whose figures stand in a sentence one by one."""


def with_dealt(results: Sequence[RunResult], study: StudyData) -> tuple[RunResult, ...]:
    """The results, each with its ranks' shares where they are of interest."""
    runs = {run.run_id: run for run in study.runs}
    twins = {run.run_id: runs.get(_even_id(run)) for run in study.runs if _splits(run)}
    evens = {twin.run_id for twin in twins.values() if twin is not None}
    found = []
    for result in results:
        run = runs[result.run_id]
        asked = run.run_id in twins or run.run_id in evens or len(run.device_names) > 1
        dealt = _dealt(run, twins.get(run.run_id)) if asked else None
        found.append(result if dealt is None else result.model_copy(update={"dealt": dealt}))
    return tuple(found)


def find(study: StudyData, results: Mapping[str, RunResult]) -> Iterator[Finding]:
    """What unequal shares gained, and whether the slowest rank is worth having."""
    for run in study.runs:
        dealt = results[run.run_id].dealt
        if dealt is None:
            continue
        left = dealt.without_slowest
        shares = _told([one.micro_batch for one in dealt.ranks], "{:g}".format)
        shares += _more(dealt.ranks)
        idle = _told([one.idle_share for one in dealt.ranks], percent)
        gain = f"; {text.ratio(dealt.gain)} the even split's throughput" if dealt.gain else ""
        yield Finding(
            kind="unequal_ranks",
            severity="note",
            evidence=f"{study.labels[run.run_id]}: micro-batches by rank {shares}, waiting {idle} of a step{gain}. "
            f"Without rank {left.rank}, the slowest, an estimated {number(left.images_per_s)} images/s "
            f"({number(left.gain)}x).",
            hint=_hint(run, left),
            runs=(run.run_id,),
        )


def _told(values: Sequence[float], form: Callable[[float], str]) -> str:
    """By rank, or of many ranks the ends."""
    if len(values) > _LISTED:
        return f"{form(min(values))} to {form(max(values))}"
    return ", ".join(map(form, values))


def _more(ranks: Sequence[RankShare]) -> str:
    """Which ranks take several micro-steps while the others take one."""
    several = [f"{one.micro_steps} on rank {one.rank}" for one in ranks if one.micro_steps > 1]
    others = f" and {len(several) - _LISTED} others" if len(several) > _LISTED else ""
    return f" (micro-steps to the others' one: {', '.join(several[:_LISTED])}{others})" if several else ""


def _hint(run: Run, left: Without) -> str | None:
    if left.gain >= WORTH_LEAVING:
        return f"measure it without rank {left.rank}'s device"
    return None if _splits(run) else "engine.split=proportional deals images by what each rank computes"


def _splits(run: Run) -> bool:
    return isinstance(run.spec, RunSpec) and run.spec.knobs is not None and run.spec.knobs.split is not None


def _even_id(run: Run) -> str:
    """run_id of the same run with the even split."""
    assert isinstance(run.spec, RunSpec)
    assert run.spec.knobs is not None
    knobs = run.spec.knobs.model_copy(update={"split": None}).given
    return run.spec.model_copy(update={"knobs": knobs}).run_id


def _dealt(run: Run, even: Run | None) -> Dealt | None:
    """None where the ranks' own times are not told."""
    spec, launches = run.spec, run.figures
    needed = ("forward", "backward", "wait", "images")
    told = launches and all(len(one.by_rank.get(name, ())) == spec.world_size for one in launches for name in needed)
    if not isinstance(spec, RunSpec) or not told or spec.world_size == 1 or spec.ranks_per_replica > 1:
        return None
    names, counts = _device_names(run), _micro_steps(run)
    ranks = []
    for rank in range(spec.world_size):
        images = fmean(one.by_rank["images"][rank] for one in launches)
        busy_s = fmean((one.by_rank["forward"][rank] + one.by_rank["backward"][rank]) * one.step_s for one in launches)
        if not images or not busy_s:
            return None
        ranks.append(
            RankShare(
                rank=rank,
                device=names.get(rank),
                micro_batch=images / spec.grad_accum / counts[rank],
                micro_steps=counts[rank],
                images_per_s=images / busy_s,
                idle_share=fmean(one.by_rank["wait"][rank] for one in launches),
            )
        )
    step_s = median(run.step_s)
    gain = None
    if even is not None and even.step_s:
        ratio = ratio_interval(even.step_s, run.step_s)
        gain = Interval(median=ratio.median, low=ratio.low, high=ratio.high)
    return Dealt(ranks=tuple(ranks), gain=gain, without_slowest=_without(spec, ranks, step_s))


def _micro_steps(run: Run) -> tuple[int, ...]:
    """By rank, those in which it takes its share of a micro-step of the run, as the first manifest tells them."""
    splits = (one.record.manifest.split for one in run.counted if one.record.manifest)
    split = next(splits, None)
    return split.micro_steps if split and split.micro_steps else (1,) * run.facts.world_size


def _device_names(run: Run) -> dict[int, str]:
    """By rank, as the first manifest tells them."""
    manifest = next((one.record.manifest for one in run.counted if one.record.manifest), None)
    return {one.rank: one.name for one in manifest.devices} if manifest else {}


def _without(spec: RunSpec, ranks: Sequence[RankShare], step_s: float) -> Without:
    """The definition is `Without`'s."""
    slowest = min(ranks, key=lambda one: one.images_per_s)
    rates = [one.images_per_s for one in ranks if one.rank != slowest.rank]
    images = spec.global_batch // spec.grad_accum
    shares = [one.micro_batch * one.micro_steps for one in ranks]
    computing_s = max(spec.grad_accum * own / one.images_per_s for own, one in zip(shares, ranks, strict=True))
    fixed_s = max(0.0, step_s - computing_s)
    left = mixed.images_per_s(mixed.proportional(images, rates), rates, spec.grad_accum, fixed_s)
    return Without(rank=slowest.rank, images_per_s=left, gain=left * step_s / spec.global_batch)
