"""Bytes one rank holds: model state by ZeRO stage, saved activations, DeepSpeed's buckets.

What cannot be derived is not in it: the CUDA context, NCCL's buffers, the allocator's slack, kernels' workspaces.
The totals are therefore a lower bound of what a device tool shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.cost.vit import PRECISION_BYTES

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default `reduce_bucket_size` (cited: DeepSpeed 0.19.8, zero/config.py)."""
PERSISTENCE_ELEMENTS = 100_000
"""DeepSpeed's default `stage3_param_persistence_threshold`: smaller tensors stay whole everywhere (cited, as above)."""
GATHERED_ELEMENTS = 500_000_000
"""What ZeRO-3 keeps gathered at once: half of `stage3_max_reuse_distance`'s default, see `regathered_elements`."""

_FP32_BYTES = 4


@dataclass(frozen=True)
class ModelState:
    """Bytes of weights, gradients and optimizer (moments and fp32 master weights) on one rank."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class RankMemory:
    """Bytes one rank needs, without context, communicator and allocator."""

    model_state: ModelState
    activations_bytes: int
    buckets_bytes: int
    total_bytes: int
    """Of the device."""
    host_bytes: int = 0
    """What is offloaded to the host or to NVMe."""


def model_state_bytes(
    parameters: int,
    *,
    engine: str,
    zero_stage: int | None,
    precision: str,
    data_parallel: int,
    moments: int,
    persistent_parameters: int = 0,
) -> ModelState:
    """Return the model state of one rank at its peak, the end of backward.

    With P parameters, N data-parallel ranks, b bytes a weight (4 or 2) and M elements of moments (AdamW 2P):

    1. Weights bP; ZeRO-3: bP/N, and again b × `persistent_parameters`, those below the persistence threshold.
    2. Gradients bP; ZeRO-2 and 3: bP/N. ZeRO-1 reduces after backward and keeps all of them until then.
    3. Moments 4M; ZeRO-1 to 3: 4M/N.
    4. Master weights 4P in bf16 and fp16. In fp32 the weights are their own master at ZeRO-0 and in DDP, but
       DeepSpeed's ZeRO-1 to 3 hold a second fp32 copy of the partition even then: 4P/N.

    Measured on DeepSpeed 0.19.8, 2 ranks, CPU, all live tensors, bytes per parameter (a test repeats it): after the
    step ZeRO-0 12 (fp32) and 14 (bf16), ZeRO-1 and 2 10 and 8, ZeRO-3, with its gradients, 10 and 8, and the
    persistent copies.

    Args:
        parameters: parameters of the model, P.
        engine: "deepspeed" shards by `zero_stage`; any other (ddp, single) is taken as unsharded. FSDP: see
            `fsdp.rank_memory`.
        zero_stage: 0 to 3, or None where the engine has none.
        precision: "fp32", "bf16", "fp16" or "bf16_autocast".
        data_parallel: ranks that share the state, N.
        moments: fp32 elements that the optimizer keeps, `optimizers.moment_elements(shape, optimizer)`.
        persistent_parameters: elements below ZeRO-3's threshold, see `persistent_elements`.
    """
    stage = sharding_stage(engine, zero_stage)
    weight_bytes = PRECISION_BYTES[precision]
    shard = -(-parameters // data_parallel)
    weights = weight_bytes * (shard + persistent_parameters) if stage == 3 else weight_bytes * parameters
    gradients = weight_bytes * (shard if stage >= 2 else parameters)
    has_master = weight_bytes < _FP32_BYTES or stage >= 1
    kept = moments + (parameters if has_master else 0)
    optimizer_bytes = _FP32_BYTES * (-(-kept // data_parallel) if stage >= 1 else kept)
    return ModelState(weights, gradients, optimizer_bytes, weights + gradients + optimizer_bytes)


def sharding_stage(engine: str, zero_stage: int | None) -> int:
    """Return the ZeRO stage of an engine, or the one it does likewise: FSDP shards as stage 3 does, DDP as 0."""
    return 3 if engine == "fsdp" else (zero_stage or 0) if engine == "deepspeed" else 0


def zero_keys(deepspeed: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the numbers and booleans of `zero_optimization` in a checked document; the rest is left to DeepSpeed.

    `"auto"`, a Hugging Face word, is refused at intake.
    """
    table = deepspeed.get("zero_optimization", {})
    return {key: value for key, value in table.items() if isinstance(value, bool | int | float)}


def bucket_settings(zero: Mapping[str, Any], parameters: int, *, overlap_reduce: bool) -> Mapping[str, Any]:
    """Return what DeepSpeed is told of buckets as `rank_memory` and `collectives.step_collectives` take it.

    With `engine.overlap_reduce` all buckets are there until backward is over.
    """
    bucket = parameters if overlap_reduce else int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
    persistence = int(zero.get("stage3_param_persistence_threshold", PERSISTENCE_ELEMENTS))
    return {"reduce_bucket_elements": bucket, "persistence_elements": persistence}


