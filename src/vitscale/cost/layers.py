"""FLOP and bytes of a ViT's forward pass by class of layer: what its roofline is drawn from. Symbols as in `vit`."""

from __future__ import annotations

from typing import NamedTuple

from vitscale.cost.models import ViTShape
from vitscale.cost.vit import CHANNELS, PRECISION_BYTES, PRODUCT_BYTES

PLAIN_MLP = "mlp"


class LayerCost(NamedTuple):
    """All layers of a class together."""

    flop: int | None
    """Of matrix products, a multiply-add counted as 2; None where the class has none."""
    bytes: int
    """Inputs, weights and outputs, each moved once."""


def layer_costs(shape: ViTShape, images: int, passes: int, precision: str) -> dict[str, LayerCost]:
    """Return what each class of layer computes and moves in some forward passes, in the order of computation.

    1. A linear layer from a to b over r rows: 2rab FLOP; ra in, ab and its bias, rb out.
    2. Attention, fused: 4T²D FLOP of an image; q, k and v in, the values out, 4TD. Scores are not moved.
    3. A norm moves TD in and TD out and computes no product: two in a block, and the final one.
    4. Products move 16-bit elements under autocast, norms 32-bit ones.

    Args:
        shape: with a plain MLP, on one rank.
        images: of all passes together.
        passes: in each of which the weights are read once.
        precision: of the run.
    """
    width, hidden, depth = shape.width, shape.mlp_width, shape.depth
    tokens, patches = images * shape.tokens, images * shape.patches
    element, wide = PRODUCT_BYTES[precision], PRECISION_BYTES[precision]

    def linear(rows: int, inputs: int, outputs: int, bias: bool, layers: int, rows_in: int | None = None) -> LayerCost:
        """`rows_in`: elements that come in, where they are not `rows * inputs`."""
        weights = passes * (inputs * outputs + (outputs if bias else 0))
        moved = (rows * inputs if rows_in is None else rows_in) + weights + rows * outputs
        return LayerCost(layers * 2 * rows * inputs * outputs, layers * element * moved)

    norms = 2 * depth + int(shape.final_norm)
    norm = 2 * tokens * width + passes * width * (2 if shape.norm_bias else 1)
    pixels = CHANNELS * shape.patch_size**2
    return {
        "patch_embed": linear(
            patches, pixels, width, shape.patch_bias, 1, rows_in=images * CHANNELS * shape.img_size**2
        ),
        "norm": LayerCost(None, norms * wide * norm),
        "qkv": linear(tokens, width, 3 * width, shape.qkv_bias, depth),
        "attention": LayerCost(depth * 4 * tokens * shape.tokens * width, depth * element * 4 * tokens * width),
        "proj": linear(tokens, width, width, shape.proj_bias, depth),
        "fc1": linear(tokens, width, hidden, shape.proj_bias, depth),
        "fc2": linear(tokens, hidden, width, shape.proj_bias, depth),
        "head": linear(images, width, shape.num_classes, True, 1),
    }
