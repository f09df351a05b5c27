"""The learning rate of each step: timm's schedulers, asked by step number, so that resuming needs no state."""

from __future__ import annotations

from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from vitscale.config.runspec import RunSpec
from vitscale.config.training import in_steps, steps_per_epoch


def build(spec: RunSpec, optimizer: Optimizer) -> Scheduler | None:
    """The schedule of a training run, or None where the rate is constant from the first step on."""
    recipe = spec.train
    assert recipe is not None
    warmup = round(recipe.warmup_epochs * steps_per_epoch(spec.data.images, spec.global_batch))
    rising = {"warmup_t": warmup, "warmup_lr_init": spec.optimizer.lr / (warmup + 1), "warmup_prefix": True}
    if spec.optimizer.schedule == "cosine":
        total = recipe.total_steps(spec.data.images, spec.global_batch)
        return CosineLRScheduler(
            optimizer,
            t_initial=max(1, total - warmup),
            lr_min=spec.optimizer.lr * recipe.final_lr_ratio,
            t_in_epochs=False,
            **rising,
        )
    if spec.optimizer.schedule == "step":
        decay = in_steps(recipe.decay_epochs, spec.data.images, spec.global_batch)
        return StepLRScheduler(optimizer, decay_t=decay, decay_rate=recipe.decay_rate, t_in_epochs=False, **rising)
    if warmup:
        # A step schedule that never decays is a constant one.
        return StepLRScheduler(optimizer, decay_t=2**62, t_in_epochs=False, **rising)
    return None
