"""A model as a run trains it: divided among ranks, its knobs turned, behind its engine."""

from __future__ import annotations

import torch
from torch import nn

from vitscale.config import offload
from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import RunSpec
from vitscale.worker import engines, knobs, optimizers
from vitscale.worker.model import shard


def wrap(spec: RunSpec, model: nn.Module) -> tuple[engines.Engine, torch.optim.Optimizer]:
    """The run's engine around a model of `build_model`, and the optimizer it updates with. All ranks at once.

    Raises:
        UsageError: the model cannot be shared among ranks as the run asks.
    """
    device = next(model.parameters()).device
    shard(model, spec)
    turned = spec.knobs or EngineSection()
    knobs.apply(turned, model)
    updated_on = torch.device("cpu") if offload.asked(spec.deepspeed).optimizer else device
    optimizer = optimizers.build(model, spec.optimizer, updated_on, turned.optimizer_impl)
    return engines.build(spec, model, optimizer), optimizer
