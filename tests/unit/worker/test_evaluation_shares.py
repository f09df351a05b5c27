"""Every test image is counted once, whatever the ranks share."""

import numpy as np
import pytest

from vitscale.worker.evaluate import _batches


@pytest.mark.parametrize(("groups", "shared"), [(1, 1), (3, 1), (1, 2), (2, 2), (3, 4)])
@pytest.mark.parametrize("key", ["sequence_parallel", "tensor_parallel"])
@pytest.mark.parametrize("images", [1, 7, 360])
def test_every_image_is_counted_once_and_every_rank_takes_as_many_passes(make, groups, shared, images, key):
    world_size = groups * shared
    sharing = {key: shared if shared > 1 else None}
    spec = make.make_spec(world_size, data_parallel=groups, micro_batch=5, **sharing)
    ranks = [_batches(images, rank, spec) for rank in range(world_size)]
    counted = np.concatenate([indices[count.numpy()] for passes in ranks for indices, count in passes])
    assert sorted(counted.tolist()) == list(range(images))
    assert len({len(passes) for passes in ranks}) == 1
    for rank in range(world_size):
        first = rank // shared * shared
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(ranks[rank], ranks[first], strict=True))
