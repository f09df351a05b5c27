"""The update rule: torch's own optimizers, over two groups of parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitscale.config.study import OptimizerSection


def build(model: nn.Module, section: OptimizerSection, device: torch.device) -> torch.optim.Optimizer:
    """AdamW or SGD as the study says; biases and norms (one-dimensional parameters) are not decayed, as timm does it.

    Args:
        model: its parameters that require a gradient are optimized.
        section: the run's `optimizer`.
        device: CUDA uses torch's fused kernels.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = device.type == "cuda"
    if section.name == "sgd":
        return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=section.lr, fused=fused)


def exchange(optimizer: torch.optim.Optimizer, others: Mapping[Tensor, Tensor]) -> None:
    """Let an optimizer that has taken no step update other tensors in place of its parameters, one for each."""
    assert not optimizer.state
    for group in optimizer.param_groups:
        group["params"] = [others[parameter] for parameter in group["params"]]
