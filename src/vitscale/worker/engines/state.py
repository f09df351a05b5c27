"""Weights and optimizer state of an engine's rank as one safetensors file: nothing in it is a program.

Learning rates are not in it: the schedule sets them by the number of the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_WEIGHT, _STATE, _GROUP = "weight/", "optimizer/", "group/"


def save(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Write weights by name, and what the optimizer keeps of each parameter and of each group by number and key."""
    tensors = {_WEIGHT + name: weight.detach().contiguous() for name, weight in weights.items()}
    held = optimizer.state_dict()
    for prefix, numbered in ((_STATE, held["state"].items()), (_GROUP, enumerate(held["param_groups"]))):
        for number, kept in numbered:
            found = ((key, value.contiguous()) for key, value in kept.items() if isinstance(value, Tensor))
            tensors |= {f"{prefix}{number}/{key}": value for key, value in found}
    save_file(tensors, path)


@torch.no_grad()
def load(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Copy the weights of a file into these ones, and its optimizer state into this one."""
    tensors = load_file(path)
    for name, weight in weights.items():
        weight.copy_(tensors.pop(_WEIGHT + name))
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        place, number, key = name.split("/")
        if f"{place}/" == _GROUP:
            groups[int(number)][key] = tensor
        else:
            state.setdefault(int(number), {})[key] = _laid_out_as(updated[int(number)], tensor)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer updates, and what it keeps of each."""
    updated = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return [*updated, *optimizer.state, *kept]


def _laid_out_as(parameter: Tensor, kept: Tensor) -> Tensor:
    """What is kept of a parameter with its strides: the order of a sum is its last bit."""
    return torch.empty_like(parameter, dtype=kept.dtype).copy_(kept) if kept.shape == parameter.shape else kept
