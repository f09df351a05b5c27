"""The closed forms against DeepSpeed itself: live tensors and the backend's calls, 2 ranks on gloo."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vitscale.cost import models, vit
from vitscale.cost.collectives import step_collectives
from vitscale.cost.memory import model_state_bytes, persistent_elements

WORKER = Path(__file__).parent / "deepspeed_ranks.py"
SHAPE = replace(models.shape("vit_tiny_patch16_224", 32, 4, 10), depth=3)
TENSORS = vit.parameter_tensors(SHAPE)
BUCKET = 2_000_000
GRAD_ACCUM = 2


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environ = {**os.environ, "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with (folder / "stderr").open("w") as stderr:
        ranks = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(rank), str(folder), str(BUCKET), str(GRAD_ACCUM)],
                env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            for rank in range(2)
        ]
        try:
            codes = [rank.wait(timeout=100) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    assert codes == [0, 0], (folder / "stderr").read_text()[-3000:]
    return json.loads((folder / "measured.json").read_text())


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.process
def test_model_state_and_traffic_are_what_deepspeed_holds_and_sends(measured, precision, zero_stage):
    values = {"engine": "deepspeed", "zero_stage": zero_stage, "precision": precision, "data_parallel": 2}
    persistent = persistent_elements(TENSORS) if zero_stage == 3 else 0
    held = {"moments": 2 * sum(TENSORS), "persistent_parameters": persistent}
    state = model_state_bytes(sum(TENSORS), **values, **held)
    found = measured[precision][str(zero_stage)]
    if zero_stage == 3:  # its bucket and gradients stay between steps
        kept_bytes = state.total_bytes + BUCKET * vit.PRECISION_BYTES[precision]
    else:
        kept_bytes = state.total_bytes - state.gradients_bytes
    assert found["after_step_bytes"] == pytest.approx(kept_bytes, rel=0.002)
    if zero_stage == 1:  # all gradients between micro-steps, where ZeRO-2 keeps its share
        assert found["micro_step_gradient_bytes"] == state.gradients_bytes
    predicted = step_collectives(TENSORS, **values, grad_accum=GRAD_ACCUM, reduce_bucket_elements=BUCKET)
    assert {one.operation: [one.calls, one.bytes] for one in predicted} == {
        name: [calls, pytest.approx(size, rel=0.001)] for name, (calls, size) in found["collectives"].items()
    }
