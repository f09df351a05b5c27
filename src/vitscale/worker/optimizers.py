"""The update rule: torch's and timm's own optimizers, over groups of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm.optim
import torch
from torch import Tensor, nn

from vitscale.config.knobs import OptimizerImpl
from vitscale.config.study import OptimizerSection

_LOOPS: dict[str, dict[str, Any]] = {
    "auto": {"foreach": None, "fused": None},
    "fused": {"foreach": None, "fused": True},
    "foreach": {"foreach": True, "fused": False},
    "for": {"foreach": False, "fused": False},
}
"""What torch and timm are told."""


def build(
    model: nn.Module, section: OptimizerSection, device: torch.device, impl: OptimizerImpl | None = None
) -> torch.optim.Optimizer:
    """The optimizer the study names; biases and norms (one-dimensional parameters) are not decayed, as timm does it.

    Settings the study has no key for are the library's defaults, but for four: LAMB does not clip a second time, and
    adapts what is not one-dimensional even where nothing is decayed; Muon's update is scaled to the size of AdamW's
    (Liu et al., arXiv 2502.16982), and what Muon is not meant for, all but the matrices of the blocks, is AdamW's.

    Args:
        model: its parameters that require a gradient are optimized.
        section: the run's `optimizer`.
        device: where the update runs, the host where state is offloaded; CUDA uses torch's fused kernels where there
            are any.
        impl: how it loops over weights, in place of that.
    """
    if impl == "deepspeed":
        return _of_deepspeed(_groups([*model.parameters()], section), section, device)
    loop = _LOOPS[impl or ("fused" if device.type == "cuda" else "auto")]
    over = {"foreach": loop["foreach"]}  # the others have no fused kernel
    groups = _groups([*model.parameters()], section)
    optimizer: torch.optim.Optimizer
    match section.name:
        case "adamw":
            optimizer = torch.optim.AdamW(groups, lr=section.lr, **loop)
        case "sgd":
            optimizer = torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, **loop)
        case "adafactor":
            optimizer = torch.optim.Adafactor(groups, lr=section.lr, **over)
        case "lamb":
            groups[0]["always_adapt"] = True
            optimizer = timm.optim.Lamb(groups, lr=section.lr, max_grad_norm=None, **over)
        case "lion":
            optimizer = timm.optim.Lion(groups, lr=section.lr, **over)
        case "muon":
            hidden = _with_hidden_matrices(model, section)
            optimizer = timm.optim.Muon(hidden, lr=section.lr, adjust_lr_fn="match_rms_adamw")
    return optimizer


def _of_deepspeed(
    groups: list[dict[str, Any]], section: OptimizerSection, device: torch.device
) -> torch.optim.Optimizer:
    """DeepSpeed's kernels, compiled at their first use: for the device of the weights, or for the host."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion

    offloaded = groups[0]["params"][0].device.type != device.type
    of_device, of_host = (FusedAdam, DeepSpeedCPUAdam) if section.name == "adamw" else (FusedLion, DeepSpeedCPULion)
    kind = of_host if offloaded else of_device
    optimizer: torch.optim.Optimizer = kind(groups, lr=section.lr)
    return optimizer


def _groups(parameters: list[nn.Parameter], section: OptimizerSection, **more: Any) -> list[dict[str, Any]]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": section.weight_decay, **more},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, **more},
    ]


def _with_hidden_matrices(model: nn.Module, section: OptimizerSection) -> list[dict[str, Any]]:
    """The matrices of the blocks first, then what is AdamW's."""
    hidden = [p for p in model.get_submodule("blocks").parameters() if p.ndim == 2]
    taken = {id(parameter) for parameter in hidden}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    matrices, _ = _groups(hidden, section)
    return [matrices, *_groups(others, section, use_fallback=True)]


def exchange(optimizer: torch.optim.Optimizer, others: Mapping[Tensor, Tensor]) -> None:
    """Let an optimizer that has taken no step update other tensors in place of its parameters, one for each."""
    assert not optimizer.state
    for group in optimizer.param_groups:
        group["params"] = [others[parameter] for parameter in group["params"]]
