"""The data sets by name: how many images of what size, and where a prepared one lies. Cheap: no pixel is read."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vitscale.data import folders, store
from vitscale.errors import DataError, UsageError

NAMES = ("digits", "synthetic", "cifar10", "cifar100", "imagefolder", "imagenet100")
FOLDER_NAMES = ("imagefolder", "imagenet100")
EMBEDDED_NAMES = ("digits", "synthetic")

FOLDER_SIDE = 256
"""Side in pixels of the square images an image folder is prepared into."""


@dataclass(frozen=True)
class DatasetFacts:
    """What a data set is, in counts and pixels. `source` says in words where the images come from."""

    name: str
    classes: int
    train_images: int
    test_images: int
    height: int
    width: int
    channels: int
    source: str


_FIXED = {
    "digits": DatasetFacts("digits", 10, 1437, 360, 8, 8, 1, "scikit-learn's handwritten digits"),
    # The training count is ImageNet-1k's, so that no global batch is refused; the pixels come from a small pool.
    "synthetic": DatasetFacts("synthetic", 10, 1_281_167, 512, 64, 64, 3, "generated from a fixed seed"),
    "cifar10": DatasetFacts("cifar10", 10, 50_000, 10_000, 32, 32, 3, "CIFAR-10, Krizhevsky 2009"),
    "cifar100": DatasetFacts("cifar100", 100, 50_000, 10_000, 32, 32, 3, "CIFAR-100 (fine labels), Krizhevsky 2009"),
}


def describe(name: str, root: Path, path: Path | None = None) -> DatasetFacts:
    """The facts of a data set, without reading a pixel and without scikit-learn or Pillow.

    Constants for `digits`, `synthetic`, `cifar10` and `cifar100`. An image folder's come from its prepared copy, or,
    where there is none yet, from counting the files below `path`.

    `synthetic` states 1,281,167 training images over a pool of 2,048: indices wrap around modulo the pool.

    Raises:
        UsageError: an unknown name.
        DataError: an image folder that is neither prepared nor there, or whose layout cannot be read.
    """
    require_name(name)
    if name in _FIXED:
        return _FIXED[name]
    prepared = find_prepared(name, root, path)
    if prepared is not None:
        return facts_of(store.read_meta(prepared))
    if path is None:
        raise missing(name)
    listing = folders.scan(name, path)
    return DatasetFacts(
        name, len(listing.classes), len(listing.train), len(listing.test), FOLDER_SIDE, FOLDER_SIDE, 3, listing.source
    )


def require_name(name: str) -> None:
    """Refuse a name that is not in `NAMES`.

    Raises:
        UsageError: with the nearest name as a suggestion.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        known = ", ".join(f"`{item}`" for item in NAMES)
        raise UsageError(f"no data set is called `{name}`", f"did you mean `{near[0]}`?" if near else f"known: {known}")


def store_root() -> Path:
    """Folder of the prepared data sets: `$VITSCALE_DATA`, else `vitscale/data` in the user's cache."""
    own = os.environ.get("VITSCALE_DATA")
    if own:
        return Path(own).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vitscale" / "data"


def key_of(name: str, path: Path | None) -> str:
    """Name of the prepared folder below the root.

    The data set's name, and for an image folder `<name>-<slug of the base name>-<10 hex digits of the resolved path>`.
    The path and not the content is hashed, so that a worker finds its data without listing a million files; whether
    the content is still the one prepared is checked against `meta.json`'s fingerprint by `prepare`.
    """
    if name not in FOLDER_NAMES:
        return name
    if path is None:
        raise missing(name)
    resolved = path.expanduser().resolve()
    slug = re.sub(r"[^a-z0-9]+", "-", resolved.name.lower()).strip("-")[:40] or "folder"
    return f"{name}-{slug}-{hashlib.sha256(os.fsencode(resolved)).hexdigest()[:10]}"


def find_prepared(name: str, root: Path, path: Path | None) -> Path | None:
    """The prepared folder, or None. An image folder without `path` is the only one of its kind that is prepared.

    Raises:
        DataError: several image folders are prepared and `path` does not say which.
    """
    if name not in FOLDER_NAMES or path is not None:
        target = root / key_of(name, path)
        return target if store.is_present(target) else None
    found = sorted(item for item in root.glob(f"{name}-*") if store.is_present(item))
    if len(found) > 1:
        listed = ", ".join(f"`{item.name}`" for item in found[:5])
        raise DataError(f"{len(found)} folders are prepared as `{name}`: {listed}", "say which with `data.path=FOLDER`")
    return found[0] if found else None


def facts_of(meta: store.Meta) -> DatasetFacts:
    """The facts of a prepared folder."""
    train, test = meta.splits["train"], meta.splits["test"]
    return DatasetFacts(
        meta.name, len(meta.classes), train.images, test.images, meta.height, meta.width, meta.channels, meta.source
    )


def missing(name: str) -> DataError:
    """The error for a data set that is not on this machine, with the command that brings it."""
    if name in FOLDER_NAMES:
        hint = f"`vitscale data {name} --from FOLDER`, or set `data.path`"
    elif name in EMBEDDED_NAMES:
        hint = f"`vitscale data {name}`"
    else:
        hint = f"`vitscale data {name} --download`, or `--from PATH` with the published archive or its folder"
    return DataError(f"`{name}` is not prepared on this machine", hint)
