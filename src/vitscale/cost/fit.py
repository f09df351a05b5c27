"""The largest model that a rank's memory holds, by the closed forms: a run's own made deeper, and the largest timm ViT.

What the closed forms leave out (CUDA's context, NCCL, the allocator's slack, Python) is left out here too, so what is
found is an upper bound.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import cache

from vitscale.config.runspec import ModelSpec, RunSpec
from vitscale.cost import models
from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run
from vitscale.cost.vit import parameters

MOST_BLOCKS = 4096

_UNKNOWN = Machinery(None, Links(None, None), None)


@dataclass(frozen=True)
class Largest:
    """The largest models that fit, at a run's stage, precision, ranks and micro-batch."""

    limit_bytes: int
    """Memory of a rank."""
    depth: int
    """Blocks of the run's own width that fit, at most `MOST_BLOCKS`; 0 where not one does."""
    depth_parameters: int
    """Parameters of the run's model with that many blocks; 0 where not one fits."""
    name: str | None
    """The timm ViT with the most parameters that fits, at its own image and patch size; None where none does."""
    name_parameters: int
    """Its parameters; 0 where none fits."""


def largest(spec: RunSpec, limit_bytes: int) -> Largest:
    """Return the largest models that fit into the memory of one rank of a run."""
    blocks = bisect(range(1, MOST_BLOCKS + 1), limit_bytes, key=lambda depth: _needed_bytes(_deep(spec, depth)))
    deep = _deep(spec, blocks).model
    name = next((one for one in _by_size() if _needed_bytes(_named(spec, one)) <= limit_bytes), None)
    return Largest(
        limit_bytes,
        blocks,
        parameters(models.shape(deep.name, **deep.sizes)) if blocks else 0,
        name,
        parameters(models.shape(name, num_classes=spec.model.num_classes)) if name else 0,
    )


def _needed_bytes(spec: RunSpec) -> int:
    return estimate_run(spec, _UNKNOWN).memory.total_bytes


def _deep(spec: RunSpec, depth: int) -> RunSpec:
    return spec.model_copy(update={"model": spec.model.model_copy(update={"depth": depth})})


def _named(spec: RunSpec, name: str) -> RunSpec:
    own = models.shape(name)
    classes = spec.model.num_classes
    model = ModelSpec(name=name, img_size=own.img_size, patch_size=own.patch_size, num_classes=classes)
    return spec.model_copy(update={"model": model})


@cache
def _by_size() -> tuple[str, ...]:
    """Names of all models, the most parameters first, of equal ones the first by name."""
    return tuple(sorted(models.names(), key=lambda name: (-parameters(models.shape(name)), name)))
