"""Which image comes when: subsets, the global order, and each rank's share. The same at every world size.

The order belongs to the study, not to a rank: step `s` reads the same images in the same order however many ranks
share them, so losses at different world sizes can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitscale.errors import UsageError

Indices = npt.NDArray[np.int64]


def subset(labels: Indices, images: int, seed: int) -> Indices:
    """A stratified subset of `images` indices, sorted; a larger one contains a smaller one of the same seed.

    Every image gets a place in the queue: the k-th of a class of n (in shuffled order) stands at (k + 1/2) / n, and
    equal places are drawn by lot. The subset is the head of the queue, so each class keeps its share to within one
    image where the classes are equally large.

    Args:
        labels: int64 [N], the class of every image.
        images: how many to take, 1 … N.
        seed: of the shuffles.

    Raises:
        UsageError: `images` is not in 1 … N.
    """
    total = len(labels)
    if not 1 <= images <= total:
        raise UsageError(f"a subset of {images:,} images of {total:,} cannot be taken", f"give 1 to {total:,}")
    if images == total:
        return np.arange(total, dtype=np.int64)
    shuffled = _generator(seed, 0).permutation(total)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels, minlength=1)
    starts = np.cumsum(sizes) - sizes
    own = labels[by_class]
    place = (np.arange(total) - starts[own] + 0.5) / sizes[own]
    lot = _generator(seed, 1).random(total)
    queue = by_class[np.lexsort((lot, place))]
    return np.sort(queue[:images]).astype(np.int64)


class GlobalOrder:
    """The order in which a study reads its training images: shuffled each epoch, the incomplete last batch dropped.

    Args:
        images: how many training images there are, or int64 [N] of those that take part (see `subset`).
        global_batch: images per optimizer step over all ranks.
        seed: the study's; epoch e is shuffled by PCG64 seeded with (seed, e).

    Raises:
        UsageError: the global batch is larger than the images.
    """

    def __init__(self, images: int | Indices, global_batch: int, seed: int) -> None:
        self.population = (
            images.astype(np.int64) if isinstance(images, np.ndarray) else np.arange(images, dtype=np.int64)
        )
        self.images = len(self.population)
        if not 1 <= global_batch <= self.images:
            raise UsageError(
                f"a global batch of {global_batch:,} cannot be drawn from {self.images:,} training images",
                "lower the global batch, or raise `data.images`",
            )
        self.global_batch = global_batch
        self.seed = seed
        self.steps_per_epoch = self.images // global_batch
        self._cached: tuple[int, Indices] = (-1, self.population[:0])

    def batch_indices(self, step: int) -> Indices:
        """The images of step 0, 1, 2 …, across epochs: int64 [global_batch]."""
        assert step >= 0
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.global_batch
        return self._epoch(epoch)[start : start + self.global_batch]

    def _epoch(self, epoch: int) -> Indices:
        number, shuffled = self._cached
        if number != epoch:
            shuffled = _generator(self.seed, epoch).permutation(self.population)
            self._cached = (epoch, shuffled)
        return shuffled


def rank_slice(indices: Indices, rank: int, micro_batches: Sequence[int], grad_accum: int) -> Indices:
    """One rank's share of a global batch: int64 [grad_accum, micro_batches[rank]].

    Layout: micro-steps are outermost. Micro-step m of all ranks is the m-th contiguous block of `sum(micro_batches)`
    images, and rank r takes the r-th piece of it, so over ranks and micro-steps every image of the batch is taken
    exactly once, and in the same micro-step however the ranks share it.

    Args:
        indices: int64 [grad_accum * sum(micro_batches)].
        rank: of those that take images of their own.
        micro_batches: images of each of these ranks in a micro-step.
        grad_accum: micro-steps.
    """
    assert 0 <= rank < len(micro_batches)
    assert len(indices) == grad_accum * sum(micro_batches)
    first = sum(micro_batches[:rank])
    return indices.reshape(grad_accum, -1)[:, first : first + micro_batches[rank]]


def evaluation_slices(images: int, rank: int, world_size: int) -> Indices:
    """The images one rank evaluates: a contiguous int64 [n], where n differs by at most one between ranks and may be 0.

    Over all ranks every image is taken exactly once, at any world size: none is padded or repeated, so sums of losses
    and hits over ranks are exact.
    """
    assert 0 <= rank < world_size
    return np.arange(images * rank // world_size, images * (rank + 1) // world_size, dtype=np.int64)


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream))))
