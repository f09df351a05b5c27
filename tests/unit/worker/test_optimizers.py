"""Optimizers as built: what they keep is what `cost` foresees, who updates what, and state that goes on bitwise."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from vitscale.config.study import OptimizerSection
from vitscale.cost.models import shape
from vitscale.cost.optimizers import moment_elements
from vitscale.worker import optimizers
from vitscale.worker.engines import state

MODEL = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_classes": 10}
NAMES = ["adamw", "sgd", "lamb", "lion", "muon", "adafactor"]


def built(name, seed=0, **more):
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", **MODEL)
    section = OptimizerSection(name=name, lr=1e-2, **more)
    return model, optimizers.build(model, section, torch.device("cpu"))


def step(model, optimizer, number):
    torch.manual_seed(number)
    model(torch.randn(4, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_keeps_what_is_foreseen(name):
    model, optimizer = built(name)
    step(model, optimizer, 0)
    kept = [
        one.numel()
        for of_weight in optimizer.state.values()
        for key, one in of_weight.items()
        if isinstance(one, torch.Tensor) and key != "step"
    ]
    assert sum(kept) == moment_elements(shape("vit_tiny_patch16_224", **MODEL), name)


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_on_bitwise_in_another_optimizer(name, tmp_path):
    model, optimizer = built(name)
    for number in range(3):
        step(model, optimizer, number)
    state.save(tmp_path / "state", dict(model.named_parameters()), optimizer)
    other, fresh = built(name, seed=1)
    state.load(tmp_path / "state", dict(other.named_parameters()), fresh)
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, fresh, number)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, gone_on) for one, gone_on in pairs)


def test_the_step_that_lamb_counts_by_group_is_saved(tmp_path):
    model, optimizer = built("lamb")
    for number in range(3):
        step(model, optimizer, number)
    state.save(tmp_path / "state", {}, optimizer)
    saved = load_file(tmp_path / "state")
    assert [saved[f"group/{group}/step"].item() for group in (0, 1)] == [3, 3]


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model, optimizer = built("muon")
    step(model, optimizer, 0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon = {names[p] for p, kept in optimizer.state.items() if "momentum_buffer" in kept}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert muon == {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers}
    assert len(optimizer.state) == len(names)


@pytest.mark.parametrize("name", NAMES)
def test_only_weights_of_two_dimensions_or_more_are_decayed(name):
    """With gradients of zero, decay is all that moves a weight; but LAMB's is scaled by its norm over itself."""
    model, optimizer = built(name, weight_decay=0.5)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for key, weight in model.named_parameters():
        factor = 1.0 if weight.ndim < 2 else 1 - 1e-2 if name == "lamb" else 1 - 1e-2 * 0.5
        torch.testing.assert_close(weight.detach(), before[key] * factor, rtol=1e-5, atol=1e-7)


def test_lamb_does_not_clip_a_second_time():
    _, optimizer = built("lamb")
    assert optimizer.defaults["max_grad_norm"] is None


def test_lamb_adapts_to_the_size_of_a_weight_without_decay_too():
    """The update of a matrix is as long as the rate times the matrix."""
    model, optimizer = built("lamb", weight_decay=0.0)
    before = model.blocks[0].attn.qkv.weight.detach().clone()
    step(model, optimizer, 0)
    moved = (model.blocks[0].attn.qkv.weight - before).norm()
    torch.testing.assert_close(moved, 1e-2 * before.norm())


@pytest.mark.parametrize("name", NAMES)
def test_state_of_a_weight_has_the_strides_of_the_weight(name, tmp_path):
    """Else a sum over both goes in another order after a checkpoint."""
    model, optimizer = built(name)
    weight = model.to(memory_format=torch.channels_last).patch_embed.proj.weight
    step(model, optimizer, 0)
    kept = {key: one.stride() for key, one in optimizer.state[weight].items() if isinstance(one, torch.Tensor)}
    state.save(tmp_path / "state", dict(model.named_parameters()), optimizer)
    state.load(tmp_path / "state", dict(model.named_parameters()), optimizer)
    assert {key: one.stride() for key, one in optimizer.state[weight].items()} == kept
