"""Knobs of `[engine]` that cannot be combined with the rest of a run, each with its rule."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from vitscale.config.knobs import EngineSection
from vitscale.config.study import OptimizerName, Precision
from vitscale.errors import Infeasible
from vitscale.hardware import allocators
from vitscale.study.engines import OF_DEEPSPEED, sharding
from vitscale.study.points import Point
from vitscale.study.where import Where

_FUSED = ("adamw", "sgd")
_ONE_IMPLEMENTATION = ("muon",)
_OTHERWISE_IN_DEEPSPEED = {
    "lamb": "LAMB bounds its trust ratio to 0.01 … 10",
    "muon": "Muon has Nesterov's momentum and does not scale its update to the size of AdamW's",
}
"""Optimizer -> how DeepSpeed's of the same name differs from the one that is run here."""
_OF_REDUCTION = (
    "prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op", "communication_data_type",
)  # fmt: skip
"""DeepSpeed's keys of how its stage 0 averages gradients."""


def require_knobs(knobs: EngineSection, point: Point, optimizer: OptimizerName, grad_accum: int) -> None:
    """Refuse what the engine, the device or the optimizer does not do with a knob that is on.

    Raises:
        Infeasible: with the rule.
    """
    if knobs.channels_last and (flat := sharding(point.engine, point.zero_stage, smallest=1)):
        raise Infeasible(f"`engine.channels_last` needs weights with strides of their own, and `{flat}` lays them flat")
    if knobs.compile:
        require_compilable(point)
    if knobs.compile_mode:
        _require_mode(knobs.compile_mode, point, grad_accum, compiled=knobs.compile is True)
    if knobs.sdpa:
        _require_kernel(knobs.sdpa, point)
    if knobs.optimizer_impl == "deepspeed":
        _require_own_kernel(point, optimizer)
    elif knobs.optimizer_impl:
        _require_implementation(knobs.optimizer_impl, optimizer)
    if point.engine == "ddp":
        _require_ddp(knobs, point.precision, grad_accum)


def require_compiler(knobs: EngineSection) -> None:
    """Look for what `torch.compile` and DeepSpeed build their kernels with.

    Raises:
        Infeasible: no C++ compiler, or no ninja.
    """
    own = knobs.optimizer_impl == "deepspeed"
    if not knobs.compile and not own:
        return
    knob = "engine.optimizer_impl = deepspeed" if own else "engine.compile"
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "c++", "clang++") if name):
        raise Infeasible(f"`{knob}` needs a C++ compiler, and none is found", "install g++, or set CXX")
    if own and not shutil.which("ninja"):
        raise Infeasible(f"`{knob}` needs ninja, and none is found", "pip install ninja, and have it on PATH")


def require_allocator(knobs: EngineSection, point: Point, where: Where) -> None:
    """Look for the allocator on this host. Other hosts say it themselves (`worker/allocator.py`).

    Raises:
        Infeasible: it is not there.
    """
    if knobs.allocator == "tcmalloc" and point.device == "cpu" and not (where.hosts or where.machine.tcmalloc):
        raise Infeasible("`engine.allocator = tcmalloc`, and this host does not have it", allocators.INSTALL)


def _require_ddp(knobs: EngineSection, precision: Precision, grad_accum: int) -> None:
    if knobs.static_graph and grad_accum > 1:
        raise Infeasible(
            "`engine.static_graph` looks at the first backward pass, in which DDP has nothing to do with "
            f"`grad_accum = {grad_accum}`",
            "grad_accum=1",
        )
    if knobs.ddp_hook and precision in ("bf16", "fp16"):
        raise Infeasible(
            f"`engine.ddp_hook = {knobs.ddp_hook}` compresses fp32 gradients, and with `precision = {precision}` "
            "they are 16 bit already",
            "precision=fp32",
        )


def require_own_reduction(knobs: EngineSection, point: Point, deepspeed: Mapping[str, Any]) -> None:
    """Refuse keys of how DeepSpeed sends gradients where it does not send them.

    Raises:
        Infeasible: with the key.
    """
    given = [key for key in _OF_REDUCTION if key in deepspeed]
    if knobs.overlap_reduce and (point.engine, point.zero_stage) == ("deepspeed", 0) and given:
        raise Infeasible(
            f"`engine.overlap_reduce` averages gradients in place of DeepSpeed, which reads `deepspeed.{given[0]}`",
            "leave one of them out",
        )


def _require_mode(mode: str, point: Point, grad_accum: int, *, compiled: bool) -> None:
    if not compiled:
        raise Infeasible(f"`engine.compile_mode = {mode}` says how to compile, and nothing is", "engine.compile=true")
    if point.device == "cpu":
        raise Infeasible(f"`engine.compile_mode = {mode}` is for CUDA's graphs and kernels", "leave it out")
    if grad_accum > 1:
        raise Infeasible(
            f"`engine.compile_mode = {mode}` keeps gradients in the memory of CUDA graphs, which the next pass writes "
            f"over, and `grad_accum = {grad_accum}` adds them up",
            "grad_accum=1",
        )


def require_compilable(point: Point) -> None:
    """Refuse what `torch.compile` cannot trace.

    Raises:
        Infeasible: with what it is.
    """
    if point.engine in OF_DEEPSPEED and point.zero_stage == 3:
        raise Infeasible(
            "`engine.compile` traces a block once, and `zero_stage = 3` swaps its weights at every use", "zero_stage=2"
        )
    if point.sequence_parallel > 1:
        raise Infeasible(
            "`engine.compile` does not trace the exchange of tokens inside a block that "
            f"`sequence_parallel = {point.sequence_parallel}` makes",
            "sequence_parallel=1",
        )


def _require_kernel(kernel: str, point: Point) -> None:
    if point.device == "cpu" and kernel in ("efficient", "cudnn"):
        raise Infeasible(f"`engine.sdpa = {kernel}` is a kernel of CUDA", "engine.sdpa=flash or engine.sdpa=math")
    if point.device == "cuda" and kernel in ("flash", "cudnn") and point.precision == "fp32":
        raise Infeasible(f"`engine.sdpa = {kernel}` computes in 16 bit on CUDA, not in fp32", "precision=bf16")


def _require_implementation(impl: str, optimizer: OptimizerName) -> None:
    if optimizer in _ONE_IMPLEMENTATION:
        raise Infeasible(
            f"`optimizer.name = {optimizer}` has one implementation, not `engine.optimizer_impl = {impl}`",
            "engine.optimizer_impl=auto",
        )
    if impl == "fused" and optimizer not in _FUSED:
        raise Infeasible(
            f"`engine.optimizer_impl = fused` is there for {' and '.join(_FUSED)}, not for `{optimizer}`",
            "engine.optimizer_impl=foreach",
        )


def _require_own_kernel(point: Point, optimizer: OptimizerName) -> None:
    asked, way_out = "`engine.optimizer_impl = deepspeed`", "engine.optimizer_impl=auto"
    if point.engine not in OF_DEEPSPEED:
        raise Infeasible(f"{asked} is of `engine = deepspeed`, not of `{point.engine}`", way_out)
    if optimizer in _OTHERWISE_IN_DEEPSPEED:
        raise Infeasible(f"{asked} is another update: DeepSpeed's {_OTHERWISE_IN_DEEPSPEED[optimizer]}", way_out)
    if optimizer not in ("adamw", "lion"):
        raise Infeasible(f"{asked}: DeepSpeed has no kernel for `{optimizer}`", way_out)
    if optimizer == "lion" and point.device == "cpu":
        raise Infeasible(f"{asked}: DeepSpeed's fused Lion is for CUDA", way_out)
