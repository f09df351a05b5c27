"""What is offloaded is not on the device, and nothing is lost on the way."""

import pytest

from vitscale.config.load import load
from vitscale.cost import models, vit
from vitscale.cost.run import estimate_run, of_catalog
from vitscale.data.catalog import describe
from vitscale.hardware.probe import probe
from vitscale.study.grid import Images, Where, build

MODEL = "vit_base_patch16_224"
TENSORS = vit.parameter_tensors(models.shape(MODEL, num_classes=10))
P, N = sum(TENSORS), 4
KEY = "deepspeed.zero_optimization.offload"


def memory(stage, *words, precision="bf16"):
    told = ["protocol=weak", f"model.name={MODEL}", "micro_batch=8", f"world_size={N}", f"precision={precision}"]
    sizes = ["data.name=synthetic", f"zero_stage={stage}", "img_size=224", "patch_size=16"]
    images = lambda section: Images(describe(section.name, None, None), "generated")  # noqa: E731
    (spec,) = build(load("quick", [*told, *sizes, *words]).study, Where(probe(), "h100"), images).runs
    return estimate_run(spec, of_catalog("h100", N))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_takes_the_host_and_not_the_device(stage, precision):
    plain = memory(stage, precision=precision).memory
    away = memory(stage, f"{KEY}_optimizer.device=cpu", precision=precision).memory
    assert plain.host_bytes == 0
    assert away.model_state.optimizer_bytes == 0
    assert away.model_state.gradients_bytes == (plain.model_state.gradients_bytes if stage == 1 else 0)
    # Two moments, master weights and gradients of the own part, 4 bytes each.
    assert away.host_bytes == pytest.approx(16 * P / N, rel=1e-6)
    assert away.buckets_bytes - plain.buckets_bytes == (
        vit.PRECISION_BYTES[precision] * max(TENSORS) if stage < 3 else 0
    )
    assert away.total_bytes == away.model_state.total_bytes + away.activations_bytes + away.buckets_bytes
    assert away.total_bytes < plain.total_bytes


def test_offloaded_shards_leave_what_persists():
    plain, away = memory(3).memory, memory(3, f"{KEY}_param.device=cpu").memory
    persistent = sum(size for size in TENSORS if size < 100_000)
    assert away.model_state.parameters_bytes == 2 * persistent
    assert plain.model_state.parameters_bytes - away.model_state.parameters_bytes == away.host_bytes


def test_the_time_of_an_update_on_the_host_is_not_made_up():
    away = memory(2, f"{KEY}_optimizer.device=cpu")
    assert memory(2).step.step_s is not None
    assert (away.step.step_s, away.step.optimizer_s, away.step.images_per_s) == (None, None, None)
    assert "offload: the update on the host and its transfers are not estimated" in away.step.assumptions
    assert away.document()["memory_bytes"]["host"] == away.memory.host_bytes
