"""Parity before timing: a few fp32 steps of an engine against the same steps of plain torch on rank 0.

The engine wraps the model as the run has it, shared among ranks and with its knobs; plain torch has the whole model
and no knob. Of a large model or image both have a few blocks and patches, so that one rank holds them and soon has them
done. Fixed random images stand for data. AdamW with clipping hides the scale of gradients, so SGD without clipping is
followed too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import ModelSpec, RunSpec
from vitscale.config.study import OptimizerSection
from vitscale.cost import models
from vitscale.records.schema import Parity
from vitscale.worker import knobs
from vitscale.worker.distributed import Ranks, barrier, total
from vitscale.worker.wrap import wrap

STEPS, LARGEST_MICRO_BATCH, MOST_MICRO_STEPS, MOST_IMAGES = 8, 4, 2, 32
"""`MOST_IMAGES` of a step, which rank 0 takes alone; of so many ranks that this is less, one of each micro-step."""
MOST_BLOCKS, MOST_PATCHES_A_SIDE = 4, 14
_OF_16_BITS = ("data_types", "communication_data_type", "seq_parallel_communication_data_type")
LOSS_BOUND, WEIGHT_BOUND = 2e-6, 1e-4
"""Relative: rounding alone makes 2e-7 between any two engines; missing weight decay 5e-5."""

_OPTIMIZERS = (
    OptimizerSection(name="adamw", lr=3e-4, weight_decay=0.05, clip=1.0),
    OptimizerSection(name="sgd", lr=0.01, weight_decay=0.05, clip=0.0),
)
_KEY_BIAS = "attn.qkv.bias"
Build = Callable[[RunSpec, torch.device], nn.Module]
Trace = tuple[list[float], dict[str, Tensor]]


class Proofs:
    """Parity as far as it was checked in this process. Runs that differ in what it leaves out share one check."""

    def __init__(self) -> None:
        self._known: dict[str, Parity | None] = {}

    def of(self, spec: RunSpec, ranks: Ranks, build: Build, beat: Callable[[int], None]) -> Parity | None:
        """As `check`, at most once for each engine with its settings and model. All ranks at once."""
        small = _small(spec, spec.optimizer)
        key = small.model_dump_json(exclude={"protocol", "solved", "data", "optimizer", "measure"})
        if key not in self._known:
            self._known[key] = check(spec, ranks, build, beat)
        return self._known[key]


def check(spec: RunSpec, ranks: Ranks, build: Build, beat: Callable[[int], None]) -> Parity | None:
    """Follow the engine of a run and plain torch on rank 0; None on the other ranks. All ranks at once.

    Args:
        spec: the run; model, engine and its settings are taken of it, the batch is small.
        ranks: all of them take part.
        build: makes the run's model with its initial weights.
        beat: is told the number of steps taken.
    """
    found = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for section in _OPTIMIZERS:
            small = _small(spec, section)
            beat(0)
            followed = _engine_trace(small, ranks, build, beat)
            beat(0)
            wanted = _plain_trace(small, ranks, build, partial(_together, beat=beat))
            if wanted is not None:
                found.append(compare(followed, wanted))
    return _worst(found) if found else None


def _together(step: int, beat: Callable[[int], None]) -> None:
    """All ranks are as far as rank 0, so that each of its steps has a time limit of its own."""
    barrier()
    beat(step)


def _small(spec: RunSpec, section: OptimizerSection) -> RunSpec:
    grad_accum = min(spec.grad_accum, MOST_MICRO_STEPS)
    most = max(1, MOST_IMAGES // (spec.data_parallel * grad_accum))
    micro_batch = min(spec.micro_batch, LARGEST_MICRO_BATCH, most)
    changes = {
        "model": _small_model(spec.model),
        "init": None,  # may be a file of more blocks
        "precision": "fp32",
        "micro_batch": micro_batch,
        "grad_accum": grad_accum,
        "global_batch": micro_batch * grad_accum * spec.data_parallel,
        "optimizer": section,
        "train": None,
        "knobs": _knobs(spec, section),
        "deepspeed": _deepspeed(spec),
    }
    return spec.model_copy(update=changes)


def _small_model(model: ModelSpec) -> ModelSpec:
    """The model with few blocks, of an image with few patches."""
    depth = models.shape(model.name, **model.sizes).depth
    return model.model_copy(
        update={
            "depth": min(depth, MOST_BLOCKS),
            "img_size": min(model.img_size, MOST_PATCHES_A_SIDE * model.patch_size),
        }
    )


def _knobs(spec: RunSpec, section: OptimizerSection) -> EngineSection | None:
    """The run's, less what these steps cannot have: unequal shares, kernels of 16 bits, those of another optimizer."""
    if spec.knobs is None:
        return None
    changes: dict[str, None] = {"split": None}
    if spec.device == "cuda" and spec.knobs.sdpa in ("flash", "cudnn"):
        changes["sdpa"] = None
    if spec.knobs.optimizer_impl == "deepspeed" and not section.name == spec.optimizer.name == "adamw":
        changes["optimizer_impl"] = None
    return spec.knobs.model_copy(update=changes)


