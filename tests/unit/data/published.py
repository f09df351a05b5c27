"""Tiny releases of CIFAR with their own checksums, and pictures: what the tests of this folder are fed with."""

import hashlib
import io
import pickle
import tarfile
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from vitscale.data.releases import RELEASES, Pin

IMAGES = {"train": 20, "test": 10}


@dataclass
class Published:
    """A tiny CIFAR release with its own checksums: the files, the archive and what they should decode to."""

    release: object
    files: dict
    archive: bytes
    images: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)

    def pinned(self, archive):
        """The same release where `archive` is what was published."""
        pin = Pin("sha256", hashlib.sha256(archive).hexdigest())
        return replace(self.release, archive_pin=pin, archive_bytes=len(archive))

    def folder(self, parent):
        folder = parent / self.release.folder
        folder.mkdir()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


def tar_of(members):
    """A tar.gz of (name, bytes) pairs or ready (TarInfo, bytes) pairs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def publish(name, form, pickled=None):
    """Build a tiny release; `pickled` turns a dict into bytes (pickle protocol 2 if not given)."""
    template = next(item for item in RELEASES[name] if item.form == form)
    rng = np.random.default_rng(7)
    files, images, labels = {}, {}, {}
    for split in ("train", "test"):
        names = getattr(template, split)
        planes = rng.integers(0, 256, (len(names), IMAGES[split], 3072), dtype=np.uint8)
        own = rng.integers(0, template.classes, (len(names), IMAGES[split]))
        images[split] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels[split] = own.reshape(-1)
        for file, pixels, wanted in zip(names, planes, own, strict=True):
            if form == "binary":
                # The coarse label, where there is one, is never the fine one.
                coarse = ((wanted + 1) % 20).astype(np.uint8)[:, None]
                head = wanted.astype(np.uint8)[:, None]
                head = np.hstack([coarse, head]) if template.label_bytes == 2 else head
                files[file] = np.hstack([head, pixels]).tobytes()
            else:
                content = {
                    "data": pixels,
                    template.label_key: wanted.tolist(),
                    "coarse_labels": [0],
                    "filenames": ["a"],
                }
                files[file] = (pickled or protocol2)(content)
    classes = [f"class {number}" for number in range(template.classes)]
    if form == "binary":
        files[template.names] = ("\n".join(classes) + "\n\n").encode()
    else:
        files[template.names] = protocol2({template.names_key: classes, "num_vis": 3072})
    pins = {file: Pin("sha256", hashlib.sha256(data).hexdigest()) for file, data in files.items()}
    archive = tar_of((f"{template.folder}/{file}", data) for file, data in files.items())
    published = Published(replace(template, pins=pins, file_images=IMAGES), files, archive, images, labels)
    published.release = published.pinned(archive)
    return published


def protocol2(content):
    return pickle.dumps(content, protocol=2)


def picture(path, size=(40, 30), colour=(200, 30, 60), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour).convert(mode) if mode != "RGB" else Image.new("RGB", size, colour)
    image.save(path, **options)
    return path
