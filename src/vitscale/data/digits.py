"""Handwritten digits: 1,797 real images that scikit-learn carries in its package. Needs no network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitscale.data.store import Content, SplitContent
from vitscale.errors import SetupError

CLASSES = tuple("0123456789")
TEST_IMAGES = 360
_SEED = 0


def content() -> Content:
    """The digits as uint8 [N, 8, 8, 1], split into 1,437 training and 360 test images.

    scikit-learn's grey levels 0 … 16 are scaled by 255/16 and rounded.

    Raises:
        SetupError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SetupError("`digits` needs scikit-learn to be prepared", "pip install 'vitscale[train]'") from None
    loaded = load_digits()
    images = np.rint(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = loaded.target.astype(np.int64)
    test = test_indices(labels)
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Content(
        name="digits",
        source="scikit-learn's handwritten digits",
        classes=CLASSES,
        image_shape=(8, 8, 1),
        train=SplitContent(labels[train], [images[train]]),
        test=SplitContent(labels[test], [images[test]]),
    )


def test_indices(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The sorted indices of the test split: 360 images, of each class its share to the nearest image.

    Images are drawn by PCG64's raw output and not by a Generator, whose streams may change between NumPy versions.
    Shares are rounded down, and the classes with the largest remainders give one more.
    """
    sizes = np.bincount(labels)
    exact = sizes * TEST_IMAGES / len(labels)
    quota = np.floor(exact).astype(np.int64)
    most_cut = np.argsort(quota - exact, kind="stable")
    quota[most_cut[: TEST_IMAGES - quota.sum()]] += 1
    lots = np.random.PCG64(np.random.SeedSequence(_SEED)).random_raw(len(labels))
    queue = np.argsort(lots, kind="stable")
    chosen = [queue[labels[queue] == number][:count] for number, count in enumerate(quota)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
