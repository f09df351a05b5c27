"""Activation checkpointing in closed form: forward keeps the input of each block, backward computes the rest again.

FLOP and activations are linear in the depth, so what the blocks cost is a difference of two depths.
"""

from __future__ import annotations

from dataclasses import replace

from vitscale.cost import sequence, vit
from vitscale.cost.models import ViTShape


def activation_bytes(
    shape: ViTShape, micro_batch: int, precision: str, ranks: int, *, fused_attention: bool = True
) -> int:
    """Return the most bytes that autograd keeps for one micro-batch on one rank, as backward makes a block again.

    1. Around the blocks, and of one block, all that `sequence.activation_bytes` counts.
    2. Of each of the other L - 1 blocks its input, tD of own tokens.

    A test compares it with what autograd saves.
    """
    one = sequence.activation_bytes(
        replace(shape, depth=1), micro_batch, precision, ranks, fused_attention=fused_attention
    )
    inputs = (shape.depth - 1) * sequence.shares(shape.tokens, ranks)[0] * shape.width
    return one + micro_batch * inputs * vit.PRECISION_BYTES[precision]


def recomputed_flop(shape: ViTShape, ranks: int) -> int:
    """Return the matrix-multiplication FLOP of one image's second forward through the blocks, on one rank.

    It is a third of what forward and backward of the blocks cost (`vit.training_flop`, step 1).
    """
    blocks = sequence.training_flop(shape, ranks) - sequence.training_flop(replace(shape, depth=0), ranks)
    return blocks // 3
