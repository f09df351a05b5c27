"""From uint8 arrays to what the model takes: read by index, copied as bytes; resized, normalised and flipped there.

A batch is a quarter of its float32 size while it travels, and the arithmetic happens once for the whole batch.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from vitscale.config.runspec import RunSpec
from vitscale.data.order import GlobalOrder, rank_slice, subset
from vitscale.data.reader import Split
from vitscale.worker import augment
from vitscale.worker.distributed import Ranks


class Batch(NamedTuple):
    """A micro-batch on its device."""

    images: Tensor
    """[micro_batch, 3, img_size, img_size] in the engine's number format, in -1 … 1."""
    labels: Tensor
    """int64 [micro_batch], or after mixup float [micro_batch, classes]."""


Distortion = Callable[[Tensor], Tensor]


class Raw(NamedTuple):
    """A micro-batch as it is read."""

    pixels: Tensor
    """uint8 [micro_batch, height, width, channels]."""
    labels: Tensor
    """int64 [micro_batch]."""
    flipped: Tensor | None
    """bool [micro_batch], or None where nothing is flipped."""
    shifts: Tensor | None = None
    """int64 [micro_batch, 2], pixels down and right, or None where nothing is cropped."""


class Batches(Protocol):
    """This rank's micro-batches in order, without end."""

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """End what reads ahead."""


def open_batches(spec: RunSpec, split: Split, ranks: Ranks, dtype: torch.dtype, start: int = 0) -> Batches:
    """Start reading a run's micro-batches: ahead of the device on CUDA, on demand on CPU, where cores are counted.

    Args:
        spec: the run; where it trains, its recipe's augmentation is applied.
        split: the images.
        ranks: who asks.
        dtype: number format of the engine's inputs.
        start: first step.
    """
    raw = read(spec, split, ranks.rank, start)
    reader = Ahead(raw, ranks.device) if ranks.device.type == "cuda" else OnDemand(raw)
    recipe = spec.train
    if recipe is None:
        return Prepared(reader, spec.model.img_size, dtype)
    mixing = augment.mix(recipe, spec.model.num_classes)
    return Prepared(reader, spec.model.img_size, dtype, augment.rand_augment(recipe.rand_augment), mixing)


def read(spec: RunSpec, split: Split, rank: int, start: int = 0) -> Iterator[Raw]:
    """This rank's micro-batches from a step on.

    Which images a step takes, which of them are flipped and how each is cropped, belongs to the global batch: it is the
    same at every world size.
    """
    seed = spec.measure.seed
    reach = spec.train.crop if spec.train else 0
    order = GlobalOrder(population(split, spec.data.images, seed), spec.global_batch, seed)
    shape = (spec.data_rank(rank), spec.data_parallel, spec.micro_batch, spec.grad_accum)
    for step in itertools.count(start):
        indices = rank_slice(order.batch_indices(step), *shape)
        flips = rank_slice(_draw(_FLIPS, spec.global_batch, 0, 1, seed, step), *shape) if spec.data.flip else None
        moves = [rank_slice(_draw(stream, spec.global_batch, -reach, reach, seed, step), *shape) for stream in _CROPS]
        for micro in range(spec.grad_accum):
            pixels, labels = split.take(indices[micro]), split.take_labels(indices[micro])
            flipped = None if flips is None else torch.from_numpy(flips[micro].astype(bool))
            shifts = torch.from_numpy(np.stack([axis[micro] for axis in moves], 1)) if reach else None
            yield Raw(torch.from_numpy(pixels), torch.from_numpy(labels), flipped, shifts)


def population(split: Split, images: int, seed: int) -> int | npt.NDArray[np.int64]:
    """The images that take part: all of them as a count, or the indices of a stratified subset."""
    return images if images == len(split) else subset(split.labels, images, seed)


# GlobalOrder shuffles epoch e by (seed, e): a third number keeps these streams apart from it and from each other.
_FLIPS, _CROPS = 2, (4, 5)


