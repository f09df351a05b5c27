"""Evaluation on the whole test set: every image once, at any number of ranks; the count is asserted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitscale.config.runspec import RunSpec
from vitscale.data.reader import Split
from vitscale.worker.distributed import Ranks, total
from vitscale.worker.engines import Engine
from vitscale.worker.pipeline import Raw, prepare


class Score(NamedTuple):
    """What the test set says."""

    loss: float
    """Mean cross-entropy."""
    accuracy: float
    """Fraction classified rightly."""
    images: int
    """Test images counted."""


def evaluate(engine: Engine, split: Split, ranks: Ranks, spec: RunSpec, after_batch: Callable[[int], None]) -> Score:
    """Score the model on a split.

    Of N data-parallel ranks, rank r takes images r, r + N, r + 2N …; every rank runs the same number of forward passes,
    as sharded parameters need it, and what fills the last ones is counted by nobody. Ranks that share tokens or
    weights take the same ones, and the first of them counts. `after_batch` hears the number of passes done.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    engine.train(mode=False)
    try:
        with torch.no_grad():
            for number, (indices, counted) in enumerate(_batches(len(split), ranks.rank, spec), start=1):
                images, labels = _load(split, indices, ranks.device, spec.model.img_size, engine.dtype)
                sums += _sums(engine(images).float(), labels, counted.to(ranks.device))
                after_batch(number)
    finally:
        engine.train(mode=True)
    loss, right, count = total(sums).tolist()
    assert int(count) == len(split), f"{int(count)} of {len(split)} test images were counted"
    return Score(loss / count, right / count, int(count))


def _batches(images: int, rank: int, spec: RunSpec) -> list[tuple[np.ndarray[tuple[int], np.dtype[np.int64]], Tensor]]:
    """Indices int64 [micro_batch] and which of them count, bool [micro_batch]; as many on every rank."""
    micro_batch = spec.micro_batch
    most = -(-images // spec.data_parallel)
    passes = -(-most // micro_batch)
    wanted = spec.data_rank(rank) + spec.data_parallel * np.arange(passes * micro_batch, dtype=np.int64)
    first = rank == 0 or spec.data_rank(rank - 1) != spec.data_rank(rank)
    counted = torch.from_numpy((wanted < images) & first)
    filled = np.where(wanted < images, wanted, 0)
    return [
        (filled[start : start + micro_batch], counted[start : start + micro_batch])
        for start in range(0, len(wanted), micro_batch)
    ]


def _load(
    split: Split,
    indices: np.ndarray[tuple[int], np.dtype[np.int64]],
    device: torch.device,
    img_size: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(split.take(indices)).to(device)
    labels = torch.from_numpy(split.take_labels(indices)).to(device)
    return prepare(Raw(pixels, labels, None), img_size, dtype), labels


def _sums(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """Sum of losses, of right answers and of images, float64 [3]."""
    losses = functional.cross_entropy(logits, labels, reduction="none").double()
    right = (logits.argmax(1) == labels).double()
    ones = counted.double()
    return torch.stack([(losses * ones).sum(), (right * ones).sum(), ones.sum()])
