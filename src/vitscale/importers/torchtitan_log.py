"""`torchtitan-log`: the lines torchtitan prints every `log_freq` steps.

    [rank0]:[titan] 2025-10-30 14:32:58,990 - root - INFO - step: 10  loss:  6.1098  grad_norm:  4.6416
        memory:  2.49GiB(3.14%)  tps: 177,138  tflops: 96.17  mfu: 9.72%          (one line)

`step_s` is the median, over pairs of neighbouring lines of one rank, of the time between them by the log's clock over
the steps between them; pairs that begin in the first `WARMUP_STEPS` steps are left out. What is counted there are
sequences: where this tool says images, sequences are meant. `tps`, tokens per second and device, is kept in `row`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from math import prod
from statistics import median

from vitscale.config.imported import ImportedSpec
from vitscale.importers.found import FoundRun, Reading, Tally, series_of
from vitscale.importers.source import Source, lines, plain, printable
from vitscale.records.schema import Aggregate

FORMAT = "torchtitan-log"

WARMUP_STEPS = 3
"""First steps that are not counted: as many as a study leaves out unless it says otherwise."""

_STEP = re.compile(r"\bstep: *(\d{1,12}) +loss: *(\S+)")
_RATE = re.compile(r"\b(?:tps|wps): *([\d,]{1,20})")
_MEMORY = re.compile(r"memory: *(\d{1,6}(?:\.\d+)?)GiB")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})")
_RANK = re.compile(r"\[(?:rank)?(\d{1,7})\]:")
_BATCH = re.compile(r"local batch size:? (\d{1,9}), global batch size:? (\d{1,9})")
_LENGTH = re.compile(r"sequence length:? (\d{1,9})")
_DEGREES = re.compile(r"parallelism: ((?:\w+=-?\d{1,7},? ?)+)")
_MESH = re.compile(r"device mesh with \[[^\]]{0,200}\], \[([\d, ]{1,100})\]")
_DEVICE = re.compile(r"\bcapacity: (.{1,80}?) with [\d.]+GiB")
_MODEL = re.compile(r"Model (.{1,80}?) size: ([\d,]{1,20}) total parameters")
_PARALLEL = re.compile(r"Applied (FSDP|HSDP|DDP)\b")
# What further parallelism splits data-parallel ranks again is no factor of the world size.
_FACTORS = ("pp", "dp_replicate", "dp_shard", "cp", "tp")


@dataclass
class _Log:
    source: Source
    line: int = 0
    stamps: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """Rank -> (step, seconds by the log's clock)."""
    rates: list[str] = field(default_factory=list)
    world_size: int | None = None
    micro_batch: int | None = None
    global_batch: int | None = None
    length: str | None = None
    device: str | None = None
    model: str | None = None
    parameters: int | None = None
    engine: str | None = None
    memory_bytes: float | None = None


def read(files: Sequence[Source]) -> Reading:
    """A run per log."""
    reading = Reading()
    for source in files:
        tally = Tally(source.name, source.sha256)
        reading.tallies.append(tally)
        log = _Log(source)
        for number, raw in lines(source):
            tally.lines = number
            if "step:" in raw:
                outcome = _take_step(log, number, plain(raw))
                tally.read += outcome is True
                tally.damaged += outcome is False
            elif any(mark in raw for mark in ("batch size", "mesh", "capacity", "total param", "Applied")):
                tally.read += _take_setting(log, plain(raw))
        run = _run(log, tally)
        reading.runs += [run] if run else []
    return reading


def _take_step(log: _Log, number: int, line: str) -> bool | None:
    """True is read, False is cut off, None is another program's line."""
    found, rate = _STEP.search(line), _RATE.search(line)
    stamp = _STAMP.search(line)
    if found is None:
        return None
    if rate is None or stamp is None:
        return False
    try:
        clock_s = datetime.fromisoformat(f"{stamp[1]}+00:00").timestamp() + int(stamp[2]) / 1000
    except ValueError:
        return False
    rank = _RANK.search(line)
    log.stamps.setdefault(int(rank[1]) if rank else 0, []).append((int(found[1]), clock_s))
    log.rates.append(rate[1].replace(",", ""))
    log.line = log.line or number
    memory = _MEMORY.search(line)
    if memory:
        log.memory_bytes = max(log.memory_bytes or 0.0, float(memory[1]) * 2**30)
    return True


def _take_setting(log: _Log, line: str) -> bool:
    batch, length = _BATCH.search(line), _LENGTH.search(line)
    degrees, mesh = _DEGREES.search(line), _MESH.search(line)
    device, model, parallel = _DEVICE.search(line), _MODEL.search(line), _PARALLEL.search(line)
    if batch:
        log.micro_batch, log.global_batch = int(batch[1]), int(batch[2])
    if length:
        log.length = length[1]
    if degrees:
        told = dict(pair.split("=") for pair in degrees[1].replace(" ", "").strip(",").split(","))
        log.world_size = prod(int(told.get(name, 1)) for name in _FACTORS)
    elif mesh:
        log.world_size = prod(int(size) for size in mesh[1].split(",") if size.strip())
    if device:
        log.device = printable(device[1])
    if model:
        log.model, log.parameters = printable(model[1]), int(model[2].replace(",", ""))
    if parallel:
        log.engine = parallel[1].lower()
    return any((batch, length, degrees, mesh, device, model, parallel))


def _run(log: _Log, tally: Tally) -> FoundRun | None:
    if not log.stamps:
        return None
    world_size = log.world_size or (max(log.stamps) + 1 if len(log.stamps) > 1 else None)
    if world_size is None or world_size < 1:
        tally.remarks.append("left out: nothing in it tells the world size; put its figures into a table")
        return None
    steps_s = _steps_s(log)
    length = None if log.length is None else f"sequence length {log.length}"
    micro = None if log.micro_batch is None else f"micro_batch {log.micro_batch}"
    spec = ImportedSpec(
        format=FORMAT,
        series=series_of(FORMAT, log.model, log.device, log.engine, length, micro),
        world_size=world_size,
        device=log.device,
        model=log.model,
        micro_batch=log.micro_batch or None,
        global_batch=log.global_batch or None,
        engine=log.engine,
        file=log.source.name,
        line=log.line,
        sha256=log.source.sha256,
        row={key: value for key, value in (("sequence_length", log.length), ("tps", _middle(log.rates))) if value},
    )
    notes = {
        "step_s": f"by the log's clock, median of {len(steps_s)} pairs of neighbouring lines",
        "images_per_s": "sequences are meant, not images",
    }
    step_s = median(steps_s) if steps_s else None
    return FoundRun(
        spec,
        Aggregate(step_s=step_s, device_memory_used_bytes=log.memory_bytes),
        parameters=log.parameters,
        notes=notes,
    )


def _steps_s(log: _Log) -> list[float]:
    found = []
    for told in log.stamps.values():
        for (first, began_s), (last, ended_s) in pairwise(told):
            if first >= WARMUP_STEPS and last > first and ended_s > began_s:
                found.append((ended_s - began_s) / (last - first))
    return found


def _middle(rates: Sequence[str]) -> str | None:
    """Median of the rates as printed."""
    told = sorted(float(rate) for rate in rates if rate)
    return f"{median(told):g}" if told else None
