"""What measuring costs: the train loop with all that the records need against the same loop with none of it.

In one process per rank blocks of steps alternate: `on` has the clock, the losses, a heartbeat per step and the step
lines written at the end of the block; `off` has none of these. The model is that of the study `quick` at a quarter of
its batch, and a real launch writes its lines once per window of 10 s, not once per block: both make this the dearer
case. What the blocks' noise cannot decide the second figure does: the same calls around a step that does nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figure import ROOT, Failed, Figure, below, within
from vitscale import units
from vitscale.config.load import load
from vitscale.config.runspec import RunSpec
from vitscale.data.catalog import store_root
from vitscale.hardware.probe import probe
from vitscale.hardware.topology import core_sets, sibling_groups
from vitscale.records.round import ROUND, Entry, Round
from vitscale.records.writer import make_folder, write_whole
from vitscale.statistics import interval, median_of
from vitscale.study import plan
from vitscale.study.where import Where

TARGET_SHARE = 0.01
GLOBAL_BATCH = 16
LONGEST_S = 600.0
COMMAND = "python -m benchmarks instrumentation"


def measure(short: bool) -> list[Figure]:
    """World sizes 1 and 2, 30 pairs of blocks of 12 steps each."""
    return at_each_size("records", "measuring", TARGET_SHARE, COMMAND, _figures, *((4, 1) if short else (30, 12)))


def at_each_size(
    kind: str,
    name: str,
    target: float,
    command: str,
    figures_of: Callable[[RunSpec, dict[str, list[float]]], list[Figure]],
    pairs: int,
    steps: int,
) -> list[Figure]:
    """Figures of the blocks of `instrumented_rank` at world sizes 1 and 2.

    Args:
        kind: what is on or off in them.
        name: what a figure that cannot be had is of.
        target: share of the step that is allowed.
        command: how it is measured again.
        figures_of: from the blocks of one world size.
        pairs: blocks of each way.
        steps: of a block.
    """
    machine = probe()
    planned = plan.make(
        load("quick", [f"global_batch={GLOBAL_BATCH}"]), Where(machine), plan.prepared(store_root(), lambda _line: None)
    )
    figures = []
    for spec in (run for run in planned.grid.runs if run.protocol == "strong"):
        if spec.oversubscribed:
            what, reason = f"{name}, {spec.world_size} ranks", "more ranks than cores"
            figures.append(Figure(what, units.NOT_AVAILABLE, "", f"< {target:.1%}", None, command, reason))
            continue
        cores = core_sets(spec.ranks_per_node, spec.threads_per_rank or 1, machine.cores, sibling_groups(machine.cores))
        with tempfile.TemporaryDirectory() as folder:
            figures += figures_of(spec, _blocks(spec, cores or [], (kind, str(pairs), str(steps)), Path(folder)))
    return figures


def _figures(spec: RunSpec, seen: dict[str, list[float]]) -> list[Figure]:
    ranks = ranks_of(spec)
    ratios = [on / off for on, off in zip(seen["on_s"], seen["off_s"], strict=True)]
    ratio = interval(ratios)
    step_s = median_of(seen["off_s"]) / seen["steps"][0]
    shares = [alone_s / step_s for alone_s in seen["alone_s"]]
    note = f"median over pairs of blocks; step {units.seconds(step_s)}"
    met: bool | None = None
    if ratio.high is not None and ratio.high - 1 < TARGET_SHARE:
        met = True
    elif ratio.low is not None and ratio.low - 1 >= TARGET_SHARE:
        met = False
    else:
        note += "; the interval holds the target, so these blocks do not decide it"
    return [
        Figure(
            f"step time that measuring adds, {ranks}",
            f"{ratio.median - 1:+.2%}",
            within(ratio, lambda value: f"{value - 1:+.2%}", len(ratios)),
            f"< {TARGET_SHARE:.0%}",
            met,
            COMMAND,
            note,
        ),
        below(
            f"what measures, around an empty step, over the step time, {ranks}",
            shares,
            TARGET_SHARE,
            "{:.3%}".format,
            COMMAND,
            f"{units.seconds(median_of(seen['alone_s']))} per step",
        ),
    ]


def ranks_of(spec: RunSpec) -> str:
    """`1 rank`, `2 ranks`."""
    return "1 rank" if spec.world_size == 1 else f"{spec.world_size} ranks"


def _blocks(
    spec: RunSpec, cores: list[tuple[int, ...]], asked: tuple[str, ...], folder: Path
) -> dict[str, list[float]]:
    """Start the ranks of `instrumented_rank`, wait for them, and read what rank 0 left."""
    entry = Entry(folder="launch", run_id=spec.run_id, launch=0, spec=spec.model_dump(mode="json"))
    round_ = Round(
        name="0000",
        world_size=spec.world_size,
        nodes=1,
        ranks_per_node=spec.world_size,
        device=spec.device,
        cores=tuple(cores),
        entries=(entry,),
    )
    make_folder(folder / "launch")
    write_whole(folder / ROUND, round_.model_dump_json().encode())
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(spec.world_size):
            ranks.append(_start(folder, rank, spec, asked))  # noqa: PERF401 (what is started must be ended)
        deadline = time.monotonic() + LONGEST_S
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > deadline:
                raise Failed(f"the blocks took more than {LONGEST_S:.0f} s")
            time.sleep(0.5)
    finally:
        for process in ranks:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
    if any(rank.returncode for rank in ranks):
        raise Failed(f"a rank failed:\n{(folder / 'log').read_text()[-2000:]}")
    seen: dict[str, list[float]] = json.loads((folder / "blocks.json").read_text())
    return seen


def _start(folder: Path, rank: int, spec: RunSpec, asked: tuple[str, ...]) -> subprocess.Popen[bytes]:
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": spec.world_size,
        "LOCAL_WORLD_SIZE": spec.world_size,
        "OMP_NUM_THREADS": spec.threads_per_rank,
        "VITSCALE_STORE": folder / "store",
        "VITSCALE_DATA": store_root(),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.instrumented_rank", str(folder), *asked],
            cwd=ROOT,
            env=os.environ | {key: str(value) for key, value in own.items()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
