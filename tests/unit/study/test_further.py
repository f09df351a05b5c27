"""Commands that add runs: they read back as the folder's study, keep its runs, and say where they cannot."""

import shlex

import pytest

from vitscale.config.load import load
from vitscale.cost.scaling import Layout
from vitscale.errors import SetupError, UsageError
from vitscale.hardware.probe import Gpu, Machine
from vitscale.records.round import Round
from vitscale.records.writer import make_folder, write_json
from vitscale.study import plan as planning
from vitscale.study import results
from vitscale.study.further import further, held
from vitscale.study.where import Where

CPU = Machine(8, tuple(range(8)), 16 << 30, "a CPU", (), "NVML sees no GPU", None)
GPUS = Machine(64, tuple(range(64)), 64 << 30, "a CPU", (Gpu("NVIDIA H100 80GB HBM3", 80 << 30),) * 4, None, "1")


@pytest.fixture
def measured(tmp_path, make, monkeypatch):
    """A results folder of `quick` with overrides, `launches` of each run written."""
    monkeypatch.setattr("vitscale.study.plan.matrix_flop_per_s", lambda: 1e11)
    monkeypatch.setattr("vitscale.study.grid.require_installed", lambda engine: None)

    def write(*overrides, machine=CPU, where=None, launches=2):
        loaded = load("quick", overrides)
        plan = planning.make(loaded, where or Where(machine), planning.described(tmp_path / "data"))
        folder = tmp_path / "out"
        with results.opened(folder, plan):
            for run in plan.grid.runs:
                for launch in range(launches):
                    make.write_launch(folder, run, launch)
        return held(folder), plan.grid.runs

    return write


@pytest.fixture
def ask(tmp_path):
    def found(at, series, layout, machine=CPU, **asked):
        return further(at, Where(machine), planning.described(tmp_path / "data"), series, layout, asked)

    return found


def typed(command):
    words = shlex.split(command)
    assert words[:2] == ["vitscale", "run"]
    end = words.index("--out")
    return words[2], words[3:end], words[end + 1]


ROUND = Round(
    name="0000-w2", world_size=2, nodes=2, ranks_per_node=1, device="cpu", cores=(), one_machine=True, entries=()
)
ONE = ("protocol=strong", "engine=ddp", "measure.launches=2")


def test_a_world_size_between_is_added_and_nothing_else_is_missing(measured, ask):
    at, runs = measured(*ONE, "world_size=1,4")
    found = ask(at, runs[0].series, Layout(2, 1, 32, 1))
    study, words, out = typed(found.command)
    assert (study, out, found.launches, found.remark, found.reason) == ("quick", str(at.folder), 2, None, None)
    assert set(words) == {*ONE[:2], "launches=2", "world_size=1,2,4"}
    assert load(study, words).study == load("quick", (*ONE, "world_size=1,2,4")).study


