"""Published tables of several forms as series: columns are known by the names their authors gave them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.memory_brackets import WEIGHT_SUFFIXES
from vitscale.cost import models
from vitscale.cost.scaling import Layout
from vitscale.cost.vit import AUTOCAST
from vitscale.importers.table import REQUIRED
from vitscale.predict.priors import find_device
from vitscale.predict.read import of_table
from vitscale.predict.series import Observation, Series

_WORLD = ("world_size", "gpus", "# GPUs", "num_gpus", "n_gpus", "dp", "accelerators", "total_gpus")
_NODES = ("nodes", "num_nodes", "n_nodes")
_MICRO = ("micro_batch", "batch_per_gpu", "MicroBatchSize", "batch_size_per_gpu", "local_batch", "per_gpu_batch")
_ACCUM = ("grad_accum", "GradAccum", "accumulation")
_GLOBAL = ("global_batch", "GlobalBatchSize", "global_batch_size")
_TIMES = {"step_s": 1.0, "step_time_s": 1.0, "iteration_time_s": 1.0, "iteration_time_ms": 1e-3, "step_time_ms": 1e-3}
_RATES = ("throughput", "Throughput (T/s/GPU)", "images_per_s", "samples_per_s", "throughput_samples_per_s")
_IDENTITY = (
    "series", "series_id", "section", "source", "source_path", "model", "Model", "SeqLen (T)", "seq_len", "GPU",
    "hardware", "device", "precision", "Precision", "Sharding Strategy", "Activation Checkpointing", "parallelism",
    "hidden_size", "heads", "layers", "framework", "benchmark", "system", "submitter", "interconnect", "tp", "pp",
    "variant", "model_or_variant", "optimizer", "engine", "zero_stage", "table_id",
)  # fmt: skip
_DEVICE = ("device", "GPU", "gpu", "hardware", "accelerator")
_COUNTED = re.compile(r"\d+ ?x ?((?:NVIDIA )?[A-Z]{1,3} ?\d+[A-Z]*(?: (?:SXM\d?|PCIe))?(?: \d+ ?GB?)?)")
"""Boards in a title, as `(8x A100 80GB)`."""
_PER_NODE = 8
"""GPUs of a node where a table does not tell: the usual server."""


@dataclass(frozen=True)
class _Run:
    key: tuple[str, ...]
    layout: Layout
    step_s: float
    engine: str | None
    zero_stage: int | None
    device: str | None


def read_folder(folder: Path, left_out: list[str] | None = None) -> dict[str, list[Series]]:
    """Series of two world sizes or more by table; what else lies there is appended to `left_out`, in words."""
    found: dict[str, list[Series]] = {}
    out = [] if left_out is None else left_out
    for path in sorted(folder.glob("**/*.csv")):
        rows = _rows(path)
        if not rows:
            out.append(f"{path.name}: no rows")
            continue
        own = all(name in rows[0] for name in (*REQUIRED, "step_s"))
        series = of_table(path) if own else _series(rows)
        several = [one for one in series if len({seen.layout.world_size for seen in one.measured}) > 1]
        if several:
            found[path.stem] = several
        else:
            names = ", ".join(rows[0])
            out.append(f"{path.name}: no series of two world sizes ({len(series)} of one); columns are {names}")
        if several and len(several) < len(series):
            out.append(f"{path.name}: {len(series) - len(several)} of {len(series)} series have one world size")
    return found


def read_single_device(folder: Path) -> dict[str, list[Series]]:
    """timm's tables of training throughput on one GPU (`results/benchmark-train-amp-*.csv`): ViTs, a series a row.

    AMP, SGD; of torch before 2.0, whose attention is not fused.
    """
    found = {}
    for path in sorted(folder.glob("**/*.csv")):
        rows = [row for row in _rows(path) if _number(row, ("train_samples_per_sec",))]
        series = [one for row in rows if (one := _single(row)) is not None]
        if series:
            found[path.stem] = series
    return found


def _single(row: Mapping[str, str]) -> Series | None:
    batch, rate = _number(row, ("train_batch_size",)), _number(row, ("train_samples_per_sec",))
    img_size = _number(row, ("train_img_size", "img_size"))
    name = next((one for one in _plain_names(row.get("model", "")) if one in models.names()), None)
    if name is None or not batch or not rate or not img_size:
        return None
    return Series(
        name,
        (Observation(Layout(1, 1, batch, 1), batch / rate),),
        model=name,
        img_size=round(img_size),
        device=row.get("gpu"),
        engine="single",
        precision=AUTOCAST,
        optimizer="sgd",
        knobs={"sdpa": "math"} if (row.get("torch") or "").startswith("1.") else {},
    )


def _plain_names(name: str) -> Iterable[str]:
    """A model's name, and without the part that names its weights."""
    yield name
    yield from (name.removesuffix(suffix) for suffix in WEIGHT_SUFFIXES if name.endswith(suffix))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _series(rows: Sequence[Mapping[str, str]]) -> list[Series]:
    runs = [run for row in rows if (run := _run(row)) is not None]
    runs.sort(key=lambda run: run.key)
    return [one for _, group in groupby(runs, key=lambda run: run.key) for one in _split(list(group))]


