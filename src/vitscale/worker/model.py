"""The model of a run: timm's, and the weights it begins with."""

from __future__ import annotations

import os
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from vitscale.config.runspec import RunSpec
from vitscale.errors import CheckpointError
from vitscale.records.writer import file_digest
from vitscale.worker import sequence, tensor


def build_model(spec: RunSpec, device: torch.device) -> nn.Module:
    """The run's timm model in training mode, with the same initial weights on every rank and device."""
    torch.manual_seed(spec.measure.seed)
    model: nn.Module = timm.create_model(
        spec.model.name, drop_path_rate=spec.train.drop_path if spec.train else 0.0, **spec.model.sizes
    )
    path = os.environ.get("VITSCALE_INIT")
    if spec.init is not None and path:
        load_initial(model, spec, Path(path))
    return model.train().to(device)


def shard(model: nn.Module, spec: RunSpec) -> None:
    """Give this rank its part of the tokens or of the weights, before an engine wraps the model."""
    if spec.sequence_parallel is not None:
        sequence.shard(model, spec.sequence_parallel)
    if spec.tensor_parallel is not None:
        tensor.shard(model, spec.tensor_parallel)


def load_initial(model: nn.Module, spec: RunSpec, path: Path) -> None:
    """Start from a file's weights: position embeddings are resized by timm, a head of another size stays random.

    Raises:
        CheckpointError: the file is not the one that was planned, or does not fit the model.
    """
    if file_digest(path) != spec.init:
        raise CheckpointError(f"`{path.name}` changed since it was planned", "start the command again")
    try:
        state = checkpoint_filter_fn(load_state_dict(str(path), weights_only=True), model)
        own = model.state_dict()
        odd = [name for name in state if name.startswith("head.") and state[name].shape != own[name].shape]
        missing, unexpected = model.load_state_dict({k: v for k, v in state.items() if k not in odd}, strict=False)
    except Exception as error:
        # Damaged, foreign or refused bytes fail in many ways; the file is what is wrong.
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]  # of some the words are empty
        raise CheckpointError(f"`{path.name}` cannot be loaded: {said}") from error
    left = [name for name in missing if not name.startswith("head.")]
    if left or unexpected:
        raise CheckpointError(f"`{path.name}` does not fit `{spec.model.name}`: {(left or unexpected)[:3]}")
