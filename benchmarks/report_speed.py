"""How long `vitscale report` takes over 500 launches of 200 steps on 4 ranks: 400,000 step lines in 2,000 files.

The records are written by the real writer (`tests/golden/make_study.py`); their times are random numbers.
"""

from __future__ import annotations

import importlib.util
import random
import tempfile
from pathlib import Path
from types import ModuleType

from benchmarks.figure import ROOT, VITSCALE, Figure, below, run, say, spread
from vitscale import units
from vitscale.statistics import median_of

TARGET_S = 5.0
RANKS, WARMUP_STEPS, STEADY_STEPS, LAUNCHES = 4, 10, 190, 5


def measure(short: bool) -> list[Figure]:
    """100 runs of 5 launches, then the verb 5 times; one more before them fills the file cache."""
    runs = 4 if short else 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"  writing {runs * LAUNCHES} launches")
        _write(folder / "results", runs)
        run([VITSCALE, "report", "results"], folder)
        seen = [run([VITSCALE, "report", "results"], folder) for _ in range(2 if short else 5)]
    what = f"{runs * LAUNCHES} launches, {runs * LAUNCHES * RANKS * (WARMUP_STEPS + STEADY_STEPS):,} step lines"
    peaks = [one.peak_bytes for one in seen]
    command = "vitscale report RESULTS"
    return [
        below(f"report over {what}", [one.wall_s for one in seen], TARGET_S, units.seconds, command),
        Figure("its peak resident set", units.size(median_of(peaks)), spread(peaks, units.size), "", None, command),
    ]


def _write(root: Path, runs: int) -> None:
    make = make_study()
    rng = random.Random(1)
    make.write_study(root)
    for number in range(runs):
        # Every global batch at every ZeRO stage: as many series as runs, the most that can be asked of the report.
        spec = make.make_spec(RANKS, global_batch=64 * (number // 4 + 1), micro_batch=16 * (number // 4 + 1))
        spec = spec.model_copy(update={"zero_stage": number % 4})
        for launch in range(LAUNCHES):
            step_s = make.noisy(rng, 0.01 * (number + 1))
            make.write_launch(root, spec, launch, step_s, warmup=WARMUP_STEPS, steps=STEADY_STEPS)


def make_study() -> ModuleType:
    """The maker of the golden study."""
    spec = importlib.util.spec_from_file_location("make_study", ROOT / "tests/golden/make_study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
