"""Tensor parallelism in closed form: one rank's part of a model, and what the ranks of a group send each other."""

from __future__ import annotations

from dataclasses import replace

from vitscale.cost.collectives import Collective
from vitscale.cost.models import ViTShape
from vitscale.cost.vit import PRECISION_BYTES, PRODUCT_BYTES


def part(shape: ViTShape, ranks: int) -> ViTShape:
    """Return the shape whose figures are those of one of `ranks` ranks: a share of the heads and of the MLP.

    Per block, with D width and M MLP width: parameters 4D²/ranks + 2DM/ranks, norms and the biases of the row-parallel
    projections whole; matrix products 1/ranks; kept for backward 4TD + (4TD + 2TM)/ranks.
    """
    assert shape.heads % ranks == 0
    assert shape.mlp_width % ranks == 0
    return replace(shape, tensor_parallel=ranks)


def collectives(
    shape: ViTShape, *, micro_batch: int, grad_accum: int, precision: str, ranks: int
) -> tuple[Collective, ...]:
    """Return what one rank sends within its group in one optimizer step; () for a group of one.

    Every block adds up TD elements per image after attention and after the MLP, and in backward the gradients of qkv's
    and of the MLP's input: four all-reduces. An MLP that begins with two projections ("swiglu") has one more. A process
    test counts them. Under autocast what comes out of products is 16 bit, and the gradients of norms' outputs are not.
    """
    if ranks == 1:
        return ()
    forward, backward = 2, 3 if shape.mlp == "swiglu" else 2
    blocks, elements = grad_accum * shape.depth, micro_batch * shape.tokens * shape.width
    sent_bytes = elements * (forward * PRODUCT_BYTES[precision] + backward * PRECISION_BYTES[precision])
    return (Collective("all_reduce", blocks * (forward + backward), blocks * sent_bytes),)
