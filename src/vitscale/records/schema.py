"""The contract on disk: what a launch folder holds, field by field. The reference page is generated from here.

runs/<run_id>/launch<k>/
  run.json              the RunSpec received; of an imported launch an ImportedSpec, which has `"source": "imported"`
  steps.rank000.jsonl   `StepRecord`, one line per optimizer step of this rank; on several nodes steps.node000.jsonl
                        has the lines of all ranks of a node
  devices.node000.jsonl `Sample` of `samples.py`, what a node's sensors said, about once a second
  collectives.jsonl     `CollectiveRecord` of `collectives.py`, what the steady window's collectives carried
  roofline.jsonl        `LayerRecord` of `layers.py`, forward passes by class of layer, with `measure.profile`
  aggregate.json        `Aggregate`, imported launches only: figures of the whole launch
  manifest.json         `Manifest`, written last; without it the launch is not finished
runs/<run_id>/split.json    `Split`, where the run's first launch chose one

Longer than 300 lines: what a launch leaves stands in one place, field by field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Status = Literal["ok", "oom", "timeout", "failed", "killed", "skipped"]
Source = Literal["measured", "imported", "simulated"]

WINDOWS = ("warmup", "steady", "skipped")

# A run with one of these has its outcome: the same command does not try it again.
FINAL: tuple[Status, ...] = ("ok", "oom", "skipped")


class StepRecord(NamedTuple):
    """One optimizer step as one rank saw it. Times are seconds of this rank's clock; `null` is not measured."""

    step: int
    """Number of the step in this launch, from 0, warm-up included."""
    window: str
    """`warmup`, `steady`, or `skipped` where fp16's loss scaling left the update out. Only `steady` is counted."""
    rank: int
    """Rank."""
    loss: float | None
    """Mean loss of this rank's images, before the update."""
    images: int | None
    """Images this rank took. Null only where an imported log does not tell."""
    step_s: float
    """From the end of the step before to the end of this one; the first from the start of the loop."""
    data_s: float | None
    """Images: read, copied to the device, resized and normalised there."""
    forward_s: float | None
    """Forward passes, all micro-steps, without the time in collectives."""
    backward_s: float | None
    """Backward passes, all micro-steps, without the time in collectives."""
    optimizer_s: float | None
    """Clipping and update, without the time in collectives."""
    comm_exposed_s: float | None
    """This rank stood still in a collective at which all ranks had arrived: communication that nothing hides."""
    wait_s: float | None
    """This rank stood still in a collective at which some rank had not arrived: waiting for slower ranks."""
    comm_s: float | None = None
    """Some collective was on the wire: from the arrival of its last rank to its end on this one."""
    comm_overlapped_s: float | None = None
    """Of `comm_s`, what was hidden behind this rank's work; the rest is `comm_exposed_s`."""
    launch_gap_s: float | None = None
    """The device had nothing to do while the host prepared its work; 0 where the host is the device."""
    late_s: float | None = None
    """The others stood still for this rank, which arrived last; it is their waiting, and no part of this one's step."""
    comm_and_wait_s: float | None = None
    """Communication and waiting for slower ranks in one figure, by a host timer; `backward_s` is without it. Of
    imported logs only: the field is left out where it is null."""


class Frozen(BaseModel):
    """Frozen record that keeps fields it does not know, so that a newer writer's files can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, protected_namespaces=())


class Memory(Frozen):
    """Bytes of a rank's tensors in a backward pass, by what they are for: the most at any collective and at the end."""

    parameters_bytes: int
    """Weights, or the rank's shards of them."""
    gradients_bytes: int
    """Gradients, or the rank's shards of them."""
    optimizer_bytes: int
    """Moments and master weights."""
    activations_bytes: int
    """What autograd keeps between the forward and the backward pass of one micro-step."""
    buckets_bytes: int
    """The most at once of what gradients travel in and of weights gathered beside shards."""


class Silence(Frozen):
    """The same steps with and without their collectives, in blocks that alternate after the steady window.

    What `silent_step_s` lacks is communication that nothing hides and waiting, by another way than the step lines'.
    """

    blocks: int
    """Blocks of each way."""
    step_s: float
    """Time of a step with collectives: median over the blocks."""
    silent_step_s: float
    """Time of a step without."""


