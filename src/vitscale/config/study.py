"""The study file as frozen data: every key with its unit and what "off" means.

The docstring under a field is its documentation: the reference page and the JSON Schema are generated from it. That is
why this file passes 300 lines.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from vitscale.config.frozen import Section, Text, printable
from vitscale.config.knobs import EngineSection
from vitscale.config.training import LrPolicy, Schedule, TrainSection

SCHEMA_VERSION: Literal[1] = 1

Protocol = Literal["strong", "strong_fixed_micro", "weak"]
EngineName = Literal["deepspeed", "ddp", "fsdp", "accelerate", "accelerate_deepspeed", "single"]
Precision = Literal["fp32", "bf16", "fp16", "bf16_autocast"]
Backend = Literal["nccl", "gloo", "mpi"]
Device = Literal["auto", "cpu", "cuda"]
OptimizerName = Literal["adamw", "sgd", "lamb", "lion", "muon", "adafactor"]

PROTOCOLS: tuple[str, ...] = get_args(Protocol)
_REMOVED_OPTIMIZERS = ("onebitadam", "zerooneadam", "onebitlamb")


def _still_there(name: Any) -> Any:
    if isinstance(name, str) and name.lower() in _REMOVED_OPTIMIZERS:
        raise ValueError("a 1-bit optimizer, which DeepSpeed removed (its pull request 8490; 0.19.8 has none)")
    return name


def _number(value: Any) -> Any:
    """`true` is 1 to Python, which a `Literal` of numbers does not notice."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not a boolean")
    return value


ZeroStage = Annotated[Literal[0, 1, 2, 3], BeforeValidator(_number)]


def _listed(value: Any) -> tuple[Any, ...]:
    """One value is a list of one: `world_size = 2` and `world_size = [2]` mean the same."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values:
        raise ValueError("an empty list varies nothing; leave the key out")
    if any(_same(one, other) for index, one in enumerate(values) for other in values[:index]):
        raise ValueError(f"the same value twice in {list(values)}")
    return values


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


T = TypeVar("T")
Varying = Annotated[tuple[T, ...], BeforeValidator(_listed)]


Rate = Annotated[str, Field(pattern=r"^(0\.)?[1-9]\d{0,5}(\.\d{1,3})?[kmg]bit$")]
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}


def rate_bytes_per_s(rate: str) -> float:
    """A `Rate` in bytes: `100mbit` is 12.5e6."""
    number, unit = rate.removesuffix("bit")[:-1], rate.removesuffix("bit")[-1]
    return float(number) * _BITS[unit] / 8


def _written(limit: Any) -> Any:
    """A time limit as text: `30` is a number to TOML, and `01:30:00` a time of day."""
    return str(limit) if isinstance(limit, int | datetime.time) and not isinstance(limit, bool) else limit


_TIME_LIMIT = r"^(\d{1,3}-)?\d{1,5}(:\d{1,2}){0,2}$"
TimeLimit = Annotated[str, BeforeValidator(_written), Field(pattern=_TIME_LIMIT)]
SlurmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,-]{0,119}$")]


class ModelSection(Section):
    """`[model]`: a plain timm Vision Transformer. The head follows the data set."""

    name: Text
    """timm's model name, for example `vit_base_patch16_224`."""
    img_size: PositiveInt | None = None
    """Side of the square input in pixels; off: the model's own. Images are resized to it on the device."""
    patch_size: PositiveInt | None = None
    """Side of a square patch in pixels; must divide `img_size`. Off: the model's own."""
    depth: Annotated[int, Field(gt=0, le=1000)] | None = None
    """Blocks. Off: the model's own."""
    embed_dim: Annotated[int, Field(gt=0, le=65536)] | None = None
    """Width of the tokens; `num_heads` must divide it. Off: the model's own."""
    num_heads: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Attention heads. Off: the model's own."""


