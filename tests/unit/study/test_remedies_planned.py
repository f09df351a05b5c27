"""What a verdict says to paste behind the command is planned by the grid, and makes another run."""

from dataclasses import dataclass

import pytest
from test_grid import DIGITS, machine

from vitscale.analysis.remedies import REMEDIES
from vitscale.config.load import load
from vitscale.config.runspec import RunSpec
from vitscale.errors import UsageError
from vitscale.study import knobs
from vitscale.study.grid import Where, build

CPU, GPUS = Where(machine()), Where(machine(gpus=2))
BASE = ("data.name=synthetic", "world_size=2", "depth=2")
VARIANTS = (
    (),
    ("grad_accum=2",),
    ("grad_accum=3",),
    ("global_batch=1024", "micro_batch=512"),
    ("engine.compile=true", "engine.loader_threads=40"),
    ("engine.compile=true", "engine.compile_mode=reduce-overhead"),
    ("engine.static_graph=true",),
    ("engine.channels_last=true", "engine.bind_cores=false"),
    ("engine.ddp_hook=fp16", "optimizer.name=lion"),
    ("tensor_parallel=3", "world_size=3"),
    ("sequence_parallel=2", "engine.optimizer_impl=foreach"),
    ("precision=bf16", "optimizer.name=muon"),
    ("deepspeed.zero_optimization.offload_param.device=cpu",),
)
ENGINES = (
    "engine=ddp",
    "engine=fsdp",
    *(f"zero_stage={stage}" for stage in range(4)),
    *(f"engine=accelerate_deepspeed zero_stage={stage}" for stage in (0, 2)),
)


@dataclass(frozen=True)
class Told:
    """As much of a `Case` as a remedy asks for."""

    spec: RunSpec


def planned(words, where):
    return build(load("quick", words).study, where, lambda section: DIGITS).runs


def pasted(run):
    """Kind and override of every cause the verdict may name of a run."""
    for kind, remedy in REMEDIES.items():
        possible = run.zero_stage is not None or kind != "no_overlap"
        if kind == "accumulation":
            possible = (run.engine == "fsdp" or run.zero_stage in (2, 3)) and run.grad_accum > 1
        word = remedy.override(Told(run)) if callable(remedy.override) else remedy.override
        if word and possible:
            yield kind, word


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("where", [CPU, GPUS], ids=["cpu", "cuda"])
@pytest.mark.parametrize("protocol", ["strong", "strong_fixed_micro", "weak"])
def test_every_override_that_a_verdict_shows_plans_another_run(engine, where, protocol, monkeypatch):
    monkeypatch.setattr(knobs.shutil, "which", lambda name: name)
    monkeypatch.setattr("vitscale.study.engines.find_spec", lambda name: name)
    told = set()
    for variant in VARIANTS:
        command = (*BASE, f"protocol={protocol}", *engine.split(), *variant)
        try:
            runs = planned(command, where)
        except UsageError:  # no such run: nothing to paste behind
            continue
        for run in runs:
            for kind, word in pasted(run):
                told.add(kind)
                again = planned((*command, word), where)
                assert again, (command, kind, word)
                if kind not in ("clipping", "small_buckets"):  # of those the run here has nothing to change
                    assert run.run_id not in {one.run_id for one in again}, (command, kind, word)
    assert len(told) >= 5
