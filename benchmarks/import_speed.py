"""What `vitscale import deepspeed-log` takes over 100,000 lines, half of them timers and half of something else, and
over 200 MB of which nearly all is something else.

The logs are made here, of two ranks and in DeepSpeed's form; their times are random numbers.
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
MORE_BYTES = 32 << 20
_NOISE = ("训练 第 3 轮 损失 0.512\n".encode() * 20 + bytes(range(256)).replace(b"\n", b"") + b"\n") * 100


def measure(short: bool) -> list[Figure]:
    """The verb 5 times, each into a new folder."""
    count, large_bytes = (4_000, 4_000_000) if short else (LINES, 200_000_000)
    seen = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "train.log", count)
        for _ in range(2 if short else 5):
            seen.append(run([VITSCALE, "import", "deepspeed-log", "train.log", "--out", "imported"], folder))
            shutil.rmtree(folder / "imported")
        _bury(folder / "train.log", folder / "large.log", large_bytes)
        large = run([VITSCALE, "import", "deepspeed-log", "large.log", "--out", "imported"], folder)
        counts = large.stdout.splitlines()[0]
    peaks = [one.peak_bytes for one in seen]
    command = "vitscale import deepspeed-log train.log --out imported"
    return [
        below(f"import of {count:,} log lines", [one.wall_s for one in seen], TARGET_S, units.seconds, command),
        Figure("its peak resident set", units.size(median_of(peaks)), spread(peaks, units.size), "", None, command),
        Figure(
            "peak resident set of the same among 200 MB of something else",
            units.size(large.peak_bytes),
            "n = 1",
            f"< {units.size(MORE_BYTES)} more",
            large.peak_bytes < median_of(peaks) + MORE_BYTES,
            command.replace("train", "large"),
            f"{units.seconds(large.wall_s)}; {counts}",
        ),
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


def _bury(log: Path, path: Path, size_bytes: int) -> None:
    """Write a log's lines spread over a file of about `size_bytes`, the rest other text and binary junk."""
    lines = log.read_bytes().splitlines(keepends=True)
    blocks = max(size_bytes // len(_NOISE), 1)
    with path.open("wb") as file:
        for block in range(blocks):
            file.writelines(lines[block * len(lines) // blocks : (block + 1) * len(lines) // blocks])
            file.write(_NOISE)


def _timers(rng: random.Random, at: datetime, rank: int, end: str) -> str:
    stamp = at.strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    names = ("fwd", "bwd", "bwd_inner", "bwd_allreduce", "step")
    parts = " | ".join(f"{name}{end}: {rng.uniform(10, 100):.2f}" for name in names)
    return f"[{stamp}] [INFO] [logging.py:128:log_dist] [Rank {rank}] time (ms) | {parts}"
