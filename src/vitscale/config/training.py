"""`[train]`: what is learnt and how, in epochs; off, a run only measures."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from vitscale.config.frozen import Section, Text

Share = Annotated[float, Field(ge=0, lt=1)]
LrPolicy = Literal["none", "linear", "sqrt"]
Schedule = Literal["constant", "cosine", "step"]


class Recipe(Section):
    """The part of `[train]` that the ranks carry out."""

    epochs: PositiveFloat | None = None
    """Passes over the training images. With `epochs` or `max_steps`, `run` trains and evaluates every run."""
    max_steps: PositiveInt | None = None
    """Optimizer steps in all, in place of `epochs`."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs in which the learning rate rises from 0; 0 is off."""
    final_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Last learning rate of the `cosine` schedule over the highest one."""
    decay_epochs: PositiveFloat = 30.0
    """Epochs between decays of the `step` schedule."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each decay of the `step` schedule."""
    label_smoothing: Share = 0.0
    """Share of the target spread over all classes; 0 is off."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of mixup (Beta distribution); 0 is off. With `cutmix` too, each micro-batch draws one of them."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of CutMix; 0 is off."""
    crop: NonNegativeInt = 0
    """Random crop: images are shifted by up to so many of their own pixels, the border filled with zeros; 0 is off."""
    rand_augment: NonNegativeInt = 0
    """Magnitude of RandAugment, 2 operations; one draw per micro-batch, on the device. 0 is off."""
    drop_path: Share = 0.0
    """Stochastic depth of the last block, rising linearly from 0 at the first; 0 is off."""
    ema: Share = 0.0
    """Decay per step of an exponential moving average of the weights, then evaluated and exported; 0 is off."""

    eval_epochs: PositiveFloat = 1.0
    """Epochs between evaluations on the whole test set; the last step is always evaluated."""

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if self.epochs is not None and self.max_steps is not None:
            given = f"epochs = {self.epochs:g} and max_steps = {self.max_steps}"
            raise ValueError(f"{given} are both given; give one of them")
        return self

    @property
    def trains(self) -> bool:
        """Whether anything is to be learnt."""
        return self.epochs is not None or self.max_steps is not None

    def total_steps(self, images: int, global_batch: int) -> int:
        """Optimizer steps of the whole training; an epoch has `images // global_batch`, the rest waits for the next."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None
        return in_steps(self.epochs, images, global_batch)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


class TrainSection(Recipe):
    """`[train]`: the recipe, and what happens beside it."""

    init: str | None = None
    """Weights to start from: a safetensors or timm checkpoint file; position embeddings are resized, a head of another
    size is left out. Off: seeded random weights."""
    checkpoint_epochs: PositiveFloat | None = None
    """Epochs between checkpoints of `train`. Off: at each evaluation."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept; the best one is kept besides."""
    restarts: NonNegativeInt = 2
    """How often `train` starts again from the newest checkpoint where a rank or a host is lost, or hangs: where one was
    written since the last start. What a further start would meet again ends it, like memory that runs out. 0 is off."""
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Test accuracy whose time is reported. Off: none."""
    trackers: Annotated[tuple[Text, ...], BeforeValidator(_tuple)] = ()
    """Trackers fed from the records while `train` runs: `tensorboard`, `wandb`, `mlflow`, `trackio`, or one of another
    package."""


def in_steps(epochs: float, images: int, global_batch: int) -> int:
    """Epochs as optimizer steps, at least one."""
    return max(1, round(epochs * steps_per_epoch(images, global_batch)))


def steps_per_epoch(images: int, global_batch: int) -> int:
    """Optimizer steps of an epoch."""
    return max(1, images // global_batch)


def scaled_lr(lr: float, policy: LrPolicy | None, base_batch: int | None, global_batch: int) -> float:
    """Learning rate for a global batch: `lr` at `base_batch`, in proportion to the batch or to its square root."""
    if policy in (None, "none") or base_batch is None:
        return lr
    ratio = global_batch / base_batch
    return lr * (ratio if policy == "linear" else math.sqrt(ratio))