def persistent_elements(tensors: Sequence[int], threshold: int = PERSISTENCE_ELEMENTS) -> int:
    """Return the elements in tensors below ZeRO-3's persistence threshold, which every rank holds whole."""
    return sum(size for size in tensors if size < threshold)


def bucket_bytes(
    parameters: int,
    *,
    engine: str,
    zero_stage: int | None,
    precision: str,
    data_parallel: int,
    reduce_bucket_elements: int = BUCKET_ELEMENTS,
    overlap_comm: bool | None = None,
    gradient_as_bucket_view: bool = True,
) -> int:
    """Return the bytes of the flat buffers that hold gradients on their way to the other ranks.

    1. DeepSpeed 1 to 3 allocate `reduce_bucket_size` elements whatever the model's size (cited:
       zero/stage_1_and_2.py, stage3.py; measured: 2.0 GB of live tensors beside a 1.4 M parameter model at ZeRO-3
       fp32). On a CPU untouched pages cost nothing. ZeRO-1 and 2 hold two while `overlap_comm` is on.
    2. ZeRO-1 and 2 flatten what is in a bucket once more to send it to several ranks. At ZeRO-1 what is in the bucket
       are the gradients themselves, which count as such.
    3. ZeRO-0 flattens the gradients into as many elements as it has, at most one bucket and the tensor that fills it,
       for one rank too.
    4. DDP's gradients are views of its buckets: nothing beside them. Without `gradient_as_bucket_view`, which
       Accelerate's DDP leaves off, one copy more.
    """
    weight_bytes = PRECISION_BYTES[precision]
    stage = sharding_stage(engine, zero_stage)
    if engine != "deepspeed":
        copied = engine == "accelerate" or (engine == "ddp" and not gradient_as_bucket_view)
        return weight_bytes * parameters if copied and data_parallel > 1 else 0
    filled = min(parameters, reduce_bucket_elements)
    if stage == 0:
        return weight_bytes * filled
    buckets = reduce_bucket_elements * (2 if overlap_comm and stage in (1, 2) else 1)
    flattened = filled if data_parallel > 1 and stage in (1, 2) else 0
    return weight_bytes * (buckets + flattened - (filled if stage == 1 else 0))


def rank_memory(
    tensors: Sequence[int],
    activations_bytes: int,
    *,
    engine: str,
    zero_stage: int | None,
    precision: str,
    data_parallel: int,
    moments: int,
    device: str = "cuda",
    reduce_bucket_elements: int = BUCKET_ELEMENTS,
    persistence_elements: int = PERSISTENCE_ELEMENTS,
    overlap_comm: bool | None = None,
    gradient_as_bucket_view: bool = True,
) -> RankMemory:
    """Return the bytes one rank needs: model state at its peak, activations of one micro-batch, buckets.

    The sum is an upper estimate of the tensors' own peak: activations have gone when the last gradient has come.
    ZeRO-3 gathers weights as well: with DeepSpeed's defaults every weight of a model below 5e8 parameters stays
    gathered from its first use until its backward (see `collectives.regathered_elements`), and as they go, gradients
    are flattened for the reduce-scatter: together one more copy of the model, at most `GATHERED_ELEMENTS`.

    Args:
        tensors: elements of each parameter tensor, `vit.parameter_tensors(shape)`.
        activations_bytes: `vit.activation_bytes(shape, micro_batch, precision)`.
        engine, zero_stage, precision, data_parallel, moments: as in `model_state_bytes`.
        device: "cuda" or "cpu"; a CPU's untouched bucket pages take no memory, so a bucket counts at most the model.
        reduce_bucket_elements, persistence_elements, overlap_comm: DeepSpeed's settings where they are not the
            defaults.
        gradient_as_bucket_view: DDP's setting.
    """
    total = sum(tensors)
    stage = sharding_stage(engine, zero_stage)
    state = model_state_bytes(
        total,
        engine=engine,
        zero_stage=zero_stage,
        precision=precision,
        data_parallel=data_parallel,
        moments=moments,
        # A lone rank's shard is the whole tensor.
        persistent_parameters=persistent_elements(tensors, persistence_elements)
        if stage == 3 and data_parallel > 1
        else 0,
    )
    buckets = bucket_bytes(
        total,
        engine=engine,
        zero_stage=zero_stage,
        precision=precision,
        data_parallel=data_parallel,
        reduce_bucket_elements=min(total, reduce_bucket_elements) if device == "cpu" else reduce_bucket_elements,
        overlap_comm=overlap_comm,
        gradient_as_bucket_view=gradient_as_bucket_view,
    )
    if stage == 3:
        buckets += PRECISION_BYTES[precision] * min(total, GATHERED_ELEMENTS)
    return RankMemory(state, activations_bytes, buckets, state.total_bytes + activations_bytes + buckets)