class Overlap(Frozen):
    """Collectives beside computation, as torch's profiler saw a few steps after the steady window.

    It cannot tell communication from waiting for slower ranks, and it slows steps: look at shares of this `step_s`.
    """

    steps: int
    """Steps looked at; the first one that was profiled is left out."""
    step_s: float
    """Time of a step under the profiler, as all times here the mean of these steps."""
    comm_and_wait_s: float
    """Some collective of this rank was under way, on the wire or waiting for slower ranks."""
    overlapped_s: float
    """Of that, what this rank computed beside: an operator of torch, on CUDA a kernel. The rest, nothing hides."""


class Overhead(Frozen):
    """What measuring cost a rank. Each thing is timed on its own, after the steady window of the first launch of its
    process: medians over blocks of calls."""

    marks: float
    """How often a step read the clock between its parts."""
    mark_s: float
    """What once takes."""
    heartbeat_s: float
    """What the heartbeat of a step takes."""
    synchronous: float
    """Timed collectives of a step for which the rank stands still."""
    synchronous_s: float | None
    """What one takes longer for being timed; null for a rank that is alone."""
    asynchronous: float
    """Those after which the rank goes on."""
    asynchronous_s: float | None
    """What one takes longer for being timed, where it is waited for at once; null for a rank that is alone."""
    sampling_share: float
    """Share of the time that this rank's thread took for samples of the devices; 0 where another rank takes them."""

    @property
    def step_s(self) -> float:
        """Time of a step that went into its records, samples aside."""
        collectives = ((self.synchronous, self.synchronous_s), (self.asynchronous, self.asynchronous_s))
        timing_s = sum(count * max(0.0, each_s or 0.0) for count, each_s in collectives)
        return self.marks * self.mark_s + self.heartbeat_s + timing_s


class Device(Frozen):
    """What one rank ran on."""

    rank: int
    """Rank."""
    node: int
    """Number of the host, from 0."""
    local_rank: int
    """Rank on this host."""
    kind: Literal["cpu", "cuda"]
    """Kind of device."""
    name: str
    """Device name as the driver or the kernel gives it."""
    memory_bytes: int | None = None
    """Memory of the device (CPU: of the host, or of the control group)."""
    cores: tuple[int, ...] = ()
    """CPU cores this rank was bound to; empty is not bound."""
    threads: int | None = None
    """CPU threads of torch's operators."""
    gemm_peak_flop_per_s: float | None = None
    """The fastest matrix product of this very device in the run's precision, while all ranks multiply; null where none
    was timed: by `train`, and in imported and simulated launches."""
    memory_peak_bytes: int | None = None
    """Highest memory in use (CUDA: allocated by torch; CPU: resident set)."""
    memory: Memory | None = None
    """By class, counted in a step after the steady window; null where it was not."""
    silence: Silence | None = None
    """Steps without collectives; null where they were not taken, and `notes` say why."""
    overlap: Overlap | None = None
    """Steps under the profiler; null where they were not taken or it did not see all collectives; `notes` say why."""
    debug: dict[str, str] = {}
    """Debugging that was on and costs time: environment variable, or torch's function, -> value. A few names only."""
    overhead: Overhead | None = None
    """What measuring cost this rank; null where it was not timed, and `notes` say why."""


class Layout(Frozen):
    """Where the ranks were. Null only where an imported source does not tell."""

    world_size: int
    """Ranks in all."""
    nodes: int | None
    """Hosts."""
    ranks_per_node: int | None
    """Ranks on each host."""
    backend: str | None
    """`nccl`, `gloo`, or `none` where nothing was started."""


class Times(Frozen):
    """Wall time of a launch, seconds."""

    process_start_s: float | None = None
    """From the start of the processes until all ranks have met; null for a run that was not first in its round, as are
    `import_s` and `timing_s`."""
    import_s: float | None = None
    """Of `process_start_s`: until the slowest rank has loaded its libraries. The rest is the process group."""
    timing_s: float | None = None
    """Links and matrix products, timed before the round's first launch."""
    setup_s: float | None = None
    """Model, optimizer and engine."""
    data_s: float | None = None
    """From there to the first step: images are opened and the first batches read; a checkpoint is loaded."""
    first_step_s: float | None = None
    """The first optimizer step, in which kernels are chosen and buffers made."""
    warmup_s: float | None = None
    """All warm-up steps."""
    steady_s: float | None = None
    """The steady window; where the run trains, all steps after the warm-up."""
    evaluation_s: float | None = None
    """All evaluations."""
    checkpoint_s: float | None = None
    """All checkpoints: how long training stood still for them."""


