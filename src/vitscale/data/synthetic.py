"""Made-up images for measuring speed: no file, no download, and a signal a model can learn, so that loss falls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CLASSES = 10
SIDE = 64
POOL_IMAGES = {"train": 2048, "test": 512}

_SEED = 20_261_124
_COARSE = 8
_STREAMS = {"train": 1, "test": 2}


@dataclass(frozen=True)
class Pool:
    """Images uint8 [N, 64, 64, 3] and labels int64 [N]; N is in `POOL_IMAGES`."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def pool(split: str) -> Pool:
    """Generate one split, the same on every machine and in every process.

    Image i has class i modulo 10: its class's pattern (8x8 blocks of 0 or 160 per channel, shared by train and
    test) plus uniform noise of 0 … 94 of its own.
    """
    patterns = _raw_bytes(0, (CLASSES, _COARSE, _COARSE, 3)) > 127
    signal = np.where(patterns, np.uint8(160), np.uint8(0)).repeat(SIDE // _COARSE, 1).repeat(SIDE // _COARSE, 2)
    labels = np.arange(POOL_IMAGES[split], dtype=np.int64) % CLASSES
    images = _raw_bytes(_STREAMS[split], (len(labels), SIDE, SIDE, 3))
    # Noise of 0 … 94 and a signal of 160 stay within a byte together.
    np.right_shift(images, 2, out=images)
    images += images >> 1
    images += signal[labels]
    return Pool(images, labels)


def _raw_bytes(stream: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Uniform bytes from PCG64's raw output, whose stream NumPy keeps across versions (a Generator's it does not)."""
    count = int(np.prod(shape))
    raw = np.random.PCG64(np.random.SeedSequence((_SEED, stream))).random_raw(-(-count // 8))
    return np.asarray(raw, dtype="<u8").view(np.uint8)[:count].reshape(shape).copy()
