"""The study `quick`, twice, as a user runs it: what it finds, what it takes, and what of that is not training."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import agreement
from benchmarks.figure import VITSCALE, Figure, Finished, below, run, say, spread
from vitscale import units
from vitscale.statistics import median_of

TARGET_EFFICIENCY = 0.90
TARGET_TIMES = 1.6
TARGET_S = 300.0
SHORT = ["measure.launches=2", "measure.warmup_steps=1", "measure.steps=5", "global_batch=8", "micro_batch=4"]
IMPORT = "import os; os.environ['DS_ACCELERATOR'] = 'cpu'; import torch, timm, deepspeed"
COMMAND = "vitscale run quick"


def measure(short: bool) -> list[Figure]:
    """Two whole studies, each between two fresh imports of what a rank imports."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = [folder / "first", folder / "second"]
        runs, imports_s = [], []
        for one in results:
            imports_s += [_import_s(folder) for _ in range(3)]
            say(f"  {COMMAND}")
            runs.append(run([VITSCALE, "run", "quick", *(SHORT if short else []), "--out", str(one)], folder))
        imports_s += [_import_s(folder) for _ in range(3)]
        changed = run([VITSCALE, "compare", "first", "second"], folder, codes=(0, 1)).code
        analyses = [json.loads((one / "analysis.json").read_text()) for one in results]
        agreed = agreement.together([agreement.compare(one) for one in results])
        times = [_times(one, wall, median_of(imports_s)) for one, wall in zip(results, runs, strict=True)]
        steps_s = [_timed_s(one) for one in results]
    walls_s = [one.wall_s for one in runs]
    import_text = f"{units.seconds(median_of(imports_s))} ({spread(imports_s, units.seconds)})"
    note = (
        "over the sum of all launches' warm-up and steady steps "
        f"({', '.join(units.seconds(one) for one in steps_s)}) and one import of torch, timm and DeepSpeed per process "
        f"start: {import_text}"
    )
    return [
        *(_efficiency(analysis, which) for analysis, which in zip(analyses, ("first", "second"), strict=True)),
        below("wall time of quick", walls_s, TARGET_S, units.seconds, COMMAND),
        below("wall time over timed steps and imports", times, TARGET_TIMES, "{:.2f} x".format, COMMAND, note),
        agreed.figure("figures of quick that an independent script finds too", COMMAND),
        _data_share(analyses),
        Figure("same study twice: `compare` sees a change", "yes" if changed else "no", "", "", None, COMMAND),
    ]


def _import_s(folder: Path) -> float:
    return run([sys.executable, "-c", IMPORT], folder).wall_s


def _timed_s(results: Path) -> float:
    """Seconds of all steps of all finished launches, by rank 0's manifest."""
    manifests = [json.loads(path.read_text()) for path in results.glob("runs/*/launch*/manifest.json")]
    return sum(float(one["times"][part]) for one in manifests for part in ("warmup_s", "steady_s"))


def _times(results: Path, done: Finished, import_s: float) -> float:
    """Wall time as a multiple of what cannot be saved; ranks that start together import at the same time."""
    starts = len(list((results / "rounds").iterdir()))
    return done.wall_s / (_timed_s(results) + starts * import_s)


def _efficiency(analysis: dict[str, Any], which: str) -> Figure:
    name = f"strong efficiency, 1 to 2 ranks, {which} study"
    target = f">= {TARGET_EFFICIENCY:.0%}"
    for one in analysis["runs"]:
        if one["protocol"] == "strong" and one["world_size"] == 2 and one["efficiency"]:
            median, low, high = (one["efficiency"][key] for key in ("median", "low", "high"))
            text = f"{units.percent(low)} to {units.percent(high)} (95 %, n = {one['launches']})"
            reasons = "; ".join(one["invalid_reasons"])
            met = median >= TARGET_EFFICIENCY if one["valid"] else None
            return Figure(name, units.percent(median), text, target, met, COMMAND, reasons)
    return Figure(name, units.NOT_AVAILABLE, "", target, False, COMMAND, "the study has no such run")


def _data_share(analyses: list[dict[str, Any]]) -> Figure:
    shares = [one["shares"]["data"] for analysis in analyses for one in analysis["runs"] if one["step_s"]]
    text = spread(shares, lambda share: units.percent(share, 3))
    note = "reading, resizing and normalising a batch, by `data_s` of the records; one value per run"
    return Figure(
        "the data pipeline's share of quick's step", units.percent(median_of(shares), 3), text, "", None, COMMAND, note
    )
