"""Compute from a data sheet: products and moved bytes add up, and published ViT steps of several boards are met."""

import pytest

from vitscale.cost import compute, models
from vitscale.cost.vit import AUTOCAST, activation_bytes, training_flop
from vitscale.hardware.catalog import device


def seconds(name, micro_batch, board, precision, img_size=None, fused=True):
    shape = models.shape(name, **({"img_size": img_size} if img_size else {}))
    kept = activation_bytes(shape, micro_batch, precision, fused_attention=fused)
    flop = micro_batch * training_flop(shape)
    return compute.micro_step_seconds(flop, kept, precision=precision, device=device(board))


@pytest.mark.parametrize(
    ("name", "img_size", "micro_batch", "images_per_s"),
    [
        ("vit_tiny_patch16_224", 224, 512, 2293.54),
        ("vit_small_patch16_224", 224, 384, 1052.92),
        ("vit_base_patch32_224", 224, 512, 1703.57),
        ("vit_base_patch16_224", 224, 192, 390.86),
        ("vit_base_patch16_384", 384, 32, 96.96),
        ("vit_large_patch16_224", 224, 64, 117.08),
        ("vit_huge_patch14_224", 224, 16, 39.94),
    ],
)
def test_published_steps_of_an_rtx_3090_are_met_whatever_the_size_of_the_model(
    name, img_size, micro_batch, images_per_s
):
    """pytorch-image-models, results/benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv; a share of the peak ran from 0.27
    to 0.60."""
    said = seconds(name, micro_batch, "rtx3090", AUTOCAST, img_size, fused=False)
    assert said == pytest.approx(micro_batch / images_per_s, rel=0.15)


@pytest.mark.parametrize(
    ("board", "micro_batch", "step_s"), [("t4", 16, 0.591), ("a40", 16, 0.155), ("a40", 48, 0.400)]
)
def test_published_fp32_steps_of_other_boards_are_met(board, micro_batch, step_s):
    """Logs beside arXiv 2602.21081, ViT-B/16, one GPU."""
    assert seconds("vit_base_patch16_224", micro_batch, board, "fp32") == pytest.approx(step_s, rel=0.15)


def test_small_models_reach_less_of_the_peak():
    def share(name):
        flop = 64 * training_flop(models.shape(name))
        return flop / seconds(name, 64, "h100", "bf16") / device("h100").peak("bf16")

    assert share("vit_tiny_patch16_224") < share("vit_base_patch16_224") < share("vit_huge_patch14_224") < 0.7


def test_boards_that_accumulate_at_half_rate_reach_more_of_their_peak():
    shares = {name: compute.product_share(device(name), "bf16") for name in ("rtx3090", "rtx4090", "a100-80gb", "l4")}
    assert shares == {"rtx3090": 1.0, "rtx4090": 1.0, "a100-80gb": 0.7, "l4": 0.7}
    assert compute.product_share(device("rtx3090"), "fp32") == compute.FP32_SHARE


def test_a_precision_without_a_peak_has_no_seconds():
    assert seconds("vit_tiny_patch16_224", 8, "v100", AUTOCAST) is None
