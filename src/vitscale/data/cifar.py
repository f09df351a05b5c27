"""CIFAR-10 and CIFAR-100 from the published archive or its extracted folder. Nothing is extracted, nothing is run.

Every file is read once into memory, its checksum is taken there, and those same bytes are parsed.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from vitscale.data import unpickler
from vitscale.data.releases import RELEASES, Release
from vitscale.data.store import Content, SplitContent
from vitscale.errors import DataError

IMAGE_SHAPE = (32, 32, 3)
_PIXELS = 3 * 32 * 32
_MEMBER_LIMIT_BYTES = 200 << 20
_ARCHIVE_LIMIT_BYTES = 256 << 20
_UNPACKED_LIMIT_BYTES = 512 << 20
_MEMBER_LIMIT = 64

Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def content(name: str, source: Path, releases: Sequence[Release] | None = None) -> Content:
    """Read CIFAR from an archive or an extracted folder, in its binary or its Python form.

    Args:
        name: `cifar10` or `cifar100`.
        source: the archive, the folder it holds, or the folder around that.
        releases: what is accepted; the published ones unless a test has its own.

    Raises:
        DataError: missing, truncated or altered, or not this data set.
    """
    known = RELEASES[name] if releases is None else releases
    if source.is_dir():
        release, files = _from_folder(name, source, known)
    else:
        release, files = _from_archive(name, source, known)
    train = _split(release, "train", release.train, files)
    test = _split(release, "test", release.test, files)
    return Content(
        name=name,
        source=f"published archive `{release.archive}`",
        classes=_class_names(release, files[release.names]),
        image_shape=IMAGE_SHAPE,
        train=SplitContent(train[1], [train[0]]),
        test=SplitContent(test[1], [test[0]]),
    )


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """Read a regular file whole, once.

    Raises:
        DataError: it is not there, not a regular file, or larger than the limit.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"`{path}` is not a regular file")
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise DataError(f"`{path}` is larger than {limit_bytes:,} bytes, so it is not what was published")
    return data


def _from_archive(name: str, path: Path, releases: Sequence[Release]) -> tuple[Release, dict[str, bytes]]:
    """The files of an archive whose checksum is a published one."""
    data = read_bounded(path, _ARCHIVE_LIMIT_BYTES)
    for release in releases:
        if release.archive_pin.actual(data) == release.archive_pin.digest:
            return release, _members(release, data)
    for other, theirs in RELEASES.items():
        if other != name and any(item.archive_pin.actual(data) == item.archive_pin.digest for item in theirs):
            raise DataError(
                f"`{path}` is the archive of `{other}`, not of `{name}`", f"`vitscale data {other} --from {path}`"
            )
    release = next((item for item in releases if item.form in path.name), releases[0])
    hint = f"a repacked copy: extract it and give the folder `{release.folder}`, whose files are checked one by one"
    if len(data) != release.archive_bytes:
        raise DataError(f"`{path}` has {len(data)} bytes, `{release.archive}` has {release.archive_bytes}", hint)
    pin = release.archive_pin
    raise DataError(f"`{path}` has {pin.algorithm} {pin.actual(data)}, `{release.archive}` has {pin.digest}", hint)


class _Counted(io.RawIOBase):
    """A stream that refuses to give more than a limit: the end of every decompression bomb."""

    def __init__(self, inner: BinaryIO, limit_bytes: int) -> None:
        self._inner = inner
        self._left = limit_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > self._left:
            raise DataError(f"the archive unpacks to more than {_UNPACKED_LIMIT_BYTES:,} bytes")
        data = self._inner.read(size)
        self._left -= len(data)
        return data


def _members(release: Release, data: bytes) -> dict[str, bytes]:
    """The wanted members of a tar.gz, each by its exact name, read as a stream.

    Raises:
        DataError: a link, a device, a name that leaves the folder, a member twice, too large or missing, or damage.
    """
    wanted = {f"{release.folder}/{name}": name for name in release.members}
    found: dict[str, bytes] = {}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unzipped:
            stream = cast(BinaryIO, _Counted(cast(BinaryIO, unzipped), _UNPACKED_LIMIT_BYTES))
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for count, member in enumerate(archive):
                    _require_plain(release, member, count)
                    name = wanted.get(member.name)
                    if name is None:
                        continue
                    if name in found:
                        raise DataError(f"`{release.archive}` holds `{member.name}` twice")
                    found[name] = _member_bytes(archive, member)
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise DataError(f"`{release.archive}` does not unpack: {error}", "get the published archive again") from None
    missing = [name for name in release.members if name not in found]
    if missing:
        raise DataError(f"`{release.archive}` holds no `{release.folder}/{missing[0]}`")
    return found


