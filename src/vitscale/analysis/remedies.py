"""What to do about each cause, as data: the cause in words, a hint, and the study key that changes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vitscale.analysis.case import Case, Found
from vitscale.analysis.cause import Kind
from vitscale.config import offload
from vitscale.config.knobs import MOST_LOADER_THREADS
from vitscale.config.runspec import RunSpec

_ELEMENTWISE = ("adamw", "sgd", "lion")
"""Optimizers that ZeRO can share out: the others look at whole weights."""


@dataclass(frozen=True)
class Remedy:
    """Words about one kind of cause."""

    name: str
    """The cause, as it begins a sentence."""
    hint: str
    override: Callable[[Case], str | None] | str | None = None
    """Study keys to paste, or what makes them of the run; None where no key helps."""


def _less_traffic(case: Case) -> str | None:
    """More work between reductions, or fewer bytes in them."""
    spec = case.spec
    hook = spec.knobs and spec.knobs.ddp_hook
    if spec.engine == "ddp" and spec.precision == "fp32" and not hook:
        return "engine.ddp_hook=bf16"
    if spec.precision == "fp32" and spec.device == "cuda" and spec.engine in ("deepspeed", "ddp", "fsdp") and not hook:
        return "precision=bf16"
    once = spec.knobs and (spec.knobs.compile_mode or spec.knobs.static_graph)  # no second micro-step
    if spec.zero_stage in (2, 3) or spec.engine == "fsdp" or spec.protocol == "strong" or once:
        return _larger_micro_batch(case)
    return f"grad_accum={2 * spec.grad_accum}" if _twice_fits(spec) else None


def _larger_micro_batch(case: Case) -> str | None:
    """Twice the images per rank and micro-step; where micro-steps can be joined, for the same global batch."""
    spec = case.spec
    if spec.protocol == "strong" and spec.grad_accum % 2 == 0:
        solves = spec.solved == "micro_batch"
        return f"grad_accum={spec.grad_accum // 2}" if solves else f"micro_batch={2 * spec.micro_batch}"
    if not _twice_fits(spec):
        return None
    return (
        f"global_batch={2 * spec.global_batch}" if spec.protocol == "strong" else f"micro_batch={2 * spec.micro_batch}"
    )


def _twice_fits(spec: RunSpec) -> bool:
    """Whether there are images for a global batch of twice the size."""
    return 2 * spec.global_batch <= spec.data.images


def _cheaper_update(case: Case) -> str | None:
    """Shared out over the ranks, or in one kernel."""
    spec = case.spec
    elementwise = spec.optimizer.name in _ELEMENTWISE and not (spec.knobs and spec.knobs.channels_last)
    if spec.engine == "deepspeed" and spec.zero_stage == 0 and spec.data_parallel > 1 and elementwise:
        return "zero_stage=1"
    fused = spec.optimizer.name in ("adamw", "sgd") and not (spec.knobs and spec.knobs.optimizer_impl)
    return "engine.optimizer_impl=fused" if fused and spec.device == "cpu" else None


def _by_rate(case: Case) -> str | None:
    """Fewer images for a rank that computes more slowly, as far as that is sure to be possible."""
    spec = case.spec
    whole = spec.engine == "ddp" or (spec.engine == "deepspeed" and spec.zero_stage != 3)
    alone = spec.ranks_per_replica == 1 and spec.train is None and spec.micro_batch > 1
    return "engine.split=proportional" if whole and alone and not (spec.knobs and spec.knobs.split) else None


def _more_per_launch(case: Case) -> str | None:
    """Compiled blocks where torch can trace them, else more images in each kernel."""
    spec = case.spec
    traced = spec.zero_stage != 3 and not spec.sequence_parallel and not (spec.knobs and spec.knobs.compile)
    return "engine.compile=true" if traced else _larger_micro_batch(case)


def _overlapping_engine(case: Case) -> str | None:
    """DDP, as far as it is sure to do what this run does."""
    spec = case.spec
    own_kernel = spec.knobs is not None and spec.knobs.optimizer_impl == "deepspeed"
    return "engine=ddp" if spec.zero_stage == 0 and spec.precision != "fp16" and not own_kernel else None


def _once_a_step(case: Case) -> str | None:
    """Whole gradients in one go, as far as no state lies where only stage 3 can keep it."""
    if case.spec.engine == "fsdp":
        return "engine=ddp"
    kept = offload.asked(case.spec.deepspeed)
    return None if kept.parameters or kept.optimizer == "nvme" else "zero_stage=1"


def _reading_ahead(case: Case) -> str | None:
    """Twice the threads that read, as far as there may be so many."""
    spec = case.spec
    given = spec.knobs.loader_threads if spec.knobs else None
    now = given if given is not None else 1 if spec.device == "cuda" else 0
    return f"engine.loader_threads={2 * now or 1}" if 2 * now <= MOST_LOADER_THREADS else None


def _own_cores(case: Case) -> str | None:
    """Where ranks of a CPU share cores because they were told to."""
    spec = case.spec
    return "engine.bind_cores=true" if spec.threads_per_rank is not None and not spec.binds_cores else None


def _default_buckets(case: Case) -> str:
    if case.spec.engine == "ddp":
        return "engine.bucket_mb=25"
    return "deepspeed.zero_optimization.reduce_bucket_size=500000000"


REMEDIES: Mapping[Kind, Remedy] = {
    "communication": Remedy(
        "Communication",
        "more work between two reductions, fewer bytes in them, or a faster link",
        _less_traffic,
    ),
    "comm_and_wait": Remedy(
        "Communication and waiting",
        "more work between two reductions, fewer bytes in them, a faster link, or ranks that are equally fast",
        _less_traffic,
    ),
    "straggler": Remedy("A late rank", "look at that rank's host: other load, clocks, its disk, its memory", _by_rate),
    "imbalance": Remedy("Uneven work", "give every rank as many images as it computes while the others compute theirs"),
    "noise": Remedy("Ranks late in turns", "measure while nothing else runs; fewer processes than cores", _own_cores),
    "input": Remedy(
        "Waiting for images",
        "more threads that read ahead, a faster disk, images in memory, less to decode",
        _reading_ahead,
    ),
    "launch": Remedy(
        "The device waits for the host",
        "more work per kernel: compiled blocks, a larger micro-batch",
        _more_per_launch,
    ),
    "micro_batch": Remedy(
        "A small micro-batch",
        "more images per rank and micro-step use the device better",
        _larger_micro_batch,
    ),
    "contention": Remedy(
        "Computing slower than the baseline's",
        "ranks share memory bandwidth, caches or power, or communication runs beside it: fewer ranks per host",
        _own_cores,
    ),
    "oversubscribed": Remedy("More ranks than cores", "leave this world size out, or use a machine with more cores"),
    "throttled": Remedy(
        "Clocks held down",
        "look at cooling and at the power limit (nvidia-smi -q -d PERFORMANCE,POWER)",
    ),
    "memory_clock": Remedy(
        "Memory below its clock",
        "look who set it, and at power and heat (nvidia-smi -q -d CLOCK,PERFORMANCE)",
    ),
    "optimizer": Remedy(
        "The optimizer",
        "share the update out over the ranks (ZeRO 1 and up), or fuse it",
        _cheaper_update,
    ),
    "no_overlap": Remedy(
        "No overlap",
        "an engine that sends gradients while the backward pass goes on",
        _overlapping_engine,
    ),
    "accumulation": Remedy(
        "Accumulation under ZeRO 2, 3 or FSDP",
        "stage 1 and DDP communicate once a step, and hold more on each rank",
        _once_a_step,
    ),
    "small_buckets": Remedy("Small buckets", "fewer and larger collectives", _default_buckets),
    "clipping": Remedy("The norm for clipping", "training without clipping needs no norm", "optimizer.clip=0"),
}


def remedy(case: Case, found: Found) -> tuple[str, str | None]:
    """Hint and override for a cause of this run."""
    known = REMEDIES[found.kind]
    override = known.override(case) if callable(known.override) else known.override
    if found.kind == "straggler" and found.detail == "data":
        return "look at that rank's storage, and at what it decodes", None
    if found.kind == "straggler" and found.detail not in ("forward", "backward"):
        return known.hint, None
    if found.kind == "communication" and found.detail == "latency":
        return "fewer and larger collectives: larger buckets, more work between two reductions", override
    return known.hint, override
