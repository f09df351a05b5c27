"""Knobs of `[engine]` in the grid: off is no other run, an engine reads its own, and rules are quoted."""

from dataclasses import replace

import pytest
from test_grid import grid, machine

from vitscale.cost.run import estimate_run, of_catalog
from vitscale.errors import UsageError
from vitscale.study import knobs
from vitscale.study.grid import Where

GPUS = Where(machine(gpus=2))


def test_a_knob_that_is_off_is_no_other_run():
    plain = [run.run_id for run in grid().runs]
    off = {"compile": False, "sdpa": "auto", "gradient_as_bucket_view": True, "ddp_hook": "none"}
    made = grid(swept={f"engine.{key}": [value] for key, value in off.items()}, engine=["deepspeed"])
    assert [run.run_id for run in made.runs] == plain
    assert all(run.knobs is None for run in made.runs)


def test_knobs_of_ddp_make_no_other_run_of_another_engine():
    made = grid(engine=["ddp", "fsdp", "deepspeed"], world_size=2, swept={"engine.bucket_mb": [1.0, 25.0]})
    assert [(run.engine, run.knobs and run.knobs.bucket_mb) for run in made.runs] == [
        ("ddp", 1.0), ("fsdp", None), ("deepspeed", None), ("ddp", 25.0),
    ]  # fmt: skip


def test_gradients_beside_backward_are_of_deepspeeds_stage_0_only():
    made = grid(
        engine=["ddp", "deepspeed"], zero_stage=[0, 1], world_size=2, swept={"engine.overlap_reduce": [False, True]}
    )
    assert [(run.engine, run.zero_stage, run.knobs is not None) for run in made.runs] == [
        ("ddp", None, False), ("deepspeed", 0, False), ("deepspeed", 1, False), ("deepspeed", 0, True),
    ]  # fmt: skip


def test_gradients_beside_backward_are_sent_and_estimated_as_ddp_sends_them():
    swept = {"engine.overlap_reduce": [False, True]}
    runs = grid(engine=["ddp", "deepspeed"], world_size=2, where=GPUS, swept=swept).runs
    ddp, after, beside = (estimate_run(run, of_catalog("h100", 2)) for run in runs)
    assert beside.collectives == ddp.collectives != after.collectives
    assert beside.step.exposed_comm_s == ddp.step.exposed_comm_s < after.step.exposed_comm_s
    assert beside.memory == after.memory


@pytest.mark.parametrize(("key", "value"), [("prescale_gradients", True), ("gradient_allreduce_op", "sum")])
def test_deepspeeds_keys_of_what_it_does_not_send_are_refused(key, value):
    swept = {"engine.overlap_reduce": [True], f"deepspeed.{key}": [value]}
    with pytest.raises(UsageError, match=rf"in place of DeepSpeed, which reads `deepspeed\.{key}`"):
        grid(swept=swept)
    assert len(grid(swept=swept, zero_stage=1, world_size=2).runs) == 1


def test_how_to_compile_is_planned_on_cuda():
    made = grid(world_size=2, where=GPUS, swept={"engine.compile": [True], "engine.compile_mode": ["reduce-overhead"]})
    assert [run.knobs.compile_mode for run in made.runs] == ["reduce-overhead"]


def test_cores_are_bound_on_a_cpu_only():
    swept = {"engine.bind_cores": [True, False]}
    cpu, cuda = grid(world_size=2, swept=swept).runs, grid(world_size=2, swept=swept, where=GPUS).runs
    assert [(run.binds_cores, run.threads_per_rank) for run in cpu] == [(True, 2), (False, 2)]
    assert [(run.device, run.binds_cores, run.knobs) for run in cuda] == [("cuda", False, None)]


def test_another_allocator_is_another_process_start_on_a_cpu():
    here = Where(replace(machine(), tcmalloc=True))
    swept = {"engine.allocator": ["libc", "tcmalloc"]}
    runs = grid(world_size=2, swept=swept, where=here).runs
    assert [run.allocator for run in runs] == [None, "tcmalloc"]
    assert len({run.process_start for run in runs}) == 2
    assert [run.allocator for run in grid(world_size=2, swept=swept, where=GPUS).runs] == [None]


def test_an_allocator_that_this_host_does_not_have_is_refused():
    with pytest.raises(UsageError, match="this host does not have it"):
        grid(swept={"engine.allocator": ["tcmalloc"]}, where=Where(replace(machine(), tcmalloc=False)))


def test_labels_name_the_knob_that_differs():
    made = grid(engine="ddp", world_size=2, swept={"engine.activation_checkpointing": [False, True]})
    assert sorted(made.labels().values()) == [
        "activation_checkpointing True, 2 processes", "activation_checkpointing off, 2 processes",
    ]  # fmt: skip


