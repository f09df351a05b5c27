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

_WEIGHT, _STATE = "weight/", "optimizer/"


def save(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Write weights by name, and what the optimizer keeps of each of its parameters by number and key."""
    tensors = {_WEIGHT + name: weight.detach() for name, weight in weights.items()}
    for number, kept in optimizer.state_dict()["state"].items():
        tensors |= {f"{_STATE}{number}/{key}": value for key, value in kept.items() if value is not None}
    save_file(tensors, path)


@torch.no_grad()
def load(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Copy the weights of a file into these ones, and its optimizer state into this one."""
    tensors = load_file(path)
    state: dict[int, dict[str, Any]] = {}
    for name, weight in weights.items():
        weight.copy_(tensors.pop(_WEIGHT + name))
    for name, tensor in tensors.items():
        number, key = name.removeprefix(_STATE).split("/")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer updates, and what it keeps of each."""
    updated = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return [*updated, *optimizer.state, *kept]
