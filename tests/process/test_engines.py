"""All engines and ZeRO stages one after another in one process start: each gives back what it took."""

import pytest
from ranks import on_ranks, runs

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

ENGINES = ("engine=ddp,fsdp,accelerate,deepspeed", "zero_stage=0,1,2,3")
ACCELERATED = ("engine=accelerate_deepspeed", "zero_stage=3")
# 14 M parameters: what ZeRO-3 leaves behind by itself is five times its shard, 140 MB.
MODEL = ("model.name=vit_small_patch16_224", "depth=8", "img_size=16", "patch_size=8", "global_batch=4")
LEFT_BYTES = 150 << 20


WORLD_SIZES = (1, 2)


@pytest.fixture(scope="module")
def measured(store, tmp_path_factory):
    """World size -> what its ranks found; one process start for all."""
    turns = []
    for world_size in WORLD_SIZES:
        size = f"world_size={world_size}"
        specs = [spec for words in (ENGINES, ACCELERATED) for spec in runs(store, *MODEL, *words, size)]
        assert len(specs) == 3 + 4 + 1
        turns.append((world_size, [spec.model_dump(mode="json") for spec in (*specs, specs[0])]))
    found = on_ranks("engine_memory", tmp_path_factory.mktemp("left"), turns)
    return dict(zip(WORLD_SIZES, found, strict=True))


@pytest.fixture(params=WORLD_SIZES, ids=["1 rank", "2 ranks"])
def left(request, measured):
    """Of each rank: engine, bytes of live tensors and resident bytes after each run was closed."""
    return measured[request.param]


def test_no_engine_leaves_a_tensor(left):
    for of_rank in left:
        assert {engine: size for engine, size, _ in of_rank if size > 1 << 20} == {}


def test_memory_is_back_when_all_have_run(left):
    for of_rank in left:
        resident = [size for _, _, size in of_rank]
        assert resident[-1] - resident[0] < LEFT_BYTES, [(name, size >> 20) for name, _, size in of_rank]
