"""Tensor parallelism as in Megatron-LM: neighbouring ranks share the heads and the MLP of every block.

1. `attn.qkv` and the MLP's first projection are split by outputs (column-parallel), `attn.proj` and `mlp.fc2` by inputs
   (row-parallel). Between them a rank computes its own heads and hidden units; what the ranks make of them is added up
   (Shoeybi et al. 2019, arXiv 1909.08053). torch's `parallelize_module` puts the all-reduces there: two in forward, and
   for the gradients of the column-parallel inputs two in backward.
2. All else is replicated. Every rank of a group takes the same images and has the same logits.

Heads stay whole: timm fuses q, k and v into rows [3, heads, head width], so the rows are first put in the order of the
ranks, [ranks, 3, own heads, head width], and an even split gives each rank q, k and v of its heads. So it is for the
two halves of a gated MLP. `whole` puts the rows back.

What a rank holds are plain tensors, and DTensor is seen in the four projections only: DDP, FSDP2, the optimizer and
checkpoints take a rank's part as they would take a whole weight. Gradients of replicated weights are equal on all ranks
of a group, to the last bit; those of split weights are of the own part. Engines average both over `data_group`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from timm.layers.mlp import GluMlp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn import functional

from vitscale.errors import UsageError
from vitscale.worker.sequence import require_form

_COLUMNS = ("attn.qkv", "attn.gate", "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x")
_ROWS = ("attn.proj", "mlp.fc2")


class Split(NamedTuple):
    """How a weight is dealt out."""

    group: dist.ProcessGroup
    """The ranks that have a part each."""
    dim: int
    """The dimension that is divided."""
    parts: int
    """Projections fused along it: 3 for q, k and v."""


@cache
def mesh(device: str, ranks: int) -> DeviceMesh:
    """All ranks as [`data`, `tensor`], groups of `ranks` neighbours; made once in a process, by all ranks at once."""
    return init_device_mesh(device, (dist.get_world_size() // ranks, ranks), mesh_dim_names=("data", "tensor"))


def data_group(device: str, ranks: int | None) -> dist.ProcessGroup | None:
    """The ranks that have the same part of the weights and other images; None for all, where no weight is divided."""
    return None if ranks is None else mesh(device, ranks).get_group("data")


def shard(model: nn.Module, ranks: int) -> None:
    """Keep this rank's part of a timm ViT's blocks. All ranks of the world at once, with the same weights.

    Forward takes the same images on every rank of a group and gives all of them the same logits. Parameters keep their
    names; `splits` tells which are parts.

    Raises:
        UsageError: not a Vision Transformer of timm's plain form, a norm over what is divided, or heads or hidden
            units that do not divide.
    """
    require_form(model, "tensor_parallel")
    vit: Any = model
    tensor = mesh(next(model.parameters()).device.type, ranks)["tensor"]
    for block in vit.blocks:
        _require_whole_shares(block, ranks)
        _shard(block, tensor)


def splits(model: nn.Module) -> dict[str, Split]:
    """The parameters of which this rank has a part, by name; empty for a model that is not sharded."""
    found = {name: getattr(parameter, "model_split", None) for name, parameter in model.named_parameters()}
    return {name: split for name, split in found.items() if split is not None}


def rank(parts: Mapping[str, Split]) -> int:
    """This rank among those that share the weights."""
    return dist.get_rank(_group(parts))


def _group(parts: Mapping[str, Split]) -> dist.ProcessGroup:
    return next(iter(parts.values())).group


@torch.no_grad()
def whole(weight: Tensor, split: Split | None) -> Tensor:
    """timm's weight of the ranks' parts, on every rank of their group; all of them at once."""
    if split is None:
        return weight
    ranks = dist.get_world_size(split.group)
    parts = [torch.empty_like(weight, memory_format=torch.contiguous_format) for _ in range(ranks)]
    dist.all_gather(parts, weight.contiguous(), group=split.group)
    joined = torch.cat(parts, split.dim)
    return joined if split.parts == 1 else _swapped(joined, ranks, split.parts)


def total_norm(gradients: Mapping[str, Tensor], parts: Mapping[str, Split]) -> Tensor:
    """The norm of all gradients by parameter name, each element of the model counted once; `parts` are `splits`."""
    if not parts:
        return nn.utils.get_total_norm(gradients.values())
    square = own_square(gradients, parts)
    dist.all_reduce(square, group=_group(parts))
    return square.sqrt()


def own_square(gradients: Mapping[str, Tensor], parts: Mapping[str, Split]) -> Tensor:
    """This rank's share of the squared norm: the sum over the ranks that share the weights is the model's."""
    rest = nn.utils.get_total_norm([one for name, one in gradients.items() if name not in parts]) ** 2
    if not parts:
        return rest
    square = nn.utils.get_total_norm([gradients[name] for name in parts]) ** 2
    return square + rest / dist.get_world_size(_group(parts))


def _require_whole_shares(block: Any, ranks: int) -> None:
    heads, hidden = block.attn.num_heads, block.mlp.fc2.in_features
    odd = [f"{count} {what}" for what, count in (("heads", heads), ("hidden units", hidden)) if count % ranks]
    norms = [one for one in (block.attn.norm, block.attn.q_norm, block.mlp.norm) if not isinstance(one, nn.Identity)]
    if odd or norms:
        why = f"{odd[0]} do not divide" if odd else "its blocks have a norm over what is divided"
        raise UsageError(f"`tensor_parallel = {ranks}`: {why}", "tensor_parallel=1")


def _shard(block: Any, tensor: DeviceMesh) -> None:
    """Divide one block's projections, timm's fused ones part by part."""
    ranks = tensor.size()
    linears = {name: module for name, module in block.named_modules() if name in (*_COLUMNS, *_ROWS)}
    fused = {"attn.qkv": 3, "mlp.fc1": 2 if isinstance(block.mlp, GluMlp) else 1}
    for name, linear in linears.items():
        for parameter in linear.parameters():
            if fused.get(name, 1) > 1:
                parameter.data = _swapped(parameter.data, fused[name], ranks)
    plan: dict[str, ParallelStyle] = {
        name: ColwiseParallel() if name in _COLUMNS else RowwiseParallel() for name in linears
    }
    parallelize_module(block, tensor, plan, src_data_rank=None)
    for name, linear in linears.items():
        _keep_parts(linear, tensor, fused.get(name, 1))
    block.attn.num_heads //= ranks
    block.attn.attn_dim //= ranks


def _keep_parts(linear: nn.Module, tensor: DeviceMesh, parts: int) -> None:
    """Make a projection's DTensors plain parameters; its forward makes DTensors of them for the product."""
    placements = {}
    for name, parameter in list(linear.named_parameters()):
        assert isinstance(parameter, DTensor)
        placements[name] = parameter.placements
        local = parameter.to_local().detach().clone(memory_format=torch.contiguous_format)
        own: Any = nn.Parameter(local, requires_grad=parameter.requires_grad)
        (placement,) = parameter.placements
        if isinstance(placement, Shard):
            own.model_split = Split(tensor.get_group(), placement.dim, parts)
        linear.register_parameter(name, own)
    linear.forward = partial(_product, linear, tensor, placements)


def _product(
    linear: nn.Module, tensor: DeviceMesh, placements: Mapping[str, tuple[Placement, ...]], x: DTensor
) -> Tensor:
    own = {
        name: DTensor.from_local(parameter, tensor, placements[name], run_check=False)
        for name, parameter in linear.named_parameters()
    }
    return functional.linear(x, own["weight"], own.get("bias"))


def _swapped(rows: Tensor, outer: int, inner: int) -> Tensor:
    """Rows in the order [outer, inner, …] become rows in the order [inner, outer, …]."""
    return rows.reshape(outer, inner, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
