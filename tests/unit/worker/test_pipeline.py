"""uint8 batches become what the model takes, in batch; which images a step takes does not depend on the world size."""

import itertools
import threading

import numpy as np
import psutil
import pytest
import torch
from torch.nn import functional

from vitscale.config.knobs import EngineSection
from vitscale.data.prepare import prepare as prepare_data
from vitscale.data.reader import open_split
from vitscale.records.schema import Split
from vitscale.worker.distributed import Ranks
from vitscale.worker.pipeline import Ahead, Raw, open_batches, prepare, read
from vitscale.worker.uneven import dealt


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare_data("digits", root)
    return open_split("digits", "train", root)


def taken(spec, split, steps):
    """Images of each global step over all ranks, as one sorted array."""
    readers = [read(spec, split, rank) for rank in range(spec.world_size)]
    for _ in range(steps):
        rows = [next(reader).pixels.numpy() for reader in readers for _ in range(spec.grad_accum)]
        yield np.sort(np.concatenate(rows).reshape(spec.global_batch, -1), axis=0)


def test_the_global_step_takes_the_same_images_at_every_world_size_and_accumulation(make, split):
    one = make.make_spec(1)
    others = [
        make.make_spec(2),
        make.make_spec(4),
        make.make_spec(2, micro_batch=8, grad_accum=4),
    ]
    wanted = list(taken(one, split, 30))  # beyond one epoch of 22 steps
    for spec in others:
        for a, b in zip(wanted, taken(spec, split, 30), strict=True):
            assert np.array_equal(a, b)


def test_a_rank_that_takes_its_share_in_parts_reads_the_images_of_that_share(make, split):
    data = make.make_spec(1).data.model_copy(update={"flip": True})
    given = {"data": data, "grad_accum": 2, "micro_batch": 16, "knobs": EngineSection(split="proportional")}
    spec = make.make_spec(2, **given)
    shares, micro_steps = (24, 8), (3, 1)

    def two_steps(rank, counts):
        own = dealt(spec, Split(micro_batches=shares, micro_steps=counts), rank)
        taken = list(itertools.islice(read(own, split, rank), 2 * own.grad_accum))
        assert {len(raw.labels) for raw in taken} == {shares[rank] // (counts or (1, 1))[rank]}
        return [torch.cat([raw[field] for raw in taken]) for field in range(3)]

    for rank in range(2):
        pairs = zip(two_steps(rank, None), two_steps(rank, micro_steps), strict=True)
        assert all(torch.equal(at_once, in_parts) for at_once, in_parts in pairs)


def test_ranks_that_share_tokens_read_the_same_images(make, split):
    spec = make.make_spec(4, data_parallel=2, sequence_parallel=2, micro_batch=32)
    first, second, third, fourth = (next(read(spec, split, rank)).pixels.numpy() for rank in range(4))
    assert np.array_equal(first, second)
    assert np.array_equal(third, fourth)
    (wanted,) = taken(make.make_spec(2), split, 1)
    assert np.array_equal(np.sort(np.concatenate([first, third]).reshape(64, -1), axis=0), wanted)


def test_flips_belong_to_the_global_batch_too(make, split):
    data = make.make_spec(1).data.model_copy(update={"flip": True})
    one, two = (make.make_spec(size, data=data) for size in (1, 2))
    first = next(read(one, split, 0))
    halves = [next(read(two, split, rank)) for rank in range(2)]
    joined = torch.cat([half.flipped for half in halves])
    pixels = torch.cat([half.pixels for half in halves])
    assert 16 < int(first.flipped.sum()) < 48

    def key(images, flips):
        return sorted((row.tobytes(), bool(flip)) for row, flip in zip(images.numpy(), flips, strict=True))

    assert key(first.pixels, first.flipped) == key(pixels, joined)


def raw(shape, flipped=None):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Raw(pixels, torch.zeros(shape[0], dtype=torch.long), flipped)


def test_pixels_are_spread_over_minus_one_to_one():
    white, black = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8), torch.zeros((1, 4, 4, 3), dtype=torch.uint8)
    labels = torch.zeros(1, dtype=torch.long)
    assert prepare(Raw(white, labels, None), 4, torch.float32).unique().tolist() == [1.0]
    assert prepare(Raw(black, labels, None), 4, torch.float32).unique().tolist() == [-1.0]


def test_grey_images_fill_three_channels():
    images = prepare(raw((2, 8, 8, 1)), 32, torch.float32)
    assert images.shape == (2, 3, 32, 32)
    assert images.is_contiguous()
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize(("side", "antialias"), [(32, False), (16, True)])
def test_resizing_is_torchs_bilinear_to_a_grey_level(side, antialias):
    batch = raw((3, 24, 24, 3))
    wanted = functional.interpolate(
        batch.pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, (side, side), mode="bilinear", antialias=antialias
    )
    assert (prepare(batch, side, torch.float32) - wanted).abs().max() <= 1.01 / 127.5


def test_flipped_images_are_mirrored_and_the_others_are_not():
    batch = raw((2, 4, 4, 3), torch.tensor([True, False]))
    plain = prepare(batch._replace(flipped=None), 4, torch.float32)
    mirrored = prepare(batch, 4, torch.float32)
    assert torch.equal(mirrored[0], plain[0].flip(-1))
    assert torch.equal(mirrored[1], plain[1])


def test_batches_come_in_the_engines_number_format(make, split):
    ranks = Ranks(0, 0, 1, 1, torch.device("cpu"))
    batches = open_batches(make.make_spec(1), split, ranks, torch.bfloat16)
    images, labels = next(batches)
    batches.close()
    assert images.dtype == torch.bfloat16
    assert images.shape == (64, 3, 32, 32)
    assert labels.dtype == torch.int64
    assert labels.shape == (64,)


CPU = torch.device("cpu")


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_read_the_same_batches_in_the_same_order(make, split, threads):
    data = make.make_spec(1).data.model_copy(update={"flip": True})
    spec = make.make_spec(1, data=data, micro_batch=16, grad_accum=4)
    ahead = spec.model_copy(update={"knobs": EngineSection(loader_threads=threads)})
    one, other = (open_batches(run, split, Ranks(0, 0, 1, 1, CPU), torch.float32) for run in (spec, ahead))
    for _ in range(100):  # beyond one epoch of 22 steps
        assert all(torch.equal(a, b) for a, b in zip(next(one), next(other), strict=True))
    other.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "reader"]


def test_no_other_process_reads_images(make, split):
    spec = make.make_spec(1).model_copy(update={"knobs": EngineSection(loader_threads=2)})
    before = psutil.Process().children()
    batches = open_batches(spec, split, Ranks(0, 0, 1, 1, CPU), torch.float32)
    next(batches)
    assert [thread.name for thread in threading.enumerate()].count("reader") == 2
    assert psutil.Process().children() == before
    batches.close()


def test_what_a_thread_cannot_read_fails_in_its_turn():
    def broken():
        raise OSError("no such page")

    loads = [lambda: raw((1, 4, 4, 1))] * 2 + [broken] + [lambda: raw((1, 4, 4, 1))] * 20
    batches = Ahead(iter(loads), CPU, 2)
    assert [len(next(batches).pixels) for _ in range(2)] == [1, 1]
    with pytest.raises(OSError, match="no such page"):
        next(batches)
    batches.close()