def _split(runs: list[_Run]) -> Iterable[Series]:
    """One series where each world size stands once; else those of equal work per rank, and of equal global batch."""
    sizes = [run.layout.world_size for run in runs]
    if len(sizes) == len(set(sizes)):
        yield _one(runs, "")
        return
    for kind in ("weak", "strong"):

        def same(run: _Run, kind: str = kind) -> tuple[float, ...]:
            at = run.layout
            return (at.micro_batch, at.grad_accum) if kind == "weak" else (at.global_batch, at.micro_batch)

        for key, group in groupby(sorted(runs, key=same), key=same):
            yield _one(list(group), f" {kind} {key[0]:g} {key[1]:g}")


def _one(runs: list[_Run], suffix: str) -> Series:
    first = runs[0]
    name = " ".join(part[-24:] for part in first.key if part) + suffix
    seen = [Observation(run.layout, run.step_s) for run in sorted(runs, key=lambda run: run.layout.world_size)]
    return Series(name, tuple(seen), device=first.device, engine=first.engine, zero_stage=first.zero_stage)


def _run(row: Mapping[str, str]) -> _Run | None:
    world = _number(row, _WORLD)
    if world is None or any((_number(row, (name,)) or 1) > 1 for name in ("tp", "pp")):
        return None
    accum, total, micro = _number(row, _ACCUM), _number(row, _GLOBAL), _number(row, _MICRO)
    if accum is None:
        accum = max(1, round(total / world / micro)) if total and micro else 1
    if micro is None:
        micro = total / world / accum if total else 1.0
    nodes = _number(row, _NODES) or -(-world // _PER_NODE)
    layout = Layout(round(world), round(nodes), micro, round(accum))
    step_s = _step_s(row, layout)
    if step_s is None:
        return None
    key = tuple(row.get(name, "") or "" for name in _IDENTITY)
    sharding = row.get("Sharding Strategy") or ("FSDP" if "FSDP" in (row.get("parallelism") or "") else "")
    stage = _number(row, ("zero_stage",))
    engine = "fsdp" if sharding else row.get("engine") or None
    return _Run(key, layout, step_s, engine, None if stage is None else round(stage), _device(row))


def _device(row: Mapping[str, str]) -> str | None:
    told = next((row[name] for name in _DEVICE if row.get(name)), None)
    boards = _COUNTED.findall(row.get("heading") or row.get("section") or "")
    return next((name for name in (told, *boards) if find_device(name)), told)


def _step_s(row: Mapping[str, str], layout: Layout) -> float | None:
    for name, factor in _TIMES.items():
        told = _number(row, (name,))
        if told:
            return told * factor
    rate = _number(row, _RATES)
    if not rate:
        return None
    unit = (row.get("throughput_unit") or row.get("unit") or "").lower()
    of_rank = "GPU)" in "".join(name for name in _RATES if row.get(name)) or unit.endswith("/gpu")
    # Tokens of a sequence of unknown length: a constant factor, which no prediction of ratios feels.
    return layout.micro_batch * layout.grad_accum * (1 if of_rank else layout.world_size) / rate


def _number(row: Mapping[str, str], names: Iterable[str]) -> float | None:
    for name in names:
        try:
            value = float((row.get(name) or "").replace(",", ""))
        except ValueError:
            continue
        if value > 0:
            return value
    return None
