"""One rank of `test_tensor.py`: each case sharded and whole; what they differ in and cost is left as JSON."""

import json
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from sequence_ranks import backward, gap
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitscale.worker import tensor
from vitscale.worker.distributed import connect

SIZES = {"img_size": 16, "patch_size": 4, "depth": 2, "num_classes": 10, "embed_dim": 96, "num_heads": 6}
CASES = {
    "class token": ("vit_small_patch16_224", {}),
    "no class token": ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "gated MLP, one projection": ("vit_giant_patch14_dinov2", {}),
    "gated MLP, two projections": ("aimv2_huge_patch14_224", {"class_token": False}),
    "pooling by attention": ("test_vit3", {}),
    "drop path": ("vit_small_patch16_224", {"drop_path_rate": 0.5}),
    "under DDP": ("vit_small_patch16_224", {}),
    "under FSDP2": ("vit_small_patch16_224", {}),
}
IMAGES = 4


def build(case):
    """The case's model with weights that leave no gradient small by chance."""
    name, keys = CASES[case]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SIZES, **keys})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.train()


def wrap(case, model, mesh):
    """The model as an engine of torch's wraps it, where the case asks for one."""
    if case == "under DDP":
        return nn.parallel.DistributedDataParallel(model, process_group=mesh.get_group("data"))
    if case == "under FSDP2":
        for block in model.blocks:
            fully_shard(block, mesh=mesh["data"])
        return fully_shard(model, mesh=mesh["data"])
    return model


class LocalFlop(TorchDispatchMode):
    """FLOP of what this rank computes; torch's counter sees the products of DTensors as those of all ranks."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(one, DTensor | AsyncCollectiveTensor) for one in types):
            return NotImplemented  # comes again with the local tensors
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


def flop(model, images):
    """FLOP of forward and backward; the CPU's fused attention has no formula."""
    with sdpa_kernel(SDPBackend.MATH), LocalFlop() as counter:
        model(images).sum().backward()
    return counter.total


def averaged(gradient, mesh, *, reduced):
    """The mean over groups."""
    if not reduced:
        dist.all_reduce(gradient, group=mesh.get_group("data"))
        gradient /= mesh.size(0)
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def same(value, mesh):
    """Whether the ranks of a group have the same bits."""
    low, high = value.clone(), value.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN, group=mesh.get_group("tensor"))
    dist.all_reduce(high, dist.ReduceOp.MAX, group=mesh.get_group("tensor"))
    return bool((low == high).all())


def compare(case, ranks, tensor_ranks):
    """Differences of one case on this rank, and what it costs."""
    torch.manual_seed(2)
    mesh = tensor.mesh("cpu", tensor_ranks)
    images, labels = torch.randn(IMAGES, 3, 16, 16), torch.randint(10, (IMAGES,))
    share = IMAGES // mesh.size(0)
    start = ranks.rank // tensor_ranks * share
    own = slice(start, start + share)
    whole, parts = build(case), build(case)
    tensor.shard(parts, tensor_ranks)
    splits = tensor.splits(parts)
    wrapped = wrap(case, parts, mesh)
    wanted, _ = backward(whole, images, labels)
    own_images = images[own].clone()
    with CommDebugMode() as communication:
        logits, kept = backward(wrapped, own_images, labels[own])
    found, replicated = {}, True
    for name, parameter in parts.named_parameters():
        found[name] = averaged(parameter.grad, mesh, reduced=case.startswith("under"))
        replicated = replicated and (name in splits or same(found[name], mesh))
    norm = tensor.total_norm(found, splits)
    expected = {name: one.grad for name, one in whole.named_parameters()}
    gaps = {name: gap(tensor.whole(found[name], splits.get(name)), one) for name, one in expected.items()}
    return {
        "logits": gap(logits, wanted[own]),
        "gradients": gaps,
        "norm": gap(norm, nn.utils.get_total_norm(expected.values())),
        "replicated": replicated,
        "parameters": sum(one.numel() for one in parts.parameters()),
        "activation_bytes": [backward(build(case), own_images, labels[own])[1], kept],
        "training_flop": flop(parts, own_images) if wrapped is parts else None,
        "all_reduces": communication.get_total_counts(),
    }


def main(out, tensor_ranks, cases):
    """Every case, in order."""
    torch.set_num_threads(1)
    ranks = connect("cpu", "gloo")
    found = {case: compare(case, ranks, tensor_ranks) for case in cases}
    Path(out, f"{ranks.rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
