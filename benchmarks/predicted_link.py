"""What two hosts over a slow link were said to take, from one rank and the link benchmark, against what they took."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.figure import VITSCALE, Figure, run
from vitscale.predict.model import calibrate, predict
from vitscale.predict.read import read
from vitscale.predict.series import Series
from vitscale.units import percent, seconds

TARGET = 0.10
LINKS = "100mbit,1gbit"
_COMMAND = "python -m benchmarks predicted_link"


def measure(short: bool) -> list[Figure]:
    """One figure per link."""
    target = f"within {percent(TARGET, 0)}"
    if os.geteuid() != 0:
        return [Figure("2 ranks over a link", "n/a", "", target, None, _COMMAND, "needs root, for hosts of `lab`")]
    launches = 1 if short else 3
    words = ["protocol=weak", "ranks_per_node=1", "world_size=1,2", f"link={LINKS}", f"measure.launches={launches}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([VITSCALE, "run", "quick", "--launcher", "lab", *words, "--out", "lab"], folder)
        return [_figure(series, target) for series in read(folder / "lab")]


def _figure(series: Series, target: str) -> Figure:
    """How far the larger world is from what the smaller one predicts, both of the same link."""
    alone = series.first(1)
    (took,) = [one for one in series.measured if one.layout.world_size == 2]
    (said,) = predict(calibrate(alone), [2], ranks_per_node=1).points
    assert took.step_s is not None
    off = said.step_s.median / took.step_s - 1
    rate = series.links.inter_node or 0
    parts = ", ".join(
        f"{label} {seconds(value)}"
        for label, value in (("alone", alone.measured[0].step_s), ("compute of two", took.compute_s))
        if value is not None
    )
    inside = said.step_s.low95 <= took.step_s <= said.step_s.high95
    note = (
        f"said {seconds(said.step_s.median)}, took {seconds(took.step_s)} ({parts}); "
        f"{'inside' if inside else 'outside'} the 95 % interval"
    )
    return Figure(
        f"2 ranks over {rate * 8 / 1e6:.0f} Mbit/s from 1 rank",
        f"{off:+.1%}",
        f"{seconds(said.step_s.low95)} to {seconds(said.step_s.high95)}",
        target,
        abs(off) <= TARGET,
        _COMMAND,
        note,
    )