def _draw(stream: int, count: int, low: int, high: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """One number of low … high for each image of a global batch."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, step, stream))))
    return generator.integers(low, high + 1, count)


def prepare(raw: Raw, img_size: int, dtype: torch.dtype, distort: Distortion | None = None) -> Tensor:
    """Crop, distort, resize (bilinear, anti-aliased where it shrinks), map to -1 … 1, flip; grey fills 3 channels.

    -1 … 1 (mean and deviation 0.5) is what timm's ViTs were trained with.
    """
    images = raw.pixels.permute(0, 3, 1, 2)
    if raw.shifts is not None:
        images = augment.crop(images, raw.shifts)
    if distort is not None:
        images = distort(images.expand(-1, 3, -1, -1))
    # What can be done to the small image of bytes is done to it: after the resize there are many more pixels.
    if raw.flipped is not None:
        images = torch.where(raw.flipped[:, None, None, None], images.flip(-1), images)
    if images.shape[-2:] != (img_size, img_size):
        images = _resize(images, img_size)
    return images.contiguous().float().div_(127.5).sub_(1.0).to(dtype).expand(-1, 3, -1, -1).contiguous()


def _resize(images: Tensor, size: int) -> Tensor:
    """Bilinear, anti-aliased where it shrinks.

    On a CPU torch resizes bytes, rounding to whole grey levels as PIL does, in under half the time that floats take
    (measured: docs/log.md); on CUDA it has no such kernel and floats cost nothing.
    """
    pixels = images if images.device.type == "cpu" else images.float()
    return functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


class OnDemand:
    """Reads a micro-batch when it is asked for."""

    def __init__(self, raw: Iterator[Raw]) -> None:
        self._raw = raw

    def __next__(self) -> Raw:
        return next(self._raw)

    def close(self) -> None:
        """Nothing to end."""


class Ahead:
    """Reads `DEPTH` micro-batches ahead in a thread and copies them, from pinned memory, on a stream of its own."""

    DEPTH = 3

    def __init__(self, raw: Iterator[Raw], device: torch.device) -> None:
        self._queue: queue.Queue[tuple[Raw, torch.cuda.Event] | BaseException] = queue.Queue(self.DEPTH)
        self._stop = threading.Event()
        self._device = device
        self._thread = threading.Thread(target=self._fill, args=(raw,), name="reader", daemon=True)
        self._thread.start()

    def __next__(self) -> Raw:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        raw, copied = item
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)
        for tensor in raw:
            if tensor is not None:
                tensor.record_stream(stream)  # freed for reuse only when this stream is done with it
        return raw

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        while not self._queue.empty():
            self._queue.get()
        self._thread.join()

    def _fill(self, raw: Iterator[Raw]) -> None:
        try:
            torch.cuda.set_device(self._device)
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            for item in raw:
                with torch.cuda.stream(stream):
                    moved = Raw(*(None if t is None else self._copy(t) for t in item))  # type: ignore[arg-type]
                    copied = stream.record_event()
                if not self._put((moved, copied)):
                    return
        except BaseException as error:  # noqa: BLE001 (handed to the loop, which raises it)
            self._put(error)

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _put(self, item: tuple[Raw, torch.cuda.Event] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class Prepared:
    """Micro-batches as the model takes them."""

    def __init__(
        self,
        reader: OnDemand | Ahead,
        img_size: int,
        dtype: torch.dtype,
        distort: Distortion | None = None,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._reader, self._img_size, self._dtype, self._distort, self._mix = reader, img_size, dtype, distort, mix

    def __next__(self) -> Batch:
        raw = next(self._reader)
        images = prepare(raw, self._img_size, self._dtype, self._distort)
        return Batch(images, raw.labels) if self._mix is None else Batch(*self._mix(images, raw.labels))

    def close(self) -> None:
        """End what reads ahead."""
        self._reader.close()
