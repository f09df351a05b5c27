"""Sequence parallelism (Ulysses) in closed form: what the busiest rank of a group computes, keeps and sends.

Symbols: T tokens, t = ceil(T / ranks) tokens of a rank, H heads, h = ceil(H / ranks) heads of a rank, D width, w head
width, M MLP width. Where neither T nor H divides, the first rank has the most of both.
"""

from __future__ import annotations

from dataclasses import replace

from vitscale.cost import vit
from vitscale.cost.collectives import Collective
from vitscale.cost.models import ViTShape


def shares(total: int, ranks: int) -> tuple[int, ...]:
    """Deal out tokens or heads in order, as evenly as they go: the first ranks take one more."""
    each, more = divmod(total, ranks)
    return tuple(each + (rank < more) for rank in range(ranks))


def training_flop(shape: ViTShape, ranks: int) -> int:
    """Return the matrix-multiplication FLOP of one image's forward and backward pass on one rank.

    1. Projections and MLP see t tokens, the two products of attention T² for h heads of width w.
    2. Patch embedding, pooling and head are computed on every rank: `vit.training_flop` less what others do.
    """
    tokens, own_width = shape.tokens, _own_width(shape, ranks)
    projections = 2 if shape.mlp == "mlp" else 3
    per_token = 8 * shape.width**2 + projections * 2 * shape.width * shape.mlp_width
    elsewhere = (tokens - _own_tokens(shape, ranks)) * per_token + 4 * tokens**2 * (shape.width - own_width)
    return vit.training_flop(shape) - 3 * shape.depth * elsewhere


def activation_bytes(
    shape: ViTShape, micro_batch: int, precision: str, ranks: int, *, fused_attention: bool = True
) -> int:
    """Return the bytes that autograd keeps between forward and backward, for one micro-batch on one rank.

    Per image, with fused attention, without which `vit.scores_bytes` of own heads come to it; without sequence
    parallelism it is `vit.activation_bytes`:

    1. Block, own tokens: input and output of both norms 4tD, input of the output projection tD, MLP 2tM (gated 4tM).
    2. Block, own heads: q, k, v and attention output 4Thw. The output is kept twice, before and after the all-to-all.
    3. Options: qk norm 3tD (its input is a view of q, k and v), attention norm tD, MLP norm tM, layer scale 2tD.
    4. Around the blocks: the image and the patch norm's TD whole, pre-norm tD, input of the final norm tD; attention
       pooling reads all tokens, 3TD.

    So the blocks' part is 17/16 of 1/ranks of a plain block with M = 4D, where tokens and heads divide.
    A process test compares it with what autograd saves.
    """
    if ranks == 1:
        return vit.activation_bytes(shape, micro_batch, precision, fused_attention=fused_attention)
    own, width, tokens = _own_tokens(shape, ranks), shape.width, shape.tokens
    rows = 5 + 3 * int(shape.qk_norm) + int(shape.attn_norm) + 2 * int(shape.layer_scale)
    hiddens = (2 if shape.mlp == "mlp" else 4) + int(shape.mlp_norm)
    block = own * (rows * width + hiddens * shape.mlp_width) + 4 * tokens * _own_width(shape, ranks)
    around = own * width * (int(shape.pre_norm) + int(shape.final_norm)) + tokens * width * int(shape.patch_norm)
    elements = vit.CHANNELS * shape.img_size**2 + shape.depth * block + around + 2 * width + 2 * shape.num_classes
    if shape.global_pool == "map":
        elements += 3 * tokens * width + 6 * width + 2 * shape.pool_mlp_width
    per_image = elements * vit.PRODUCT_BYTES[precision] + _statistics(shape, ranks) * vit.STATISTIC_BYTES
    if not fused_attention:
        per_image += shape.depth * vit.scores_bytes(replace(shape, heads=shares(shape.heads, ranks)[0]), precision)
    return micro_batch * per_image + vit.kept_by_autocast(shape, micro_batch, precision, own)


def _statistics(shape: ViTShape, ranks: int) -> int:
    """Means and reciprocal deviations of norms on own tokens, log-sum-exp of own heads."""
    per_norm = 2 if shape.norm_bias else 1
    norms = 2 + int(shape.attn_norm) + int(shape.mlp_norm) + 2 * shape.heads * int(shape.qk_norm)
    own = shape.depth * norms + int(shape.pre_norm) + int(shape.final_norm)
    sums = shape.depth * shares(shape.heads, ranks)[0]
    return per_norm * (own * _own_tokens(shape, ranks) + int(shape.patch_norm) * shape.tokens) + shape.tokens * sums


def collectives(
    shape: ViTShape, *, micro_batch: int, grad_accum: int, precision: str, ranks: int
) -> tuple[Collective, ...]:
    """Return what one rank sends within its group in one optimizer step; () for a group of one.

    Per image and block, forward sends q, k and v of own tokens, 3tD, and the attention output of own heads, Thw;
    backward their gradients the other way, tD and 3Thw. After the last norm the class token goes to every rank, or all
    tokens where the pooling reads them; its gradient needs no exchange.
    """
    if ranks == 1:
        return ()
    own = _own_tokens(shape, ranks)
    pooled = 1 if shape.global_pool == "token" else own
    block = 4 * own * shape.width + 4 * shape.tokens * _own_width(shape, ranks)
    per_image = shape.depth * block * vit.PRODUCT_BYTES[precision]
    per_image += ranks * pooled * shape.width * vit.PRECISION_BYTES[precision]
    sent_bytes = grad_accum * micro_batch * per_image
    return (Collective("all_to_all", grad_accum * (4 * shape.depth + 1), sent_bytes),)


def _own_tokens(shape: ViTShape, ranks: int) -> int:
    return shares(shape.tokens, ranks)[0]


def _own_width(shape: ViTShape, ranks: int) -> int:
    return shares(shape.heads, ranks)[0] * shape.head_width
