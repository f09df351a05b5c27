"""Memory of a predicted rank is that of its engine, optimizer and knobs, with the probability that it is there."""

from dataclasses import replace

import pytest

from vitscale.config.runspec import RunSpec
from vitscale.cost import models, vit
from vitscale.cost.calibrated import knobs_of
from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run
from vitscale.cost.scaling import Layout
from vitscale.predict.candidates import Candidate, Pool, Way, needed
from vitscale.predict.memory import memory_of, untold
from vitscale.predict.model import calibrate, predict
from vitscale.predict.series import Asked, Observation, Series

MODEL = "vit_base_patch16_224"
AT = Layout(1, 1, 64, 1)
SERIES = Series("memory", (), model=MODEL, engine="ddp", precision="fp32")
WEIGHTS = vit.parameters(models.shape(MODEL))


def tensors(series, at=AT):
    return memory_of(series, at, None).tensors_bytes


@pytest.mark.parametrize(
    ("optimizer", "moments"), [(None, 2), ("adamw", 2), ("AdamW", 2), ("Adam", 2), ("LAMB", 2), ("sgd", 1), ("lion", 1)]
)
def test_memory_is_the_optimizers(optimizer, moments):
    assert tensors(replace(SERIES, optimizer=optimizer)) == tensors(SERIES) - 4 * WEIGHTS * (2 - moments)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"optimizer": "shampoo"}, "the optimizer shampoo"),
        ({"engine": "megatron"}, "the engine megatron"),
        ({"precision": "mixed"}, "for mixed"),
        ({"model": "bert-large"}, "no timm ViT"),
        ({"batch_told": False}, "micro-batch is not told"),
        ({"knobs": {"sequence_parallel": 2}}, "with sequence_parallel"),
        ({"knobs": {"offload": ["optimizer"]}}, "with offload"),
    ],
)
def test_memory_of_what_is_not_known_is_not_told_and_says_why(facts, reason):
    series = replace(SERIES, **facts)
    assert memory_of(series, AT, 80 * 10**9) is None
    assert reason in untold(series)


def test_checkpointed_activations_are_not_kept():
    whole, again = (tensors(replace(SERIES, knobs=knobs)) for knobs in ({}, {"activation_checkpointing": True}))
    assert again < 0.5 * whole


def test_attention_that_is_not_fused_keeps_its_scores():
    assert tensors(replace(SERIES, knobs={"sdpa": "math"})) > 1.1 * tensors(SERIES)


def test_a_candidate_of_a_checkpointed_study_needs_less():
    one = Candidate(Pool("h100", 1, None, None), Way("ddp", None, "fp32"), AT)
    whole, again = (
        needed(one, models.shape(MODEL), "adamw", knobs) for knobs in ({}, {"activation_checkpointing": True})
    )
    assert again.median_bytes < 0.6 * whole.median_bytes


@pytest.mark.parametrize(("engine", "stage"), [("ddp", None), ("deepspeed", 2), ("fsdp", None)])
def test_a_series_needs_what_a_candidate_of_its_engine_needs(engine, stage):
    at = Layout(8, 1, 64, 2)
    series = replace(SERIES, engine=engine, zero_stage=stage, precision="bf16")
    one = Candidate(Pool("h100", 8, None, None), Way(engine, stage, "bf16"), at)
    need = needed(one, models.shape(MODEL), "adamw", {})
    held = memory_of(series, at, 20 * 10**9)
    assert held.needed_bytes.median == need.median_bytes
    assert held.needed_bytes.high95 == need.high95_bytes
    assert held.fit_probability == need.fit_probability(20 * 10**9)
    ends = held.needed_bytes
    assert held.tensors_bytes < ends.low95 < ends.low80 < ends.median < ends.high80 < ends.high95


def predicted(device="h100", asked=None, **facts):
    seen = tuple(Observation(Layout(size, 1, 64, 1), 0.2) for size in (1, 2))
    return predict(calibrate(replace(SERIES, observations=seen, device=device, **facts)), [8], asked)


def test_what_hardly_fits_is_said_with_its_probability():
    (roomy,), (tight,) = predicted().points, predicted(asked=Asked(micro_batch=4096)).points
    assert roomy.memory.fit_probability > 0.99
    assert not any("the probability that it fits" in line for line in roomy.assumptions)
    assert tight.memory.fit_probability < 0.01
    assert any("of 74.5 GiB: the probability that it fits is < 1 %" in line for line in tight.assumptions)


