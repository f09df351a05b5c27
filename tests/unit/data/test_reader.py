import json

import numpy as np
import pytest

from vitscale.data import store
from vitscale.data.reader import open_split
from vitscale.errors import DataError


@pytest.fixture
def root(tmp_path):
    """`cifar10` is prepared: 6 training and 3 test images of 2x2 pixels, image i all i, labels counting down."""

    def part(count):
        images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
        return store.SplitContent(np.arange(count, dtype=np.int64)[::-1] % 3, [images])

    made = store.Content("cifar10", "a test", ("a", "b", "c"), (2, 2, 1), part(6), part(3))
    store.write(tmp_path, "cifar10", made, lambda message: None)
    return tmp_path


def rewrite(root, name, array):
    """Replace an array and describe it as it now is, as if it had been written so."""
    np.save(root / "cifar10" / name, array)
    path = root / "cifar10" / "meta.json"
    meta = json.loads(path.read_text())
    meta["files"][name] = {"bytes": (root / "cifar10" / name).stat().st_size, "sha256": "unchecked"}
    path.write_text(json.dumps(meta))


def test_images_and_labels_come_in_the_order_asked_for(root):
    split = open_split("cifar10", "train", root)
    assert len(split) == 6
    assert split.take(np.array([4, 0, 4]))[:, 0, 0, 0].tolist() == [4, 0, 4]
    assert split.take_labels(np.array([4, 0, 5])).tolist() == [1, 2, 0]
    assert split.labels.tolist() == [2, 1, 0, 2, 1, 0]
    assert split.take(np.array([], dtype=np.int64)).shape == (0, 2, 2, 1)


def test_what_is_taken_is_the_callers_own(root):
    split = open_split("cifar10", "train", root)
    taken = split.take(np.arange(6))
    assert taken.flags.c_contiguous
    assert taken.flags.writeable
    taken[:] = 77
    assert split.take(np.array([3])).max() == 3


def test_test_images_are_not_the_training_images(root):
    assert len(open_split("cifar10", "test", root)) == 3
    assert open_split("cifar10", "train", root).facts == open_split("cifar10", "test", root).facts


def test_an_index_beyond_the_data_is_an_error(root):
    split = open_split("cifar10", "train", root)
    with pytest.raises(IndexError):
        split.take(np.array([6]))
    with pytest.raises(AssertionError):
        split.take(np.array([-1]))


def test_reading_writes_nothing(root):
    for path in (root / "cifar10").iterdir():
        path.chmod(0o400)
    before = sorted(path.name for path in root.rglob("*"))
    open_split("cifar10", "train", root).take(np.arange(6))
    assert sorted(path.name for path in root.rglob("*")) == before


def test_a_truncated_file_is_refused_when_it_is_opened(root):
    path = root / "cifar10" / "train.images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train\.images\.npy` with \d+ bytes, expected"):
        open_split("cifar10", "test", root)


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("train.images.npy", np.zeros((5, 2, 2, 1), np.uint8), r"uint8 \(5, 2, 2, 1\), expected"),
        ("train.images.npy", np.zeros((6, 2, 2, 1), np.float32), "float32"),
        ("train.labels.npy", np.zeros(6, np.int32), "int32"),
        ("train.labels.npy", np.full(6, 3, np.int64), "labels outside 0 to 2"),
        ("train.labels.npy", np.full(6, -1, np.int64), "labels outside 0 to 2"),
        ("train.labels.npy", np.array([{"a": 1}] * 6, dtype=object), "does not read"),
    ],
)
def test_an_array_that_is_not_what_its_description_says_is_refused(root, name, array, complaint):
    rewrite(root, name, array)
    with pytest.raises(DataError, match=complaint) as caught:
        open_split("cifar10", "train", root)
    assert "prepare it again" in caught.value.hint
