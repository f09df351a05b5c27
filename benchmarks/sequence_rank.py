"""One rank of `sequence_parallel`: the whole model, our sharing of tokens and DeepSpeed's ViT wrapper, in turns."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from vitscale.worker import sequence
from vitscale.worker.distributed import connect
from vitscale.worker.engines import prepare

WAYS = ("whole", "ours", "deepspeed")


def build(way: str, img_size: int, ranks: int) -> nn.Module:
    """ViT-S of two blocks, tokens pooled by their mean, the same weights each way."""
    torch.manual_seed(0)
    sizes = {"img_size": img_size, "depth": 2, "num_classes": 10}
    model: Any = timm.create_model("vit_small_patch16_224", class_token=False, global_pool="avg", **sizes)
    if way != "whole":
        sequence.shard(model, ranks)
    if way == "deepspeed":
        from deepspeed.sequence import UlyssesSPViTAttention

        for block in model.blocks:
            del block.attn.forward  # timm's own again
            block.attn = UlyssesSPViTAttention(block.attn, dist.group.WORLD, has_cls_token=False)
    return model  # type: ignore[no-any-return]


def backward(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Leave gradients; the bytes autograd kept for them, each storage once and no weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = functional.cross_entropy(model(images), labels)
    size = sum(one for one, _ in kept.values())
    loss.backward()  # type: ignore[no-untyped-call]
    return size


def averaged(model: nn.Module) -> list[Tensor]:
    """Gradients as a data-parallel engine has them; zeros where backward left none."""
    found = []
    for parameter in model.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(gradient)
        found.append(gradient / dist.get_world_size())
    return found


def timed(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Seconds of one forward and backward pass, from all ranks ready to this one done."""
    model.zero_grad()
    dist.barrier()
    began = time.perf_counter()
    functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - began


def main(out: Path, img_size: int, turns: int) -> None:
    """Measure each way and write what rank 0 saw."""
    torch.set_num_threads(1)
    ranks = connect("cpu", "gloo")
    prepare("deepspeed", "cpu")
    models = {way: build(way, img_size, ranks.world_size) for way in WAYS}
    torch.manual_seed(1)
    images, labels = torch.randn(1, 3, img_size, img_size), torch.tensor([3])
    kept = {way: backward(model, images, labels) for way, model in models.items()}
    gradients = {way: averaged(model) for way, model in models.items()}
    pairs = {way: zip(gradients[way], gradients["whole"], strict=True) for way in WAYS}
    gaps = {way: max(float((a - b).norm() / b.norm()) for a, b in pairs[way]) for way in WAYS}
    assert all(math.isfinite(gap) for gap in gaps.values())
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns):
        for way in WAYS if turn % 2 else reversed(WAYS):
            seconds[way].append(timed(models[way], images, labels))
    if ranks.rank == 0:
        out.write_text(json.dumps({"kept_bytes": kept, "gaps": gaps, "seconds": seconds}))
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
