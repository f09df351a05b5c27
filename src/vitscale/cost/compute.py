"""Seconds of forward and backward on a GPU from its data sheet: what multiplies and what moves, one after the other.

micro-step = FLOP of products / (share · dense peak) + MOVED · bytes kept / memory bandwidth

1. Kernels of eager training follow each other, so the two add up; a roofline's maximum holds for one kernel alone.
2. Products reach a share of the dense peak (`product_share`).
3. All else moves bytes, in proportion to what autograd keeps. Counted operator by operator for a block under autocast,
   reads and writes of forward and backward: 324 bytes for 36 that are kept per element of the residual stream, 64 for 6
   per attention weight where attention is not fused: 9 and 10.7 times. At 83 % of the sheet's bandwidth: 11 and 13.
4. Recomputing activations repeats a part of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vitscale.cost.vit import AUTOCAST

MOVED = 11.8
"""Bytes moved over bytes kept, at the sheet's bandwidth: fitted to 187 timm ViT rows on an RTX 3090, AMP, attention not
fused (pytorch-image-models, results/; torch 1.10 to 1.12), within the range that step 3 counts."""

FP32_SHARE = 0.42
"""ViT-B/16 on T4, RTX 3070 and A40 at micro-batch 16 to 64 (logs beside arXiv 2602.21081; 0.38 to 0.48)."""

HALF_RATE_SHARE = 1.0
"""16 bits on boards that accumulate in fp32 at half rate: they clock above their sheet. The 187 rows; the best products
measured reach 1.08 to 1.10 of an RTX 4090's and 3090's dense peak (mag-/gpu_benchmark)."""

FULL_RATE_SHARE = 0.7
"""16 bits on all others. The best products measured reach 0.86 (A100 SXM), 0.80 (H100 SXM), 0.76 (L4), 0.70 (L40S),
0.66 (H100 PCIe) and 0.58 (MI300X) of the peak (as above); a ViT's get about 0.93 of the best, by the RTX 3090's."""


class Device(Protocol):
    """What is needed of a device; the catalog's `DeviceSpec` is such."""

    @property
    def peak_flop_per_s(self) -> Mapping[str, float]:
        """Dense peaks by precision."""

    @property
    def memory_bytes_per_s(self) -> float:
        """Memory bandwidth."""


def product_share(device: Device, precision: str) -> float:
    """Return the share of the dense peak that the matrix products of training reach, in fp32 or 16 bits.

    GeForce boards accumulate in fp32 at half rate: their 16-bit peak is twice that of fp32, others' four times or more.
    """
    if precision == "fp32":
        return FP32_SHARE
    peaks = device.peak_flop_per_s
    half_rate = peaks[computed_in(precision)] <= 2 * peaks["fp32"] if "fp32" in peaks else False
    return HALF_RATE_SHARE if half_rate else FULL_RATE_SHARE


def computed_in(precision: str) -> str:
    """Return the precision of a run's products, as the catalog names peaks."""
    return "bf16" if precision == AUTOCAST else precision


def micro_step_seconds(flop: float, kept_bytes: float, *, precision: str, device: Device) -> float | None:
    """Return seconds of forward and backward of one micro-batch, or None without a peak in that precision.

    Args:
        flop: of its matrix products, `vit.training_flop` times images.
        kept_bytes: what autograd keeps of it, `vit.activation_bytes`.
        precision: of the run.
        device: its figures.
    """
    peak = device.peak_flop_per_s.get(computed_in(precision))
    if peak is None:
        return None
    return flop / (product_share(device, precision) * peak) + MOVED * kept_bytes / device.memory_bytes_per_s
