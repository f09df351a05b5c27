"""What ZeRO-Offload leaves on the device, and what it takes of the host: per rank, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitscale.config.offload import Offload
from vitscale.cost.memory import ModelState, RankMemory
from vitscale.cost.vit import PRECISION_BYTES

_FP32_BYTES = 4


def moved(
    memory: RankMemory,
    tensors: Sequence[int],
    asked: Offload,
    *,
    zero_stage: int,
    precision: str,
    data_parallel: int,
) -> RankMemory:
    """Return a rank's memory with what is offloaded in `host_bytes`, on the CPU or on NVMe.

    With P parameters of b bytes and N data-parallel ranks (read in DeepSpeed 0.19.8, zero/stage_1_and_2.py and
    stage3.py; not measured, for want of a GPU):

    1. Optimizer: moments and master weights leave, and an fp32 copy of the gradients of the own part comes to lie
       beside them, 4P/N. At ZeRO-2 and 3 gradients leave as they are reduced, so none stay; at ZeRO-1 all of them stay
       until then. ZeRO-1 and 2 keep a buffer of the largest tensor to send gradients from.
    2. Parameters (ZeRO-3): the shards leave, bP/N; persistent tensors stay whole.

    Args:
        memory: without offload, `memory.rank_memory`.
        tensors: elements of each parameter tensor.
        asked: what is offloaded.
        zero_stage: 1 to 3.
        precision: of the run.
        data_parallel: ranks that share the state, N.
    """
    state, buckets_bytes, host_bytes = memory.model_state, memory.buckets_bytes, 0
    share = -(-sum(tensors) // data_parallel)
    parameters_bytes, gradients_bytes, optimizer_bytes = (
        state.parameters_bytes,
        state.gradients_bytes,
        state.optimizer_bytes,
    )
    if asked.optimizer:
        host_bytes += optimizer_bytes + _FP32_BYTES * share
        optimizer_bytes = 0
        if zero_stage >= 2:
            gradients_bytes = 0
        if zero_stage <= 2:
            buckets_bytes += PRECISION_BYTES[precision] * max(tensors)
    if asked.parameters:
        shard_bytes = PRECISION_BYTES[precision] * share
        host_bytes += shard_bytes
        parameters_bytes -= shard_bytes
    total = parameters_bytes + gradients_bytes + optimizer_bytes
    kept = ModelState(parameters_bytes, gradients_bytes, optimizer_bytes, total)
    return replace(
        memory,
        model_state=kept,
        buckets_bytes=buckets_bytes,
        total_bytes=total + memory.activations_bytes + buckets_bytes,
        host_bytes=host_bytes,
    )
