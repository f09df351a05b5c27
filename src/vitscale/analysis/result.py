"""What a study found, as data: `analysis.json` is `Analysis`, stable and documented; the report draws `StudyResult`.

Longer than 300 lines: every field of one result stands here with its documentation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from vitscale.analysis.cause import Verdict, Waterfall
from vitscale.analysis.dealt import Dealt
from vitscale.analysis.devices import DeviceUse, Reading
from vitscale.analysis.interval import Frozen
from vitscale.analysis.interval import Interval as Interval
from vitscale.analysis.predicted import Predicted
from vitscale.analysis.start_up import StartUp
from vitscale.cost.fit import Largest
from vitscale.records.collectives import CollectiveRecord
from vitscale.records.evaluations import Scored
from vitscale.records.layers import LayerRecord
from vitscale.records.links import LinkBenchmark
from vitscale.records.schema import Manifest, Parity, Source, Status

SCHEMA_VERSION: Literal[1] = 1

Severity = Literal["note", "warning", "error"]


class Shares(Frozen):
    """The split of a step: each part's share of the step time, mean over ranks and launches.

    Null is not measured. The parts that are measured and `other` sum to 1.
    """

    data: float | None = None
    """Images: read, copied to the device, resized and normalised there."""
    forward: float | None = None
    """Forward passes."""
    backward: float | None = None
    """Backward passes (with the engine's communication inside them where it was not timed apart)."""
    optimizer: float | None = None
    """Update (with the engine's communication inside it where it was not timed apart)."""
    comm_exposed: float | None = None
    """Communication that no computation hides."""
    wait: float | None = None
    """Waiting for slower ranks."""
    comm_and_wait: float | None = None
    """Communication and waiting in one figure, of imported sources whose host timer cannot tell them apart."""
    launch_gap: float | None = None
    """The device waiting for the host to launch work."""
    other: float | None = None
    """The rest: what no part accounts for. Negative where the parts exceed the step."""


class Costs(Frozen):
    """What a run takes: energy of its devices (GPUs, or on CPUs the packages), and money.

    Null is not measured, or not told: energy needs a sensor, money `hardware.price_per_hour`, a target
    `train.target_accuracy`. Money is in the currency of the price.
    """

    power_w: Interval | None = None
    """Mean power of all devices in the steady window."""
    images_per_joule: Interval | None = None
    """`images_per_s / power_w`."""
    energy_per_epoch_j: Interval | None = None
    """Images of an epoch over `images_per_joule`."""
    cost_per_epoch: Interval | None = None
    """`epoch_s` times devices times price."""
    energy_to_accuracy_j: Interval | None = None
    """`time_to_accuracy_s * power_w`."""
    cost_to_accuracy: Interval | None = None
    """`time_to_accuracy_s` times devices times price."""


class Bytes(Frozen):
    """One class of a rank's memory. Null is not measured, or not derived."""

    measured_bytes: int | None = None
    """Counted on the live engine; the highest over ranks and launches."""
    derived_bytes: int | None = None
    """By the closed form in `plan.json`."""


class MemoryResult(Frozen):
    """Tensors of a rank in a backward pass, by what they are for: the most at any collective and at the end."""

    parameters: Bytes = Bytes()
    """Weights, or the rank's shards of them."""
    gradients: Bytes = Bytes()
    """Gradients, or the rank's shards of them."""
    optimizer: Bytes = Bytes()
    """Moments and master weights."""
    activations: Bytes = Bytes()
    """What autograd keeps of one micro-step."""
    buckets: Bytes = Bytes()
    """What gradients travel in, and weights gathered beside shards: the most at once."""

    @property
    def measured(self) -> bool:
        """Whether every class was counted."""
        return self.total_bytes is not None

    @property
    def total_bytes(self) -> int | None:
        """Of all classes, None where one was not counted."""
        sizes = [getattr(self, name).measured_bytes for name in type(self).model_fields]
        return None if None in sizes else sum(sizes)


class RunResult(Frozen):
    """One run, over its launches."""

    run_id: str
    series: str
    protocol: str | None
    model: str | None
    dataset: str | None
    optimizer: str | None
    world_size: int
    nodes: int | None
    engine: str | None
    zero_stage: int | None
    micro_batch: int | None
    grad_accum: int | None
    global_batch: int | None
    precision: str | None
    device: str | None
    axes: dict[str, Any]
    """The keys in which the runs of this study differ, world size aside, with this run's values."""
    source: Source
    launches: int
    """Launches with status `ok`, the ones the figures rest on."""
    step_s: Interval | None
    """Time of an optimizer step: per launch the median over the steady window of the slowest rank's step."""
    images_per_s: Interval | None
    """`global_batch / step_s`; imported: `images_per_epoch / epoch_s` where given."""
    speedup: Interval | None
    """`images_per_s / images_per_s(baseline)`; null without a baseline."""
    efficiency: Interval | None
    """`speedup * N_baseline / N`."""
    epoch_s: Interval | None = None
    """`images_per_epoch / images_per_s`: training time of an epoch; null where a source does not tell its images."""
    shares: Shares
    overlapped_share: float | None = None
    """Communication that something hides over all communication; null where it was not timed."""
    silent_share: Interval | None = None
    """Share of the step that goes where collectives are taken out: `comm_exposed` and `wait` by a second method."""
    profiled_share: Interval | None = None
    """Share of the step in which the profiler saw a collective under way and nothing computed: by a third method."""
    idle_link_share: float | None = None
    """What the same collectives would take on the idle link, one after another, over the step: where no steps without
    them were taken. No waiting is in it, and nothing hides it."""
    overhead_share: float | None = None
    """Share of the step that measuring itself took: of each launch the dearest rank's, median over the launches. Null
    where it was not timed."""
    start_up: StartUp | None = None
    """Of a launch, before its first step; null where no launch tells all of it."""
    dealt: Dealt | None = None
    """Each rank's share, rate and waiting: of a run with unequal shares, of its even twin and of unlike devices."""
    waterfall: Waterfall | None = None
    """From the ideal step to the measured one; null without a baseline, and of the baseline itself."""
    mfu: Interval | None = None
    """Model FLOP utilisation: exact training FLOP of the images per second over the devices' peak."""
    mfu_reason: str | None = None
    """Why `mfu` is null, or where its peak is from."""
    memory_peak_bytes: int | None
    """Highest over ranks and launches."""
    memory: MemoryResult = MemoryResult()
    costs: Costs = Costs()
    missing: dict[str, str] = Field(default_factory=dict)
    """Field of a launch's records -> why it is null; of measured runs."""
    test_accuracy: float | None = None
    """Fraction of test images classified rightly, of the last evaluation; null where nothing was evaluated."""
    time_to_accuracy_s: Interval | None = None
    """Training time to the first evaluation at or above `train.target_accuracy`; null where any launch did not."""
    epochs_to_accuracy: float | None = None
    """Passes over the training images until then."""
    images_to_accuracy: float | None = None
    """Training images until then."""
    algorithmic_efficiency: float | None = None
    """Images to accuracy of the baseline over those of this run; `efficiency` times it is that of the whole."""
    parity: Parity | None = None
    """Parity with plain torch, where the study compares ways to distribute training; one that differs is not valid."""
    valid: bool
    """Whether the figures may be read as a measurement of scaling."""
    invalid_reasons: tuple[str, ...] = ()


class Finding(Frozen):
    """A conclusion, with what it rests on."""

    kind: str
    severity: Severity
    evidence: str
    """One sentence with the figures, for a reader who sees nothing else."""
    hint: str | None = None
    """What to do about it."""
    runs: tuple[str, ...] = ()
    """The run_ids it is about."""


class Analysis(Frozen):
    """`analysis.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    study: str
    """The study's name."""
    question: str
    """The study's question."""
    answer: str
    """The verdict in one sentence."""
    runs: tuple[RunResult, ...]
    baselines: dict[str, str]
    """series -> run_id of its baseline."""
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...] = ()
    """Of every measured run with figures, in the order of `runs`: what its step is spent on and need not be."""