def test_fsdp_has_memory_and_another_device_its_own_limit():
    (own,), (other,) = predicted(engine="fsdp").points, predicted(asked=Asked(device="t4")).points
    assert own.memory.limit_bytes == 80 * 10**9
    assert own.memory.needed_bytes.median < predicted().points[0].memory.needed_bytes.median
    assert other.memory.limit_bytes == 16 * 10**9


def test_without_a_device_there_is_no_probability_and_a_reason():
    found = predicted(device=None)
    assert found.points[0].memory.fit_probability is None
    assert found.reasons["fit_probability"] == "the memory of the device is not in the catalog"
    assert "memory_bytes" not in found.reasons
    assert predicted(model="bert-large").reasons["memory_bytes"] == "the model is no timm ViT"


SPEC = {
    "protocol": "weak",
    "model": {"name": MODEL, "img_size": 224, "patch_size": 16, "num_classes": 1000},
    "data": {"name": "synthetic", "fingerprint": "0123456789abcdef", "images": 1024},
    "world_size": 8,
    "ranks_per_node": 8,
    "data_parallel": 8,
    "precision": "bf16",
    "device": "cuda",
    "micro_batch": 64,
    "grad_accum": 1,
    "global_batch": 512,
    "solved": "global_batch",
    "optimizer": {"name": "adamw", "lr": 0.001},
    "measure": {"warmup_steps": 3, "steps": None, "seconds": 10.0, "seed": 0},
}


@pytest.mark.parametrize(
    "way",
    [
        {"engine": "fsdp", "fsdp": {"reshard_after_forward": True}},
        {"engine": "fsdp", "fsdp": {"reshard_after_forward": False}},
        {"engine": "deepspeed", "zero_stage": 2, "deepspeed": {"reduce_bucket_size": 2e7, "overlap_comm": True}},
        {"engine": "deepspeed", "zero_stage": 3, "deepspeed": {"stage3_param_persistence_threshold": 1e9}},
        {"engine": "deepspeed", "zero_stage": 0, "deepspeed": {"reduce_bucket_size": 2e7}},
        {
            "engine": "deepspeed",
            "zero_stage": 0,
            "deepspeed": {"reduce_bucket_size": 2e7},
            "knobs": {"overlap_reduce": True},
        },
        {"engine": "ddp", "knobs": {"sdpa": "math"}},
        {"engine": "ddp", "knobs": {"sdpa": "math", "activation_checkpointing": True}},
    ],
)
def test_a_series_needs_what_the_plan_of_its_runs_says(way):
    spec = RunSpec.model_validate({**SPEC, **way, "deepspeed": {"zero_optimization": way.get("deepspeed", {})}})
    plan = estimate_run(spec, Machinery(None, Links(None, None), None))
    facts = {"engine": spec.engine, "zero_stage": spec.zero_stage, "precision": "bf16", "knobs": knobs_of(spec)}
    held = memory_of(replace(SERIES, **facts), Layout(8, 1, 64, 1), None)
    assert held.tensors_bytes == plan.memory.total_bytes
    assert held.needed_bytes.median == plan.need.median_bytes


@pytest.mark.parametrize("knobs", [{}, {"activation_checkpointing": True}])
@pytest.mark.parametrize("shared", [{}, {"sequence_parallel": 2, "data_parallel": 4}])
def test_the_plan_counts_the_weights_of_attention_that_are_kept(knobs, shared):
    way = {"engine": "deepspeed", "zero_stage": 0, **shared}
    fused, written = (
        estimate_run(RunSpec.model_validate({**SPEC, **way, "knobs": one}), Machinery(None, Links(None, None), None))
        for one in (knobs, {**knobs, "sdpa": "math"})
    )
    assert written.memory.total_bytes > fused.memory.total_bytes
    assert written.need.median_bytes > fused.need.median_bytes


def test_what_ran_is_not_said_to_be_too_large():
    seen = tuple(Observation(Layout(size, 1, 4096, 1), 100.0) for size in (1, 2))
    series = replace(SERIES, observations=seen, device="t4")

    def told(series, size, asked=None):
        (point,) = predict(calibrate(series), [size], asked).points
        (line,) = [line for line in point.assumptions if "of 14.9 GiB" in line]
        return line

    assert told(series, 2).startswith("the form of memory is off at 2 ranks: it ran; the form needs ")
    assert told(series, 1).startswith("the form of memory is off at 1 rank: it ran")
    for other in (told(series, 4), told(series, 2, Asked(engine="fsdp")), told(replace(series, source="simulated"), 2)):
        assert "it ran" not in other
    assert told(series, 4).startswith("at 4 ranks a rank needs about ")
