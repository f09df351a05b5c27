"""How long `vitscale --help` takes, from the start of the process to its end, bytecode cached."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.figure import VITSCALE, Figure, below, run
from vitscale import units
from vitscale.statistics import median_of

TARGET_S = 0.4


def measure(short: bool) -> list[Figure]:
    """Median of 10, each followed by an interpreter that does nothing: the part that is not ours."""
    helps_s, bare_s = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([VITSCALE, "--help"], folder)
        for _ in range(3 if short else 10):
            helps_s.append(run([VITSCALE, "--help"], folder).wall_s)
            bare_s.append(run([sys.executable, "-c", ""], folder).wall_s)
    note = f"an interpreter that does nothing, in turns with it: {units.seconds(median_of(bare_s))}"
    return [below("wall time of --help", helps_s, TARGET_S, units.seconds, "vitscale --help", note)]