class LaunchResult(Frozen):
    """One launch, finished or not, as the report's table of launches shows it."""

    run_id: str
    launch: int
    status: Status | Literal["unfinished"]
    reason: str | None
    started: str | None
    """UTC, ISO 8601."""
    step_s: float | None
    """Median steady step of the slowest rank."""
    steps: int | None
    """Steady steps; null where an imported source gives figures of a whole launch only."""
    outlier: bool = False
    """Modified z-score above 3.5 among the run's launches: flagged and kept."""


@dataclass(frozen=True)
class LossCurve:
    """Training loss of a run's first `ok` launch, mean over ranks; warm-up included."""

    run_id: str
    step: list[int]
    images: list[int]
    """Images seen at the end of the step."""
    loss: list[float | None]


@dataclass(frozen=True)
class AccuracyCurve:
    """Evaluations of a run's first `ok` launch that has any."""

    run_id: str
    evaluations: tuple[Scored, ...]


@dataclass(frozen=True)
class SkippedRun:
    """A combination of the plan that was not run."""

    label: str
    reason: str


@dataclass(frozen=True)
class RankStep:
    """One rank of a run, mean over its steps and launches."""

    rank: int
    node: int | None
    seconds: dict[str, float]
    """Part of the step, or `late`: how long the others waited for it."""


