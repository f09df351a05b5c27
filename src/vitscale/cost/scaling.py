"""How a step's parts change with the world size: closed forms over arrays of parameters, which `predict` fits.

All parts are ratios to one thing, the reference micro-step m: forward and backward of one micro-batch of b0 images.
So the seconds of a device stand in one figure, and what is fitted of one device says something of another.

1. compute = A · ((1 - eta) · b / b0 + eta). A share eta of the reference micro-step does not shrink with the
   micro-batch (kernel launches, tiles that are not full): t0 + b/r of Hockney's form, with eta = t0 / (t0 + b0/r).
2. update = phi / N where ZeRO shares the optimizer's state, else phi: bytes over memory bandwidth.
3. communication = volume · (max of kappa1 · ring(G) and kappa2 · ring(N) · (1 + gamma · log2 K)) + lambda · hops, with
   G ranks a node, K nodes. ring(n) = (n - 1) / n: an all-reduce sends 2 (n-1)/n of the gradients over each link, and a
   ring laid node by node crosses each node's border once (`collectives.collective_seconds`, steps 2 and 3). kappa1 and
   kappa2 are the seconds of an endless ring inside a node and across nodes, over m. gamma is what a network loses as
   more nodes share its upper tiers. hops = 2 (G-1) inside a node and 2 log2 K across, a tree's depth (cited: NCCL's
   double binary trees, Jeaugey 2019).
4. exposed: without overlap all of it; with overlap what does not fit beside the window, and at least the share eps:
   the last bucket has nothing left to hide behind (`step.exposed_seconds`, steps 2 and 3).
5. wait = sigma · E[max of N standard Gaussians] · compute (`stragglers`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitscale.cost.overlap import OF_ACCELERATE, overlaps
from vitscale.cost.stragglers import expected_maximum

Array = NDArray[np.float64]

_BACKWARD_SHARE = 2 / 3  # of forward + backward: cost.vit.training_flop, step 1


@dataclass(frozen=True)
class Layout:
    """One asked or measured configuration: ranks, and their share of the batch identity."""

    world_size: int
    nodes: int
    micro_batch: float
    grad_accum: int
    """Micro-steps of a step."""

    @property
    def global_batch(self) -> float:
        """Images of one optimizer step; every rank reads its own."""
        return self.micro_batch * self.grad_accum * self.world_size


@dataclass(frozen=True)
class Schedule:
    """What an engine sends, shares and hides."""

    volume: float = 1.0
    """Bytes it sends over those of one all-reduce of the gradients: ZeRO-3 and FSDP 1.5."""
    overlap: bool = False
    """Whether communication runs beside compute."""
    window: float = _BACKWARD_SHARE
    """Share of a micro-step beside which it runs."""
    every_micro_step: bool = False
    """Whether it communicates in every micro-step (ZeRO-2 and 3, FSDP), not only in the last."""
    shared_update: bool = False
    """Whether each rank updates 1/N of the weights."""


@dataclass(frozen=True)
class Mechanisms:
    """Fitted ratios to the reference micro-step, one value a draw: arrays of one shape."""

    fixed_share: Array
    """eta: share of a micro-step that does not shrink with the micro-batch."""
    update: Array
    """phi: optimizer's pass of all weights, and what else comes once a step."""
    intra_node: Array
    """kappa1: endless ring inside a node."""
    inter_node: Array
    """kappa2: endless ring across nodes."""
    hop: Array
    """lambda: delay of one hop, all collectives of a step together."""
    contention: Array
    """gamma: what is lost per doubling of nodes, as a share of the ring's time."""
    exposed_floor: Array
    """eps: share of communication that nothing hides."""
    jitter: Array
    """sigma: standard deviation of a rank's compute time over its mean."""


MECHANISMS = tuple(field.name for field in fields(Mechanisms))


@dataclass(frozen=True)
class Parts:
    """A step's parts, in reference micro-steps."""

    compute: Array
    update: Array
    exposed: Array
    wait: Array

    @property
    def step(self) -> Array:
        """All of it."""
        total: Array = self.compute + self.update + self.exposed + self.wait
        return total


def schedule(
    engine: str | None, zero_stage: int | None, knobs: Mapping[str, Any] | None = None, *, on_cpu: bool = False
) -> Schedule:
    """Return what an engine sends and hides; an engine that is not known sends one all-reduce and hides nothing.

    Volumes: `collectives.step_collectives`; what overlaps, and the arguments: `overlap.overlaps`.
    """
    stage, hides = zero_stage or 0, overlaps(engine, zero_stage, knobs or {}, on_cpu=on_cpu)
    by_deepspeed = engine in ("deepspeed", OF_ACCELERATE)
    if engine == "fsdp" or (by_deepspeed and stage == 3):
        return Schedule(1.5, hides, 1.0, every_micro_step=True, shared_update=True)
    if by_deepspeed:
        return Schedule(1.0, hides, every_micro_step=stage == 2, shared_update=stage > 0)
    return Schedule(1.0, hides)


def parts(mechanisms: Mechanisms, layout: Layout, reference_micro_batch: float, plan: Schedule) -> Parts:
    """Return a step's parts by the derivation at the top of this file."""
    one = mechanisms
    relative = layout.micro_batch / reference_micro_batch
    micro: Array = (1 - one.fixed_share) * relative + one.fixed_share
    compute: Array = layout.grad_accum * micro
    update = one.update / (layout.world_size if plan.shared_update else 1)
    sent = _communication(one, layout)
    sent = sent * plan.volume * (layout.grad_accum if plan.every_micro_step else 1)
    exposed = sent
    if plan.overlap:
        window = plan.window * (compute if plan.every_micro_step else micro)
        exposed = np.maximum(sent - window, one.exposed_floor * sent)
    wait = one.jitter * expected_maximum(layout.world_size, 1.0) * compute
    return Parts(compute, update, exposed, wait)


def _communication(one: Mechanisms, layout: Layout) -> Any:
    if layout.world_size == 1:
        return np.zeros_like(one.update)
    per_node = max(1.0, layout.world_size / layout.nodes)
    ring = one.intra_node * (per_node - 1) / per_node
    doublings = math.log2(layout.nodes)
    if layout.nodes > 1:
        share = (layout.world_size - 1) / layout.world_size
        ring = np.maximum(ring, one.inter_node * share * (1 + one.contention * doublings))
    return ring + one.hop * 2 * (per_node - 1 + doublings)
