"""All engines and ZeRO stages one after another in one process start: each gives back what it took."""

from importlib.util import find_spec

import pytest
from ranks import launches, runs, serve

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

ENGINES = ["deepspeed", "ddp", "fsdp", *(["accelerate"] if find_spec("accelerate") else [])]
# 14 M parameters: what ZeRO-3 leaves behind by itself would be five times its shard, 140 MB.
MODEL = ("model.name=vit_small_patch16_224", "depth=8", "img_size=16", "patch_size=8", "steps=2", "global_batch=4")
LEFT_BYTES = 150 << 20


def test_the_last_run_of_a_round_needs_no_more_memory_than_the_first(store, tmp_path):
    words = (*MODEL, f"engine={','.join(ENGINES)}", "zero_stage=0,1,2,3", "world_size=2")
    specs = runs(store, *words)
    assert len(specs) == len(ENGINES) + 3
    end, folders = serve(store, tmp_path, [*specs, specs[0]])
    assert end.status == "ok", end.reason
    assert len(launches(tmp_path)) == len(specs) + 1
    of_launch = {key: manifest["devices"] for key, manifest in launches(tmp_path).items()}
    first, last = (
        [one["memory_peak_bytes"] for one in of_launch[path.parts[-2:]]] for path in (folders[0], folders[-1])
    )
    for before, after in zip(first, last, strict=True):
        assert after - before < LEFT_BYTES, (first, last)
