"""What the verdict names in the study `quick` when nothing is wrong: 20 repetitions of it.

They differ in their seed and share process starts, and their steady windows are shorter than as shipped. A cause is
false if it is none of the study's own: `quick` halves the micro-batch in `strong`, and only there. Both its ranks share
a host, so they may slow each other (`contention`); how often that is named is a figure by itself, by protocol.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.figure import VITSCALE, Figure, run, say
from vitscale.units import percent, seconds

COMMAND = "python -m benchmarks clean_verdicts"
REPEATS, TOGETHER = 20, 5
"""Repetitions; those that share process starts."""
SHARED = "contention"
"""What two ranks on one host may do to each other."""
OWN = {"strong": {"noise", SHARED, "micro_batch"}, "weak": {"noise", SHARED}}
"""Protocol -> what may be named. A machine that is noisy may be called so; a micro-batch shrinks in `strong` only."""


class Named(NamedTuple):
    """A cause that the verdict names, in a run of a repetition."""

    protocol: str
    kind: str

    @property
    def false(self) -> bool:
        """Whether nothing in `quick` does this to a rank."""
        return self.kind not in OWN[self.protocol]


def measure(short: bool) -> list[Figure]:
    """All runs of two ranks."""
    named: list[list[Named]] = []
    repeats = 2 if short else REPEATS
    with tempfile.TemporaryDirectory() as name:
        for first in range(0, repeats, TOGETHER):
            seeds = range(first, min(first + TOGETHER, repeats))
            say(f"  repetitions {seeds.start} to {seeds.stop - 1} of {repeats}")
            named += _named(Path(name), seeds, "1" if short else "3")
    return figures(named)


def figures(named: Sequence[Sequence[Named]]) -> list[Figure]:
    """Repetitions without a false cause, and those in which ranks slow each other; `named`: of each repetition."""
    repeats = len(named)
    clean = sum(not any(one.false for one in causes) for causes in named)
    counts = Counter(one for causes in named for one in set(causes))
    told = ", ".join(f"{one.kind} under {one.protocol} in {count}" for one, count in counts.most_common())
    first = Figure(
        "repetitions of quick without a false cause",
        str(clean),
        f"of {repeats}",
        f"{repeats}",
        clean == repeats,
        COMMAND,
        f"named: {told or 'nothing in any'}",
    )
    shared = [
        Figure(f"repetitions with {SHARED} under {protocol}", str(counts[Named(protocol, SHARED)]), f"of {repeats}", "",
               None, COMMAND)
        for protocol in OWN
    ]  # fmt: skip
    return [first, *shared]


def _named(folder: Path, seeds: range, window_s: str) -> list[list[Named]]:
    """Causes of each repetition, settings aside."""
    out = folder / f"quick{seeds.start}"
    words = [f"measure.seed={','.join(map(str, seeds))}", f"measure.seconds={window_s}"]
    run([VITSCALE, "run", "quick", *words, "--out", str(out)], folder)
    specs = {one["run_id"]: one["spec"] for one in json.loads((out / "plan.json").read_text())["runs"]}
    found: dict[int, list[Named]] = {seed: [] for seed in seeds}
    for verdict in json.loads((out / "analysis.json").read_text())["verdicts"]:
        spec = specs[verdict["run_id"]]
        seed, protocol = spec["measure"]["seed"], spec["protocol"]
        for cause in verdict["causes"]:
            if cause["within"] is None:
                found[seed].append(Named(protocol, cause["kind"]))
                say(
                    f"    seed {seed}, {protocol}: {cause['kind']}, {seconds(cause['seconds']['median'])}, "
                    f"{percent(cause['share'])}"
                )
    return list(found.values())
