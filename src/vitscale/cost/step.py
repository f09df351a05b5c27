"""The time of one optimizer step from closed forms, before anything was measured.

It is an estimate from data sheets and labelled assumptions, each named in the result; fitted figures (`predict`) go
in by the same arguments.

1. compute = A · micro-batch · training FLOP / `flop_per_s` if that is measured, else `compute.micro_step_seconds`.
2. optimizer = bytes it must move / memory bandwidth, see `optimizer_seconds`.
3. communication = the sum of `collective_seconds`; exposed, see `exposed_seconds`.
4. wait = expected maximum of N Gaussian deviations of `jitter_ratio` · compute.
5. step = compute + data + optimizer + exposed + wait; images/s = micro-batch · A · N / step.

Where S ranks share the tokens of an image (`sequence`), compute is the busiest rank's part, the engine shards and
reduces over N · S ranks, and the exchange of tokens is added to communication: compute waits for it. Where they
share the weights (`tensor`), compute and the engine's bytes are of a rank's part, over N ranks; compute waits likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.cost import compute, fsdp, recompute, sequence, tensor
from vitscale.cost.collectives import Collective, LinkPair, collective_seconds, step_collectives
from vitscale.cost.compute import Device
from vitscale.cost.memory import sharding_stage
from vitscale.cost.models import ViTShape
from vitscale.cost.optimizers import moment_elements
from vitscale.cost.overlap import overlaps
from vitscale.cost.stragglers import expected_maximum as expected_maximum
from vitscale.cost.vit import AUTOCAST, parameter_tensors

UTILISATION = {"fp32": 0.36, "bf16": 0.46, "fp16": 0.46, AUTOCAST: 0.46}
"""Share of the dense peak that whole steps reach, where nothing is known of what they move: medians of the measurements
that `compute` names (16 bits: 10 % to 90 %: 0.24 to 0.61)."""

_BACKWARD_SHARE = 2 / 3  # of forward + backward: cost.vit.training_flop, step 1


@dataclass(frozen=True)
class StepEstimate:
    """One optimizer step of the slowest rank; None where a figure is missing (see `assumptions` for which)."""

    compute_s: float | None
    """Forward and backward of all micro-steps."""
    data_s: float | None
    """Time the step waits for images."""
    optimizer_s: float | None
    communication_s: float | None
    """All collectives, hidden or not."""
    exposed_comm_s: float | None
    """The part of them that compute does not hide."""
    wait_s: float | None
    """Expected wait for the slowest rank."""
    step_s: float | None
    """compute + data + optimizer + exposed communication + wait."""
    images_per_s: float | None
    """Of all ranks together."""
    assumptions: tuple[str, ...] = ()


def estimate_step(
    shape: ViTShape,
    *,
    micro_batch: int,
    grad_accum: int,
    data_parallel: int,
    sequence_parallel: int = 1,
    tensor_parallel: int = 1,
    engine: str,
    zero_stage: int | None,
    precision: str,
    device: Device | None,
    links: LinkPair,
    ranks_per_node: int,
    optimizer: str = "adamw",
    flop_per_s: float | None = None,
    overlap_comm: bool | None = None,
    reshard_after_forward: bool = True,
    collectives: Sequence[Collective] | None = None,
    activation_checkpointing: bool = False,
    fused_attention: bool = True,
    data_s: float = 0.0,
    jitter_ratio: float = 0.0,
) -> StepEstimate:
    """Estimate one optimizer step, by the derivation at the top of this file.

    Args:
        shape: the model. `micro_batch`, `grad_accum` and `data_parallel` are the batch identity's factors; `engine`,
            `zero_stage` and `precision` as in `memory.model_state_bytes`, `optimizer` as in `optimizers`.
        sequence_parallel, tensor_parallel: ranks that share the tokens of each image, or the weights of each block.
        device, links: its figures, None (a CPU) estimates only with `flop_per_s`; `device.links(ranks_per_node)`.
        flop_per_s: measured training rate of one rank (this micro-batch), in place of the data sheet.
        overlap_comm: DeepSpeed's setting; None is its default: on at ZeRO-3, off below. It does nothing on a CPU.
        reshard_after_forward: FSDP's setting.
        collectives: of the engine, where the defaults of engines do not hold.
        activation_checkpointing: whether blocks are computed twice.
        fused_attention: whether the matrix of attention is never written.
        data_s, jitter_ratio: wait for images; standard deviation of a rank's compute time over its mean.
    """
    shape = tensor.part(shape, tensor_parallel)
    tensors = parameter_tensors(shape)
    assumptions: list[str] = []
    flop = sequence.training_flop(shape, sequence_parallel)
    again = recompute.recomputed_flop(shape, sequence_parallel) / flop if activation_checkpointing else 0.0
    if flop_per_s is not None:
        micro_step_s: float | None = micro_batch * flop / flop_per_s
    else:
        kept_bytes = sequence.activation_bytes(
            shape, micro_batch, precision, sequence_parallel, fused_attention=fused_attention
        )
        micro_step_s = _assumed_micro_step_s(device, precision, micro_batch * flop, kept_bytes, assumptions)
    compute_s = None if micro_step_s is None else grad_accum * (1 + again) * micro_step_s
    bandwidth = device.memory_bytes_per_s if device else None
    ranks = data_parallel * sequence_parallel
    stage = sharding_stage(engine, zero_stage)
    shards = ranks if stage >= 1 else 1
    moments = moment_elements(shape, optimizer)
    optimizer_s = optimizer_seconds(sum(tensors), moments, memory_bytes_per_s=bandwidth, shards=shards)
    keys: Mapping[str, Any] = {"precision": precision, "data_parallel": ranks, "grad_accum": grad_accum}
    if collectives is None and engine == "fsdp":
        collectives = fsdp.step_collectives(shape, **keys, reshard_after_forward=reshard_after_forward)
    elif collectives is None:
        collectives = step_collectives(tensors, engine=engine, zero_stage=zero_stage, **keys)
    batch: Mapping[str, Any] = {"micro_batch": micro_batch, "grad_accum": grad_accum, "precision": precision}
    exchanges = sequence.collectives(shape, **batch, ranks=sequence_parallel)
    exchanges += tensor.collectives(shape, **batch, ranks=tensor_parallel)
    communication_s, exposed_s = _communication(
        collectives,
        [_seconds(one, ranks, ranks_per_node, links, beside=tensor_parallel) for one in collectives],
        [_seconds(one, sequence_parallel * tensor_parallel, ranks_per_node, links) for one in exchanges],
        compute_s=compute_s,
        grad_accum=grad_accum,
        zero_stage=stage,
        overlap=overlaps(engine, zero_stage, {"overlap_comm": overlap_comm}, on_cpu=device is None),
        assumptions=assumptions,
    )
    world_size = ranks * tensor_parallel
    wait_s = None if compute_s is None else expected_maximum(world_size, jitter_ratio * compute_s)
    if jitter_ratio == 0 and world_size > 1:
        assumptions.append("wait: no jitter between ranks given, so none")
    images = micro_batch * grad_accum * data_parallel
    return _total(compute_s, data_s, optimizer_s, communication_s, exposed_s, wait_s, images, assumptions)


def _total(
    compute_s: float | None,
    data_s: float,
    optimizer_s: float | None,
    communication_s: float | None,
    exposed_s: float | None,
    wait_s: float | None,
    images: int,
    assumptions: list[str],
) -> StepEstimate:
    if data_s == 0:
        assumptions.append("data: images are there when the step asks for them")
    step_s = None
    if compute_s is not None and exposed_s is not None and wait_s is not None:
        if optimizer_s is None:
            assumptions.append("optimizer: no memory bandwidth known; taken as part of the measured rate")
        step_s = compute_s + data_s + (optimizer_s or 0.0) + exposed_s + wait_s
    return StepEstimate(
        compute_s=compute_s,
        data_s=data_s,
        optimizer_s=optimizer_s,
        communication_s=communication_s,
        exposed_comm_s=exposed_s,
        wait_s=wait_s,
        step_s=step_s,
        images_per_s=images / step_s if step_s else None,
        assumptions=tuple(assumptions),
    )


def _communication(
    collectives: Sequence[Collective],
    times_s: Sequence[float | None],
    exchanges_s: Sequence[float | None],
    *,
    compute_s: float | None,
    grad_accum: int,
    zero_stage: int | None,
    overlap: bool,
    assumptions: list[str],
) -> tuple[float | None, float | None]:
    known_s = [time_s for time_s in times_s if time_s is not None]
    waited_s = [time_s for time_s in exchanges_s if time_s is not None]
    if len(known_s) + len(waited_s) < len(times_s) + len(exchanges_s):
        assumptions.append("communication: a link's bandwidth or latency is not known; give a measured one")
        return None, None
    total_s = sum(known_s) + sum(waited_s)
    if compute_s is None:
        return total_s, None
    if collectives:
        beside = "runs beside compute as far as it fits" if overlap else "nothing hides it"
        assumptions.append(f"communication: {beside}")
    exposed_s = exposed_seconds(
        collectives, known_s, compute_s=compute_s, grad_accum=grad_accum, zero_stage=zero_stage, overlap=overlap
    )
    return total_s, exposed_s + sum(waited_s)


def _assumed_micro_step_s(
    device: Device | None, precision: str, flop: float, kept_bytes: float, assumptions: list[str]
) -> float | None:
    known = None if device is None else compute.micro_step_seconds(flop, kept_bytes, precision=precision, device=device)
    computed = compute.computed_in(precision)
    if device is None or known is None:
        assumptions.append(f"compute: no {computed} peak known for this device; give a measured rate")
        return None
    share = compute.product_share(device, precision)
    assumptions.append(
        f"compute: products at {share:.0%} of the dense {computed} peak, {compute.MOVED:g} times the kept activations "
        "at memory bandwidth, as in published ViT runs"
    )
    return known


def _seconds(collective: Collective, ranks: int, ranks_per_node: int, links: LinkPair, beside: int = 1) -> float | None:
    """Seconds in a group of `ranks`; of `beside` groups with a rank each side by side, which share a node's network."""
    per_node = max(1, ranks_per_node // beside)
    return collective_seconds(
        collective.operation,
        collective.bytes * (min(beside, ranks_per_node) if ranks > per_node else 1),
        collective.calls,
        ranks=ranks,
        ranks_per_node=per_node,
        links=links,
    )


def optimizer_seconds(
    parameters: int, moments: int, *, memory_bytes_per_s: float | None, shards: int = 1
) -> float | None:
    """Return the least time of the optimizer's pass over memory, or None without a bandwidth.

    1. In fp32 it reads weight and gradient and writes the weight, 3 · 4 = 12 bytes a parameter, and reads and writes
       moments, 8 bytes an element: AdamW 28 bytes a parameter, SGD with momentum 20.
    2. In 16 bits: gradient 2, master weight read and written 8, weight written 2: 12 as well.
    3. LAMB's norms and Muon's matrix products are left out.
    4. ZeRO-1 to 3 update 1/N of it on each rank. Assumed: one fused pass at full bandwidth, so this is a lower bound.
    """
    if memory_bytes_per_s is None:
        return None
    return (12 * parameters + 8 * moments) / shards / memory_bytes_per_s


def exposed_seconds(
    collectives: Sequence[Collective],
    times_s: Sequence[float],
    *,
    compute_s: float,
    grad_accum: int,
    zero_stage: int | None,
    overlap: bool,
) -> float:
    """Return the communication time that compute does not hide, at best.

    1. Without overlap, all of it.
    2. Gradients can travel while backward runs: 2/3 of compute; of the last micro-step only, except at ZeRO-2, which
       reduces in every one. ZeRO-3's gathers run beside forward too: all of compute.
    3. The last bucket (and ZeRO-3's first gather) has nothing left to hide behind: at least one call's share stays.
    4. The all-gather of updated weights (ZeRO-1 and 2) follows the optimizer and is never hidden.

    Args:
        collectives: of one step.
        times_s: seconds of each of them.
        compute_s: forward and backward of all micro-steps.
        grad_accum: micro-steps.
        zero_stage: DeepSpeed's, 3 for FSDP; None or 0 for whole weights.
        overlap: whether anything runs beside compute.
    """
    total_s = sum(times_s)
    if not overlap or not collectives:
        return total_s
    pairs = list(zip(collectives, times_s, strict=True))
    hideable = pairs if zero_stage == 3 else [pair for pair in pairs if pair[0].operation == "all_reduce"]
    hideable_s = sum(time_s for _, time_s in hideable)
    least_s = sum(time_s / one.calls for one, time_s in hideable)
    micro_s = compute_s / grad_accum
    window_s = {2: _BACKWARD_SHARE * compute_s, 3: compute_s}.get(zero_stage or 0, _BACKWARD_SHARE * micro_s)
    return total_s - hideable_s + max(hideable_s - window_s, least_s)
