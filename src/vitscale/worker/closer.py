"""A closer look: more steps after the steady window, under the profiler and without collectives."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from vitscale.config.runspec import RunSpec
from vitscale.records.schema import Overlap, Silence
from vitscale.worker import overlap, profile, silence
from vitscale.worker.distributed import Ranks
from vitscale.worker.engines import Engine
from vitscale.worker.pipeline import Batches


def refusals(spec: RunSpec, steady_steps: int) -> dict[str, str | None]:
    """`silence`, `overlap` and, where one is asked for, `trace` -> why it is not taken; None where it is."""
    found = {"silence": silence.refusal(spec, steady_steps), "overlap": overlap.refusal(spec, steady_steps)}
    found |= {"trace": None} if spec.measure.profile else {}
    if not profile.available():
        found |= {name: "this torch has no profiler" for name in found if name != "silence"}
    return found


def look(
    wanted: Collection[str],
    folder: Path,
    spec: RunSpec,
    ranks: Ranks,
    engine: Engine,
    batches: Batches,
    beat: Callable[[], None],
) -> tuple[dict[str, Silence | Overlap], dict[str, str]]:
    """Take the steps. All ranks at once; `beat` is called after each step.

    Args:
        wanted: of `refusals`, those that are not refused.
        folder: the launch's, for a trace.
        spec: the run's.
        ranks: this rank among the others.
        engine: its weights are of no use afterwards.
        batches: for it.
        beat: tells that this rank is alive.

    Returns:
        What was found by field of a device's record, and why what is missing is.
    """
    found: dict[str, Silence | Overlap] = {}
    missing = {}
    if "overlap" in wanted or "trace" in wanted:
        seen, events = profile.taken(ranks, engine, batches, spec.grad_accum, "trace" in wanted, beat)
        if "trace" in wanted and (unwritten := profile.write(folder, ranks, seen, len(events))):
            missing["trace"] = unwritten
        if "overlap" in wanted:
            spans = overlap.spans(events)
            if unseen := overlap.unseen(spans):
                missing["overlap"] = unseen
            else:
                found["overlap"] = overlap.measure(spans, spec.device)
    if "silence" in wanted:  # last: each rank's weights go their own way in it
        found["silence"] = silence.measure(engine, batches, spec, ranks, beat)
    return found, missing
