"""The roofline's closed form adds up to the forward pass, and its bytes to what torch's layers are given."""

import pytest

from vitscale.cost.layers import layer_costs
from vitscale.cost.models import shape
from vitscale.cost.vit import forward_flop

SHAPES = [
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "num_classes": 10}),
    ("vit_base_patch16_224", {}),
    ("deit3_small_patch16_224", {}),
]


@pytest.mark.parametrize(("name", "sizes"), SHAPES)
@pytest.mark.parametrize("passes", [1, 4])
def test_the_classes_have_all_flop_of_the_forward_pass(name, sizes, passes):
    model = shape(name, **sizes)
    costs = layer_costs(model, images=8, passes=passes, precision="fp32")
    assert sum(cost.flop or 0 for cost in costs.values()) == 8 * forward_flop(model)


def test_bytes_are_those_of_inputs_weights_and_outputs():
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 16, "patch_size": 8, "num_classes": 10, "depth": 2, "embed_dim": 48}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    moved = {}

    def count(kind):
        def hook(module, inputs, output):
            tensors = [inputs[0], output, *module.parameters()]
            moved[kind] = moved.get(kind, 0) + sum(tensor.nbytes for tensor in tensors)

        return hook

    model.patch_embed.register_forward_hook(count("patch_embed"))
    model.head.register_forward_hook(count("head"))
    for block in model.blocks:
        for kind, module in (
            ("norm", block.norm1), ("qkv", block.attn.qkv), ("proj", block.attn.proj), ("norm", block.norm2),
            ("fc1", block.mlp.fc1), ("fc2", block.mlp.fc2),
        ):  # fmt: skip
            module.register_forward_hook(count(kind))
    model.norm.register_forward_hook(count("norm"))
    for _ in range(3):
        model(torch.zeros(2, 3, 16, 16))
    costs = layer_costs(shape("vit_tiny_patch16_224", **sizes), images=6, passes=3, precision="fp32")
    assert {kind: cost.bytes for kind, cost in costs.items() if kind != "attention"} == moved


def test_under_autocast_products_move_half_as_much_and_norms_all():
    model = shape("vit_base_patch16_224")
    whole, half = (layer_costs(model, 8, 1, precision) for precision in ("fp32", "bf16_autocast"))
    assert half["norm"] == whole["norm"]
    assert 2 * half["attention"].bytes == whole["attention"].bytes
