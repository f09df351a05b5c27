"""Whether `analysis.json` says what `tests/golden/recompute.py`, which shares no code with vitscale, finds as well."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figure import ROOT, Figure, run

SCRIPT = ROOT / "tests/golden/recompute.py"
LARGEST_DIFFERENCE = 1e-9


class Agreement(NamedTuple):
    """How many figures were compared, how many agree, and the largest relative difference."""

    compared: int
    agreeing: int
    worst: float

    @property
    def whole(self) -> bool:
        """Whether there was something to compare and all of it agrees."""
        return 0 < self.compared == self.agreeing

    def figure(self, name: str, command: str) -> Figure:
        """As a row of the table."""
        note = f"against {SCRIPT.name}, relative {LARGEST_DIFFERENCE:g}; largest difference {self.worst:.1g}"
        return Figure(name, f"{self.agreeing} of {self.compared}", "", "all", self.whole, command, note)


def compare(results: Path) -> Agreement:
    """Step time, throughput, speed-up, efficiency and every share of every run, recomputed in a process of its own."""
    done = run([sys.executable, "-I", str(SCRIPT), str(results)], results.parent)
    wanted = json.loads(done.stdout)
    analysis = json.loads((results / "analysis.json").read_text())
    found = {one["run_id"]: one for one in analysis["runs"] if one["step_s"]}
    pairs = [
        pair
        for run_id in sorted(wanted.keys() | found.keys())
        for pair in _pairs(found.get(run_id), wanted.get(run_id))
    ]
    apart = [_difference(one, other) for one, other in pairs]
    return Agreement(len(apart), sum(one <= LARGEST_DIFFERENCE for one in apart), max(apart, default=math.inf))


def together(agreements: list[Agreement]) -> Agreement:
    """Several folders as one."""
    worst = max((one.worst for one in agreements), default=math.inf)
    return Agreement(sum(one.compared for one in agreements), sum(one.agreeing for one in agreements), worst)


def _pairs(run: dict[str, Any] | None, wanted: dict[str, Any] | None) -> list[tuple[float | None, float | None]]:
    if run is None or wanted is None:
        return [(None, None)]  # one of the two has no such run: a figure that does not agree
    names = ("step_s", "images_per_s", "speedup", "efficiency")
    pairs = [((run[name] or {}).get("median"), wanted[name]) for name in names]
    shares = {part: share for part, share in run["shares"].items() if share is not None}
    parts = sorted(shares.keys() | wanted["shares"].keys())
    return pairs + [(shares.get(part), wanted["shares"].get(part)) for part in parts]


def _difference(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return math.inf
    return abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0
