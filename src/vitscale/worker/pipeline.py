"""From uint8 arrays to what the model takes: read by index, copied as bytes; resized, normalised and flipped there.

A batch is a quarter of its float32 size while it travels, and the arithmetic happens once for the whole batch.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
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


Load = Callable[[], Raw]


class Batches(Protocol):
    """This rank's micro-batches in order, without end."""

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """End what reads ahead."""


def open_batches(spec: RunSpec, split: Split, ranks: Ranks, dtype: torch.dtype, start: int = 0) -> Batches:
    """Start reading a run's micro-batches: ahead of the device on CUDA, on demand on CPU, where cores are counted, or
    with as many threads as the run's `loader_threads` says.

    Args:
        spec: the run; where it trains, its recipe's augmentation is applied.
        split: the images.
        ranks: who asks.
        dtype: number format of the engine's inputs.
        start: first step.
    """
    loads = plan(spec, split, ranks.rank, start)
    asked = spec.knobs.loader_threads if spec.knobs else None
    threads = int(ranks.device.type == "cuda") if asked is None else asked
    reader = Ahead(loads, ranks.device, threads) if threads else OnDemand(loads, ranks.device)
    recipe = spec.train
    if recipe is None:
        return Prepared(reader, spec.model.img_size, dtype)
    mixing = augment.mix(recipe, spec.model.num_classes)
    return Prepared(reader, spec.model.img_size, dtype, augment.rand_augment(recipe.rand_augment), mixing)


def read(spec: RunSpec, split: Split, rank: int, start: int = 0) -> Iterator[Raw]:
    """This rank's micro-batches from a step on, one after another."""
    return (load() for load in plan(spec, split, rank, start))


def plan(spec: RunSpec, split: Split, rank: int, start: int = 0) -> Iterator[Load]:
    """What reads this rank's micro-batches from a step on, in their order; any thread may call it, at any time.

    Which images a step takes, which of them are flipped and how each is cropped, belongs to the global batch: it is the
    same at every world size. A rank that has more micro-steps than others (`uneven.py`) takes the same images in them.
    """
    seed = spec.measure.seed
    reach = spec.train.crop if spec.train else 0
    order = GlobalOrder(population(split, spec.data.images, seed), spec.global_batch, seed)

    def own(batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return rank_slice(batch, spec.data_rank(rank), spec.micro_batches, spec.blocks).reshape(spec.grad_accum, -1)

    for step in itertools.count(start):
        indices = own(order.batch_indices(step))
        flips = own(_draw(_FLIPS, spec.global_batch, 0, 1, seed, step)) if spec.data.flip else None
        moves = [own(_draw(stream, spec.global_batch, -reach, reach, seed, step)) for stream in _CROPS]
        for micro in range(spec.grad_accum):
            flipped = None if flips is None else torch.from_numpy(flips[micro].astype(bool))
            shifts = torch.from_numpy(np.stack([axis[micro] for axis in moves], 1)) if reach else None
            yield partial(_load, split, indices[micro], flipped, shifts)


def _load(split: Split, indices: npt.NDArray[np.int64], flipped: Tensor | None, shifts: Tensor | None) -> Raw:
    return Raw(torch.from_numpy(split.take(indices)), torch.from_numpy(split.take_labels(indices)), flipped, shifts)


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
    """Reads a micro-batch when it is asked for, and copies it to the device."""

    def __init__(self, loads: Iterator[Load], device: torch.device) -> None:
        self._loads, self._device = loads, device

    def __next__(self) -> Raw:
        return _each(next(self._loads)(), lambda tensor: tensor.to(self._device))

    def close(self) -> None:
        """Nothing to end."""


class Ahead:
    """Reads micro-batches ahead in threads, in order; to CUDA they go from pinned memory on a stream of their own.

    Places in the queue are taken in the order of the micro-batches and filled in any: what fails is raised in its turn.
    """

    DEPTH = 3
    """Micro-batches that are ready or being read, and one more for every further thread."""

    def __init__(self, loads: Iterator[Load], device: torch.device, threads: int) -> None:
        self._queue: queue.Queue[Future[tuple[Raw, torch.cuda.Event | None]]] = queue.Queue(self.DEPTH + threads - 1)
        self._loads, self._device = loads, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._turn, self._stop = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._fill, name="reader", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __next__(self) -> Raw:
        raw, copied = self._queue.get().result()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for tensor in raw:
                if tensor is not None:
                    tensor.record_stream(stream)  # freed for reuse only when this stream is done with it
        return raw

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _fill(self) -> None:
        while True:
            place: Future[tuple[Raw, torch.cuda.Event | None]] = Future()
            try:
                with self._turn:
                    if not self._put(place):
                        return
                    load = next(self._loads)
                place.set_result(self._copied(load()))
            except BaseException as error:  # noqa: BLE001 (handed to the loop, which raises it)
                place.set_exception(error)

    def _copied(self, raw: Raw) -> tuple[Raw, torch.cuda.Event | None]:
        if self._stream is None:
            return raw, None
        with torch.cuda.stream(self._stream):
            moved = _each(raw, lambda tensor: tensor.pin_memory().to(self._device, non_blocking=True))
            return moved, self._stream.record_event()

    def _put(self, place: Future[tuple[Raw, torch.cuda.Event | None]]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(place, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


def _each(raw: Raw, change: Callable[[Tensor], Tensor]) -> Raw:
    return Raw(*(None if tensor is None else change(tensor) for tensor in raw))  # type: ignore[arg-type]


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
