"""Reading a prepared data set: uint8 arrays by index, from mapped files or from memory. Nothing is ever written."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitscale.data import catalog, store, synthetic
from vitscale.data.catalog import DatasetFacts
from vitscale.errors import DataError

SplitName = Literal["train", "test"]


class Split:
    """One split of a data set: `len()` images with their labels.

    Where there are more images than pixels in memory (`synthetic`), an index is taken modulo the pool.
    """

    def __init__(
        self, facts: DatasetFacts, images: int, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
    ) -> None:
        assert len(pixels) == len(labels)
        self.facts = facts
        self._images = images
        self._pixels = pixels
        self._pool_labels = labels

    def __len__(self) -> int:
        return self._images

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of every image: int64 [N]."""
        return np.resize(self._pool_labels, self._images) if self._wraps else self._pool_labels

    @property
    def _wraps(self) -> bool:
        return self._images != len(self._pixels)

    def _places(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        assert indices.size == 0 or int(indices.min()) >= 0
        return indices % len(self._pixels) if self.facts.name == "synthetic" else indices

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The images at these indices, in their order: a fresh contiguous uint8 [n, height, width, channels].

        Raises:
            IndexError: an index is beyond the data set (`synthetic` wraps around instead).
        """
        return self._pixels[self._places(indices)]

    def take_labels(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The classes of the images at these indices: int64 [n]. Wraps as `take` does."""
        return self._pool_labels[self._places(indices)]


def open_split(name: str, split: SplitName, root: Path, path: Path | None = None) -> Split:
    """Open a prepared split for reading; `synthetic` is generated in memory instead.

    Args:
        name: one of `catalog.NAMES`.
        split: `train` or `test`.
        root: folder of the prepared data sets, see `catalog.store_root`.
        path: the image folder it was prepared from; None: the only one prepared.

    Raises:
        UsageError: an unknown name.
        DataError: not prepared, truncated or damaged.
    """
    catalog.require_name(name)
    assert split in store.SPLITS
    if name == "synthetic":
        facts = catalog.describe(name, root)
        pool = synthetic.pool(split)
        images = facts.train_images if split == "train" else facts.test_images
        return Split(facts, images, pool.images, pool.labels)
    folder = catalog.find_prepared(name, root, path)
    if folder is None:
        raise catalog.missing(name)
    meta = store.check(folder)
    pixels, labels = _arrays(folder, split, meta)
    return Split(catalog.facts_of(meta), len(labels), pixels, labels)


def _arrays(folder: Path, split: str, meta: store.Meta) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The two arrays of a split, images mapped, held against `meta.json`."""
    count = meta.splits[split].images
    pixels = _load(folder, f"{split}.images.npy", (count, meta.height, meta.width, meta.channels), np.dtype("u1"))
    labels = _load(folder, f"{split}.labels.npy", (count,), np.dtype("<i8")).astype(np.int64)
    if count and not (labels.min() >= 0 and labels.max() < len(meta.classes)):
        raise store.damaged(folder, f"has labels outside 0 to {len(meta.classes) - 1}")
    return pixels, labels


def _load(folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    try:
        # As a plain array: NumPy's memmap class slows down every index.
        array = np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise store.damaged(folder, f"has `{name}` that does not read: {error}") from None
    if array.shape != shape or array.dtype != dtype:
        raise DataError(
            f"`{name}` of `{folder.name}` holds {array.dtype} {array.shape}, expected {dtype} {shape}",
            f"delete `{folder}` and prepare it again",
        )
    return array
