"""Two ranks of which one is held to half of its core: throughput of both splits, over what the two reach alone.

The slow rank's process is put into a control group with a CPU quota of half a core. The ideal is the sum of what the
two reach alone, each with a core and a thread, one of them under that quota.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figure import VITSCALE, Failed, Figure, run, within
from vitscale.statistics import interval, median_of

COMMAND = "python -m benchmarks mixed_devices"
TARGET = 0.90
GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))
PERIOD_US = 10_000
SLOW_RANK = 1
MODEL = {
    "model.name": "vit_tiny_patch16_224", "depth": 4, "embed_dim": 96, "img_size": 32, "patch_size": 4,
    "data.name": "synthetic", "data.images": 4096, "data.flip": "false", "protocol": "strong", "engine": "ddp",
    "precision": "fp32", "grad_accum": 1, "warmup_steps": 3, "measure.sample_s": 0,
}  # fmt: skip


def measure(short: bool) -> list[Figure]:
    """Medians of 5 launches of 20 steps."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Failed("needs two cores")
    shape = {"launches": 1, "steps": 6} if short else {"launches": 5, "steps": 20}
    with tempfile.TemporaryDirectory() as name, _half_a_core() as group:
        folder = Path(name)
        fast = _rates(folder / "fast", {**shape, "world_size": 1, "global_batch": 64}, cores[:1])
        with _held(group, rank=0):
            slow = _rates(folder / "slow", {**shape, "world_size": 1, "global_batch": 64}, cores[1:2])
        ideal = median_of(fast["even"]) + median_of(slow["even"])
        both = {**shape, "world_size": 2, "global_batch": 192, "engine.split": "even,proportional"}
        with _held(group, rank=SLOW_RANK):
            found = _rates(folder / "both", both, cores[:2])
    alone = f"alone {median_of(fast['even']):.0f} and {median_of(slow['even']):.0f} images/s"
    note = f"{alone}; micro-batches {found['dealt']}"
    figures = []
    for split, target in (("proportional", f">= {TARGET:.2f}"), ("even", "")):
        share = interval([rate / ideal for rate in found[split]])
        met = share.median >= TARGET if target else None
        told = within(share, "{:.2f}".format, len(found[split]))
        title = f"{split} split, one rank of two slowed 2x: throughput over the sum of both alone"
        figures.append(Figure(title, f"{share.median:.2f}", told, target, met, COMMAND, note))
    return figures


def _rates(out: Path, keys: dict[str, Any], cores: list[int]) -> dict[str, Any]:
    """Split -> images per second by launch, on these cores; and `dealt`, the micro-batches of the proportional one."""
    words = [f"{key}={value}" for key, value in {**MODEL, **keys}.items()]
    pinned = ["taskset", "-c", ",".join(map(str, cores))]
    out.mkdir()
    run([*pinned, VITSCALE, "run", "quick", *words, "--out", str(out / "results")], out)
    found: dict[str, Any] = {"even": [], "proportional": [], "dealt": None}
    for manifest in sorted((out / "results" / "runs").glob("*/launch*/manifest.json")):
        split = json.loads(manifest.read_text())["split"]
        found["dealt"] = split["micro_batches"] if split else found["dealt"]
        found["proportional" if split else "even"].append(_rate(manifest.parent))
    return found


def _rate(launch: Path) -> float:
    """Images per second of a launch: those of all ranks over the median of the slowest rank's steps."""
    ranks = [path.read_text().splitlines() for path in sorted(launch.glob("steps.rank*.jsonl"))]
    steps = [[json.loads(line) for line in lines] for lines in zip(*ranks, strict=True)]
    steady = [lines for lines in steps if lines[0]["window"] == "steady"]
    slowest_s = median_of([max(float(line["step_s"]) for line in lines) for lines in steady])
    return sum(int(line["images"]) for line in steady[0]) / slowest_s


@contextlib.contextmanager
def _half_a_core() -> Iterator[Path]:
    """A control group whose processes together have half of a core; either version of control groups."""
    root = next((one for one in GROUPS if (one / "cgroup.procs").exists()), None)
    if root is None:
        raise Failed("no control groups that limit processor time are mounted")
    group = root / f"vitscale-benchmark-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Failed(f"a control group needs root: {error.strerror}") from None
    try:
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US // 2))
        else:
            (group / "cpu.max").write_text(f"{PERIOD_US // 2} {PERIOD_US}")
        yield group
    finally:
        group.rmdir()


@contextlib.contextmanager
def _held(group: Path, rank: int) -> Iterator[None]:
    """While it lasts, every process that starts as this rank joins the group."""
    over = threading.Event()
    thread = threading.Thread(target=_hold, args=(group, rank, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _hold(group: Path, rank: int, over: threading.Event) -> None:
    held: set[int] = set()
    while not over.wait(0.2):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid not in held and process.environ().get("RANK") == str(rank):
                    (group / "cgroup.procs").write_text(str(process.pid))
                    held.add(process.pid)
