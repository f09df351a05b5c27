"""Whether communication runs beside compute: what plans, simulations, predictions and recommendations assume alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_ACCELERATE = "accelerate_deepspeed"
"""The engine by which Accelerate drives DeepSpeed; plain `accelerate` is DDP."""


def overlaps(engine: str | None, zero_stage: int | None, knobs: Mapping[str, Any], *, on_cpu: bool) -> bool:
    """Say whether collectives run beside compute.

    1. DDP's do, also on gloo (measured: 35 of 156 ms hidden).
    2. DeepSpeed's do not at ZeRO-0 (measured logs: the all-reduce follows the backward), but with
       `engine.overlap_reduce`, which sends as DDP does, on a CPU too.
    3. At ZeRO-1 to 3 DeepSpeed's never do on a CPU (measured); elsewhere with `overlap_comm`, by default on at ZeRO-3
       and off below (cited: zero/config.py).
    4. FSDP's do on CUDA, on streams of its own; on a CPU assumed not.

    Args:
        engine: as in a study; None is not told, and hides nothing: a fit finds the part that is not hidden.
        zero_stage: DeepSpeed's.
        knobs: as `calibrated.knobs_of` names them.
        on_cpu: whether ranks compute on a CPU.
    """
    if engine not in ("deepspeed", OF_ACCELERATE):
        return engine not in (None, "single") and not (engine == "fsdp" and on_cpu)
    if not zero_stage:
        return engine == "deepspeed" and bool(knobs.get("overlap_reduce"))
    asked = knobs.get("overlap_comm")
    return not on_cpu and (zero_stage == 3 if asked is None else bool(asked))
