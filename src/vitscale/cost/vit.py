"""Parameters, FLOP and saved activations of a ViT, in closed form from its shape.

Symbols in the derivations: T tokens, D width, M MLP width, H heads, N patches, p patch size, C classes, L depth. Where
ranks share the blocks (`shape.tensor_parallel`), a rank has 1/ranks of what lies between D and D: heads and M.
"""

from __future__ import annotations

import math

from vitscale.cost.models import ViTShape

Size = tuple[int, ...]

CHANNELS = 3
AUTOCAST = "bf16_autocast"
PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, AUTOCAST: 4}
"""Bytes of one weight, of its gradient, and of the residual stream."""
PRODUCT_BYTES = {**PRECISION_BYTES, AUTOCAST: 2}
"""Bytes of an element that goes into a matrix product or comes out of one."""

STATISTIC_BYTES = 4  # mean, reciprocal deviation and log-sum-exp stay in fp32


def parameters(shape: ViTShape) -> int:
    """Return the number of trainable parameters, exactly timm's."""
    return sum(parameter_tensors(shape))


def parameter_tensors(shape: ViTShape) -> tuple[int, ...]:
    """Return the elements of each parameter tensor, in the order of timm's `model.parameters()`."""
    return tuple(math.prod(size) for size in parameter_sizes(shape))


def parameter_sizes(shape: ViTShape) -> tuple[Size, ...]:
    """Return the size of each parameter tensor, in the order of timm's `model.parameters()`."""
    width, patch = shape.width, shape.patch_size
    sizes: list[Size] = [(1, 1, width)] if shape.class_token else []
    if shape.reg_tokens:
        sizes.append((1, shape.reg_tokens, width))
    sizes.append((1, shape.patches + (shape.prefix_tokens if shape.pos_embed_prefix else 0), width))
    sizes += [(width, CHANNELS, patch, patch), *([(width,)] if shape.patch_bias else [])]
    sizes += _norm(width, shape) * (int(shape.patch_norm) + int(shape.pre_norm))
    sizes += block_sizes(shape) * shape.depth
    if shape.final_norm:
        sizes += _norm(width, shape)
    if shape.global_pool == "map":
        sizes += _pool_tensors(shape)
    if shape.fc_norm:
        sizes += _norm(width, shape)
    sizes += _linear(width, shape.num_classes, bias=True)
    return tuple(sizes)


def block_parameters(shape: ViTShape) -> int:
    """Return the parameters of one block; the others are around the blocks."""
    return sum(math.prod(size) for size in block_sizes(shape))


def _linear(inputs: int, outputs: int, bias: bool) -> list[Size]:
    return [(outputs, inputs), (outputs,)] if bias else [(outputs, inputs)]


def _norm(width: int, shape: ViTShape) -> list[Size]:
    return [(width,)] * (2 if shape.norm_bias else 1)


def block_sizes(shape: ViTShape) -> list[Size]:
    """Return the size of each parameter tensor of one block, as a rank holds it."""
    width, ranks = shape.width, shape.tensor_parallel
    attention, hidden = width // ranks, shape.mlp_width // ranks
    scale: list[Size] = [(width,)] if shape.layer_scale else []
    sizes = [*_norm(width, shape), *_linear(width, 3 * attention, shape.qkv_bias)]
    if shape.qk_norm:
        sizes += _norm(shape.head_width, shape) * 2
    if shape.attn_norm:
        sizes += _norm(width, shape)
    sizes += [*_linear(attention, width, shape.proj_bias), *scale, *_norm(width, shape)]
    match shape.mlp:
        case "mlp":
            sizes += _linear(width, hidden, shape.proj_bias)
        case "glu":
            sizes += _linear(width, 2 * hidden, shape.proj_bias)
        case "swiglu":
            sizes += _linear(width, hidden, shape.proj_bias) * 2
    if shape.mlp_norm:
        sizes += _norm(hidden, shape)
    return [*sizes, *_linear(hidden, width, shape.proj_bias), *scale]


