"""What torch's FSDP2 holds and sends when every block is a group of its own and the rest of the model is the root.

Symbols: P parameters, M elements of moments, B parameters of one block, L blocks, R = P - L·B around them, b bytes a
weight in the precision, N ranks, A micro-steps. Shards are fp32 in every precision; bf16 is gathered, computed with and
reduced.
"""

from __future__ import annotations

from vitscale.cost.collectives import Collective
from vitscale.cost.memory import ModelState, RankMemory
from vitscale.cost.models import ViTShape
from vitscale.cost.optimizers import moment_elements
from vitscale.cost.vit import PRECISION_BYTES, block_parameters, parameters

_FP32_BYTES = 4


def rank_memory(
    shape: ViTShape,
    activations_bytes: int,
    *,
    grad_accum: int,
    precision: str,
    data_parallel: int,
    optimizer: str,
    reshard_after_forward: bool,
) -> RankMemory:
    """Return the bytes of one rank at the end of backward, with all activations of a micro-batch.

    1. Shards of weights and of gradients 4P/N each, moments 4M/N: the weights are their own master copy.
    2. Gathered weights: the root until the end of backward, b·R, and two blocks, the one that computes and the one that
       comes next; all of bP where blocks are kept after forward.
    3. Gradients on their way: one block's, b·B; with A > 1 whole ones, bP, until the last micro-step reduces them.
    """
    total, block = parameters(shape), block_parameters(shape)
    shard_bytes = _FP32_BYTES * -(-total // data_parallel)
    moments_bytes = _FP32_BYTES * -(-moment_elements(shape, optimizer) // data_parallel)
    state = ModelState(shard_bytes, shard_bytes, moments_bytes, 2 * shard_bytes + moments_bytes)
    root = total - shape.depth * block
    gathered = root + min(2, shape.depth) * block if reshard_after_forward else total
    unreduced = total if grad_accum > 1 else block
    buckets_bytes = PRECISION_BYTES[precision] * (gathered + unreduced)
    return RankMemory(state, activations_bytes, buckets_bytes, state.total_bytes + activations_bytes + buckets_bytes)


def step_collectives(
    shape: ViTShape, *, precision: str, data_parallel: int, grad_accum: int, reshard_after_forward: bool
) -> tuple[Collective, ...]:
    """Return the collectives of one optimizer step; the norm's all-reduce of 4 bytes is left out.

    1. Every micro-step gathers all weights, bP in L + 1 calls, and the blocks once more for backward, b·L·B in L calls,
       unless they are kept after forward.
    2. The last micro-step reduces and scatters the gradients, bP in L + 1 calls.

    A test counts the calls of the engine. Padding of uneven shards is left out.
    """
    if data_parallel == 1:
        return ()
    weight_bytes, total = PRECISION_BYTES[precision], parameters(shape)
    again = shape.depth if reshard_after_forward else 0
    gathers = shape.depth + 1 + again
    gathered_bytes = weight_bytes * (total + again * block_parameters(shape))
    return (
        Collective("all_gather", grad_accum * gathers, grad_accum * gathered_bytes),
        Collective("reduce_scatter", shape.depth + 1, weight_bytes * total),
    )
