"""`[engine] fast`: what it chooses, what it leaves alone, and that a run is what was chosen, however it came to it."""

from dataclasses import replace

import pytest

from vitscale.config.knobs import EngineSection
from vitscale.config.load import validate
from vitscale.data.catalog import DatasetFacts
from vitscale.hardware.probe import Gpu, Machine
from vitscale.study.grid import Images, build
from vitscale.study.where import Where

DIGITS = Images(DatasetFacts("digits", 10, 1437, 360, 8, 8, 1, "made for this test"), "0123456789abcdef")
CPU = Machine(4, (0, 1, 2, 3), 16 << 30, "a CPU", (), "NVML sees no GPU", None, cpu_bf16=True)
H100 = replace(CPU, gpus=(Gpu("NVIDIA H100 80GB HBM3", 80 << 30),) * 2, gpus_reason=None)


FEW, MANY = {"img_size": 32, "patch_size": 4}, {"img_size": 56, "patch_size": 4}  # 65 and 197 tokens


def grid(machine, engine, model=MANY, *, elsewhere=False, **axes):
    tree = {
        "name": "mine",
        "protocol": "strong",
        "model": {"name": "vit_tiny_patch16_224", **model},
        "data": {"name": "digits"},
        "engine": engine,
        "axes": {"global_batch": 64, **axes},
    }
    return build(validate(tree, "study `mine`"), Where(machine, elsewhere=elsewhere), lambda section: DIGITS)


def test_bf16_where_the_cpu_multiplies_it_and_what_was_chosen_is_said():
    found = grid(CPU, {"fast": True})
    assert [run.precision for run in found.runs] == ["bf16"]
    assert "fast, deepspeed on cpu: precision = bf16: weights, with an fp32 master copy" in found.notes


def test_nothing_where_it_does_not():
    found = grid(replace(CPU, cpu_bf16=False), {"fast": True})
    assert [run.precision for run in found.runs] == ["fp32"]
    assert "fast, deepspeed on cpu: nothing to choose" in found.notes


def test_what_the_study_gives_stays():
    found = grid(H100, {"fast": True, "compile": False}, precision="fp32")
    assert [(run.precision, run.knobs) for run in found.runs] == [("fp32", None)]
    stays = "precision stays fp32, which the study gives; precision=bf16 changes it"
    assert f"fast, deepspeed on cuda: {stays}" in found.notes


@pytest.mark.parametrize(
    ("model", "machine", "knobs"),
    [
        (FEW, replace(CPU, tcmalloc=True), EngineSection(sdpa="math")),
        (MANY, CPU, None),
        (MANY, replace(CPU, tcmalloc=True), EngineSection(allocator="tcmalloc")),
    ],
)
def test_in_bf16_a_cpu_gets_the_kernel_or_the_allocator_for_its_tokens(model, machine, knobs):
    found = grid(machine, {"fast": True}, model)
    assert [run.knobs for run in found.runs] == [knobs]
    assert grid(machine, {"fast": True}, model, precision="bf16").runs == found.runs
    chosen = {} if knobs is None else knobs.model_dump(exclude_none=True)
    assert {f"fast, deepspeed on cpu: engine.{key} = {value}" for key, value in chosen.items()} <= set(found.notes)


@pytest.mark.parametrize(("precision", "elsewhere"), [("fp32", False), ("bf16", True)])
def test_no_allocator_where_it_gains_nothing_or_may_not_be(precision, elsewhere):
    machine = replace(CPU, tcmalloc=True)
    (run,) = grid(machine, {"fast": True}, elsewhere=elsewhere, precision=precision).runs
    assert run.knobs is None


def test_kernel_and_allocator_that_the_study_gives_stay():
    machine = replace(CPU, tcmalloc=True)
    (few,) = grid(machine, {"fast": True, "sdpa": "flash"}, FEW).runs
    (many,) = grid(machine, {"fast": True, "allocator": "libc"}).runs
    assert (few.knobs.sdpa, few.knobs.allocator) == ("flash", None)
    assert many.knobs is None


def test_cuda_compiles_where_it_can_be_traced():
    runs = grid(H100, {"fast": True}, zero_stage=[2, 3]).runs
    assert [(run.zero_stage, run.precision, run.knobs and run.knobs.compile) for run in runs] == [
        (2, "bf16", True),
        (3, "bf16", None),
    ]


def test_a_run_is_what_was_chosen_however_it_came_to_it():
    assert grid(CPU, {"fast": True}).runs == grid(CPU, {}, precision="bf16").runs


def test_it_can_vary():
    runs = grid(CPU, {}, swept={"engine.fast": (False, True)}).runs
    assert [run.precision for run in runs] == ["fp32", "bf16"]


def test_how_to_compile_keeps_no_run_from_bf16():
    found = grid(H100, {"fast": True, "compile_mode": "reduce-overhead"})
    assert [(run.precision, run.knobs.compile, run.knobs.compile_mode) for run in found.runs] == [
        ("bf16", True, "reduce-overhead")
    ]
