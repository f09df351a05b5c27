"""Image folders, decoded once: every image becomes 256x256 RGB, so that training never waits for a decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vitscale.data.folders import ImageFile, Listing
from vitscale.data.store import Content, SplitContent
from vitscale.errors import DataError

MAX_PIXELS = 89_478_485
"""Largest image decoded, Pillow's own limit: a quarter of a GiB at three bytes per pixel."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_BLOCK_IMAGES = 128
_NAMED_FAILURES = 10


def content(name: str, listing: Listing, side: int) -> Content:
    """Prepare to decode a listed folder into uint8 [N, side, side, 3]; decoding happens while it is written.

    Files that do not decode are collected over both splits and refused together.
    """
    failures: list[str] = []
    return Content(
        name=name,
        source=listing.source,
        classes=listing.classes,
        image_shape=(side, side, 3),
        train=_split(listing.root, listing.train, side, failures),
        test=_split(listing.root, listing.test, side, failures),
        fingerprint=listing.fingerprint(),
        finish=lambda: _refuse(failures),
    )


def read_image(path: Path, side: int) -> npt.NDArray[np.uint8]:
    """Decode one image to uint8 [side, side, 3]: short side to `side` (bicubic, antialiased), centre crop, RGB.

    Only JPEG, PNG, WebP and BMP decoders are tried, whatever the file's ending; EXIF rotation is not applied.

    Raises:
        ValueError: too many pixels, or 16 bits and more per channel.
        OSError: not an image, truncated or unreadable.
    """
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels are over the limit of {MAX_PIXELS:,}")
        if image.mode not in MODES:
            raise ValueError(f"mode `{image.mode}` has more than 8 bits per channel")
        # A palette with transparency goes by way of RGBA, as Pillow asks.
        rgb = (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB")
    short = min(width, height)
    if max(width, height) * side * side > MAX_PIXELS * short:
        raise ValueError(f"{width}x{height} pixels are too narrow to be scaled")
    size = (max(side, round(width * side / short)), max(side, round(height * side / short)))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    scaled = rgb.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return np.asarray(scaled, dtype=np.uint8)


def _split(root: Path, images: tuple[ImageFile, ...], side: int, failures: list[str]) -> SplitContent:
    labels = np.array([image.label for image in images], dtype=np.int64)
    return SplitContent(labels, _blocks(root, images, side, failures))


def _blocks(
    root: Path, images: tuple[ImageFile, ...], side: int, failures: list[str]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Decode in threads (Pillow lets go of the interpreter while it decodes), a bounded number of images at a time."""

    def decode(image: ImageFile) -> npt.NDArray[np.uint8] | str:
        try:
            return read_image(root / image.path, side)
        except UnidentifiedImageError:
            return f"`{image.path}`: not a {', '.join(FORMATS)} image"
        except Exception as error:  # noqa: BLE001 -- a damaged file makes Pillow raise almost anything
            return f"`{image.path}`: {error}"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for start in range(0, len(images), _BLOCK_IMAGES):
            decoded = list(threads.map(decode, images[start : start + _BLOCK_IMAGES]))
            failures += [item for item in decoded if isinstance(item, str)]
            blank = np.zeros((side, side, 3), dtype=np.uint8)
            yield np.stack([blank if isinstance(item, str) else item for item in decoded])


def _refuse(failures: list[str]) -> None:
    if failures:
        named = "; ".join(failures[:_NAMED_FAILURES])
        more = f"; and {len(failures) - _NAMED_FAILURES} more" if len(failures) > _NAMED_FAILURES else ""
        raise DataError(
            f"{len(failures)} image files cannot be read: {named}{more}", "repair or remove them, then prepare again"
        )