@dataclass(frozen=True)
class LaunchUse:
    """One launch that counts."""

    run_id: str
    launch: int
    use: DeviceUse


@dataclass(frozen=True)
class DeviceSeries:
    """One GPU or host against time, of a run's first launch that counts."""

    run_id: str
    launch: int
    device: str
    """`GPU of rank 0`, `host 0`."""
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Knee:
    """Where more devices stop paying in a series of at least two valid world sizes."""

    series: str
    run_id: str
    world_size: int
    reached: bool
    """False where it is the largest world size measured: it may lie beyond."""


@dataclass(frozen=True)
class Devices:
    """What the report draws of devices, beside `RunResult.costs`."""

    launches: tuple[LaunchUse, ...] = ()
    series: tuple[DeviceSeries, ...] = ()
    knees: tuple[Knee, ...] = ()


@dataclass(frozen=True)
class StudyResult:
    """Everything the report draws."""

    analysis: Analysis
    launches: tuple[LaunchResult, ...]
    losses: tuple[LossCurve, ...]
    accuracies: tuple[AccuracyCurve, ...]
    skipped: tuple[SkippedRun, ...]
    manifests: tuple[Manifest, ...]
    """Of every finished launch: versions, devices, layouts."""
    resolved: dict[str, Any]
    """`resolved.json`: the study after overrides."""
    labels: dict[str, str] = field(default_factory=dict)
    """run_id and series -> short readable label, unique within the study."""
    sent_bytes: dict[str, int] = field(default_factory=dict)
    """run_id -> bytes a rank sends per optimizer step, by the closed form in `plan.json`."""
    derived_step_s: dict[str, float] = field(default_factory=dict)
    """run_id -> time of a step by the closed form in `plan.json`, where the device is known."""
    collectives: dict[str, tuple[CollectiveRecord, ...]] = field(default_factory=dict)
    """run_id -> what its collectives carried, where it was recorded."""
    layers: dict[str, tuple[LayerRecord, ...]] = field(default_factory=dict)
    """run_id -> its forward passes by class of layer, where they were timed."""
    ranks: dict[str, tuple[RankStep, ...]] = field(default_factory=dict)
    """run_id -> what each of its ranks spent per step."""
    links: dict[str, LinkBenchmark] = field(default_factory=dict)
    """run_id -> its links when nothing else used them, where they were timed."""
    largest: dict[str, Largest] = field(default_factory=dict)
    """run_id -> the largest models that fit, where the study varies the ZeRO stage."""
    predictions: tuple[Predicted, ...] = ()
    """What `vitscale predict` wrote of its series."""
    devices: Devices = Devices()
    """Samples of the devices against time, and the knees."""