def _pool_tensors(shape: ViTShape) -> list[Size]:
    """Attention pooling: a latent query, q, kv, output projection, norm and a plain MLP, all with biases."""
    width, hidden = shape.width, shape.pool_mlp_width
    sizes = [
        (1, 1, width),
        *_linear(width, width, True),
        *_linear(width, 2 * width, True),
        *_linear(width, width, True),
    ]
    return [*sizes, *_norm(width, shape), *_linear(width, hidden, True), *_linear(hidden, width, True)]


def forward_flop(shape: ViTShape) -> int:
    """Return the matrix-multiplication FLOP of one image's forward pass, a multiply-add counted as 2.

    1. A product (a × b)(b × c) costs 2abc.
    2. Patch embedding: 2·N·3p²·D.
    3. Block: qkv 2·T·D·3D, scores and their product with v 2·T²·D each, output projection 2·T·D², first MLP
       projection 2·T·D·M (twice that when gated), last one 2·T·M·D.
    4. Attention pooling has one query: q and output projection 2·D² each, kv 2·T·D·2D, scores and product
       2·T·D each, MLP 2·2·D·M.
    5. Head: 2·D·C. Norms, softmax, GELU and additions are left out: they are bound by memory, not by arithmetic.
    """
    tokens, width = shape.tokens, shape.width
    projections = 2 if shape.mlp == "mlp" else 3
    attention = 8 * tokens * width**2 + 4 * tokens**2 * width
    block = (attention + projections * 2 * tokens * width * shape.mlp_width) // shape.tensor_parallel
    total = _patch_flop(shape) + shape.depth * block + 2 * width * shape.num_classes
    if shape.global_pool == "map":
        total += 4 * width**2 + 4 * tokens * width**2 + 4 * tokens * width + 4 * width * shape.pool_mlp_width
    return total


def training_flop(shape: ViTShape) -> int:
    """Return the matrix-multiplication FLOP of one image's forward and backward pass.

    1. The backward of a product of A and B makes two products of the same size, for A's and for B's gradient
       (both operands of the attention's products need one as well), so forward + backward = 3 × forward.
    2. The image needs no gradient: the patch embedding's input product is left out once.
    3. What fused attention computes again in backward is work of the kernel, not of the model: left out, as
       in `torch.utils.flop_counter`, which a test compares (ViT-B/16 at 224: 105.15 GFLOP).
    """
    return 3 * forward_flop(shape) - _patch_flop(shape)


def _patch_flop(shape: ViTShape) -> int:
    return 2 * shape.patches * CHANNELS * shape.patch_size**2 * shape.width


def activation_bytes(shape: ViTShape, micro_batch: int, precision: str, *, fused_attention: bool = True) -> int:
    """Return the bytes that autograd keeps between forward and backward, for one micro-batch on one rank.

    Per image, each saved tensor once, with fused attention, so that nothing grows with T²; without it, what
    `scores_bytes` adds:

    1. Block: input of norm 1 (TD), its output (TD), q, k and v (3TD), attention output (TD), input of norm 2 (TD)
       and its output (TD): 8TD; MLP: input of GELU and of the last projection 2TM; gated 4TM (gate, its
       activation, the other half, the product).
    2. Options: qk norm 2TD; attention norm TD; MLP norm TM; layer scale 2TD (what is scaled).
    3. In fp32: mean and reciprocal deviation of each norm 2T (reciprocal only without bias: T), the attention's
       log-sum-exp TH, per-head statistics of the qk norm.
    4. Around the blocks: the image 3·img², input and output of the final norm 2TD (T·D where no norm stands there
       but the pooling reads it), patch norm and pre-norm TD each.
    5. Attention pooling: kv 2TD and a few vectors. The head's input and the loss are a few vectors as well: 2D + 2C.
    6. Autocast: 16 bits as well, and what `kept_by_autocast` adds.

    Checked against `saved_tensors_hooks` on timm models by a test. Memory of the allocator, temporary buffers and of
    kernels is not in it.
    """
    row = shape.tokens * shape.width
    elements = (
        CHANNELS * shape.img_size**2 + shape.depth * _block_elements(shape) + 2 * shape.width + 2 * shape.num_classes
    )
    elements += row * (int(shape.patch_norm) + int(shape.pre_norm) + 2 * int(shape.final_norm))
    if shape.global_pool == "map":
        elements += 2 * row + 6 * shape.width + 2 * shape.pool_mlp_width
    per_image = elements * PRODUCT_BYTES[precision] + _statistics(shape) * STATISTIC_BYTES
    if not fused_attention:
        per_image += shape.depth * scores_bytes(shape, precision)
    return micro_batch * per_image + kept_by_autocast(shape, micro_batch, precision, shape.tokens)