class Parity(Frozen):
    """How far a few fp32 steps of the engine are from the same steps of plain torch, before anything was timed."""

    ok: bool
    """Whether losses agree within 2e-6 and final weights within 1e-4 of each tensor's norm."""
    first_step: int | None
    """The first step that differs, from 0; null where none does."""
    worst_loss: float | None
    """Largest relative difference of a step's loss; null where a loss was not finite."""
    worst_weight: float | None
    """Largest difference of a tensor of weights, relative to its norm; null where a weight was not finite."""
    tensor: str | None
    """The tensor of `worst_weight`."""


class Split(Frozen):
    """How the images of a micro-step are dealt to the ranks where they do not take the same; also `split.json`."""

    micro_batches: tuple[int, ...]
    """By rank; their sum is `micro_batch * data_parallel`."""
    images_per_s: tuple[float, ...] | None = None
    """What each rank computed of its micro-batch, forward and backward, when the first launch chose; null where the
    study gives the list."""
    micro_steps: tuple[int, ...] | None = None
    """By rank, the micro-steps of equal size in which it takes these images, where the memory of one does not hold
    them at once; null where each takes them in one."""
    full: tuple[int, ...] | None = None
    """Ranks that were dealt what their memory holds, by the plan's estimate, and less than their rate asks for; null
    for none."""
    full_reason: str | None = None
    """Why these do not take their share in more micro-steps; null for none, and where equal parts left it over."""
    devices: tuple[str, ...] | None = None
    """What each rank was timed on: GPUs by name, CPUs by name and the host's cores; null where the study gives the
    list, and in records of earlier versions."""

    @property
    def at_once(self) -> tuple[int, ...]:
        """Images of each rank's forward pass."""
        counts = self.micro_steps or (1,) * len(self.micro_batches)
        return tuple(own // count for own, count in zip(self.micro_batches, counts, strict=True))


class Manifest(Frozen):
    """How a launch ended, and what it ran on."""

    schema_version: int = SCHEMA_VERSION
    """Version of this format."""
    run_id: str
    """The run."""
    launch: int
    """Number of the launch of this run, from 0."""
    round: str | None
    """Folder of the round that served it; null where it was imported."""
    status: Status
    """`ok`, `oom`, `timeout`, `failed`, `killed` or `skipped`. `ok`, `oom` and `skipped` are final."""
    reason: str | None = None
    """Why, where the status is not `ok`."""
    source: Source
    """`measured`, `imported` or `simulated`."""
    started: str | None
    """UTC, ISO 8601; null where it was imported (a log's clock does not tell its zone)."""
    versions: dict[str, str] = {}
    """Package versions, and those of CUDA, NCCL and the driver where there are any."""
    devices: tuple[Device, ...] = ()
    """One per rank."""
    layout: Layout
    times: Times = Times()
    steps: int = 0
    """Optimizer steps recorded per rank, warm-up included."""
    parameters: int | None = None
    """Parameters of the model."""
    parity: Parity | None = None
    """Parity of the engine with plain torch; null where the study compares no ways to distribute training, or another
    launch has it."""
    split: Split | None = None
    """Uneven micro-batches; null where every rank takes `micro_batch`."""
    files: dict[str, str] = {}
    """sha256 of every other file of the launch."""
    notes: dict[str, Any] = {}
    """Why a field is null, by the field's name; of an imported launch also where it is from and what was read."""


class Aggregate(Frozen):
    """`aggregate.json`: what an imported source tells of a whole launch. Times are means or medians, in seconds."""

    schema_version: int = SCHEMA_VERSION
    """Version of this format."""
    images_per_epoch: Annotated[int, Field(gt=0)] | None = None
    """Images in one epoch, over all ranks."""
    epoch_s: Positive | None = None
    """Time of an epoch."""
    step_s: Positive | None = None
    """Time of an optimizer step."""
    images_per_s: Positive | None = None
    """Throughput, only where the source gives it itself."""
    data_s: NotNegative | None = None
    """Of a step: waiting for images."""
    forward_s: NotNegative | None = None
    """Of a step: forward passes."""
    backward_compute_s: NotNegative | None = None
    """Of a step: backward passes, without the communication that was timed apart."""
    comm_and_wait_s: NotNegative | None = None
    """Of a step: communication and waiting for slower ranks, which a host timer cannot tell apart."""
    optimizer_s: NotNegative | None = None
    """Of a step: the update."""
    device_memory_used_bytes: NotNegative | None = None
    """Highest memory in use on a device, whoever used it."""
