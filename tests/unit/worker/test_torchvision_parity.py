"""The paper trained torchvision's `vit_b_16`; timm's `vit_base_patch16_224` is the same network."""

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vit_b_16

from vitscale.cost import models, vit

NAMES = (
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj", "conv_proj"),
    ("norm.", "encoder.ln."),
    ("head.", "heads.head."),
)
BLOCK = {
    "norm1": "ln_1",
    "attn.qkv.weight": "self_attention.in_proj_weight",
    "attn.qkv.bias": "self_attention.in_proj_bias",
    "attn.proj": "self_attention.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}


def timm_vit():
    return timm.create_model("vit_base_patch16_224")


def torchvision_name(name):
    """Torchvision's name of a parameter of timm's."""
    if name.startswith("blocks."):
        _, number, inner = name.split(".", 2)
        ours = next(key for key in BLOCK if inner.startswith(key))
        return f"encoder.layers.encoder_layer_{number}.{BLOCK[ours]}{inner.removeprefix(ours)}"
    ours, theirs = next(pair for pair in NAMES if name.startswith(pair[0]))
    return theirs + name.removeprefix(ours)


def counts(model):
    return sorted(parameter.numel() for parameter in model.parameters())


def training_flop(model):
    # The CPU's fused attention has no formula in the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.train()(torch.empty(2, 3, 224, 224, device="meta")).sum().backward()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def on_paper():
    """Both models without memory: timm's, torchvision's."""
    with torch.device("meta"):
        return timm_vit(), vit_b_16(weights=None)


def test_parameters_are_as_many_in_every_tensor(on_paper):
    ours, theirs = on_paper
    assert counts(ours) == counts(theirs)
    assert sum(counts(theirs)) == vit.parameters(models.shape("vit_base_patch16_224")) == 86_567_656


def test_flop_are_as_many(on_paper):
    ours, theirs = map(training_flop, on_paper)
    assert ours == theirs == 2 * vit.training_flop(models.shape("vit_base_patch16_224"))


@pytest.fixture(scope="module")
def copied():
    """Torchvision's model with timm's weights, an image, and timm's logits for it."""
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs = vit_b_16(weights=None).eval()
    ours = timm_vit().eval()
    for parameter in ours.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2)  # biases of 0 and scales of 1 would hide a mix-up
    theirs.load_state_dict({torchvision_name(name): value for name, value in ours.state_dict().items()}, assign=True)
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        return theirs, image, ours(image)


def test_logits_are_the_same_after_copying_the_weights(copied):
    theirs, image, logits = copied
    assert logits.std() > 0.1
    with torch.inference_mode():
        torch.testing.assert_close(theirs(image), logits, rtol=1e-4, atol=1e-4)


def test_a_block_in_anothers_place_is_noticed(copied):
    theirs, image, logits = copied
    layers = theirs.encoder.layers
    layers[0], layers[1] = layers[1], layers[0]
    with torch.inference_mode():
        assert not torch.allclose(theirs(image), logits, rtol=1e-4, atol=1e-4)
