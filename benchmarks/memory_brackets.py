"""Whether the memory form is right on both sides: batches that trained on a 24 GB card, and the next that did not.

The table is not shipped: `python -m benchmarks memory_brackets --table CSV` takes one with the columns `model`,
`img_size`, `batch_fits_24GB`, `next_larger_batch_in_decay_sequence` (blank where nothing larger was tried) and `torch`,
made of pytorch-image-models' `results/benchmark-train-amp-*-rtx3090.csv`: AMP, SGD with momentum, attention not fused.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figure import Figure
from vitscale.cost import device_memory, models, vit
from vitscale.cost.device_memory import DeviceNeed
from vitscale.cost.memory import rank_memory
from vitscale.units import percent

LIMIT_BYTES = round(23.70 * 2**30)
"""What torch reports as an RTX 3090's total."""

CONTEXT_BYTES = 10**9
"""Of torch 1.10 to 1.12 with CUDA 11.3, which load all kernels at once (cited: pytorch#107667)."""

BATCHES = (512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
"""What timm's `benchmark.py` tries, one after another, until one fits."""

HIT_SHARE = 0.80
WEIGHT_SUFFIXES = ("_in21ft1k", "_sam", "_miil")
"""Names of weights: the model is the same."""

_COMMAND = "python -m benchmarks memory_brackets --table CSV"


@dataclass(frozen=True)
class Bracket:
    """One row: the largest batch that fitted, and the next larger one that was tried."""

    model: str
    img_size: int
    fits: int
    too_large: int | None
    torch: str
    layout: str = ""


def measure(short: bool, table: Path | None = None) -> list[Figure]:  # noqa: ARG001
    """The share of brackets that the median form hits, the furthest miss, and how often the 95 % range holds."""
    if table is None:
        return [Figure("memory brackets", "n/a", "", "", None, _COMMAND, "needs --table")]
    rows = read(table)
    known = [row for row in rows if shape_of(row) is not None]
    two_sided = [row for row in known if row.too_large is not None]
    off = {row: steps_off(row) for row in two_sided}
    hits = sum(one == 0 for one in off.values())
    share, furthest = hits / len(two_sided), max(abs(one) for one in off.values())
    missed = ", ".join(sorted({f"{row.model} (torch {row.torch})" for row, one in off.items() if one}))
    note = f"{len(rows)} rows, {len(known)} of models that the closed forms know, {len(two_sided)} with both ends"
    within = sum(_consistent(row) for row in two_sided)
    open_ended = [row for row in known if row.too_large is None]
    fitting = sum(need(row, row.fits).median_bytes <= LIMIT_BYTES for row in open_ended)
    return [
        Figure(
            "memory brackets hit",
            percent(share),
            f"{hits} of {len(two_sided)}",
            f">= {percent(HIT_SHARE, 0)}",
            share >= HIT_SHARE,
            _COMMAND,
            f"{note}; missed: {missed}",
        ),
        Figure("furthest miss", f"{furthest} steps", "", "<= 1 step", furthest <= 1, _COMMAND),
        Figure("brackets that the 95 % range meets", f"{within} of {len(two_sided)}", "", "", None, _COMMAND),
        Figure(
            "brackets hit by a slack of other models",
            f"{held_out(two_sided)} of {len(two_sided)}",
            "",
            "",
            None,
            _COMMAND,
            "fitted without models of the same family and size",
        ),
        Figure("the first batch fitted: said to fit", f"{fitting} of {len(open_ended)}", "", "", None, _COMMAND),
    ]


def read(table: Path) -> list[Bracket]:
    """The rows of the table."""
    with table.open(newline="") as lines:
        return [
            Bracket(
                one["model"],
                int(one["img_size"]),
                int(one["batch_fits_24GB"]),
                int(one["next_larger_batch_in_decay_sequence"] or 0) or None,
                one["torch"],
                one.get("layout") or "",
            )
            for one in csv.DictReader(lines)
        ]


def shape_of(row: Bracket) -> models.ViTShape | None:
    """The row's model, or None where it is not a plain ViT."""
    name = row.model
    for suffix in WEIGHT_SUFFIXES:
        name = name if name in models.names() else name.removesuffix(suffix)
    return models.shape(name, img_size=row.img_size) if name in models.names() else None


def need(row: Bracket, batch: int) -> DeviceNeed:
    """What training with a micro-batch needs: one GPU, AMP, SGD with momentum, attention not fused."""
    shape = shape_of(row)
    assert shape is not None
    precision = vit.AUTOCAST
    kept_bytes = vit.activation_bytes(shape, batch, precision, fused_attention=False)
    tensors = vit.parameter_tensors(shape)
    memory = rank_memory(
        tensors,
        kept_bytes,
        engine="single",
        zero_stage=None,
        precision=precision,
        data_parallel=1,
        moments=sum(tensors),
    )
    working = device_memory.workspace_bytes(shape, batch, precision, fused_attention=False)
    return DeviceNeed("cuda", memory.total_bytes + working, CONTEXT_BYTES)


def steps_off(row: Bracket) -> int:
    """How many steps of the sequence the largest batch that should fit is above the one that did."""
    found = next((batch for batch in BATCHES if need(row, batch).median_bytes <= LIMIT_BYTES), BATCHES[-1])
    return BATCHES.index(row.fits) - BATCHES.index(found)


def held_out(rows: Sequence[Bracket]) -> int:
    """How many two-sided rows a slack hits that was fitted to rows of other models: by family and size."""
    hits = 0
    for family in {_family(row) for row in rows}:
        median, _ = fit(slacks(row for row in rows if _family(row) != family))
        own = slacks(row for row in rows if _family(row) == family)
        hits += sum(low < math.log(median) <= high for low, high in own)
    return hits


def _family(row: Bracket) -> str:
    return "_".join(row.model.split("_")[:2])


def slacks(rows: Iterable[Bracket], context_bytes: int = CONTEXT_BYTES) -> list[tuple[float, float]]:
    """Of each two-sided row the logarithms between which its slack lies."""
    room_bytes = LIMIT_BYTES - context_bytes
    return [
        (math.log(room_bytes / need(row, row.too_large).allocated_bytes),
         math.log(room_bytes / need(row, row.fits).allocated_bytes))
        for row in rows if row.too_large is not None and shape_of(row) is not None
    ]  # fmt: skip


def fit(between: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Median and sigma of the log-normal slack that make the brackets most likely."""
    from scipy.optimize import minimize
    from scipy.stats import norm

    def cost(at: Sequence[float]) -> float:
        middle, sigma = at[0], math.exp(at[1])
        chances = [norm.cdf((high - middle) / sigma) - norm.cdf((low - middle) / sigma) for low, high in between]
        return -sum(math.log(max(one, 1e-12)) for one in chances)

    found = minimize(cost, [math.log(1.05), math.log(0.08)], method="Nelder-Mead")
    return math.exp(found.x[0]), math.exp(found.x[1])


def _consistent(row: Bracket) -> bool:
    assert row.too_large is not None
    return need(row, row.fits).low95_bytes <= LIMIT_BYTES < need(row, row.too_large).high95_bytes