def scores_bytes(shape: ViTShape, precision: str) -> int:
    """Return what one block keeps of one image beyond fused attention where the weights of attention are written out.

    1. The softmax's result, T²H, which the product with v reads too. Under autocast the softmax is computed and kept in
       fp32, and the product keeps a 16-bit copy: 6 bytes an element.
    2. No log-sum-exp, TH in fp32.
    """
    heads = shape.heads // shape.tensor_parallel
    element_bytes = PRODUCT_BYTES[precision] + (PRECISION_BYTES[AUTOCAST] if precision == AUTOCAST else 0)
    return heads * shape.tokens * (shape.tokens * element_bytes - STATISTIC_BYTES)


def kept_by_autocast(shape: ViTShape, micro_batch: int, precision: str, tokens: int) -> int:
    """Return the bytes that autograd keeps under autocast beyond those of 16-bit weights; 0 in other precisions.

    1. The residual stream stays fp32, so the inputs of a block's two norms, tD each, take 2 bytes an element more. The
       final norm's does too, but its output is not kept then.
    2. Matrix products keep the 16-bit copies of their weights, whatever the micro-batch.

    Args:
        shape: the model.
        micro_batch: images.
        precision: of the run.
        tokens: of an image on this rank, t.
    """
    if precision != AUTOCAST:
        return 0
    extra_bytes = PRECISION_BYTES[AUTOCAST] - PRODUCT_BYTES[AUTOCAST]
    inputs = 2 * shape.depth * tokens * shape.width
    copied = sum(math.prod(size) for size in parameter_sizes(shape) if len(size) in _MATRIX_DIMS)
    return micro_batch * inputs * extra_bytes + copied * PRODUCT_BYTES[AUTOCAST]


def autocast_under_zero3(shape: ViTShape, micro_batch: int, tokens: int) -> int:
    """Return what ZeRO-3's own linear layers keep beyond torch's under autocast: mostly less than nothing.

    They keep their inputs as they come and their weights as they are gathered: no 16-bit copies of these, but the
    outputs of a block's two norms in fp32. Arguments as in `kept_by_autocast`.
    """
    extra_bytes = PRECISION_BYTES[AUTOCAST] - PRODUCT_BYTES[AUTOCAST]
    copied = sum(math.prod(size) for size in parameter_sizes(shape) if len(size) == 2)
    return micro_batch * 2 * shape.depth * tokens * shape.width * extra_bytes - copied * PRODUCT_BYTES[AUTOCAST]


_MATRIX_DIMS = (2, 4)  # linear layers and the patch embedding; tokens and positions have three


def _block_elements(shape: ViTShape) -> int:
    row, hidden = shape.tokens * shape.width, shape.tokens * shape.mlp_width
    rows = 4 + 2 * int(shape.qk_norm) + int(shape.attn_norm) + 2 * int(shape.layer_scale)
    hiddens = (2 if shape.mlp == "mlp" else 4) + int(shape.mlp_norm)
    return rows * row + (4 * row + hiddens * hidden) // shape.tensor_parallel


def _statistics(shape: ViTShape) -> int:
    per_norm = 2 if shape.norm_bias else 1
    norms = 2 + int(shape.attn_norm) + int(shape.mlp_norm) + 2 * shape.heads * int(shape.qk_norm)
    block = norms * per_norm + shape.heads // shape.tensor_parallel
    around = int(shape.patch_norm) + int(shape.pre_norm) + int(shape.final_norm)
    return shape.tokens * (shape.depth * block + per_norm * around)
