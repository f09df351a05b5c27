import hashlib
import subprocess
import sys

import numpy as np
import pytest

from vitscale.data import digits, synthetic
from vitscale.data.catalog import describe
from vitscale.data.prepare import prepare
from vitscale.data.reader import open_split
from vitscale.errors import SetupError, UsageError

DIGITS_TEST_SHA256 = "daa129ae6e50b2f97b9c251b1a5d4a19c308c59f41ac1cf94a573edbf73ab889"
SYNTHETIC_TRAIN_SHA256 = "9d3ee90709735a43a8c0c83bfa46ae828313447536674f2527c96992498e0a75"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    prepare("digits", root)
    return root


def test_the_digits_split_is_the_pinned_one():
    from sklearn.datasets import load_digits

    chosen = digits.test_indices(load_digits().target.astype(np.int64))
    assert hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest() == DIGITS_TEST_SHA256


def test_digits_are_scaled_to_bytes_and_split_without_loss(root):
    from sklearn.datasets import load_digits

    loaded = load_digits()
    train, test = open_split("digits", "train", root), open_split("digits", "test", root)
    assert (len(train), len(test)) == (1437, 360)
    chosen = digits.test_indices(loaded.target.astype(np.int64))
    images = test.take(np.arange(360))
    assert images.shape == (360, 8, 8, 1)
    assert images.dtype == np.uint8
    assert np.abs(images[..., 0] / 255 - loaded.images[chosen] / 16).max() < 0.5 / 255 + 1e-9
    assert (test.labels == loaded.target[chosen]).all()
    assert images.max() == 255
    assert (np.bincount(train.labels) + np.bincount(test.labels) == np.bincount(loaded.target)).all()


def test_every_digit_gives_its_share_of_test_images(root):
    train, test = open_split("digits", "train", root), open_split("digits", "test", root)
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert share == pytest.approx(np.full(10, 0.2), abs=0.006)


def test_the_catalog_says_of_digits_what_was_prepared(root):
    assert open_split("digits", "train", root).facts == describe("digits", root)


def test_reading_digits_needs_neither_scikit_learn_nor_pillow_nor_torch(root):
    code = (
        "import sys, pathlib; from vitscale.data.reader import open_split; import vitscale.data.order\n"
        f"assert len(open_split('digits', 'train', pathlib.Path({str(root)!r}))) == 1437\n"
        "print([name for name in ('sklearn', 'PIL', 'torch', 'scipy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_machine_without_scikit_learn_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SetupError, match="scikit-learn") as caught:
        prepare("digits", tmp_path)
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_embedded_data_is_not_read_from_a_path(name, tmp_path):
    with pytest.raises(UsageError, match=f"`{name}` is not read from a path"):
        prepare(name, tmp_path, source=tmp_path)


def test_synthetic_images_are_the_pinned_ones_and_nothing_is_written(tmp_path):
    facts = prepare("synthetic", tmp_path / "store")
    pool = synthetic.pool("train")
    assert hashlib.sha256(pool.images).hexdigest() == SYNTHETIC_TRAIN_SHA256
    assert facts.train_images == 1_281_167
    assert not (tmp_path / "store").exists()


def test_synthetic_indices_wrap_around_the_pool(tmp_path):
    train = open_split("synthetic", "train", tmp_path)
    assert len(train) == len(train.labels) == 1_281_167
    far = np.array([2_000_000_003, 1_281_166, 5])
    assert (train.take(far) == train.take(far % 2048)).all()
    assert (train.take_labels(far) == train.labels[far % 2048]).all()
    assert train.labels[1_281_166] == train.labels[1_281_166 % 2048]


def test_synthetic_classes_can_be_told_apart(tmp_path):
    """The nearest class mean of the training pool names the class of a test image."""
    train, test = open_split("synthetic", "train", tmp_path), open_split("synthetic", "test", tmp_path)
    seen = train.take(np.arange(400)).reshape(400, -1).astype(np.float32)
    means = np.stack([seen[train.labels[:400] == number].mean(0) for number in range(10)])
    asked = test.take(np.arange(100)).reshape(100, -1).astype(np.float32)
    nearest = ((asked[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == test.labels[:100]).all()
    assert (test.take(np.arange(100)) != train.take(np.arange(100))).any()
