"""RunSpec: one resolved configuration, the worker's whole input and the identity of a run.

It holds values only: no path, host or user name, so that the same question has the same `run_id` on every machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vitscale.config.frozen import Frozen
from vitscale.config.knobs import Allocator, EngineSection
from vitscale.config.study import (
    Backend,
    EngineName,
    FsdpSection,
    OptimizerSection,
    Precision,
    Protocol,
    ZeroStage,
    rate_bytes_per_s,
)
from vitscale.config.training import Recipe

SCHEMA_VERSION: Literal[1] = 1

# What differs between the runs of one series: the world size, and what the batch identity solves from it.
_PLACEMENT = ("world_size", "nodes", "ranks_per_node", "data_parallel", "oversubscribed")


class ModelSpec(Frozen):
    """The model as built: every value resolved."""

    name: str
    """timm's model name."""
    img_size: PositiveInt
    """Side of the square input, pixels."""
    patch_size: PositiveInt
    """Side of a patch, pixels."""
    num_classes: PositiveInt
    """Outputs of the head."""
    depth: PositiveInt | None = None
    """Blocks; null is the model's own."""
    embed_dim: PositiveInt | None = None
    """Width of the tokens; null is the model's own."""
    num_heads: PositiveInt | None = None
    """Attention heads; null is the model's own."""

    @property
    def sizes(self) -> dict[str, int]:
        """What timm is told beside the name."""
        sizes = self.model_dump(exclude={"name"}, exclude_none=True)
        return {key: int(value) for key, value in sizes.items()}


class DataSpec(Frozen):
    """The training images of the run."""

    name: str
    """Data set."""
    fingerprint: str
    """First 16 hex digits of the prepared data set's sha256, or `generated`."""
    images: PositiveInt
    """Training images in all."""
    flip: bool = False
    """Whether images are mirrored at random."""
    images_per_device: PositiveInt | None = None
    """Training images per device where the protocol is `weak`; else null."""


class MeasureSpec(Frozen):
    """How a launch of the run is measured."""

    warmup_steps: NonNegativeInt
    """Optimizer steps before the steady window."""
    steps: PositiveInt | None = None
    """Optimizer steps in the steady window, or null where `seconds` decides."""
    seconds: PositiveFloat | None = None
    """Length of the steady window in seconds, or null where `steps` decides."""
    seed: NonNegativeInt
    """Seed of weights and data order."""
    sample_s: NonNegativeFloat | None = None
    """Time between samples of the devices, seconds; null is 1 s, 0 is off."""
    profile: Literal[True] | None = None
    """Whether a trace and a roofline of a few steps are written after the steady window; null is no."""


