"""Settings that make communication dearer than it has to be: each costs a part of what communication costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import median

from vitscale.analysis.case import Case, Found, calls
from vitscale.analysis.collectives import carried
from vitscale.config.runspec import RunSpec
from vitscale.cost.collectives import Links, bus_factor
from vitscale.cost.memory import BUCKET_ELEMENTS
from vitscale.cost.run import Machinery, estimate_run
from vitscale.units import number, percent, seconds, size

HIDDEN_SHARE = 0.05
"""`no_overlap`: less of communication than this runs beside computation."""

NORM_BYTES = 64
"""`clipping`: an all-reduce of so few bytes carries a norm or a flag."""

DDP_BUCKET_MB = 25.0
"""torch's default; `engine.bucket_mb`."""


def no_overlap(case: Case) -> Iterator[Found]:
    """DeepSpeed's collectives after the backward pass, which could run beside it.

    Its stage 0 reduces all gradients when the last backward is done (`allreduce_gradients`), where
    `engine.overlap_reduce` does not send in its place, and on a CPU no other stage overlaps. At best what is exposed
    now is hidden behind the backward pass of the last micro-step.
    """
    spec, exposed, backward = case.spec, case.mean_s("comm_exposed"), case.typical_s("backward")
    hidden = case.result.overlapped_share
    if spec.zero_stage is None or not exposed or not backward or hidden is None or hidden > HIDDEN_SHARE:
        return
    if spec.knobs and spec.knobs.overlap_reduce:
        return
    if spec.zero_stage == 0 or spec.device == "cpu":
        window = [value / spec.grad_accum for value in backward]
        values = [min(pair) for pair in zip(exposed, window, strict=True)]
        why = "of DeepSpeed's stage 0 start" if spec.zero_stage == 0 else "of DeepSpeed on a CPU start, at any stage,"
        yield Found(
            "no_overlap",
            values,
            f"{percent(hidden, 0)} of communication is hidden: the collectives {why} when the backward pass is done, "
            f"which takes {seconds(median(window))} in the last micro-step",
            within="communication",
        )


def accumulation(case: Case) -> Iterator[Found]:
    """ZeRO-2 and 3 and FSDP communicate in every micro-step, ZeRO-1 and DDP once in a step: by the closed forms."""
    spec, exposed = case.spec, case.mean_s("comm_exposed")
    of_fsdp = spec.engine == "fsdp"
    if not (of_fsdp or spec.zero_stage in (2, 3)) or spec.grad_accum == 1 or not exposed:
        return
    who, instead = ("FSDP", "DDP") if of_fsdp else (f"ZeRO stage {spec.zero_stage}", "stage 1")
    other: Mapping[str, object] = {"engine": "ddp", "fsdp": None} if of_fsdp else {"zero_stage": 1}
    now, once = _sent_bytes(spec), _sent_bytes(spec.model_copy(update=other))
    if once < now:
        yield Found(
            "accumulation",
            [value * (1 - once / now) for value in exposed],
            f"{who} communicates in each of {spec.grad_accum} micro-steps: {size(now)} a rank and step by the closed "
            f"form, with {instead} {size(once)}",
            within="communication",
        )


def small_buckets(case: Case) -> Iterator[Found]:
    """Buckets below the default, where latency is what communication takes."""
    link, exposed, given = case.link, case.mean_s("comm_exposed"), _small_bucket(case.spec)
    if link is not None and given and exposed and link.latency_share > 0:
        yield Found(
            "small_buckets",
            [value * link.latency_share for value in exposed],
            f"{given}, below the default: {calls(link.calls)} per step of {size(link.bytes / link.calls)} each, "
            f"and latency is {percent(link.latency_share, 0)} of their time",
            within="communication",
        )


def clipping(case: Case) -> Iterator[Found]:
    """Clipping by the global norm needs a collective of its own where ranks hold shards."""
    exposed, link = case.mean_s("comm_exposed"), case.link
    spec = case.spec
    sharded = bool(spec.zero_stage or spec.engine == "fsdp" or spec.tensor_parallel)
    # Where it trains, ranks agree on stopping by such a collective too.
    if not spec.optimizer.clip or not sharded or spec.train is not None or link is None or not exposed:
        return
    norms = [
        line
        for line in carried(case.run)
        if line.operation == "all_reduce"
        and line.calls_per_step
        and line.bytes_per_step / line.calls_per_step <= NORM_BYTES
    ]
    wire_s = sum(line.wire_s_per_step or 0.0 for line in norms)
    if wire_s:
        yield Found(
            "clipping",
            [value * wire_s / link.wire_s for value in exposed],
            f"{calls(sum(line.calls_per_step for line in norms))} per step carry a norm or a flag, and take "
            f"{seconds(wire_s)} on the wire",
            within="communication",
        )


def _sent_bytes(spec: RunSpec) -> float:
    collectives = estimate_run(spec, Machinery(None, Links(None, None), None)).collectives
    ranks = spec.world_size // (spec.tensor_parallel or 1)  # those that share an image reduce its gradients too
    groups = {"all_to_all": spec.sequence_parallel or 1}
    return sum(one.bytes * bus_factor(one.operation, groups.get(one.operation, ranks)) for one in collectives)


def _small_bucket(spec: RunSpec) -> str:
    """The setting that makes buckets smaller than they are by default; empty where there is none."""
    bucket_mb = spec.knobs.bucket_mb if spec.knobs else None
    if spec.engine == "ddp" and bucket_mb is not None and bucket_mb < DDP_BUCKET_MB:
        return f"engine.bucket_mb is {number(bucket_mb)}"
    elements = spec.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size")
    if isinstance(elements, int | float) and elements < BUCKET_ELEMENTS:
        return f"reduce_bucket_size is {number(elements)}"
    return ""


RULES: tuple[Callable[[Case], Iterator[Found]], ...] = (no_overlap, accumulation, small_buckets, clipping)
