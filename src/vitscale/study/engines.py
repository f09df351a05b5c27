"""What each engine has and can do: keys that others do not have, and combinations that do not exist."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

from vitscale.config import offload
from vitscale.config.knobs import OF_CPUS, OF_DDP, OF_ZERO_0
from vitscale.config.study import EngineName, OptimizerName, Precision, Study, ZeroStage
from vitscale.cost.models import ViTShape
from vitscale.errors import Infeasible

OF_DEEPSPEED = ("deepspeed", "accelerate_deepspeed")
"""Engines with ZeRO stages and DeepSpeed's keys."""
_EXTRAS = {
    "accelerate": ("accelerate", ("accelerate",)),
    # Accelerate reads transformers' configuration classes wherever it drives DeepSpeed.
    "accelerate_deepspeed": ("accelerate-deepspeed", ("accelerate", "transformers")),
}
"""Engine -> the extra that brings what `vitscale[train]` does not, and the packages."""
_OF_WHOLE_WEIGHTS = {
    "lamb": "the norm of each whole weight and of its update",
    "muon": "each whole matrix, to make its update orthogonal",
    "adafactor": "the rows and columns of each whole matrix",
}
"""Optimizer -> what it looks at. The others treat every element alike, wherever it is."""


def own_keys(study: Study, engine: EngineName, zero_stage: ZeroStage, device: str) -> dict[str, Any]:
    """The part of a RunSpec that only some engines or devices read. What an engine does not have is left out, so that
    runs which differ in nothing else are one run."""
    others = dict.fromkeys(("fast",) if engine == "ddp" else ("fast", *OF_DDP))
    others |= {} if (engine, zero_stage) == ("deepspeed", 0) else dict.fromkeys(OF_ZERO_0)
    others |= {} if device == "cpu" else dict.fromkeys(OF_CPUS)
    knobs = {"knobs": study.engine.model_copy(update=others).given}
    if engine in OF_DEEPSPEED:
        return {"zero_stage": zero_stage, "deepspeed": offload.without_none(study.deepspeed), **knobs}
    return {"fsdp": study.fsdp, **knobs} if engine == "fsdp" else knobs


def sharding(engine: EngineName, zero_stage: ZeroStage, *, smallest: int) -> str | None:
    """What shards at least as much as ZeRO's stage `smallest`, as a study says it; None where nothing does."""
    if engine in OF_DEEPSPEED:
        return f"zero_stage = {zero_stage}" if zero_stage >= smallest else None
    return "engine = fsdp" if engine == "fsdp" else None


def require_installed(engine: EngineName) -> None:
    """Look for what the engine needs beside torch and DeepSpeed, without importing it.

    Raises:
        Infeasible: with the pip command.
    """
    extra, packages = _EXTRAS.get(engine, ("", ()))
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        why = f"`engine = {engine}` needs `{missing[0]}`, not installed here"
        raise Infeasible(why, f"pip install 'vitscale[{extra}]'")


def require_possible(engine: EngineName, precision: Precision, world_size: int, tensor_parallel: int) -> None:
    """Refuse what the engine does not do.

    Raises:
        Infeasible: with the rule.
    """
    if engine == "single" and world_size > 1:
        raise Infeasible(f"`engine = single` has one rank, and `world_size = {world_size}`", "engine=ddp")
    if engine in ("accelerate", "accelerate_deepspeed") and tensor_parallel > 1:
        raise Infeasible(
            f"`tensor_parallel = {tensor_parallel}`: `engine = {engine}` takes every rank for one with other images",
            "engine=ddp",
        )
    if precision == "fp16" and engine not in OF_DEEPSPEED:
        raise Infeasible(f"`precision = fp16` needs a loss scaler, which `engine = {engine}` has not", "precision=bf16")
    if engine == "accelerate" and precision == "bf16":
        raise Infeasible(
            "`engine = accelerate` has no bf16 weights with an fp32 master copy: its bf16 is autocast",
            "precision=bf16_autocast",
        )


def require_optimizer(engine: EngineName, zero_stage: ZeroStage, optimizer: OptimizerName) -> None:
    """Refuse an optimizer that looks at whole weights where each rank updates a part of them.

    Raises:
        Infeasible: with what it looks at, and what shards it.
    """
    shards = sharding(engine, zero_stage, smallest=1)
    if optimizer in _OF_WHOLE_WEIGHTS and shards:
        raise Infeasible(
            f"`optimizer.name = {optimizer}` needs {_OF_WHOLE_WEIGHTS[optimizer]}, and `{shards}` updates a part of "
            "it on each rank",
            "engine=ddp" if engine == "fsdp" else "zero_stage=0",
        )


def require_whole_weights(engine: EngineName, zero_stage: ZeroStage, tensor_parallel: int, ema: float | None) -> None:
    """Refuse a moving average of weights that no rank has whole.

    Raises:
        Infeasible: with what shards them.
    """
    ways_out = {}
    if tensor_parallel > 1:
        ways_out[f"tensor_parallel = {tensor_parallel}"] = "tensor_parallel=1"
    if engine == "fsdp":
        ways_out["engine = fsdp"] = "engine=ddp"
    if engine in OF_DEEPSPEED and zero_stage == 3:
        ways_out["zero_stage = 3"] = "zero_stage=2"
    if ema and ways_out:
        sharding, way_out = next(iter(ways_out.items()))
        raise Infeasible(
            f"`train.ema = {ema:g}` needs whole weights on each rank, and `{sharding}` shards them",
            f"{way_out}, or leave train.ema out",
        )


def require_shares(shape: ViTShape, tensor_parallel: int) -> None:
    """Refuse blocks that do not fall into equal parts of whole heads.

    Raises:
        Infeasible: with what does not divide.
    """
    if tensor_parallel == 1:
        return
    for count, what in ((shape.heads, "heads"), (shape.mlp_width, "hidden units of the MLP")):
        if count % tensor_parallel:
            largest = max(
                ranks for ranks in range(1, tensor_parallel) if math.gcd(shape.heads, shape.mlp_width) % ranks == 0
            )
            raise Infeasible(
                f"`tensor_parallel = {tensor_parallel}` does not divide the {count:,} {what} of `{shape.name}`",
                f"tensor_parallel={largest}",
            )
    if shape.qk_norm or shape.attn_norm or shape.mlp_norm:
        raise Infeasible(
            f"`tensor_parallel = {tensor_parallel}`: blocks of `{shape.name}` have a norm over what would be divided",
            "sequence_parallel in its place",
        )
