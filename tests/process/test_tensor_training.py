"""Training with shared weights is training: two ranks that hold a part of every block follow a plain loop."""

import math

import numpy as np
import pytest
from ranks import runs, serve, steps
from test_parity import ADAMW, BATCH, BOUND, SGD, STEPS, gap, reference

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

CASES = {
    "adamw": (ADAMW, "engine=ddp,fsdp,deepspeed", "zero_stage=0,1,2,3"),
    "sgd": (SGD, "engine=ddp,fsdp,deepspeed", "zero_stage=0,1,2,3", "grad_accum=2"),
    "bf16": (ADAMW, "engine=ddp,fsdp,deepspeed", "zero_stage=0,1,2,3", "precision=bf16"),
}


def losses_of(store, results, world_size, cases):
    """case -> engine and ZeRO stage -> mean loss of every step; one process start for all."""
    specs = []
    for case, (optimizer, *words) in cases.items():
        keys = [f"optimizer.{key}={value}" for key, value in optimizer.items()]
        sizes = (f"world_size={world_size}", "tensor_parallel=2", f"global_batch={BATCH}", f"steps={STEPS - 1}")
        specs += [(case, spec) for spec in runs(store, *sizes, *keys, *words)]
    end, folders = serve(store, results, [spec for _, spec in specs])
    assert end.status == "ok", end.reason
    losses = {case: {} for case in cases}
    for (case, spec), folder in zip(specs, folders, strict=True):
        assert (spec.data_parallel, spec.tensor_parallel) == (world_size // 2, 2)
        of_ranks = [[line["loss"] for line in lines] for lines in steps(folder).values()]
        losses[case][spec.engine, spec.zero_stage] = np.mean(of_ranks, 0)
    return losses


@pytest.fixture(scope="module")
def shared(store, tmp_path_factory):
    return losses_of(store, tmp_path_factory.mktemp("tensor"), 2, CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case != "bf16"])
def test_losses_are_those_of_a_plain_loop(shared, store, case):
    wanted = reference(store, CASES[case][0])
    gaps = {engine: gap(losses, wanted) for engine, losses in shared[case].items()}
    print(case, gaps)
    assert max(gaps.values()) < BOUND, gaps