class DataSection(Section):
    """`[data]`: what is learnt from. Prepared once on this machine before anything starts; workers only read."""

    name: Text
    """`digits`, `synthetic`, `cifar10`, `cifar100`, `imagefolder` or `imagenet100`."""
    path: str | None = None
    """Archive or folder to prepare the data set from; off: what `vitscale data` has prepared already."""
    flip: bool | None = None
    """Mirror training images left to right at random. Off: true for photographs (CIFAR, image folders), else false."""
    images: PositiveInt | None = None
    """Training images in all (a stratified, nested subset); off: the whole training set. Not read by `weak`."""
    images_per_device: PositiveInt | None = None
    """Training images per device, read by `weak`, whose data grows with the world size. Off: an equal share of the
    training set at the study's largest world size."""


class Axes(Section):
    """`[axes]`: what varies. A list varies, the grid is the product. Any other key may vary by its dotted path."""

    world_size: Varying[PositiveInt] = (1,)
    """Ranks (processes, one per device) in all."""
    nodes: Varying[PositiveInt] | None = None
    """Hosts the ranks are spread over evenly. Off: as few as the launcher needs."""
    ranks_per_node: Varying[PositiveInt] | None = None
    """Ranks on each host. Off: the world size over `nodes`."""
    sequence_parallel: Varying[PositiveInt] = (1,)
    """Neighbouring ranks that share the tokens of each image (Ulysses), for images too large for one device; must
    divide `world_size`. `global_batch = micro_batch * grad_accum * world_size / sequence_parallel`."""
    tensor_parallel: Varying[PositiveInt] = (1,)
    """Neighbouring ranks that share the heads and the MLP of each block (Megatron-LM), for models too large for one
    device; must divide `world_size`, the heads and the MLP's width, and is not used with `sequence_parallel`.
    `global_batch = micro_batch * grad_accum * world_size / tensor_parallel`."""
    engine: Varying[EngineName] = ("deepspeed",)
    """Who owns parallelism: `deepspeed`; torch's `ddp` (whole weights on every rank) or `fsdp` (FSDP2, sharded);
    `accelerate`, Hugging Face's, over DDP, `accelerate_deepspeed` over DeepSpeed; `single`, plain torch on one rank."""
    zero_stage: Varying[ZeroStage] = (0,)
    """DeepSpeed's ZeRO stage: 0 replicates everything, 1 shards optimizer state, 2 gradients too, 3 parameters too.
    Engines without stages do not read it."""
    precision: Varying[Precision] = ("fp32",)
    """`fp32`; `bf16` or `fp16`: weights in 16 bit with an fp32 master copy (`fp16` scales the loss and needs CUDA);
    `bf16_autocast`: fp32 weights, gradients and communication, matrix products in bf16 (`torch.autocast`)."""
    global_batch: Varying[PositiveInt] | None = None
    """Images per optimizer step over all ranks. Read by `strong`, which needs it."""
    micro_batch: Varying[PositiveInt] | None = None
    """Images per rank and forward pass. Read by `weak` and `strong_fixed_micro`, which need it, and by `strong` where
    it is the only protocol and `grad_accum` is not given."""
    grad_accum: Varying[PositiveInt] | None = None
    """Micro-steps per optimizer step. Off: 1, or solved by `strong` from `micro_batch`."""
    device: Varying[Device] = ("auto",)
    """`cuda`, `cpu`, or `auto`: CUDA where there is a GPU, else CPU; the choice is printed and recorded."""
    backend: Varying[Literal["auto"] | Backend] = ("auto",)
    """What ranks talk through: `nccl` between GPUs, `gloo` between CPUs, `mpi` where torch was built with it, or
    `auto`, the device's own."""
    swept: dict[str, Varying[Any]] = Field(default_factory=dict)
    """Further keys that vary, by dotted path: write them beside the others, `"model.name" = ["a", "b"]`."""


class FsdpSection(Section):
    """`[fsdp]`: read by the engine `fsdp`."""

    reshard_after_forward: bool = True
    """Blocks give gathered weights back after forward and gather them again for backward. False keeps them: less
    communication, more memory."""


