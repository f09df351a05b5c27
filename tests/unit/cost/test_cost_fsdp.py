"""The closed forms of FSDP against the engine itself, on two ranks of torch's process group that sends nothing."""

import gc
from dataclasses import replace
from types import SimpleNamespace

import pytest

from vitscale.cost import fsdp, models, vit

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

SHAPE = replace(models.shape("vit_tiny_patch16_224", 32, 4, 10), depth=3)
WORLD_SIZE = 2
CALLS = {  # by the names of torch 2.15 and of those before it
    "all_gather_single": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
}


@pytest.fixture(scope="module", autouse=True)
def ranks():
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD_SIZE)
    yield
    dist.destroy_process_group()


def engine(precision, grad_accum, reshard):
    from vitscale.worker.engines.fsdp import FSDPEngine

    spec = SimpleNamespace(
        precision=precision,
        grad_accum=grad_accum,
        optimizer=SimpleNamespace(clip=0.0),
        fsdp=SimpleNamespace(reshard_after_forward=reshard),
        tensor_parallel=None,
    )
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=3, num_classes=10)
    return FSDPEngine(spec, model, torch.optim.AdamW(model.parameters()))


def step(made, grad_accum):
    for micro_step in range(grad_accum):
        loss = made(torch.randn(2, 3, 32, 32, dtype=made.dtype)).float().square().mean()
        made.backward(loss, last=micro_step == grad_accum - 1)
    made.step()


def live_bytes():
    gc.collect()
    tensors = (one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter))
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@pytest.mark.parametrize(
    ("precision", "grad_accum", "reshard"), [("fp32", 1, True), ("bf16", 2, True), ("bf16", 2, False)]
)
def test_the_engine_sends_what_is_foreseen(monkeypatch, precision, grad_accum, reshard):
    made, seen = engine(precision, grad_accum, reshard), {"all_gather": [0, 0], "reduce_scatter": [0, 0]}

    def counting(operation, original):
        def call(*args, **kwargs):
            tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
            seen[operation][0] += 1
            seen[operation][1] += max(tensor.numel() * tensor.element_size() for tensor in tensors)
            return original(*args, **kwargs)

        return call

    for name, operation in CALLS.items():
        if hasattr(torch.distributed, name):
            monkeypatch.setattr(torch.distributed, name, counting(operation, getattr(torch.distributed, name)))
    step(made, grad_accum)
    foreseen = fsdp.step_collectives(
        SHAPE, precision=precision, data_parallel=WORLD_SIZE, grad_accum=grad_accum, reshard_after_forward=reshard
    )
    for one in foreseen:
        calls, size = seen[one.operation]
        assert calls == one.calls
        assert size == pytest.approx(one.bytes, rel=0.01)  # shards of odd sizes are padded
    made.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_engine_keeps_what_is_foreseen_and_gives_it_back(precision):
    before_bytes = live_bytes()
    made = engine(precision, 1, reshard=True)
    step(made, 1)
    kept_bytes = live_bytes() - before_bytes
    memory = fsdp.rank_memory(
        SHAPE,
        0,
        grad_accum=1,
        precision=precision,
        data_parallel=WORLD_SIZE,
        optimizer="adamw",
        reshard_after_forward=True,
    )
    # After the step gradients are gone.
    assert kept_bytes == pytest.approx(memory.model_state.total_bytes - memory.model_state.gradients_bytes, rel=0.02)
    made.close()
    del made
    assert live_bytes() - before_bytes < 0.05 * kept_bytes


def test_one_rank_sends_nothing():
    keys = {"precision": "fp32", "grad_accum": 1, "reshard_after_forward": True}
    assert fsdp.step_collectives(SHAPE, data_parallel=1, **keys) == ()


def test_keeping_gathered_weights_costs_memory_and_saves_a_gather():
    keys = {"precision": "bf16", "data_parallel": 8, "grad_accum": 1}
    shape = models.shape("vit_base_patch16_224")
    frugal, quick = (fsdp.step_collectives(shape, **keys, reshard_after_forward=one) for one in (True, False))
    assert frugal[0].bytes - quick[0].bytes == 2 * 12 * vit.block_parameters(shape)
    lean, large = (
        fsdp.rank_memory(shape, 0, **keys, optimizer="adamw", reshard_after_forward=one).total_bytes
        for one in (True, False)
    )
    assert large - lean == 2 * 10 * vit.block_parameters(shape)
