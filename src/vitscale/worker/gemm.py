"""The fastest matrix product of this very device, which computing is measured against where no data sheet tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch

from vitscale.worker.devices import return_memory
from vitscale.worker.distributed import Ranks, barrier

BUDGET_S = 0.2
"""A product that would make it longer than this is not begun."""
SMALLEST, LARGEST = 256, 8192
"""Rows and columns. Each size doubles the one before, so that a product takes eight times as long."""
_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "bf16_autocast": torch.bfloat16,
    "fp16": torch.float16,
}


def peaks(precisions: Iterable[str], ranks: Ranks) -> dict[str, float]:
    """FLOP/s by precision. All ranks at once: they share a host as they do while they train."""
    found = {}
    for precision in sorted(set(precisions)):
        seconds_of = _timer(_DTYPES[precision], ranks.device)
        seconds_of(SMALLEST)  # kernels are loaded
        barrier()
        found[precision] = fastest(seconds_of)
    return_memory(ranks.device)
    return found


def fastest(seconds_of: Callable[[int], float]) -> float:
    """FLOP/s of the fastest of square products of several sizes, as many as fit in `BUDGET_S`.

    Args:
        seconds_of: multiplies two matrices of so many rows and columns; how long that took.
    """
    best, size, left_s, took_s = 0.0, SMALLEST, BUDGET_S, 0.0
    while took_s <= left_s:
        took_s = seconds_of(size)
        best = max(best, 2 * size**3 / took_s)
        left_s -= took_s
        if size < LARGEST and 8 * took_s <= left_s:
            size, took_s = 2 * size, 8 * took_s
    return best


def _timer(dtype: torch.dtype, device: torch.device) -> Callable[[int], float]:
    # Of zeros a GPU draws less power and clocks higher; the generators that runs draw from stay as they are.
    tile = torch.randn(SMALLEST, SMALLEST, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def seconds_of(size: int) -> float:
        if size not in held:
            held.clear()
            operand = tile.repeat(size // SMALLEST, size // SMALLEST)
            held[size] = operand, operand.clone()  # its pages are there
        operand, product = held[size]
        _finish(device)
        began = time.perf_counter()
        torch.mm(operand, operand, out=product)
        _finish(device)
        return time.perf_counter() - began

    return seconds_of


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
