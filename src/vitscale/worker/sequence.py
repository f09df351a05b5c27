"""Ulysses over patches: neighbouring ranks share the tokens of each image (Jacobs et al. 2023, arXiv 2309.14509).

1. Every rank embeds the whole image and keeps its run of tokens, class token and registers counted with the patches.
2. In a block, norms, projections and MLP see own tokens. Around attention an all-to-all turns own tokens with all heads
   into all tokens with own heads, and back.
3. After the last norm the tokens that are pooled are gathered; every rank of the group has the head's logits.

Tokens and heads are dealt out as evenly as they go, the first ranks taking one more, and the all-to-all sends pieces of
unequal size. So nothing is padded and no mask is needed, fused attention stays in use, and a rank may have no head.

Gradients: the ranks of a group compute the same loss, and backward is that of its sum over the group. What a rank holds
of a gradient is its part of `ranks` times the image's; the mean over all ranks of the world, which every data-parallel
engine takes, is the gradient of the mean loss. Engines therefore see ordinary data parallelism.

Random numbers: ranks of a group are seeded alike, so drop path drops the same images on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from vitscale.cost.sequence import shares
from vitscale.errors import UsageError


@dataclass(frozen=True)
class Sharing:
    """Who of a sequence group holds what."""

    group: dist.ProcessGroup
    rank: int
    """This rank within the group."""
    tokens: tuple[int, ...]
    """Tokens of each rank outside attention."""
    heads: tuple[int, ...]
    """Heads of each rank inside attention."""

    def exchange(self, sent: Tensor, received: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """Send the next `sizes[r]` elements of `sent` to each rank r and get `received[r]` from it, flat."""
        taken = sent.new_empty(sum(received))
        dist.all_to_all_single(taken, sent.reshape(-1), list(received), list(sizes), group=self.group)
        return taken


def shard(model: nn.Module, ranks: int) -> None:
    """Make a timm ViT share its tokens among groups of `ranks` neighbouring ranks. All ranks of the world at once.

    Forward takes the same images on every rank of a group and gives all of them the same logits. Parameters, their
    names and the state dict stay as they are.

    Raises:
        UsageError: the model is not a Vision Transformer of timm's plain form.
    """
    require_form(model, "sequence_parallel")
    vit: Any = model
    group = _group(ranks)
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    heads = vit.blocks[0].attn.num_heads
    sharing = Sharing(group, dist.get_rank(group), shares(tokens, ranks), shares(heads, ranks))
    for block in vit.blocks:
        block.attn.forward = partial(_attend, block.attn, sharing)
    pooled = (1, *[0] * (ranks - 1)) if vit.global_pool == "token" else sharing.tokens
    vit.norm_pre.register_forward_pre_hook(lambda _module, args: (_own(args[0], sharing),))
    vit.norm.register_forward_hook(lambda _module, _args, output: _Pooled.apply(output, sharing, pooled))


def require_form(model: nn.Module, key: str) -> None:
    """Refuse, for the study key, a model whose tokens do not pass through blocks with timm's plain attention.

    Raises:
        UsageError: naming the class and what it lacks.
    """
    blocks = getattr(model, "blocks", ())
    if not isinstance(model, VisionTransformer) or not all(
        type(getattr(one, "attn", None)) is Attention for one in blocks
    ):
        raise UsageError(
            f"`{key}` needs timm's `VisionTransformer` with `blocks` of plain `attn`, not `{type(model).__name__}`",
            f"{key}=1, or a model such as `vit_base_patch16_224`",
        )


@cache
def _group(ranks: int) -> dist.ProcessGroup:
    """This rank's group of `ranks` neighbours; made once in a process, by all ranks of the world."""
    group, _ = dist.new_subgroups(ranks)
    return group


def _own(tokens: Tensor, sharing: Sharing) -> Tensor:
    """This rank's [n, own, width] of all tokens [n, tokens, width], as a copy: a view would keep all of them alive."""
    assert tokens.shape[1] == sum(sharing.tokens)
    return tokens.narrow(1, sum(sharing.tokens[: sharing.rank]), sharing.tokens[sharing.rank]).clone()


def _attend(attn: Any, sharing: Sharing, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
    """timm's `Attention.forward` of own tokens [n, own, width], with an all-to-all before and after the product."""
    assert attn_mask is None
    assert not is_causal
    gate = None if attn.gate is None else attn.gate(x).sigmoid()
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim))
    if not isinstance(attn.q_norm, nn.Identity):
        q, k, v = qkv.unbind(2)
        qkv = torch.stack([attn.q_norm(q), attn.k_norm(k), v], 2)
    # Tokens come first while they travel: what arrives from rank after rank is then already in order.
    q, k, v = _ToHeads.apply(qkv.transpose(0, 1), sharing).permute(2, 1, 3, 0, 4)
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    x = _ToTokens.apply(mixed.permute(2, 0, 1, 3), sharing).transpose(0, 1).flatten(2)
    x = attn.norm(x)
    projected: Tensor = attn.proj_drop(attn.proj(x if gate is None else x * gate))
    return projected


def _to_heads(x: Tensor, sharing: Sharing) -> Tensor:
    """Own tokens with all heads [own, …, heads, width] become all tokens with own heads [tokens, …, own, width]."""
    pieces = torch.split(x, list(sharing.heads), -2)
    sizes = [piece.numel() for piece in pieces]
    sent = x.new_empty(x.numel())
    for hole, piece in zip(torch.split(sent, sizes), pieces, strict=True):
        hole.view(piece.shape).copy_(piece)
    row = pieces[sharing.rank].shape[1:]
    taken = sharing.exchange(sent, [count * row.numel() for count in sharing.tokens], sizes)
    return taken.view(sum(sharing.tokens), *row)


def _to_tokens(x: Tensor, sharing: Sharing) -> Tensor:
    """All tokens with own heads [tokens, …, own, width] become own tokens with all heads [own, …, heads, width]."""
    *middle, _, width = x.shape[1:]
    shapes = [(sharing.tokens[sharing.rank], *middle, heads, width) for heads in sharing.heads]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    taken = sharing.exchange(x, sizes, [count * x.shape[1:].numel() for count in sharing.tokens])
    return torch.cat([part.view(shape) for part, shape in zip(torch.split(taken, sizes), shapes, strict=True)], -2)


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sharing: Sharing) -> Tensor:
        ctx.sharing = sharing
        return _to_heads(x, sharing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _to_tokens(grad, ctx.sharing), None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sharing: Sharing) -> Tensor:
        ctx.sharing = sharing
        return _to_tokens(x, sharing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _to_heads(grad, ctx.sharing), None


class _Pooled(torch.autograd.Function):
    """The first `counts[r]` tokens of each rank r, on every rank: [n, own, width] to [n, sum of counts, width]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sharing: Sharing, counts: tuple[int, ...]) -> Tensor:
        ctx.shape, ctx.sharing, ctx.counts = x.shape, sharing, counts
        own = x[:, : counts[sharing.rank]].transpose(0, 1).reshape(-1)
        row = x.shape[0] * x.shape[2]
        taken = sharing.exchange(
            own.repeat(len(counts)), [count * row for count in counts], [own.numel()] * len(counts)
        )
        return taken.view(-1, x.shape[0], x.shape[2]).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # Every rank has the same gradient of the same loss: their sum needs no communication.
        rank, counts = ctx.sharing.rank, ctx.counts
        own = grad.new_zeros(ctx.shape)
        own[:, : counts[rank]] = len(counts) * grad.narrow(1, sum(counts[:rank]), counts[rank])
        return own, None, None