def _require_plain(release: Release, member: tarfile.TarInfo, count: int) -> None:
    """Refuse any member that a published archive does not have, wanted or not."""
    parts = member.name.split("/")
    if count >= _MEMBER_LIMIT:
        raise DataError(f"`{release.archive}` holds more than {_MEMBER_LIMIT} members")
    if member.name.startswith("/") or ".." in parts:
        raise DataError(f"`{release.archive}` holds `{member.name}`, a name outside its folder")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise DataError(f"`{release.archive}` holds `{member.name}`, which is a link or a device and not a file")
    if member.size > _MEMBER_LIMIT_BYTES:
        raise DataError(f"`{release.archive}` holds `{member.name}` with {member.size:,} bytes, over the limit")


def _member_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise DataError(f"`{member.name}` is not a file")
    data = file.read(member.size)
    if len(data) != member.size:
        raise DataError(f"`{member.name}` has {len(data)} bytes, expected {member.size}: the archive is cut short")
    return data


def _from_folder(name: str, path: Path, releases: Sequence[Release]) -> tuple[Release, dict[str, bytes]]:
    """The files of an extracted folder, each checked against its own published checksum."""
    for release in releases:
        for folder in (path, path / release.folder):
            if (folder / release.test[0]).is_file() and (folder / release.train[0]).is_file():
                return release, {item: _folder_file(release, folder, item) for item in release.members}
    known = " or ".join(f"`{release.folder}`" for release in releases)
    raise DataError(f"`{path}` holds no {known}", f"`vitscale data {name} --from PATH` with the archive or that folder")


def _folder_file(release: Release, folder: Path, name: str) -> bytes:
    data = read_bounded(folder / name, _MEMBER_LIMIT_BYTES)
    if release.form == "binary" and name != release.names:
        _require_size(release, name, data)
    pin = release.pins.get(name)
    if pin is not None and pin.actual(data) != pin.digest:
        raise DataError(
            f"`{folder / name}` ({len(data)} bytes) has {pin.algorithm} {pin.actual(data)}, the published one has "
            f"{pin.digest}",
            f"it is truncated or altered; get `{release.archive}` again",
        )
    return data


def _split(release: Release, split: str, names: Sequence[str], files: Mapping[str, bytes]) -> Split:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of one split."""
    read = _binary if release.form == "binary" else _python
    parts = [read(release, name, files[name], release.file_images[split]) for name in names]
    planes = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    outside = labels[(labels < 0) | (labels >= release.classes)]
    if outside.size:
        raise DataError(f"`{release.folder}` has the label {outside[0]}, expected 0 to {release.classes - 1}")
    images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, labels


def _require_size(release: Release, name: str, data: bytes) -> None:
    split = "train" if name in release.train else "test"
    expected_bytes = release.file_images[split] * (release.label_bytes + _PIXELS)
    if len(data) != expected_bytes:
        raise DataError(
            f"`{name}` of `{release.folder}` has {len(data)} bytes, expected {expected_bytes}",
            f"it is truncated or altered; get `{release.archive}` again",
        )


def _binary(release: Release, name: str, data: bytes, images: int) -> Split:
    """Fixed records: one label byte (CIFAR-100: coarse, then fine), then 3,072 bytes, red plane first."""
    _require_size(release, name, data)
    records = np.frombuffer(data, dtype=np.uint8).reshape(images, release.label_bytes + _PIXELS)
    return records[:, release.label_bytes :], records[:, release.label_bytes - 1].astype(np.int64)


def _python(release: Release, name: str, data: bytes, images: int) -> Split:
    """A pickled dict: `data` uint8 [N, 3072], red plane first, and a list of labels."""
    loaded = unpickler.load(data, name)
    pixels, labels = loaded.get("data"), loaded.get(release.label_key)
    if not isinstance(pixels, np.ndarray) or pixels.shape != (images, _PIXELS):
        raise DataError(
            f"`{name}` holds images of shape {getattr(pixels, 'shape', None)}, expected {(images, _PIXELS)}"
        )
    if not isinstance(labels, list) or len(labels) != images or not all(type(label) is int for label in labels):
        raise DataError(f"`{name}` does not hold {images} whole numbers as `{release.label_key}`")
    try:
        return pixels, np.array(labels, dtype=np.int64)
    except OverflowError:
        raise DataError(f"`{name}` has a label that does not fit 64 bits") from None


def _class_names(release: Release, data: bytes) -> tuple[str, ...]:
    """The names of the classes, in order of their numbers."""
    if release.form == "binary":
        names = [line.strip() for line in data.decode("latin1").splitlines() if line.strip()]
    else:
        listed = unpickler.load(data, release.names).get(release.names_key)
        items = listed if isinstance(listed, list) else []
        names = [item.decode("latin1") if isinstance(item, bytes) else str(item) for item in items]
    if len(names) != release.classes:
        raise DataError(f"`{release.names}` names {len(names)} classes, expected {release.classes}")
    return tuple(names)
