"""What `vitscale report` takes over a run of 4,096 ranks on 512 hosts and 1,000 steps, beside one of 8 ranks, and what
`vitscale run` takes to simulate as many, report included; and what one look at the heartbeats of as many takes.

Every field of every line is there, as measured ones have them, and each host has a sample of its devices a second. The
times are random numbers, and the manifests say `simulated`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.figure import VITSCALE, Figure, Finished, below, run, say
from benchmarks.report_speed import make_study
from vitscale import units
from vitscale.config.runspec import RunSpec
from vitscale.records.round import Beat, Heartbeat, heartbeat_path, read_heartbeats
from vitscale.records.samples import GpuSample, HostSample, Sample, SampleWriter
from vitscale.records.schema import Device, Layout, Manifest
from vitscale.records.writer import RUN, make_folder, node_steps_name, write_json, write_manifest

PER_NODE, WARMUP_STEPS, STEP_S = 8, 10, 0.05
SIMULATION_TARGET_S = 10.0
LOOK_TARGET_S = 0.1
TARGET_S, TARGET_BYTES, TARGET_PAGE_BYTES = 60.0, 2 << 30, 4 << 20
SHARES = {
    "data_s": 0.01,
    "forward_s": 0.3,
    "backward_s": 0.5,
    "optimizer_s": 0.05,
    "comm_exposed_s": 0.06,
    "wait_s": 0.05,
    "comm_s": 0.2,
    "comm_overlapped_s": 0.14,
    "launch_gap_s": 0.01,
    "late_s": 0.01,
}


def measure(short: bool) -> list[Figure]:
    """Write the study, then the verb twice: the first one fills the file cache."""
    nodes, steps = (16, 100) if short else (512, 1000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"  writing {nodes * PER_NODE:,} ranks x {steps:,} steps")
        write_study(folder / "results", nodes, steps)
        size_bytes = sum(path.stat().st_size for path in (folder / "results").rglob("*.jsonl"))
        seen = [run([VITSCALE, "report", "results"], folder) for _ in range(2)]
        page = (folder / "results" / "report" / "index.html").stat().st_size
        looks = _looks(make_folder(folder / "heartbeats"), nodes)
        simulated = [_simulated(folder, nodes, folder / f"simulated{turn}") for turn in range(1 if short else 3)]
    what = f"{nodes * PER_NODE:,} ranks x {steps:,} steps"
    command, peak = "vitscale report RESULTS", max(one.peak_bytes for one in seen)
    note = f"{units.size(size_bytes)} of lines in {2 * (nodes + 1)} files"
    limit, page_limit = f"< {units.size(TARGET_BYTES)}", f"< {units.size(TARGET_PAGE_BYTES)}"
    return [
        below(f"report over {what}", [one.wall_s for one in seen], TARGET_S, units.seconds, command, note),
        Figure("its peak resident set", units.size(peak), "largest of 2", limit, peak < TARGET_BYTES, command),
        below(
            f"simulation of {nodes * PER_NODE:,} ranks",
            [one.wall_s for one in simulated],
            SIMULATION_TARGET_S,
            units.seconds,
            "vitscale run --launcher simulate hardware.calibration=…",
        ),
        Figure("its page", units.size(page), "n = 1", page_limit, page < TARGET_PAGE_BYTES, command),
        below(
            f"one look at the heartbeats of {nodes * PER_NODE:,} ranks",
            looks,
            LOOK_TARGET_S,
            units.seconds,
            "vitscale.records.round.read_heartbeats",
            f"{nodes} files",
        ),
    ]


def _looks(folder: Path, nodes: int) -> list[float]:
    Heartbeat(folder, 0, PER_NODE).beat(Beat(0, "steady", 123, 1000, 2.3))
    first = heartbeat_path(folder, 0).read_text()
    for node in range(nodes):
        ranks = range(node * PER_NODE, (node + 1) * PER_NODE)
        lines = (f"{rank} {first.partition(' ')[2].rstrip()}".ljust(len(first) - 1) + "\n" for rank in ranks)
        heartbeat_path(folder, node).write_text("".join(lines))
    times = []
    for _ in range(20):
        began = time.perf_counter()
        read_heartbeats(folder, nodes, nodes * PER_NODE)
        times.append(time.perf_counter() - began)
    return times


def _simulated(folder: Path, nodes: int, out: Path) -> Finished:
    """By a calibration of two small measured runs, with its report."""
    fitted = folder / "fitted"
    if not fitted.exists():
        make = make_study()
        make.write_study(fitted)
        for size in (1, 2):
            spec = make.make_spec(size, "weak", micro_batch=32, global_batch=32 * size)
            for launch in range(3):
                make.write_launch(fitted, spec, launch, STEP_S * (1 + launch / 1000))
        run([VITSCALE, "predict", "fitted"], folder)
    world = [f"world_size={nodes * PER_NODE}", f"nodes={nodes}", "protocol=weak", "data.name=synthetic"]
    words = ["--launcher", "simulate", f"hardware.calibration={fitted}", *world, "--out", str(out)]
    return run([VITSCALE, "run", "quick", *words], folder)


def write_study(root: Path, nodes: int, steps: int) -> None:
    """A results folder of two runs, on one host and on all."""
    make = make_study()
    make.write_study(root)
    random = np.random.default_rng(1)
    for hosts in (1, nodes):
        ranks = hosts * PER_NODE
        spec = make.make_spec(ranks, "weak", nodes=hosts, ranks_per_node=PER_NODE, device="cuda", threads_per_rank=None)
        folder = make_folder(root / "runs" / spec.run_id / "launch0")
        write_json(folder / RUN, spec.model_dump(mode="json"))
        for node in range(hosts):
            step_lines(spec, node, steps, random).write_ndjson(folder / node_steps_name(node))
            writer = SampleWriter(folder, node)
            writer.write(_samples(node, round(steps * STEP_S)))
            writer.close()
        write_manifest(folder, _manifest(spec, steps))


def step_lines(spec: RunSpec, node: int, steps: int, random: np.random.Generator) -> pl.DataFrame:
    """Step lines of the ranks of a host, in the order of a node's file: column by column, since Python's own JSON takes
    minutes for millions of lines."""
    count = PER_NODE * steps
    numbers = np.tile(np.arange(steps), PER_NODE)
    step_s = STEP_S * (1 + 0.1 * random.random(count))
    parts = {name: step_s * share * (0.9 + 0.2 * random.random(count)) for name, share in SHARES.items()}
    return pl.DataFrame(
        {
            "step": numbers,
            "window": np.where(numbers < WARMUP_STEPS, "warmup", "steady"),
            "rank": np.repeat(np.arange(node * PER_NODE, (node + 1) * PER_NODE), steps),
            "loss": 2.3 / (1 + 0.05 * numbers) + 0.1 * random.random(count),
            "images": np.full(count, spec.micro_batch * spec.grad_accum),
            "step_s": step_s,
            **parts,
        }
    )


def _samples(node: int, count: int) -> Iterator[Sample]:
    ranks = range(node * PER_NODE, (node + 1) * PER_NODE)
    for second in range(count + 1):
        gpus = tuple(
            GpuSample(
                rank=rank,
                utilisation_share=0.9 + 0.1 * (rank % 7) / 7,
                memory_used_bytes=40 << 30,
                temperature_c=60.0 + rank % 11,
                power_w=500.0 + rank % 90,
                energy_j=(500.0 + rank % 90) * second,
                sm_clock_hz=1.7e9,
                memory_clock_hz=2.6e9,
                memory_clock_max_hz=2.6e9,
                throttle=(),
                foreign_processes=0,
            )
            for rank in ranks
        )
        host = HostSample(cpu_s=9.0 * second, rank_cpu_s=8.5 * second, rank_rss_bytes=64 << 30, swapped_in_bytes=0)
        yield Sample(time_s=second + 0.5, window="steady" if second else "warmup", node=node, gpus=gpus, host=host)


def _manifest(spec: RunSpec, steps: int) -> Manifest:
    devices = tuple(
        Device(
            rank=rank,
            node=rank // PER_NODE,
            local_rank=rank % PER_NODE,
            kind="cuda",
            name="Example GPU",
            memory_bytes=80 << 30,
            memory_peak_bytes=(40 << 30) + rank,
        )
        for rank in range(spec.world_size)
    )
    return Manifest(
        run_id=spec.run_id,
        launch=0,
        round=None,
        status="ok",
        source="simulated",
        started="2026-01-01T00:00:00Z",
        devices=devices,
        layout=Layout(world_size=spec.world_size, nodes=spec.nodes, ranks_per_node=spec.ranks_per_node, backend="nccl"),
        steps=steps,
    )
