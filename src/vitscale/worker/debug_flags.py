"""Debugging that was on while a launch was measured and costs time. Nothing else of the environment is looked at."""

from __future__ import annotations

from collections.abc import Mapping

import torch

ANOMALY = "torch.autograd.set_detect_anomaly"

_EVERYWHERE: Mapping[str, tuple[str, ...]] = {"TORCH_DISTRIBUTED_DEBUG": ("DETAIL",)}
_ON_CUDA: Mapping[str, tuple[str, ...]] = {
    "CUDA_LAUNCH_BLOCKING": ("1",),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": ("1",),
    "NCCL_DEBUG": ("INFO", "TRACE"),
}
"""Variable -> values with which it costs time."""


def found(environ: Mapping[str, str], device: torch.device) -> dict[str, str]:
    """Name -> value of what is on and costs time on such a device; values are those of the tables above."""
    costly = {**_EVERYWHERE, **(_ON_CUDA if device.type == "cuda" else {})}
    on = {name: value for name, values in costly.items() if (value := environ.get(name, "").upper()) in values}
    return on | ({ANOMALY: "True"} if torch.is_anomaly_enabled() else {})
