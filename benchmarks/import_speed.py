"""How long `vitscale import deepspeed-log` takes over 100,000 lines, half of them timers and half of something else.

The log is made here, of two ranks and in DeepSpeed's form; its times are random numbers.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.figure import VITSCALE, Figure, below, run, spread
from vitscale import units
from vitscale.statistics import median_of

TARGET_S = 5.0
LINES = 100_000


def measure(short: bool) -> list[Figure]:
    """The verb 5 times, each into a new folder."""
    count = 4_000 if short else LINES
    seen = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "train.log", count)
        for _ in range(2 if short else 5):
            seen.append(run([VITSCALE, "import", "deepspeed-log", "train.log", "--out", "imported"], folder))
            shutil.rmtree(folder / "imported")
    peaks = [one.peak_bytes for one in seen]
    command = "vitscale import deepspeed-log train.log --out imported"
    return [
        below(f"import of {count:,} log lines", [one.wall_s for one in seen], TARGET_S, units.seconds, command),
        Figure("its peak resident set", units.size(median_of(peaks)), spread(peaks, units.size), "", None, command),
    ]


def _write(path: Path, count: int) -> None:
    rng, at = random.Random(1), datetime(2026, 1, 1, tzinfo=UTC)
    lines = ["[INFO] [config.py:1003:print]   train_micro_batch_size_per_gpu  64"]
    lines += ["[INFO] [config.py:1003:print]   world_size ................... 2"]
    while len(lines) < count:
        at += timedelta(seconds=rng.uniform(0.4, 0.5))
        for rank in (0, 1):
            lines += [_timers(rng, at, rank, "_microstep"), _timers(rng, at, rank, "")]
        lines += [f"epoch {len(lines)} loss {rng.random():.4f} accuracy {rng.random():.4f}"] * 4
    path.write_text("\n".join(lines[:count]) + "\n")


def _timers(rng: random.Random, at: datetime, rank: int, end: str) -> str:
    stamp = at.strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    names = ("fwd", "bwd", "bwd_inner", "bwd_allreduce", "step")
    parts = " | ".join(f"{name}{end}: {rng.uniform(10, 100):.2f}" for name in names)
    return f"[{stamp}] [INFO] [logging.py:128:log_dist] [Rank {rank}] time (ms) | {parts}"
