"""A closer look: more steps after the steady window, under the profiler, layer by layer and without collectives."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vitscale.config.runspec import RunSpec
from vitscale.records.layers import write_layers
from vitscale.records.schema import Overlap, Silence
from vitscale.worker import overlap, profile, roofline, silence
from vitscale.worker.distributed import Ranks
from vitscale.worker.engines import Engine
from vitscale.worker.pipeline import Batches
from vitscale.worker.timeline import timeline_for


def refusals(spec: RunSpec, steady_steps: int) -> dict[str, str | None]:
    """`silence`, `overlap` and, with `measure.profile`, `trace` and `roofline` -> why not taken; None where it is."""
    found = {"silence": silence.refusal(spec, steady_steps), "overlap": overlap.refusal(spec, steady_steps)}
    found |= {"trace": None} if spec.measure.profile else {}
    if not profile.available():
        found |= {name: "this torch has no profiler" for name in found if name != "silence"}
    return {**found, "roofline": roofline.refusal(spec)} if spec.measure.profile else found


@dataclass(frozen=True)
class Closer:
    """What is looked at."""

    spec: RunSpec
    folder: Path
    """The launch's, for what has a file of its own."""
    ranks: Ranks
    model: nn.Module
    """The timm ViT inside of the engine."""
    engine: Engine
    """Its weights are of no use afterwards."""
    batches: Batches
    peak_flop_per_s: float | None
    """Of a matrix product on this device."""
    beat: Callable[[], None]
    """Is called after each step."""

    def look(
        self, wanted: Collection[str], steady_steps: int, launch: int
    ) -> tuple[dict[str, Silence | Overlap], dict[str, str]]:
        """Take the steps for what is `wanted`, those of `refusals` that are not refused. All ranks at once.

        Args:
            wanted: fields.
            steady_steps: of the window.
            launch: its number.

        Returns:
            What was found by field of a device's record, and why what is missing is.
        """
        found: dict[str, Silence | Overlap] = {}
        missing: dict[str, str] = {}
        if "overlap" in wanted or "trace" in wanted:
            overlapped, missing = self._profile(wanted)
            found |= {"overlap": overlapped} if overlapped else {}
        if "roofline" in wanted:
            self._time_layers()
        if "silence" in wanted:  # last: each rank's weights go their own way in it
            own = self.engine, self.batches, self.spec, self.ranks
            found["silence"] = silence.measure(*own, steady_steps, launch, self.beat)
        return found, missing

    def _profile(self, wanted: Collection[str]) -> tuple[Overlap | None, dict[str, str]]:
        """Steps under the profiler: as a trace, as a figure, or as both."""
        missing = {}
        accum, tracing = self.spec.grad_accum, "trace" in wanted
        seen, events = profile.taken(self.ranks, self.engine, self.batches, accum, tracing, self.beat)
        if tracing and (unwritten := profile.write(self.folder, self.ranks, seen, len(events))):
            missing["trace"] = unwritten
        if "overlap" not in wanted:
            return None, missing
        spans = overlap.spans(events)
        if unseen := overlap.unseen(spans):
            return None, {**missing, "overlap": unseen}
        return overlap.measure(spans, self.spec.device), missing

    def _time_layers(self) -> None:
        timeline = timeline_for(self.ranks.device)
        lines = roofline.measure(
            self.model, self.engine, self.batches, self.spec, timeline, self.peak_flop_per_s, self.beat
        )
        if self.ranks.rank == 0:
            write_layers(self.folder, lines)
