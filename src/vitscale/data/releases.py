"""CIFAR as published: four archives, what is in them, and the checksums of every file that is read.

Sources, 2026-11: md5 of the archives from cs.toronto.edu/~kriz/cifar.html; md5 of the Python release's files from
torchvision 0.29 (`torchvision/datasets/cifar.py`); sha256 and size of the archives as Keras, TensorFlow Datasets and
torchvision-ruby state them; sha256 of the binary release's files from torchvision-ruby.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

BASE_URL = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Pin:
    """The expected checksum of a file, in hex."""

    algorithm: Literal["sha256", "md5"]
    digest: str

    def actual(self, data: bytes) -> str:
        """The checksum that these bytes have."""
        return hashlib.new(self.algorithm, data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Release:
    """One archive of CIFAR.

    Args:
        form: `binary` (fixed records) or `python` (pickles).
        archive: file name of the archive.
        archive_bytes: its size.
        archive_pin: its checksum.
        folder: the folder it holds.
        train, test, names: the files of the two splits and of the class names, below the folder.
        pins: the checksum of every one of these files that has a published one.
        file_images: images per file, by split.
        classes: number of classes.
        label_bytes: bytes before the pixels of a binary record; the last of them is the label.
        label_key, names_key: keys of a Python file's dict.
    """

    form: Literal["binary", "python"]
    archive: str
    archive_bytes: int
    archive_pin: Pin
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    pins: dict[str, Pin]
    file_images: dict[str, int]
    classes: int
    label_bytes: int = 1
    label_key: str = "labels"
    names_key: str = "label_names"

    @property
    def url(self) -> str:
        """Where the archive is published."""
        return BASE_URL + self.archive

    @property
    def members(self) -> tuple[str, ...]:
        """Every file that is read."""
        return (*self.train, *self.test, self.names)


def _pins(algorithm: Literal["sha256", "md5"], digests: dict[str, str]) -> dict[str, Pin]:
    return {name: Pin(algorithm, digest) for name, digest in digests.items()}


_CIFAR10_BINARY = Release(
    form="binary",
    archive="cifar-10-binary.tar.gz",
    archive_bytes=170_052_171,
    archive_pin=Pin("sha256", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    names="batches.meta.txt",
    pins=_pins(
        "sha256",
        {
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        },
    ),
    file_images={"train": 10_000, "test": 10_000},
    classes=10,
)

_CIFAR10_PYTHON = Release(
    form="python",
    archive="cifar-10-python.tar.gz",
    archive_bytes=170_498_071,
    archive_pin=Pin("sha256", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    names="batches.meta",
    pins=_pins(
        "md5",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    file_images={"train": 10_000, "test": 10_000},
    classes=10,
)

_CIFAR100_BINARY = Release(
    form="binary",
    archive="cifar-100-binary.tar.gz",
    archive_bytes=168_513_733,
    archive_pin=Pin("sha256", "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    names="fine_label_names.txt",
    pins=_pins(
        "sha256",
        {
            "train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
            "test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        },
    ),
    file_images={"train": 50_000, "test": 10_000},
    classes=100,
    label_bytes=2,
)

_CIFAR100_PYTHON = Release(
    form="python",
    archive="cifar-100-python.tar.gz",
    archive_bytes=169_001_437,
    archive_pin=Pin("sha256", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    names="meta",
    pins=_pins(
        "md5",
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    file_images={"train": 50_000, "test": 10_000},
    classes=100,
    label_key="fine_labels",
    names_key="fine_label_names",
)

RELEASES: dict[str, tuple[Release, ...]] = {
    "cifar10": (_CIFAR10_BINARY, _CIFAR10_PYTHON),
    "cifar100": (_CIFAR100_BINARY, _CIFAR100_PYTHON),
}
"""By data set, the binary release first: it is the one downloaded, since it needs no unpickling."""
