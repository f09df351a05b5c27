"""What each optimizer keeps between steps, from the sizes of the weights."""

from __future__ import annotations

import math

from vitscale.cost.models import ViTShape
from vitscale.cost.vit import Size, block_sizes, parameter_sizes, parameters

_TENSORS = {"adamw": 2, "lamb": 2, "lion": 1, "sgd": 1}
"""Tensors of the weight's own size that an optimizer keeps of each of them."""


def moment_elements(shape: ViTShape, optimizer: str) -> int:
    """Return the fp32 elements that the optimizer keeps of all weights; counters of steps are left out.

    1. AdamW and LAMB keep two moments of each weight, Lion and SGD with momentum one: 2P and P.
    2. Muon keeps one of the matrices of the blocks; the others are AdamW's: 2P less those matrices.
    3. Adafactor keeps the mean square of each row and column of the last two dimensions, of a vector all squares.

    A test compares what the optimizers of the worker hold.

    Args:
        shape: the model.
        optimizer: as `optimizer.name` of a study; SGD with momentum.
    """
    if optimizer == "adafactor":
        return sum(_factored(size) for size in parameter_sizes(shape))
    if optimizer == "muon":
        matrices = shape.depth * sum(math.prod(size) for size in block_sizes(shape) if len(size) == 2)
        return 2 * parameters(shape) - matrices
    return _TENSORS[optimizer] * parameters(shape)


def _factored(size: Size) -> int:
    if len(size) == 1:
        return size[0]
    *others, rows, columns = size
    return math.prod(others) * (rows + columns)