class RunSpec(Frozen):
    """One run: everything that decides what its ranks do."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this format."""
    protocol: Protocol
    """Scaling protocol."""
    model: ModelSpec
    data: DataSpec
    world_size: PositiveInt
    """Ranks in all."""
    nodes: PositiveInt = 1
    """Hosts."""
    ranks_per_node: PositiveInt
    """Ranks on each host."""
    data_parallel: PositiveInt
    """Groups of ranks that each take their own images: the world size over
    `sequence_parallel` or `tensor_parallel`."""
    sequence_parallel: Annotated[int, Field(ge=2)] | None = None
    """Neighbouring ranks that share the tokens of each image; null is none: every rank takes its own images."""
    tensor_parallel: Annotated[int, Field(ge=2)] | None = None
    """Neighbouring ranks that share the heads and the MLP of each block; null is none."""
    engine: EngineName
    """Owner of parallelism."""
    zero_stage: ZeroStage | None = None
    """ZeRO stage, or null where the engine has none."""
    fsdp: FsdpSection | None = None
    """FSDP's own settings; null for another engine."""
    knobs: EngineSection | None = None
    """Knobs of the study's `[engine]` that are on and that the engine has; null where there are none."""
    precision: Precision
    """Number format of weights and arithmetic."""
    device: Literal["cpu", "cuda"]
    """Kind of device."""
    backend: Backend | None = None
    """What ranks talk through; null is the device's own, NCCL on CUDA, gloo on a CPU."""
    micro_batch: PositiveInt
    """Images per rank and forward pass; the mean over ranks where `knobs.split` deals them out unevenly."""
    grad_accum: PositiveInt
    """Micro-steps per optimizer step."""
    global_batch: PositiveInt
    """Images per optimizer step over all ranks."""
    solved: Literal["micro_batch", "grad_accum", "global_batch"]
    """The member of the batch identity that was solved, not given."""
    optimizer: OptimizerSection
    """The update rule; its `lr` is the one after `lr_policy`."""
    train: Recipe | None = None
    """What is learnt; null where the run only measures."""
    init: str | None = None
    """sha256 of the file the weights start from; null is seeded random weights."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed keys of the user's own, passed through."""
    measure: MeasureSpec
    threads_per_rank: PositiveInt | None = None
    """CPU threads of a rank, the same at every world size; null on CUDA and where a CPU is simulated."""
    oversubscribed: bool = False
    """More ranks than cores: runs, but is not valid as a measurement of scaling."""
    link: str | None = None
    """What the launcher `lab` shaped the link of each host to, as `tc` writes it; null is not shaped."""
    simulated_device: str | None = None
    """Catalog name of the device that is simulated, or `cpu`, the one of `calibration`; null where the run is real."""
    calibration: str | None = None
    """sha256 of the `calibration.json` that a simulation takes its figures from; null is data sheets."""

    @property
    def run_id(self) -> str:
        """Readable slug and 8 hex digits of the hash of everything above."""
        return f"{self._slug()}-w{self.world_size}-{_digest(self.canonical())}"

    @property
    def series(self) -> str:
        """Identity of the series: equal for runs that differ in nothing but the world size and what it solves."""
        tree = json.loads(self.canonical())
        for key in (*_PLACEMENT, self.solved):
            tree.pop(key, None)
        if self.protocol == "weak":
            del tree["data"]["images"]
        if self.optimizer.lr_policy in ("linear", "sqrt"):
            del tree["optimizer"]["lr"]
        return f"{self._slug()}-{_digest(json.dumps(tree, sort_keys=True))}"

    @property
    def process_start(self) -> tuple[int, int, str, int, bool, str, str, str]:
        """What runs that one process start serves have in common."""
        threads = self.threads_per_rank or 0
        link = self.link or ""
        allocator = self.allocator or ""
        return self.world_size, self.nodes, self.device, threads, self.binds_cores, self.torch_backend, link, allocator

    @property
    def allocator(self) -> Allocator | None:
        """Who gives ranks their memory; None is the C library."""
        return self.knobs.allocator if self.knobs else None

    @property
    def torch_backend(self) -> Backend:
        """What ranks talk through, by torch's name."""
        return self.backend or ("nccl" if self.device == "cuda" else "gloo")

    @property
    def binds_cores(self) -> bool:
        """Whether each rank stays on CPU cores of its own, as far as there are enough."""
        asked = self.knobs is None or self.knobs.bind_cores is not False
        return self.threads_per_rank is not None and asked

    @property
    def ranks_per_replica(self) -> int:
        """Neighbouring ranks that take the same images, because they share tokens or weights."""
        return (self.sequence_parallel or 1) * (self.tensor_parallel or 1)

    @property
    def micro_batches(self) -> tuple[int, ...]:
        """Images of each data-parallel share of a micro-step; of a `proportional` split not known yet, equal ones."""
        split = self.knobs.split if self.knobs else None
        return split if isinstance(split, tuple) else (self.micro_batch,) * self.data_parallel

    @property
    def link_bytes_per_s(self) -> float | None:
        """Rate of the shaped link, all headers included; None where it is not shaped."""
        return None if self.link is None else rate_bytes_per_s(self.link)

    def data_rank(self, rank: int) -> int:
        """Which of the `data_parallel` shares of a global batch a rank takes."""
        return rank // self.ranks_per_replica

    @property
    def blocks(self) -> int:
        """Parts of a global batch that all ranks share out: `grad_accum`, but for a rank that takes its share of each
        in several micro-steps."""
        return self.global_batch // sum(self.micro_batches)

    def images_counted(self, rank: int) -> int:
        """Images of a step in a rank's records: of ranks that take the same images the first counts them."""
        first = rank % self.ranks_per_replica == 0
        return self.micro_batches[self.data_rank(rank)] * self.blocks if first else 0

    def canonical(self) -> str:
        """JSON with sorted keys and no free whitespace, without nulls: a new optional field renames no run."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))

    def _slug(self) -> str:
        parts = [self.protocol, self.model.name, self.data.name, self.engine]
        parts += [] if self.zero_stage is None else [f"z{self.zero_stage}"]
        parts += [] if self.sequence_parallel is None else [f"sp{self.sequence_parallel}"]
        parts += [] if self.tensor_parallel is None else [f"tp{self.tensor_parallel}"]
        parts += [self.precision, self.simulated_device or self.device]
        return slug("-".join(parts))


def slug(text: str, limit: int = 100) -> str:
    """A file name from any text: lower-case letters, digits, `_` and `-` only, at most `limit` long, never empty."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:limit].strip("-") or "unnamed"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
