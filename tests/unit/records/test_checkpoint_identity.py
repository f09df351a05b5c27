"""Fault 27: going on as another run is refused, with what differs."""

import pytest

from vitscale.config.runspec import ModelSpec
from vitscale.errors import CheckpointError
from vitscale.records.checkpoint import Checkpoint, require_same_run


def saved(spec):
    return Checkpoint(run_id=spec.run_id, spec=spec.model_dump(mode="json"), step=8, seconds=1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"world_size": 2}, "`world_size` 1 -> 2"),
        ({"zero_stage": 3}, "`zero_stage` 0 -> 3"),
        ({"precision": "bf16"}, "`precision` fp32 -> bf16"),
        ({"grad_accum": 2, "micro_batch": 32}, "`grad_accum` 1 -> 2"),
        (
            {"deepspeed": {"zero_optimization": {"overlap_comm": True}}},
            "`deepspeed.zero_optimization.overlap_comm`",
        ),
        (
            {"model": ModelSpec(name="vit_small_patch16_224", img_size=32, patch_size=4, num_classes=10)},
            "`model.name` vit_tiny_patch16_224 -> vit_small_patch16_224",
        ),
    ],
)
def test_what_differs_is_said_with_both_values(make, tmp_path, changes, said):
    before, now = make.make_spec(1), make.make_spec(**{"world_size": 1, **changes})
    require_same_run(tmp_path, saved(before), before)
    with pytest.raises(CheckpointError) as raised:
        require_same_run(tmp_path, saved(before), now)
    assert said in raised.value.message
    assert "--out" in raised.value.hint


def test_other_images_of_the_same_name_are_another_run(make, tmp_path):
    now = make.make_spec(1)
    other = saved(now.model_copy(update={"data": now.data.model_copy(update={"fingerprint": "f" * 16})}))
    with pytest.raises(CheckpointError, match=r"`data.fingerprint` f{16} -> 0123456789abcdef"):
        require_same_run(tmp_path, other, now)
