"""What the verdict names in the study `quick` when nothing is wrong: 20 repetitions of it.

They differ in their seed and share process starts, and their steady windows are shorter than as shipped. A cause is
false if it is none of the study's own: `quick` halves the micro-batch in `strong`, and both its ranks share a host.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.figure import VITSCALE, Figure, run, say
from vitscale.units import percent, seconds

COMMAND = "python -m benchmarks clean_verdicts"
REPEATS, TOGETHER = 20, 5
"""Repetitions; those that share process starts."""
OWN = ("noise", "micro_batch", "contention")
"""A machine that is noisy may be called so; the others are what `quick` does to a rank."""


def measure(short: bool) -> list[Figure]:
    """All runs of two ranks."""
    named: list[list[str]] = []
    repeats = 2 if short else REPEATS
    with tempfile.TemporaryDirectory() as name:
        for first in range(0, repeats, TOGETHER):
            seeds = range(first, min(first + TOGETHER, repeats))
            say(f"  repetitions {seeds.start} to {seeds.stop - 1} of {repeats}")
            named += _named(Path(name), seeds, "1" if short else "3")
    kinds = Counter(kind for kinds in named for kind in set(kinds))
    clean = sum(all(kind in OWN for kind in kinds) for kinds in named)
    told = ", ".join(f"{kind} in {count}" for kind, count in kinds.most_common()) or "nothing in any"
    return [
        Figure(
            "repetitions of quick without a false cause",
            str(clean),
            f"of {repeats}",
            f"{repeats}",
            clean == repeats,
            COMMAND,
            f"named: {told}",
        )
    ]


def _named(folder: Path, seeds: range, window_s: str) -> list[list[str]]:
    """Kinds of the causes of each repetition, settings aside."""
    out = folder / f"quick{seeds.start}"
    words = [f"measure.seed={','.join(map(str, seeds))}", f"measure.seconds={window_s}"]
    run([VITSCALE, "run", "quick", *words, "--out", str(out)], folder)
    seed_of = {
        one["run_id"]: one["spec"]["measure"]["seed"] for one in json.loads((out / "plan.json").read_text())["runs"]
    }
    found: dict[int, list[str]] = {seed: [] for seed in seeds}
    for verdict in json.loads((out / "analysis.json").read_text())["verdicts"]:
        for cause in verdict["causes"]:
            if cause["within"] is None:
                found[seed_of[verdict["run_id"]]].append(cause["kind"])
                say(
                    f"    seed {seed_of[verdict['run_id']]}: {cause['kind']}, {seconds(cause['seconds']['median'])}, "
                    f"{percent(cause['share'])}"
                )
    return list(found.values())
