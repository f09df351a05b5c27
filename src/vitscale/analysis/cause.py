"""What the verdict and the waterfall say, as data in `analysis.json`."""

from __future__ import annotations

from typing import Literal

from vitscale.analysis.interval import Frozen, Interval

Kind = Literal[
    "communication",
    "comm_and_wait",
    "straggler",
    "imbalance",
    "noise",
    "input",
    "launch",
    "micro_batch",
    "contention",
    "oversubscribed",
    "throttled",
    "memory_clock",
    "optimizer",
    "no_overlap",
    "accumulation",
    "small_buckets",
    "clipping",
]


class Cause(Frozen):
    """One thing that a step spends time on and need not."""

    kind: Kind
    """What it is; each is defined in `docs/concepts/verdict.md`."""
    detail: str | None = None
    """`link` or `latency` of communication; the part of the step in which a straggler is late; else null."""
    rank: int | None = None
    """The rank that is late."""
    node: int | None = None
    """Its host."""
    within: Kind | None = None
    """The cause whose seconds these are a part of: a setting that makes it larger."""
    seconds: Interval
    """What it costs of a step."""
    share: float
    """`seconds` over the step."""
    gain: Interval
    """Throughput without it over throughput with it."""
    evidence: str
    """The figures it rests on, one sentence."""
    hint: str
    """What to do about it."""
    override: str | None = None
    """Study keys to paste behind the same command, where they replace what it says of the same keys; null where no key
    changes it, or none is sure to be possible."""
    runs: tuple[str, ...]
    """run_ids it rests on: the run, and the baseline where it was compared with that."""


class Verdict(Frozen):
    """Why a run is not faster: its causes, the dearest first."""

    run_id: str
    text: str
    """The dearest cause in a sentence, or that nothing was found, or why nothing can be told."""
    causes: tuple[Cause, ...] = ()


class Waterfall(Frozen):
    """From the ideal step to the measured one, each part by what it takes beyond its ideal.

    The ideal step is the baseline's times the work per rank over the baseline's: the same throughput per rank. The
    parts and `ideal_step_s` sum to the measured step exactly; divided by it, to what is lost of ideal throughput.
    A part that takes less than its ideal is negative. Null is not measured; its time is in another part.
    """

    ideal_step_s: float
    ideal_images_per_s: float
    """The baseline's throughput per rank times the ranks."""
    step_s: float
    """Median, as in `step_s` of the run."""
    data_s: float | None = None
    """Waiting for images."""
    compute_s: float | None = None
    """Forward and backward."""
    optimizer_s: float | None = None
    """The update."""
    comm_exposed_s: float | None = None
    """Blocked in transfers."""
    wait_s: float | None = None
    """Waiting for slower ranks."""
    comm_and_wait_s: float | None = None
    """Both in one figure, of imported sources."""
    launch_gap_s: float | None = None
    """The device idle while the host works."""
    other_s: float | None = None
    """What no part accounts for."""
