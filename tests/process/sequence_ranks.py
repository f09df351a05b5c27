"""One rank of `test_sequence.py`: each case sharded and whole; what they differ in and cost is left as JSON."""

import contextlib
import json
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitscale.worker import sequence
from vitscale.worker.distributed import connect

SIZES = {"img_size": 32, "patch_size": 8, "depth": 2, "num_classes": 10}
NO_CLASS = {"class_token": False, "global_pool": "avg"}
CASES = {
    f"{name}, {kind}": (f"vit_{name}_patch16_224", keys)
    for name in ("tiny", "small", "base")
    for kind, keys in (("class token", {}), ("no class token", NO_CLASS))
} | {
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "average beside a class token": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "norms in attention": ("vit_tiny_patch16_224", {"qk_norm": True, "scale_attn_norm": True, "init_values": 0.5}),
    "pooling by attention": ("test_vit3", {}),
    "two heads": ("test_vit", {}),
    "norm before the blocks": ("vit_base_patch32_clip_224", {"depth": 1}),
    "drop path": ("vit_tiny_patch16_224", {"drop_path_rate": 0.5, "depth": 4}),
    "checkpointed blocks": ("vit_tiny_patch16_224", {}),
    "under DDP": ("vit_tiny_patch16_224", {}),
    "under FSDP2": ("vit_tiny_patch16_224", {}),
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
    model.set_grad_checkpointing(case == "checkpointed blocks")
    return model.train()


class Kept:
    """Bytes that autograd keeps for backward, each storage once and no weights."""

    def __init__(self, model):
        own = [one.to_local() if hasattr(one, "to_local") else one for one in model.parameters()]
        self.weights = {one.untyped_storage().data_ptr() for one in own}
        self.storages = {}

    def pack(self, tensor):
        own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        own = own.trigger_wait() if hasattr(own, "trigger_wait") else own  # what an all-reduce has not finished yet
        storage = own.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    def bytes(self):
        return sum(size for size, _ in self.storages.values())


def backward(model, images, labels):
    """Logits, and the bytes kept between forward and backward."""
    kept = Kept(model)
    torch.manual_seed(1)  # drop path
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
    size = kept.bytes()
    loss.backward()
    return logits.detach(), size


def flop(model, images):
    """FLOP of forward and backward; the CPU's fused attention has no formula in the counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops()


@contextlib.contextmanager
def counted():
    """Bytes of every all-to-all."""
    original, sizes = dist.all_to_all_single, []

    def count(taken, sent, *args, **kwargs):
        sizes.append(sent.numel() * sent.element_size())
        return original(taken, sent, *args, **kwargs)

    dist.all_to_all_single = count
    try:
        yield sizes
    finally:
        dist.all_to_all_single = original


def wrap(case, model):
    """The model as an engine of torch's wraps it, where the case asks for one."""
    if case == "under DDP":
        return nn.parallel.DistributedDataParallel(model)
    if case == "under FSDP2":
        for block in model.blocks:
            fully_shard(block)
        return fully_shard(model)
    return model


def averaged(gradient, *, reduced):
    """The mean over all ranks, whole."""
    if reduced:
        return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    dist.all_reduce(gradient)
    return gradient / dist.get_world_size()


def gap(found, wanted):
    """Norm of the difference, relative to what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def compare(case, ranks, sequence_ranks):
    """Differences of one case on this rank, and what it costs."""
    torch.manual_seed(2)
    groups = ranks.world_size // sequence_ranks
    images, labels = torch.randn(IMAGES, 3, 32, 32), torch.randint(10, (IMAGES,))
    share = IMAGES // groups
    own = slice(ranks.rank // sequence_ranks * share, (ranks.rank // sequence_ranks + 1) * share)
    own_images = images[own].clone()
    whole, parts = build(case), build(case)
    sequence.shard(parts, sequence_ranks)
    wrapped = wrap(case, parts)
    wanted, _ = backward(whole, images, labels)
    with counted() as sent:
        logits, kept = backward(wrapped, own_images, labels[own])
    gradients = {}
    for (name, one), other in zip(parts.named_parameters(), whole.parameters(), strict=True):
        gradients[name] = gap(averaged(one.grad, reduced=case.startswith("under")), other.grad)
    return {
        "logits": gap(logits, wanted[own]),
        "gradients": gradients,
        "activation_bytes": kept,
        "training_flop": flop(parts, own_images) if parts.embed_dim < 200 and wrapped is parts else None,
        "sent": [len(sent), sum(sent)],
    }


def main(out, sequence_ranks, cases):
    """Every case, in order."""
    torch.set_num_threads(1)
    ranks = connect("cpu", "gloo")
    found = {case: compare(case, ranks, sequence_ranks) for case in cases}
    Path(out, f"{ranks.rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
