"""All engines and ZeRO stages one after another in one process start: each gives back what it took."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import runs

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

ENGINES = ("engine=ddp,fsdp,accelerate,deepspeed", "zero_stage=0,1,2,3")
ACCELERATED = ("engine=accelerate_deepspeed", "zero_stage=3")
# 14 M parameters: what ZeRO-3 leaves behind by itself is five times its shard, 140 MB.
MODEL = ("model.name=vit_small_patch16_224", "depth=8", "img_size=16", "patch_size=8", "global_batch=4")
LEFT_BYTES = 150 << 20


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def left(request, store, tmp_path_factory):
    """Of each rank: engine, bytes of live tensors and resident bytes after each run was closed."""
    folder = tmp_path_factory.mktemp("left")
    size = f"world_size={request.param}"
    specs = [spec for words in (ENGINES, ACCELERATED) for spec in runs(store, *MODEL, *words, size)]
    assert len(specs) == 3 + 4 + 1
    told = [spec.model_dump(mode="json") for spec in (*specs, specs[0])]
    (folder / "specs.json").write_text(json.dumps(told))
    started = []
    for rank in range(request.param):
        environ = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request.param)}
        environ |= {"LOCAL_WORLD_SIZE": str(request.param), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, Path(__file__).with_name("engine_memory.py"), folder]
        started.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    errors = [process.communicate()[1].decode() for process in started]
    assert [process.returncode for process in started] == [0] * request.param, errors[0][-2000:]
    return [json.loads((folder / f"left{rank}.json").read_text()) for rank in range(request.param)]


def test_no_engine_leaves_a_tensor(left):
    for of_rank in left:
        assert {engine: size for engine, size, _ in of_rank if size > 1 << 20} == {}


def test_memory_is_back_when_all_have_run(left):
    for of_rank in left:
        resident = [size for _, _, size in of_rank]
        assert resident[-1] - resident[0] < LEFT_BYTES, [(name, size >> 20) for name, _, size in of_rank]
