"""Words that are made of a study's differences read back as that study."""

import pytest

from vitscale.config.load import load
from vitscale.config.words import leaves, words


def tree(overrides=()):
    return leaves(load("quick", overrides).study.model_dump(mode="json"))


@pytest.mark.parametrize(
    "typed",
    [
        (),
        ("world_size=1,2,4", "nodes=1,2"),
        ("protocol=strong", "zero_stage=0,1", "precision=fp32,bf16"),
        ("model.name=vit_small_patch16_224", "model.img_size=64"),
        ("model.name=vit_tiny_patch16_224,vit_small_patch16_224",),
        ("question=Is it, or is it not?", "measure.steps=12", "measure.profile=true", "optimizer.lr=3e-3"),
        ("data.name=imagefolder", "data.path=/some where/2026"),
        (
            "deepspeed.zero_optimization.reduce_scatter=false",
            "deepspeed.zero_optimization.stage3_max_live_parameters=5",
        ),
        ("launch.time_limit=30", "launch.partition=a100", "hardware.price_per_hour=2.5"),
        ("engine.split=[3,1]", "world_size=2"),
    ],
)
def test_differences_read_back_as_the_same_study(typed):
    told = words(tree(), tree(typed))
    assert tree(told) == tree(typed)
    assert len(told) == len(typed)


def test_keys_are_short_where_that_is_enough():
    told = words(tree(), tree(("world_size=1,2,4", "model.name=vit_small_patch16_224")))
    assert told == ["model.name=vit_small_patch16_224", "world_size=1,2,4"]