class OptimizerSection(Section):
    """`[optimizer]`: the update rule, torch's or timm's."""

    name: Annotated[OptimizerName, BeforeValidator(_still_there)] = "adamw"
    """`adamw`, `sgd`, `adafactor` (torch), `lamb`, `lion` or `muon` (timm). `lamb`, `muon` and `adafactor` look at
    whole weights: not for engines and ZeRO stages that shard the optimizer. `muon` updates the matrices of the blocks,
    AdamW all else at the same rate."""
    lr: PositiveFloat = 1e-3
    """Learning rate, before `lr_policy`."""
    lr_of: dict[OptimizerName, PositiveFloat] | None = None
    """Learning rates by optimizer, each in place of `lr`, where `name` varies: `{ adamw = 3e-3, sgd = 0.1 }`."""
    lr_policy: LrPolicy | None = None
    """What becomes of `lr` when the global batch is not `lr_base_batch`: `linear` or `sqrt` scale it, `none` says that
    it stays. Must be given where runs that train differ in their global batch. Off: stays."""
    lr_base_batch: PositiveInt | None = None
    """Global batch at which `lr` is meant; `linear` and `sqrt` need it."""
    schedule: Schedule = "constant"
    """`constant`, `cosine` to `train.final_lr_ratio`, or `step` down every `train.decay_epochs`; read where something
    trains."""
    weight_decay: NonNegativeFloat = 0.05
    """L2 for `sgd`, part of the direction for `lamb`, decoupled for the others; 0 is off."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of `sgd`; 0 is off. Not read by the others."""
    clip: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 is off. Always passed on: DeepSpeed clips at 1.0 where it is told nothing."""

    @model_validator(mode="after")
    def _policy_has_a_base(self) -> OptimizerSection:
        if self.lr_policy in ("linear", "sqrt") and self.lr_base_batch is None:
            raise ValueError(
                f"lr_policy = {self.lr_policy!r} needs lr_base_batch, the global batch at which lr is meant"
            )
        return self


class MeasureSection(Section):
    """`[measure]`: how much is measured. Durations are seconds of wall time."""

    launches: Annotated[int, Field(gt=0, le=1000)] = 3
    """Fresh process starts per run, the unit of replication. Three give a first interval, five are for publishing."""
    warmup_steps: NonNegativeInt = 3
    """Optimizer steps before the steady window; recorded, never counted."""
    steps: PositiveInt | None = None
    """Optimizer steps in the steady window. Off: as many as fit in `seconds`."""
    seconds: PositiveFloat | None = None
    """Length of the steady window; its number of steps is agreed by all ranks after the warm-up, 5 at least and 1,000
    at most. Off: 10 s where `steps` is off too."""
    target_interval: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest half width of the 95 % interval of a run's step time, relative to its median: launches are added until
    every run has it or `budget_s` is spent. Off: `launches` and no more."""
    budget_s: PositiveFloat | None = None
    """Wall time after which no further launch beyond `launches` is started. Off: none."""
    baseline: PositiveInt | None = None
    """World size the others are compared with. Off: the smallest valid one of each series."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the initial weights and of the data order, the same at every world size."""
    sample_s: NonNegativeFloat | None = None
    """Time between samples of the devices (power, utilisation, temperature, clocks, load), seconds; 0 takes none.
    Off: 1 s."""
    profile: bool = False
    """Look closer at a few steps after the steady window: a Chrome trace of each rank, `trace.rank<r>.json.gz`, and
    time, FLOP and bytes of each class of layer, `roofline.jsonl`."""

    @model_validator(mode="after")
    def _one_duration(self) -> MeasureSection:
        if self.steps is not None and self.seconds is not None:
            raise ValueError(f"steps = {self.steps} and seconds = {self.seconds:g} are both given; give one of them")
        if self.steps is None and self.warmup_steps == 0:
            raise ValueError("with warmup_steps = 0 nothing tells how many steps fit in `seconds`; give `steps`")
        if self.target_interval is not None and self.budget_s is None:
            interval = f"target_interval = {self.target_interval:g}"
            raise ValueError(f"{interval} adds launches without end unless budget_s is given too")
        return self


