"""A prepared data set on disk: four arrays and `meta.json` in one folder, written whole or not at all.

<root>/<key>/train.images.npy   uint8 [N, height, width, channels]
<root>/<key>/train.labels.npy   int64 [N]
<root>/<key>/test.images.npy, test.labels.npy
<root>/<key>/meta.json          names, counts, and bytes and sha256 of every file
<root>/.<key>.lock              flock, held while the folder is made
<root>/.<key>.tmp-*             a folder being made; a leftover is removed by the next holder of the lock
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscale.errors import DataError

SCHEMA_VERSION = 1
SPLITS = ("train", "test")

Report = Callable[[str], None]
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileFacts:
    """Size and sha256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitFacts:
    """Number of images of one split."""

    images: int


@dataclass(frozen=True)
class Meta:
    """`meta.json`. `fingerprint` is the source's listing where a source can change, else None."""

    schema_version: int
    name: str
    source: str
    fingerprint: str | None
    classes: tuple[str, ...]
    height: int
    width: int
    channels: int
    splits: Mapping[str, SplitFacts]
    files: Mapping[str, FileFacts]


@dataclass(frozen=True)
class SplitContent:
    """One split to be written: labels int64 [N], and blocks of images uint8 [n, height, width, channels]."""

    labels: npt.NDArray[np.int64]
    blocks: Iterable[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Content:
    """A data set to be written. `finish` is called after the last block and may refuse the whole."""

    name: str
    source: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: SplitContent
    test: SplitContent
    fingerprint: str | None = None
    finish: Callable[[], None] = lambda: None


def is_present(folder: Path) -> bool:
    """Whether a prepared folder is there, intact or not."""
    return (folder / "meta.json").is_file()


def read_meta(folder: Path) -> Meta:
    """Read `meta.json`.

    Raises:
        DataError: it cannot be read, is not complete, or has another version.
    """
    path = folder / "meta.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise damaged(folder, f"has schema version {raw['schema_version']}, not {SCHEMA_VERSION}")
        return _parse(raw)
    except OSError as error:
        raise damaged(folder, f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(folder, "has a `meta.json` that does not read") from None


def _parse(raw: dict[str, Any]) -> Meta:
    splits = {split: SplitFacts(int(raw["splits"][split]["images"])) for split in SPLITS}
    files = {name: FileFacts(int(item["bytes"]), str(item["sha256"])) for name, item in raw["files"].items()}
    wanted = {f"{split}.{part}.npy" for split in SPLITS for part in ("images", "labels")}
    if set(files) != wanted:
        raise ValueError(f"files are {sorted(files)}")
    return Meta(
        int(raw["schema_version"]),
        str(raw["name"]),
        str(raw["source"]),
        raw["fingerprint"],
        tuple(map(str, raw["classes"])),
        int(raw["height"]),
        int(raw["width"]),
        int(raw["channels"]),
        splits,
        files,
    )


def check(folder: Path, *, hashes: bool = False) -> Meta:
    """Compare every file's size with `meta.json`, and with `hashes` its sha256 too.

    Raises:
        DataError: naming the first file that is missing, truncated or altered.
    """
    meta = read_meta(folder)
    for name, facts in meta.files.items():
        path = folder / name
        try:
            size_bytes = path.stat().st_size
            digest = sha256_of(path) if hashes and size_bytes == facts.bytes else facts.sha256
        except OSError as error:
            raise damaged(folder, f"lacks `{name}`: {error.strerror}") from None
        if size_bytes != facts.bytes:
            raise damaged(folder, f"has `{name}` with {size_bytes} bytes, expected {facts.bytes}")
        if digest != facts.sha256:
            raise damaged(folder, f"has `{name}` with sha256 {digest}, expected {facts.sha256}")
    return meta


def damaged(folder: Path, what: str) -> DataError:
    """The error for a prepared folder that is not what was written."""
    return DataError(f"the prepared data set `{folder.name}` {what}", f"delete `{folder}` and prepare it again")


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(root: Path, key: str, report: Report) -> Iterator[None]:
    """Hold the data set's lock; wait for whoever has it. The kernel drops it when its holder dies.

    Raises:
        DataError: the root cannot be made or written, or its file system has no locks.
    """
    handle = -1
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(root / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process prepares `{key}`; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if handle >= 0:
            os.close(handle)
        raise DataError(
            f"`{root}` cannot be written or locked: {error.strerror}", "set VITSCALE_DATA to a folder of yours"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def remove_leftovers(root: Path, key: str) -> None:
    """Remove what a killed preparation left behind. Call with the lock held."""
    for leftover in root.glob(f".{key}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def require_space(root: Path, needed_bytes: int) -> None:
    """Refuse to begin what cannot fit.

    Raises:
        DataError: naming the needed and the free bytes.
    """
    free_bytes = shutil.disk_usage(root).free
    if free_bytes < needed_bytes:
        raise DataError(
            f"`{root}` has {free_bytes:,} bytes free, {needed_bytes:,} are needed",
            "free some space, or set VITSCALE_DATA to a larger file system",
        )


def write(root: Path, key: str, content: Content, report: Report) -> Meta:
    """Write a data set beside its place and rename it there: whole or not at all. Call with the lock held.

    Raises:
        DataError: too little space, an unwritable root, or `content.finish` refused.
    """
    images = len(content.train.labels) + len(content.test.labels)
    require_space(root, images * (int(np.prod(content.image_shape)) + 8) + _BLOCK_BYTES)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{key}.tmp-", dir=root))
        try:
            meta = _fill(folder, content, report)
            _swap(folder, root / key)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise DataError(f"`{root}` cannot be written: {error.strerror}", "nothing was left half-prepared") from None
    return meta


def _fill(folder: Path, content: Content, report: Report) -> Meta:
    """Write every file of a data set into an empty folder, `meta.json` last, all synced."""
    files: dict[str, FileFacts] = {}
    for split, part in zip(SPLITS, (content.train, content.test), strict=True):
        count = len(part.labels)
        report(f"writing {count:,} {split} images of `{content.name}`")
        shape = (count, *content.image_shape)
        files[f"{split}.images.npy"] = _write_npy(folder / f"{split}.images.npy", shape, np.dtype("u1"), part.blocks)
        labels = part.labels.astype("<i8")
        files[f"{split}.labels.npy"] = _write_npy(folder / f"{split}.labels.npy", (count,), labels.dtype, [labels])
    content.finish()
    height, width, channels = content.image_shape
    splits = {"train": SplitFacts(len(content.train.labels)), "test": SplitFacts(len(content.test.labels))}
    meta = Meta(
        SCHEMA_VERSION, content.name, content.source, content.fingerprint, content.classes, height, width, channels,
        splits, files,
    )  # fmt: skip
    with (folder / "meta.json").open("w", encoding="utf-8") as file:
        json.dump(asdict(meta), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return meta


def _write_npy(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[npt.NDArray[Any]]
) -> FileFacts:
    """Stream blocks into a `.npy` file, hashing what is written. A full disk is an OSError here, not a SIGBUS later."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    hasher = hashlib.sha256(header.getvalue())
    rows = 0
    with path.open("wb") as file:
        file.write(header.getvalue())
        for block in blocks:
            assert block.dtype == dtype
            assert block.shape[1:] == shape[1:]
            data = np.ascontiguousarray(block)
            hasher.update(data.data)
            file.write(data.data)
            rows += len(block)
        file.flush()
        os.fsync(file.fileno())
        size_bytes = file.tell()
    assert rows == shape[0], f"{rows} rows were written, {shape[0]} were announced"
    return FileFacts(size_bytes, hasher.hexdigest())


def _swap(folder: Path, target: Path) -> None:
    """Put a finished folder in its place. A damaged predecessor is moved aside first; readers keep their mappings."""
    old = folder.with_name(f"{folder.name}-old")
    with suppress(FileNotFoundError):
        target.rename(old)
    folder.rename(target)
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    shutil.rmtree(old, ignore_errors=True)
