"""`roofline.jsonl`: forward passes of a launch by class of layer, with `measure.profile`. One line per class.

Figures are of rank 0, of the steps after the steady window in which layers were timed one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vitscale.records.schema import Frozen, NotNegative, Positive
from vitscale.records.writer import append_lines

ROOFLINE = "roofline.jsonl"


class LayerRecord(Frozen):
    """All layers of a class in the forward passes of one optimizer step."""

    layer: str
    """`patch_embed`, `norm`, `qkv`, `attention` (from the end of qkv to the begin of proj), `proj`, `fc1`, `fc2` or
    `head`."""
    seconds_per_step: Positive
    """How long they take together: the median of a class's calls times their number in a step."""
    flop_per_step: Positive | None
    """Of their matrix products, in closed form; null where they have none."""
    bytes_per_step: Positive
    """Inputs, weights and outputs, each moved once, in closed form: caches move less, what is not fused more."""
    peak_share: NotNegative | None
    """FLOP per second over the rank's `gemm_peak_flop_per_s`; null without either."""

    @property
    def flop_per_s(self) -> float | None:
        """What the matrix products attain."""
        return None if self.flop_per_step is None else self.flop_per_step / self.seconds_per_step


def write_layers(folder: Path, records: Iterable[LayerRecord]) -> None:
    """Write the lines of a launch, on disk when this returns; no file where there are none."""
    lines = [one.model_dump(mode="json") for one in records]
    if lines:
        append_lines(folder / ROOFLINE, lines)