class HardwareSection(Section):
    """`[hardware]`: the machine to assume where none is measured (`--launcher simulate`, `plan`), and its price."""

    name: Text | None = None
    """Device of the catalog, for example `h100`, or `cpu` for that of a calibration. Off: that of `calibration`, or
    this machine."""
    calibration: Text | None = None
    """`calibration.json` of `vitscale predict`, or its results folder: `--launcher simulate` takes what was fitted
    of the same device, model and sizes, optimizer, knobs, engine, stage and precision, and so does `plan`. Off: data
    sheets."""
    price_per_hour: PositiveFloat | None = None
    """Price of one device for one hour, in any currency, for the cost of an epoch. Off: no cost is told."""


class LaunchSection(Section):
    """`[launch]`: limits on starting and running processes."""

    start_timeout_s: PositiveFloat = 300.0
    """Longest wait from process start to the end of the first step (imports, compilation). Then the round is ended."""
    step_timeout_s: PositiveFloat = 120.0
    """Longest wait for one step to end. Stacks of all ranks are saved, then the round is ended."""
    grace_s: Annotated[float, Field(gt=0, le=65535)] = 60.0
    """How long ranks that train get to write a checkpoint when they are asked to stop. With the launcher `slurm` a job
    asks them so long before its time limit."""
    hostfile: Annotated[str, Field(min_length=1), AfterValidator(printable)] | None = None
    """File of the hosts that the launchers `hosts` and `mpi` start ranks on, in DeepSpeed's format: `name slots=4`, one
    a line. `hosts` needs it; off, `mpi` starts them on this machine. Not read by others."""
    partition: SlurmName | None = None
    """Partition, or several with commas, that the launcher `slurm` asks for. Off: SLURM's default. This key and the
    next six are not read by others."""
    account: SlurmName | None = None
    """Account that pays. Off: the user's own."""
    qos: SlurmName | None = None
    """Quality of service. Off: the account's own."""
    constraint: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:&|-]{0,119}$")] | None = None
    """Features that nodes have to have, `a100` or `a100&ib`. Off: any nodes."""
    time_limit: TimeLimit | None = None
    """Time limit of a job, as SLURM writes it: `30` minutes, `1:30:00`, `2-12`. Off: the partition's."""
    exclusive: bool = True
    """Whether a job gets its nodes whole. Others on the same node would disturb what is measured."""
    job_array: bool = False
    """Whether all launches of a world size are handed over at once, as elements of one job array that start one after
    the other. Off, the next launches are handed over when those before them are through, so that world sizes take
    turns."""
    link: Rate | None = None
    """What the launcher `lab` shapes the link of each of its hosts to, in either direction: bits per second as `tc`
    writes them, `100mbit`, `2.5gbit`. Off: as fast as this machine moves packets. Not read by others."""


_PATH_LIKE = re.compile(r"^[/~]|(^|/)\.{1,2}(/|$)")


class Study(Section):
    """A question, and what is varied to answer it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this format."""
    name: Annotated[str, Field(min_length=1, max_length=120), AfterValidator(printable)]
    """Short name; the results folder is `results/<name>` unless `--out` says otherwise."""
    question: Text = ""
    """What the study answers; the report's title."""
    protocol: Varying[Protocol]
    """`strong`: same global batch at every world size. `strong_fixed_micro`: same data and micro-batch, so the global
    batch grows. `weak`: same work per device, so data and global batch grow."""
    model: ModelSection
    data: DataSection
    axes: Axes = Axes()
    engine: EngineSection = EngineSection()
    fsdp: FsdpSection = FsdpSection()
    optimizer: OptimizerSection = OptimizerSection()
    measure: MeasureSection = MeasureSection()
    train: TrainSection = TrainSection()
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """`[deepspeed]`: any DeepSpeed keys, or `file = "ds_config.json"`; what they share with the study must agree."""
    hardware: HardwareSection = HardwareSection()
    launch: LaunchSection = LaunchSection()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("a study's name is more than blanks")
        if _PATH_LIKE.search(name):
            raise ValueError(f"`{name}` is a path, not a name; `--out` says where results go")
        return name