def test_labels_do_not_call_off_what_is_on():
    made = grid(world_size=2, swept={"engine.bind_cores": [True, False]})
    assert sorted(made.labels().values()) == ["bind_cores False, 2 processes", "bind_cores True, 2 processes"]
    made = grid(world_size=2, swept={"engine.sdpa": ["auto", "math"]})
    assert sorted(made.labels().values()) == ["sdpa auto, 2 processes", "sdpa math, 2 processes"]


@pytest.mark.parametrize(
    ("axes", "knob", "where", "rule"),
    [
        ({"zero_stage": 3}, {"compile": True}, None, "`zero_stage = 3` swaps its weights"),
        ({"zero_stage": 1}, {"channels_last": True}, None, "`zero_stage = 1` lays them flat"),
        ({"engine": "fsdp"}, {"channels_last": True}, None, "`engine = fsdp` lays them flat"),
        ({"engine": "ddp", "sequence_parallel": 2}, {"compile": True}, None, "does not trace the exchange of tokens"),
        ({}, {"sdpa": "efficient"}, None, "`engine.sdpa = efficient` is a kernel of CUDA"),
        ({}, {"sdpa": "flash"}, GPUS, "computes in 16 bit on CUDA"),
        ({"engine": "ddp", "grad_accum": 2}, {"static_graph": True}, None, "looks at the first backward pass"),
        ({"engine": "ddp", "precision": "bf16"}, {"ddp_hook": "fp16"}, None, "they are 16 bit already"),
        ({}, {"compile_mode": "reduce-overhead"}, GPUS, "says how to compile, and nothing is"),
        ({}, {"compile": True, "compile_mode": "max-autotune"}, None, "is for CUDA's graphs and kernels"),
        (
            {"grad_accum": 2},
            {"compile": True, "compile_mode": "max-autotune"},
            GPUS,
            "which the next pass writes over, and `grad_accum = 2` adds them up",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused_with_its_rule(axes, knob, where, rule):
    swept = {f"engine.{key}": [value] for key, value in knob.items()}
    with pytest.raises(UsageError, match=rule):
        grid(where=where, swept=swept, **{"world_size": 2, **axes})


@pytest.mark.parametrize(
    ("name", "axes", "rule"),
    [
        ("adamw", {"engine": "ddp"}, "is of `engine = deepspeed`, not of `ddp`"),
        ("lamb", {}, "bounds its trust ratio"),
        ("muon", {}, "is another update: DeepSpeed's Muon has Nesterov's momentum"),
        ("sgd", {}, "DeepSpeed has no kernel for `sgd`"),
        ("lion", {}, "DeepSpeed's fused Lion is for CUDA"),
    ],
)
def test_deepspeeds_own_kernels_are_refused_where_it_has_none(name, axes, rule):
    with pytest.raises(UsageError, match=rule):
        grid(optimizer={"name": name}, swept={"engine.optimizer_impl": ["deepspeed"]}, **axes)


def test_deepspeeds_own_kernels_are_planned_where_they_can_be_built(monkeypatch):
    swept = {"engine.optimizer_impl": ["deepspeed"]}
    assert {run.knobs.optimizer_impl for run in grid(swept=swept, zero_stage=[0, 1, 2, 3]).runs} == {"deepspeed"}
    assert len(grid(optimizer={"name": "lion"}, swept=swept, world_size=2, where=GPUS).runs) == 1
    monkeypatch.setattr(knobs.shutil, "which", lambda name: name != "ninja")
    with pytest.raises(UsageError, match=r"`engine\.optimizer_impl = deepspeed` needs ninja"):
        grid(swept=swept)


@pytest.mark.parametrize("name", ["onebitadam", "zerooneadam", "onebitlamb", "OneBitAdam"])
def test_optimizers_that_deepspeed_removed_are_refused_with_that_reason(name):
    with pytest.raises(UsageError, match="a 1-bit optimizer, which DeepSpeed removed"):
        grid(optimizer={"name": name})


@pytest.mark.parametrize(
    ("name", "impl", "rule"),
    [
        ("muon", "foreach", "`optimizer.name = muon` has one implementation"),
        ("lamb", "fused", "is there for adamw and sgd, not for `lamb`"),
    ],
)
def test_an_implementation_that_an_optimizer_has_not_is_refused(name, impl, rule):
    with pytest.raises(UsageError, match=rule):
        grid(optimizer={"name": name}, swept={"engine.optimizer_impl": [impl]})


def test_gradients_of_autocast_are_fp32_and_a_hook_compresses_them():
    swept = {"engine.ddp_hook": ["bf16"]}
    assert len(grid(engine="ddp", precision="bf16_autocast", world_size=2, swept=swept).runs) == 1


def test_a_bucket_of_nothing_is_refused():
    with pytest.raises(UsageError, match=r"`engine\.bucket_mb` = 0"):
        grid(engine="ddp", swept={"engine.bucket_mb": [0]})


def test_compile_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(knobs.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        grid(swept={"engine.compile": [True]})
