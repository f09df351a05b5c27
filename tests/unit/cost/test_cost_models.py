"""The table of shapes, against timm and against a user's mistakes."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch

from vitscale.cost import models
from vitscale.cost.vit import parameter_sizes, parameters
from vitscale.errors import UsageError

ROOT = Path(__file__).parents[3]


def test_committed_table_is_what_the_installed_timm_gives():
    path = ROOT / "tools/model_table.py"
    spec = importlib.util.spec_from_file_location("model_table", path)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.TARGET.read_text() == generator.generate(), "run `make generate`"


def test_table_holds_the_vits_a_study_is_likely_to_name():
    assert {"vit_tiny_patch16_224", "vit_base_patch16_224", "vit_large_patch14_clip_224"} <= set(models.names())
    assert len(models.names()) > 150


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "num_classes": 10}),
        ("vit_small_patch16_224", {"img_size": 384, "num_classes": 100}),
        ("deit3_small_patch16_224", {"patch_size": 8, "num_classes": 1}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "patch_size": 7, "num_classes": 10}),
        ("vit_base_patch16_siglip_224", {"img_size": 64, "num_classes": 7}),
        ("vit_giant_patch14_dinov2", {"img_size": 56, "num_classes": 3}),
        ("aimv2_large_patch14_224", {"img_size": 28, "num_classes": 3}),
        ("beit3_base_patch16_224", {"img_size": 64, "num_classes": 3}),
    ],
)
def test_parameter_sizes_equal_timms_in_order_at_other_sizes(name, changes):
    with torch.device("meta"):
        built = timm.create_model(name, **changes)
    assert parameter_sizes(models.shape(name, **changes)) == tuple(tuple(p.shape) for p in built.parameters())


def test_tokens_count_patches_and_prefix():
    shape = models.shape("vit_base_patch14_reg4_dinov2", img_size=224)
    assert (shape.patches, shape.prefix_tokens, shape.tokens) == (256, 5, 261)


def test_unknown_name_is_refused_with_close_names():
    with pytest.raises(UsageError, match="vit_tinny_patch16_224") as caught:
        models.shape("vit_tinny_patch16_224")
    assert "`vit_tiny_patch16_224`" in caught.value.hint
    assert caught.value.hint.count("`") <= 6


def test_name_like_nothing_still_gets_a_way_out():
    with pytest.raises(UsageError) as caught:
        models.shape("zzz")
    assert "vit_tiny_patch16_224" in caught.value.hint


def test_patches_that_do_not_tile_the_image_are_refused_with_sizes_that_do():
    with pytest.raises(UsageError, match=r"img_size = 50.*patch_size = 16") as caught:
        models.shape("vit_tiny_patch16_224", img_size=50)
    assert all(f"{size}" in caught.value.hint for size in (48, 64, 10))


def test_a_models_own_size_is_taken_as_timm_takes_it_even_if_it_crops():
    shape = models.shape("vit_so400m_patch14_siglip_384")
    assert (shape.img_size, shape.patch_size, shape.patches) == (384, 14, 27**2)
    assert models.shape("vit_so400m_patch14_siglip_384", img_size=384) == shape


def test_image_smaller_than_a_patch_is_refused_without_offering_an_empty_image():
    with pytest.raises(UsageError) as caught:
        models.shape("vit_tiny_patch16_224", img_size=8)
    assert "img_size = 16`" in caught.value.hint


@pytest.mark.parametrize("change", [{"img_size": 0}, {"patch_size": -1}, {"num_classes": 0}])
def test_sizes_below_one_are_refused(change):
    with pytest.raises(UsageError):
        models.shape("vit_tiny_patch16_224", **change)


def test_parameters_of_vit_base_are_the_published_ones():
    assert parameters(models.shape("vit_base_patch16_224")) == 86_567_656
