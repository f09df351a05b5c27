"""Preparing a data set: once per machine, before any worker starts. Workers only read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from vitscale.data import catalog, cifar, download, folders, store
from vitscale.data.catalog import DatasetFacts
from vitscale.data.releases import RELEASES
from vitscale.errors import DataError, UsageError


def _silent(message: str) -> None:
    """Report nothing."""


def prepare(
    name: str,
    root: Path,
    *,
    source: Path | None = None,
    download: bool = False,
    verify: bool = False,
    report: Callable[[str], None] = _silent,
) -> DatasetFacts:
    """Make a data set ready to be read. At once where it is; whole or not at all; safe from two processes.

    A prepared folder whose file sizes are right is taken as it is. A damaged one is made again where its source is
    at hand. An image folder whose files changed (paths or sizes) since it was prepared is prepared again.

    Args:
        name: one of `catalog.NAMES`.
        root: folder of the prepared data sets, see `catalog.store_root`.
        source: archive or folder to prepare from. Not needed once prepared, nor for `digits` and `synthetic`.
        download: fetch the published archive where nothing is prepared (`cifar10`, `cifar100`).
        verify: also compare the sha256 of every prepared file.
        report: is told in one line what happens.

    Raises:
        UsageError: an unknown name, or a source or download that this data set does not have.
        DataError: missing, damaged, altered or unreadable data, or too little disk space.
        SetupError: a package is missing.
    """
    catalog.require_name(name)
    require_sensible(name, source, download)
    if name == "synthetic":
        return catalog.describe(name, root)
    listing = _listing(name, source)
    can_make = name in catalog.EMBEDDED_NAMES or download or (source is not None and source.expanduser().exists())
    facts = _ready(name, root, source, listing, can_make=can_make, verify=verify)
    if facts is not None:
        return facts
    if not can_make:
        raise catalog.missing(name) if source is None else DataError(f"`{source}` is not there, nor prepared already")
    key = catalog.key_of(name, source)
    with store.locked(root, key, report):
        store.remove_leftovers(root, key)
        facts = _ready(name, root, source, listing, can_make=can_make, verify=verify)
        if facts is not None:
            return facts
        content = _content(name, root, source, listing, report)
        return catalog.facts_of(store.write(root, key, content, report))


def require_sensible(name: str, source: Path | None, wants_download: bool = False) -> None:
    """Refuse a source or a download that the data set does not have.

    Raises:
        UsageError: with what to leave out.
    """
    if source is not None and name in catalog.EMBEDDED_NAMES:
        raise UsageError(
            f"`{name}` is not read from a path, but `{source}` is given", "leave `data.path` or `--from` out"
        )
    if wants_download and name in catalog.FOLDER_NAMES:
        raise UsageError(f"`{name}` cannot be downloaded", f"`vitscale data {name} --from FOLDER`")
    if wants_download and source is not None:
        raise UsageError("a source and a download are both asked for", "give one of `--from` and `--download`")


def _listing(name: str, source: Path | None) -> folders.Listing | None:
    """The files of an image folder; None where there is none to list (then its prepared copy has to do)."""
    if name not in catalog.FOLDER_NAMES or source is None or not source.expanduser().is_dir():
        return None
    return folders.scan(name, source)


def _ready(
    name: str, root: Path, source: Path | None, listing: folders.Listing | None, *, can_make: bool, verify: bool
) -> DatasetFacts | None:
    """The facts of the prepared folder if it is intact and up to date; None if it is to be made."""
    folder = catalog.find_prepared(name, root, source)
    if folder is None:
        return None
    try:
        meta = store.check(folder, hashes=verify)
    except DataError:
        # What can be made again is; what cannot is the caller's to see.
        if can_make:
            return None
        raise
    if listing is not None and listing.fingerprint() != meta.fingerprint:
        return None
    return catalog.facts_of(meta)


def _content(
    name: str,
    root: Path,
    source: Path | None,
    listing: folders.Listing | None,
    report: Callable[[str], None],
) -> store.Content:
    """What to write. Imports stay here: a worker reads without scikit-learn and Pillow."""
    if name == "digits":
        from vitscale.data import digits

        return digits.content()
    if source is None:
        return _downloaded(name, root, report)
    report(f"reading {source}")
    if name in catalog.FOLDER_NAMES:
        from vitscale.data import imagefolder

        return imagefolder.content(name, listing or folders.scan(name, source), catalog.FOLDER_SIDE)
    return cifar.content(name, source.expanduser())


def _downloaded(name: str, root: Path, report: Callable[[str], None]) -> store.Content:
    """Fetch the binary release, read it, and let the archive go: the prepared arrays replace it."""
    release = RELEASES[name][0]
    store.require_space(root, 3 * release.archive_bytes)
    # Named like a folder being made, so that it is removed with those if this process is killed.
    with tempfile.TemporaryDirectory(prefix=f".{name}.tmp-", dir=root) as folder:
        archive = Path(folder) / release.archive
        download.fetch(release.url, archive, release.archive_pin, release.archive_bytes, report)
        return cifar.content(name, archive)
