"""Image folders, listed: which classes, which files, which split. No pixel is read and Pillow is not needed.

    FOLDER/train/<class>/*.jpg          also several, as Kaggle's ImageNet-100 has them: train.X1 … train.X4
    FOLDER/val/<class>/*.jpg            or `validation`, `test`, `val.X`; the first of these that is there

`imagenet100` takes the same layout with exactly 100 classes. "ImageNet-100" names several subsets of ImageNet-1k (the
one of Tian et al.'s Contrastive Multiview Coding and the one on Kaggle differ), so none is built in: a `classes.txt`
(one class folder per line) or Kaggle's `Labels.json` in FOLDER selects the 100, or FOLDER has just these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
TEST_FOLDERS = ("val", "validation", "test")
IMAGENET100_CLASSES = 100
_LIST_LIMIT_BYTES = 1 << 20

_LAYOUT = "lay it out as `train/<class>/*.jpg` and `val/<class>/*.jpg`"


@dataclass(frozen=True)
class ImageFile:
    """One image: its path below the folder, its class and its size."""

    path: str
    label: int
    bytes: int


@dataclass(frozen=True)
class Listing:
    """Every image of a folder. Classes are sorted by name; a class's number is its place in that order."""

    root: Path
    source: str
    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]

    def fingerprint(self) -> str:
        """The sha256 of classes, paths and sizes: another content has another one, a copy elsewhere the same."""
        hasher = hashlib.sha256(json.dumps(self.classes).encode())
        for image in (*self.train, *self.test):
            hasher.update(json.dumps([image.path, image.label, image.bytes]).encode())
        return hasher.hexdigest()


def scan(name: str, path: Path) -> Listing:
    """List an image folder for `imagefolder` or `imagenet100`.

    Raises:
        DataError: no such folder, not the layout above, a link that leaves the folder, an empty class, classes that
            differ between the splits, or not 100 of them for `imagenet100`.
    """
    root = path.expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"`{path}` is not a folder", f"`vitscale data {name} --from FOLDER`; {_LAYOUT}")
    train_parts, test_parts = _split_folders(root)
    train_classes, test_classes = _class_folders(root, train_parts), _class_folders(root, test_parts)
    wanted = _selection(name, root, sorted(train_classes))
    for split, found in (("training", train_classes), ("test", test_classes)):
        lacking = [item for item in wanted if item not in found]
        if lacking:
            raise DataError(f"`{root.name}` has no {split} folder for {len(lacking)} classes, first `{lacking[0]}`")
    only_test = sorted(set(test_classes) - set(train_classes))
    if only_test:
        raise DataError(f"class `{only_test[0]}` of `{root.name}` has test images and no training images")
    train = tuple(_images(root, train_classes, wanted))
    test = tuple(_images(root, test_classes, wanted))
    return Listing(root, f"image folder `{root.name}`", wanted, train, test)


def _split_folders(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders that make up the training and the test split."""
    below = [entry for entry in _entries(root, root) if entry.is_dir()]
    parts = {
        split: [Path(entry.path) for entry in below if re.fullmatch(rf"{split}(\.X\d*)?", entry.name)]
        for split in ("train", *TEST_FOLDERS)
    }
    test = next((parts[split] for split in TEST_FOLDERS if parts[split]), [])
    if not parts["train"] or not test:
        lacking = "`train`" if not parts["train"] else "`val` or `test`"
        raise DataError(f"`{root.name}` has no {lacking} folder, and vitscale does not split data for you", _LAYOUT)
    return parts["train"], test


def _class_folders(root: Path, parts: Sequence[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for part in parts:
        for entry in _entries(root, part):
            if entry.is_dir():
                found.setdefault(entry.name, []).append(Path(entry.path))
    if not found:
        raise DataError(f"`{parts[0].relative_to(root)}` of `{root.name}` has no class folders", _LAYOUT)
    return found


def _images(root: Path, folders: dict[str, list[Path]], classes: Sequence[str]) -> Iterator[ImageFile]:
    """The images of each class in order of path."""
    for label, name in enumerate(classes):
        entries = [entry for folder in folders[name] for entry in _entries(root, folder)]
        nested = next((entry for entry in entries if entry.is_dir()), None)
        if nested is not None:
            raise DataError(f"`{os.path.relpath(nested.path, root)}` is a folder inside a class folder", _LAYOUT)
        chosen = [entry for entry in entries if os.path.splitext(entry.name)[1].lower() in EXTENSIONS]  # noqa: PTH122
        if not chosen:
            where = os.path.relpath(folders[name][0], root)
            known = ", ".join(sorted(EXTENSIONS))
            raise DataError(f"class folder `{where}` of `{root.name}` has no images", f"known endings: {known}")
        for entry in chosen:
            yield ImageFile(os.path.relpath(entry.path, root), label, entry.stat().st_size)


def _entries(root: Path, folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, hidden files left out. A link must stay below the root."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"`{folder}` cannot be listed: {error.strerror}") from None
    for entry in entries:
        if entry.is_symlink():
            _require_inside(root, Path(entry.path))
    return entries


def _require_inside(root: Path, link: Path) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        raise DataError(f"`{link.relative_to(root)}` is a link that leads nowhere") from None
    if not target.is_relative_to(root):
        raise DataError(
            f"`{link.relative_to(root)}` is a link that leaves the folder `{root.name}`",
            "give the folder it leads to; for `imagenet100`, ImageNet-1k's own, with a `classes.txt` beside `train`",
        )


def _selection(name: str, root: Path, found: Sequence[str]) -> tuple[str, ...]:
    """The classes that take part, sorted."""
    if name != "imagenet100":
        return tuple(found)
    listed = _class_list(root)
    classes = tuple(sorted(found if listed is None else set(listed)))
    if len(classes) != IMAGENET100_CLASSES:
        what = "training class folders" if listed is None else "classes in its list"
        raise DataError(
            f"`{root.name}` has {len(classes)} {what}, `imagenet100` has {IMAGENET100_CLASSES}",
            "put a `classes.txt` with the 100 class folders beside `train`, or use `imagefolder`",
        )
    return classes


def _class_list(root: Path) -> list[str] | None:
    """The classes named by `classes.txt` or `Labels.json`, or None where neither is there."""
    for file in (root / "classes.txt", root / "Labels.json"):
        if not file.is_file():
            continue
        if file.is_symlink():
            _require_inside(root, file)
        try:
            if file.stat().st_size > _LIST_LIMIT_BYTES:
                raise ValueError("too long for a class list")
            text = file.read_text(encoding="utf-8")
            names = list(json.loads(text)) if file.suffix == ".json" else [line.strip() for line in text.splitlines()]
            return [str(name) for name in names if name and not str(name).startswith("#")]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"`{file.name}` of `{root.name}` is not a class list: {error}") from None
    return None
