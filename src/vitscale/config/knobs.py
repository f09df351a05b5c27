"""`[engine]`: knobs of speed and memory. None of them changes what is learnt, but for rounding and `ddp_hook`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt

from vitscale.config.frozen import Section


def _off(*values: object) -> AfterValidator:
    """A value that says what is so anyway is null: it makes no other run of the same one."""
    return AfterValidator(lambda value: None if value in values else value)


def _list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Switch = Annotated[bool | None, _off(False)]
Sdpa = Literal["auto", "math", "flash", "efficient", "cudnn"]
OptimizerImpl = Literal["auto", "fused", "foreach", "for", "deepspeed"]
DdpHook = Literal["none", "fp16", "bf16"]
Allocator = Literal["libc", "tcmalloc"]
MOST_LOADER_THREADS = 64
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Split = Literal["even", "proportional"] | tuple[PositiveInt, ...]


class EngineSection(Section):
    """`[engine]`: knobs of speed and memory. An engine that does not have a knob does not read it."""

    fast: Switch = None
    """Choose what makes the device faster, for the keys that the study does not give: `precision = bf16` where the
    device multiplies it faster; with bf16 on a CPU `sdpa = math` where tokens are few, else `allocator = tcmalloc`
    where all ranks are on this host and it is there; on CUDA `compile`. What was chosen is printed, and is the run's.
    Off: not."""
    compile: Switch = None
    """Compile each block with `torch.compile`: fused kernels, after some seconds at the first step. Off: not."""
    compile_mode: Annotated[CompileMode | None, _off("default")] = None
    """CUDA, with `compile`: `reduce-overhead` records CUDA graphs, so that a small model does not wait for its host;
    `max-autotune` tries kernels against each other too. Off: `default`."""
    sdpa: Annotated[Sdpa | None, _off("auto")] = None
    """The one kernel that attention may use: `math` (unfused), `flash`, `efficient` or `cudnn`. Off: `auto`, torch
    chooses."""
    channels_last: Switch = None
    """Keep the patch embedding's weight as NHWC, as the images are. Off: not."""
    activation_checkpointing: Switch = None
    """Keep only the input of each block in forward and compute the rest again in backward: less memory, a third more
    arithmetic. Off: not."""
    optimizer_impl: Annotated[OptimizerImpl | None, _off("auto")] = None
    """How the update loops over weights: `fused` in one kernel (`adamw`, `sgd`), `foreach` in one per operation (not
    `muon`), `for` one by one, `deepspeed` DeepSpeed's own kernels, compiled at their first use (`adamw`; `lion` on
    CUDA). Off: `auto`, fused on CUDA, else the library's choice."""
    loader_threads: Annotated[int, Field(ge=0, le=MOST_LOADER_THREADS)] | None = None
    """Threads of a rank that read micro-batches ahead of the device; 0 reads each when it is asked for. Resizing and
    normalising are the device's. Off: 1 on CUDA; 0 on a CPU, where they take time from those that compute."""
    bind_cores: Annotated[bool | None, _off(True)] = None
    """CPU: each rank stays on cores of its own. False: as many threads, wherever the kernel puts them. Off: true."""
    allocator: Annotated[Allocator | None, _off("libc")] = None
    """CPU: who gives ranks their memory: `tcmalloc` of gperftools, which each host must have, or `libc`, which is told
    to keep what is freed. Off: `libc`."""
    overlap_reduce: Switch = None
    """`deepspeed` at `zero_stage = 0`: gradients are averaged in buckets while backward goes on, as `ddp` does.
    Off: DeepSpeed's own all-reduce, after backward."""
    bucket_mb: PositiveFloat | None = None
    """Size of `ddp`'s gradient buckets, MiB: small ones start sooner, large ones cost fewer calls. Off: torch's, 25."""
    gradient_as_bucket_view: Annotated[bool | None, _off(True)] = None
    """`ddp`: gradients are views of the buckets, one copy of them less. Off: true."""
    static_graph: Switch = None
    """`ddp`: every step uses the same weights, found out once. Off: not."""
    ddp_hook: Annotated[DdpHook | None, _off("none")] = None
    """`ddp`: gradients travel in `fp16` or `bf16`, half of the bytes of fp32. Off: `none`, as they are."""

    split: Annotated[Split | None, BeforeValidator(_list), _off("even")] = None
    """How the images of a micro-step are dealt to the ranks: `even`; `proportional`, by what each rank was timed to
    compute, once for all launches of a run; or a list by rank, whose sum is `micro_batch * data_parallel`, so that
    `micro_batch` is their mean. Gradients are weighted by images: the result is the even split's. Not for Accelerate;
    `proportional` not where weights are sharded. Off: `even`."""

    @property
    def given(self) -> EngineSection | None:
        """Itself, or None where every knob is off."""
        return self if self.model_dump(exclude_none=True) else None


OF_DDP = ("bucket_mb", "gradient_as_bucket_view", "static_graph", "ddp_hook")
"""Knobs that only the engine `ddp` has."""
OF_ZERO_0 = ("overlap_reduce",)
"""Knobs that only the engine `deepspeed` at stage 0 has."""
OF_CPUS = ("bind_cores", "allocator")
"""Knobs that only runs on a CPU have."""