def test_a_study_from_a_file_is_the_folder_s_own(measured, ask, tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(
        'schema_version = 1\nname = "mine"\nprotocol = "strong"\nmodel.name = "vit_tiny_patch16_224"\n'
        'data.name = "digits"\n[axes]\nworld_size = [1, 2]\nglobal_batch = 64\n'
    )
    loaded = load
    monkeypatch.setattr(f"{__name__}.load", lambda name, words: loaded(str(path), words))
    at, runs = measured("world_size=4")
    found = ask(at, runs[0].series, Layout(2, 1, 32, 1))
    study, words, _ = typed(found.command)
    assert study == str(at.folder / "study.toml")
    assert words == ["world_size=2,4"]


def test_a_larger_world_of_a_cpu_begins_a_series_and_says_so(measured, ask):
    at, runs = measured(*ONE, "world_size=1,2")
    found = ask(at, runs[0].series, Layout(4, 1, 16, 1))
    assert found.remark == "threads_per_rank 2 instead of 4: its series is measured anew"
    assert (found.launches, found.others, found.reason) == (6, 4, None)


def test_on_gpus_the_series_goes_on(measured, ask):
    at, runs = measured(*ONE, "world_size=1,2", machine=GPUS)
    found = ask(at, runs[0].series, Layout(4, 1, 16, 1), GPUS)
    assert (found.launches, found.remark, found.reason) == (2, None, None)


def test_weak_keeps_the_images_of_a_rank_where_the_study_tells_them(measured, ask):
    told = ("protocol=weak", "engine=ddp", "images_per_device=300", "measure.launches=2")
    at, runs = measured(*told, machine=GPUS)
    found = ask(at, runs[0].series, Layout(4, 1, 32, 1), GPUS)
    assert (found.launches, found.others, found.remark) == (2, 0, None)


def test_weak_shares_the_images_among_more_ranks_otherwise(measured, ask):
    at, runs = measured("protocol=weak", "engine=ddp", machine=GPUS)
    found = ask(at, runs[0].series, Layout(4, 1, 32, 1), GPUS)
    assert found.remark == "images_per_device 359 instead of 718: its series is measured anew"


def test_one_protocol_alone_where_the_others_would_be_measured_anew(measured, ask):
    at, runs = measured("protocol=strong,weak", "engine=ddp", "measure.launches=2", machine=GPUS)
    found = ask(at, runs[0].series, Layout(4, 1, 16, 1), GPUS)
    assert {"protocol=strong", "world_size=1,2,4"} <= set(typed(found.command)[1])
    assert (found.launches, found.others, found.remark) == (2, 0, None)


def test_what_is_measured_gets_a_launch_more(measured, ask):
    at, runs = measured(*ONE, "world_size=1,2")
    found = ask(at, runs[0].series, Layout(2, 1, 32, 1))
    assert {"launches=3", "world_size=2"} <= set(typed(found.command)[1])
    assert (found.launches, found.others) == (1, 0)


def test_a_changed_configuration_is_one_run(measured, ask):
    at, runs = measured(*ONE, "world_size=1,2", machine=GPUS)
    found = ask(at, runs[0].series, Layout(2, 1, 16, 2), GPUS, engine="deepspeed", zero_stage=1, grad_accum=2)
    _, words, _ = typed(found.command)
    assert {"engine=deepspeed", "zero_stage=1", "grad_accum=2", "world_size=2"} <= set(words)
    assert (found.launches, found.reason) == (2, None)


@pytest.mark.parametrize(
    ("layout", "machine", "asked", "reason"),
    [
        (Layout(16, 1, 4, 1), CPU, {}, "more ranks than cores"),
        (Layout(4, 2, 16, 1), CPU, {}, "this host only"),
        (Layout(8, 1, 8, 1), GPUS, {}, "there are 4 GPUs"),
        (Layout(4, 1, 16, 1), CPU, {"device": "h200"}, "h200 is another machine"),
        (Layout(3, 1, 64 / 3, 1), GPUS, {}, "cannot be divided"),
    ],
)
def test_what_cannot_be_started_here_says_why(measured, ask, layout, machine, asked, reason):
    at, runs = measured(*ONE, "world_size=1,2", machine=machine)
    found = ask(at, runs[0].series, layout, machine, **asked)
    assert reason in found.reason


def test_runs_of_gpus_are_not_for_a_machine_without(measured, ask):
    at, runs = measured(*ONE, "world_size=1,2", machine=GPUS)
    found = ask(at, runs[0].series, Layout(4, 1, 16, 1), CPU)
    assert found.reason == "the study has no such run here"
    assert "world_size=1,2,4" in found.command


def test_where_the_launcher_reaches_nothing_the_command_is_for_elsewhere(measured, tmp_path):
    at, runs = measured(*ONE, "world_size=1,2", machine=GPUS)
    (at.folder / "jobs.jsonl").write_text("")
    cluster = SetupError("there is no SLURM here")
    found = further(held(at.folder), cluster, planning.described(tmp_path), runs[0].series, Layout(4, 1, 16, 1), {})
    assert found.reason == "there is no SLURM here"
    assert found.command.endswith(f"--out {at.folder} --launcher slurm")


def test_the_launcher_is_read_from_the_records(measured, ask, tmp_path):
    at, runs = measured(*ONE, "world_size=2", "nodes=2", where=Where(CPU, lab=True))
    series, layout = runs[0].series, Layout(4, 2, 16, 1)
    found = ask(at, series, layout)
    assert found.reason == "what started these runs is not recorded: add it"
    assert "--launcher" not in found.command
    make_folder(at.folder / "rounds" / "0000-w2")
    write_json(at.folder / "rounds" / "0000-w2" / "round.json", ROUND.model_dump(mode="json"))
    found = further(held(at.folder), Where(CPU, lab=True), planning.described(tmp_path / "data"), series, layout, {})
    assert found.command.endswith("--launcher lab")
    assert "nodes=2" in typed(found.command.removesuffix(" --launcher lab"))[1]
    assert found.reason is None


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not hold the study"):
        held(tmp_path)
