"""FLOP and activations of a ViT, against torch's own counters."""

from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitscale.cost import models, recompute, vit
from vitscale.worker.engines.update import DTYPES

CASES = [
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "depth": 2}),
    ("test_vit2", {"depth": 2}),
    ("test_vit3", {"depth": 2}),
    ("deit3_small_patch16_224", {"img_size": 64, "depth": 2}),
    ("vit_base_patch32_clip_224", {"img_size": 128, "depth": 1}),
    ("vit_giant_patch14_dinov2", {"img_size": 56, "depth": 1}),
    ("beit3_base_patch16_224", {"img_size": 64, "depth": 1}),
]


def built(name, img_size=None, patch_size=None, depth=1):
    shape = replace(models.shape(name, img_size, patch_size, 10), depth=depth)
    model = timm.create_model(name, img_size=shape.img_size, patch_size=shape.patch_size, depth=depth, num_classes=10)
    return model, shape


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_flop_equal_torchs_counter(name, changes):
    model, shape = built(name, **changes)
    images = torch.zeros(2, 3, shape.img_size, shape.img_size)
    # The CPU's fused attention has no formula in the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        output = model(images)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert 2 * vit.forward_flop(shape) == forward.get_total_flops()
    assert 2 * vit.training_flop(shape) == forward.get_total_flops() + backward.get_total_flops()


def test_training_flop_of_vit_base_is_the_published_figure():
    shape = models.shape("vit_base_patch16_224")
    assert vit.training_flop(shape) / 1e9 == pytest.approx(105.15, abs=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_autocast"])
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_activation_bytes_are_what_autograd_saves(name, changes, precision):
    model, shape = built(name, **changes)
    saved = saved_bytes(model, shape.img_size, precision)
    assert vit.activation_bytes(shape, 3, precision) == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_autocast"])
def test_checkpointing_keeps_one_block_and_the_inputs_of_all(precision):
    model, shape = built("vit_tiny_patch16_224", img_size=64, depth=4)
    model.set_grad_checkpointing()
    saved = saved_bytes(model, 64, precision)
    two, one = (vit.activation_bytes(replace(shape, depth=depth), 3, precision) for depth in (2, 1))
    block_input = 3 * shape.tokens * shape.width * vit.PRECISION_BYTES[precision]
    foreseen = recompute.activation_bytes(shape, 3, precision, 1)
    # Forward keeps no block whole; backward makes one at a time.
    assert foreseen - (two - one) + block_input == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_written_out_keeps_its_weights(precision):
    model, shape = built("vit_tiny_patch16_224", img_size=128, patch_size=8, depth=2)
    for block in model.blocks:
        block.attn.fused_attn = False
    foreseen = vit.activation_bytes(shape, 3, precision, fused_attention=False)
    assert foreseen == pytest.approx(saved_bytes(model, 128, precision), rel=0.03)


def test_checkpointing_computes_the_blocks_of_forward_again():
    shape = models.shape("vit_base_patch16_224")
    outside = vit.forward_flop(replace(shape, depth=0))
    assert recompute.recomputed_flop(shape, 1) == vit.forward_flop(shape) - outside


def saved_bytes(model, size, precision):
    """Bytes of the distinct storages that autograd keeps of three images, weights not counted."""
    dtype = DTYPES[precision]
    images = torch.zeros(3, 3, size, size, dtype=dtype)
    model.to(dtype)
    if precision == "bf16_autocast":
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch.nn.functional.cross_entropy(model(images).float(), torch.zeros(len(images), dtype=torch.long))
    assert loss.requires_grad
    return sum(size for size, _ in storages.values())


@given(st.sampled_from(models.names()), st.integers(1, 256), st.sampled_from(["fp32", "bf16", "fp16"]))
def test_activations_are_proportional_to_the_micro_batch(name, micro_batch, precision):
    shape = models.shape(name)
    assert vit.activation_bytes(shape, micro_batch, precision) == micro_batch * vit.activation_bytes(
        shape, 1, precision
    )


@given(st.sampled_from(models.names()))
def test_sixteen_bits_take_more_than_half_of_the_activations_since_statistics_stay_fp32(name):
    shape = models.shape(name)
    half, full = vit.activation_bytes(shape, 1, "bf16"), vit.activation_bytes(shape, 1, "fp32")
    assert full / 2 < half < full * 0.55


@given(st.sampled_from(models.names()))
def test_backward_costs_less_than_twice_forward_by_the_patch_embedding_only(name):
    shape = models.shape(name)
    missing = 3 * vit.forward_flop(shape) - vit.training_flop(shape)
    assert missing == 2 * shape.patches * 3 * shape.patch_size**2 * shape.width