def _deepspeed(spec: RunSpec) -> dict[str, Any]:
    """The run's own keys, less those that say what 16 bits travel and add up as where the run has these."""
    return {key: value for key, value in spec.deepspeed.items() if spec.precision == "fp32" or key not in _OF_16_BITS}


def _engine_trace(spec: RunSpec, ranks: Ranks, build: Build, beat: Callable[[int], None]) -> Trace:
    """Mean losses over ranks of every step, and on rank 0 the weights after the last."""
    first = spec.data_rank(ranks.rank)
    shares = range(first, spec.grad_accum * spec.data_parallel, spec.data_parallel)
    losses, weights = _steps(spec, shares, ranks.device, build, beat)
    return (total(losses) / ranks.world_size).tolist(), weights


def _plain_trace(spec: RunSpec, ranks: Ranks, build: Build, beat: Callable[[int], None]) -> Trace | None:
    """The same steps on rank 0 alone, which takes every rank's micro-batches one after another; None on the others."""
    if ranks.rank != 0:
        for step in range(STEPS):
            beat(step + 1)
        return None
    shares = range(spec.grad_accum * spec.data_parallel)
    whole: dict[str, Any] = {"sequence_parallel": None, "tensor_parallel": None, "knobs": None, "deepspeed": {}}
    alone = spec.model_copy(update={"engine": "single", "grad_accum": len(shares), **whole})
    losses, weights = _steps(alone, shares, ranks.device, build, beat)
    return losses.tolist(), weights


def _steps(
    spec: RunSpec, shares: range, device: torch.device, build: Build, beat: Callable[[int], None]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take the steps over these micro-batches of every global batch: losses float64 [STEPS], and the weights."""
    engine, _ = wrap(spec, build(spec, device))
    losses = torch.zeros(STEPS, dtype=torch.float64, device=device)
    with knobs.attention(spec.knobs or EngineSection()):
        for step in range(STEPS):
            for share in shares:
                images, labels = (one.to(device) for one in _micro_batch(spec, step, share))
                loss = functional.cross_entropy(engine(images), labels)
                engine.backward(loss, last=share == shares[-1])
                losses[step] += loss.detach() / len(shares)
            engine.step()
            beat(step + 1)
    weights = engine.weights() or {}
    engine.close()
    return losses, weights


def _micro_batch(spec: RunSpec, step: int, share: int) -> tuple[Tensor, Tensor]:
    """Images [micro_batch, 3, size, size] and labels, the same for everyone who asks for that share of the step."""
    generator = torch.Generator().manual_seed(1_000_003 * step + share)
    size = spec.model.img_size
    images = torch.randn(spec.micro_batch, 3, size, size, generator=generator)
    return images, torch.randint(spec.model.num_classes, (spec.micro_batch,), generator=generator)


def compare(found: Trace, wanted: Trace) -> Parity:
    """Losses step by step, relative; weights as the norm of the difference over the tensor's norm."""
    losses = [abs(one - other) / abs(other) for one, other in zip(found[0], wanted[0], strict=True)]
    weights = dict(_weight_gaps(found[1], wanted[1]))
    tensor = max(weights, key=lambda name: _rank(weights[name]))
    first = next((step for step, gap in enumerate(losses) if _rank(gap) > LOSS_BOUND), None)
    if first is None and _rank(weights[tensor]) > WEIGHT_BOUND:
        first = STEPS - 1
    return Parity(
        ok=first is None,
        first_step=first,
        worst_loss=_finite(max(losses, key=_rank)),
        worst_weight=_finite(weights[tensor]),
        tensor=tensor,
    )


def _rank(gap: float) -> float:
    """What is not a number differs most."""
    return gap if math.isfinite(gap) else math.inf


def _finite(gap: float) -> float | None:
    return gap if math.isfinite(gap) else None


def _weight_gaps(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Iterator[tuple[str, float]]:
    for name, other in wanted.items():
        pair = [_compared(name, tensor) for tensor in (found[name], other)]
        yield name, float((pair[0] - pair[1]).norm() / pair[1].norm().clamp_min(1e-12))


def _compared(name: str, tensor: Tensor) -> Tensor:
    """Without the biases of attention keys: softmax cancels them, so that their gradient is rounding alone."""
    if not name.endswith(_KEY_BIAS):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def _worst(found: list[Parity]) -> Parity:
    """The one that failed, or the one that came nearest to it."""
    return min(found, key=lambda one: (one.ok, -(math.inf if one.worst_loss is None else one.worst_loss)))
