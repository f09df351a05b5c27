import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vitscale.config.runspec import RunSpec, slug

SPEC = {
    "protocol": "strong",
    "model": {"name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4, "num_classes": 10},
    "data": {"name": "digits", "fingerprint": "0123456789abcdef", "images": 1437},
    "world_size": 2,
    "ranks_per_node": 2,
    "data_parallel": 2,
    "engine": "deepspeed",
    "zero_stage": 0,
    "precision": "fp32",
    "device": "cpu",
    "micro_batch": 32,
    "grad_accum": 1,
    "global_batch": 64,
    "solved": "micro_batch",
    "optimizer": {"name": "adamw", "lr": 0.001},
    "measure": {"warmup_steps": 3, "steps": None, "seconds": 10.0, "seed": 0},
    "threads_per_rank": 1,
}


def spec(**changes):
    return RunSpec.model_validate({**SPEC, **changes})


def test_the_run_id_of_a_run_never_changes():
    """Results on disk are found by it: where this fails, readers of older results have to be thought of."""
    assert spec().run_id == "strong-vit_tiny_patch16_224-digits-deepspeed-z0-fp32-cpu-w2-b067bb16"


def test_a_run_id_does_not_depend_on_the_order_or_on_defaults_being_written():
    shuffled = dict(reversed(SPEC.items()))
    shuffled["deepspeed"] = {"b": 1, "a": {"d": 1, "c": 2}}
    ordered = {**SPEC, "deepspeed": {"a": {"c": 2, "d": 1}, "b": 1}, "nodes": 1, "oversubscribed": False}
    assert RunSpec.model_validate(shuffled).run_id == RunSpec.model_validate(ordered).run_id


def test_a_run_survives_json_with_the_same_identity():
    run = spec(deepspeed={"zero_optimization": {"overlap_comm": False}})
    again = RunSpec.model_validate(json.loads(run.canonical()))
    assert again == run
    assert (again.run_id, again.series) == (run.run_id, run.series)


CHANGES = [
    {"protocol": "strong_fixed_micro"},
    {"model": {**SPEC["model"], "patch_size": 8}},
    {"data": {**SPEC["data"], "fingerprint": "another"}},
    {"data": {**SPEC["data"], "flip": True}},
    {"zero_stage": 1},
    {"precision": "bf16"},
    {"device": "cuda"},
    {"global_batch": 128},
    {"grad_accum": 2},
    {"optimizer": {"lr": 0.002}},
    {"deepspeed": {"zero_optimization": {"overlap_comm": True}}},
    {"measure": {**SPEC["measure"], "seed": 1}},
    {"threads_per_rank": 2},
    {"simulated_device": "h100"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_another_configuration_is_another_run_of_another_series(change):
    assert spec(**change).run_id != spec().run_id
    assert spec(**change).series != spec().series


@pytest.mark.parametrize(
    ("protocol", "solved", "at_4"),
    [
        ("strong", "micro_batch", {"micro_batch": 16}),
        ("strong", "grad_accum", {"grad_accum": 2}),
        ("strong_fixed_micro", "global_batch", {"global_batch": 128}),
        (
            "weak",
            "global_batch",
            {"global_batch": 128, "data": {**SPEC["data"], "images": 2874, "images_per_device": 718}},
        ),
    ],
)
def test_runs_that_differ_in_the_world_size_and_what_it_solves_are_one_series(protocol, solved, at_4):
    data = {**SPEC["data"], "images_per_device": 718} if protocol == "weak" else SPEC["data"]
    placed = {"world_size": 4, "ranks_per_node": 2, "nodes": 2, "data_parallel": 4, "oversubscribed": True}
    two = spec(protocol=protocol, solved=solved, data=data)
    four = spec(protocol=protocol, solved=solved, **{"data": data, **placed, **at_4})
    assert two.series == four.series
    assert two.run_id != four.run_id


def test_what_is_given_and_not_solved_separates_series():
    assert (
        spec(protocol="weak", solved="global_batch", micro_batch=16).series
        != spec(protocol="weak", solved="global_batch").series
    )
    assert spec(data={**SPEC["data"], "images": 700}).series != spec().series


@given(text=st.text(max_size=300), limit=st.integers(7, 100))
def test_a_slug_of_any_text_is_a_safe_file_name(text, limit):
    made = slug(text, limit)
    assert re.fullmatch(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", made)
    assert len(made) <= limit
    assert slug(made, limit) == made


def test_a_slug_keeps_what_can_be_read():
    assert slug("ViT-B/16, 2 nodes") == "vit-b-16-2-nodes"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("…") == "unnamed"


@pytest.mark.parametrize(
    "change", [{"world_size": 0}, {"extra": 1}, {"micro_batch": 0}, {"optimizer": {"lr": float("nan")}}]
)
def test_a_spec_that_cannot_be_run_is_not_made(change):
    with pytest.raises(ValidationError):
        spec(**change)
