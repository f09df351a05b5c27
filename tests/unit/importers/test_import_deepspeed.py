"""DeepSpeed's timer lines in every form they come in: old and new names, several ranks, torn, interleaved."""

import pytest

from vitscale.importers.deepspeed_steps import WARMUP_STEPS
from vitscale.importers.write import read_files
from vitscale.records.reader import read_results

HEAD = [
    "[2024-12-01 21:25:41,032] [INFO] [logging.py:128:log_dist] [Rank 0] DeepSpeed info: version=0.15.4, git-hash=x",
    "[2024-12-01 21:25:41,034] [INFO] [config.py:733:__init__] Config mesh_device None world_size = 2",
    "[2024-12-01 21:25:41,364] [INFO] [config.py:1003:print]   gradient_accumulation_steps .. 1",
    "[2024-12-01 21:25:41,364] [INFO] [config.py:1003:print]   optimizer_name ............... adamw",
    "[2024-12-01 21:25:41,364] [INFO] [config.py:1003:print]   train_batch_size ............. 128",
    "[2024-12-01 21:25:41,364] [INFO] [config.py:1003:print]   train_micro_batch_size_per_gpu  64",
    "[2024-12-01 21:25:41,364] [INFO] [config.py:1003:print]   bfloat16_enabled ............. False",
    "[2024-12-01 21:25:41,364] [INFO] [config.py:1003:print]   fp16_enabled ................. False",
    "[2024-12-01 21:25:41,364] [INFO] [config.py:1003:print]   zero_config .................. stage=0 overlap=False",
]
NEW = ("fwd", "bwd", "bwd_inner", "bwd_allreduce", "step")
OLD = ("forward", "backward", "backward_inner", "backward_allreduce", "step")
TIMES = (700.0, 1400.0, 1300.0, 100.0, 30.0)


def stamp(seconds):
    return f"[2024-12-01 21:{seconds // 60:02.0f}:{seconds % 60:06.3f}]".replace(".", ",")


def timers(times=TIMES, names=NEW, micro=False):
    end = "_microstep" if micro else ""
    return "time (ms) | " + " | ".join(f"{name}{end}: {time:.2f}" for name, time in zip(names, times, strict=True))


def logged(seconds, rank=0, **form):
    return f"{stamp(seconds)} [INFO] [logging.py:128:log_dist] [Rank {rank}] {timers(**form)}"


def steps(count, every_s=2.5, rank=0, **form):
    """Micro-step and step lines, as DeepSpeed prints both."""
    return [
        line
        for step in range(count)
        for line in (logged(step * every_s, rank, micro=True, **form), logged(step * every_s + 0.001, rank, **form))
    ]


@pytest.fixture
def read(tmp_path):
    def run(*lines, name="t.log", more=()):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        reading = read_files("deepspeed-log", [path, *more])
        return reading.runs, reading.tallies[0]

    return run


def test_a_log_becomes_step_lines(read):
    (run,), tally = read(*HEAD, *steps(8))
    assert (tally.read, tally.damaged, tally.other) == (len(HEAD) + 16, 0, 0)
    spec = run.spec
    assert (spec.world_size, spec.micro_batch, spec.grad_accum, spec.global_batch) == (2, 64, 1, 128)
    assert (spec.engine, spec.zero_stage, spec.precision, spec.optimizer) == ("deepspeed", 0, "fp32", "adamw")
    assert (spec.model, spec.dataset, spec.device, spec.nodes) == (None,) * 4
    assert run.versions == {"deepspeed": "0.15.4"}
    assert len(run.steps) == 8
    last = run.steps[-1]
    assert (last.step_s, last.forward_s, last.backward_s) == (2.5, 0.7, 1.3)
    assert (last.comm_and_wait_s, last.optimizer_s, last.images) == (0.1, 0.03, 64)
    assert (last.comm_exposed_s, last.wait_s, last.data_s, last.loss) == (None,) * 4


def test_the_first_step_has_no_step_before_and_is_the_sum_of_its_parts(read):
    (run,), _ = read(*HEAD, *steps(8))
    assert run.steps[0].step_s == pytest.approx(0.7 + 1.3 + 0.1 + 0.03)
    assert [step.window for step in run.steps] == ["warmup"] * WARMUP_STEPS + ["steady"] * (8 - WARMUP_STEPS)
    assert "of 7 of 8 step lines from the end of one step" in run.notes["step_s"]


@pytest.mark.parametrize(
    "before", ["[2021-10-08 20:03:15,649] [INFO] [logging.py:68:log_dist] [Rank 0] rank=0 ", "rank=0 ", ""]
)
def test_old_names_and_lines_without_a_time_are_read(read, before):
    (run,), tally = read(*HEAD, *[before + timers(names=OLD, micro=True), before + timers(names=OLD)] * 6)
    assert tally.damaged == 0
    assert [step.step_s for step in run.steps] == pytest.approx([2.13] * 6)
    assert run.steps[0].backward_s == 1.3


def test_a_pause_is_no_step(read):
    lines = [logged(step * 2.5 + (600 if step >= 5 else 0)) for step in range(10)]
    (run,), _ = read(*HEAD, *lines)
    assert run.steps[5].step_s == pytest.approx(2.13)
    assert run.steps[6].step_s == 2.5


def test_micro_steps_add_up_to_a_step(read):
    head = [
        line.replace("steps .. 1", "steps .. 3").replace("size ............. 128", "size ............. 384")
        for line in HEAD
    ]
    lines = []
    for step in range(6):
        lines += [logged(step * 7.5 + 2.5 * micro, micro=True) for micro in range(3)]
        lines += [logged(step * 7.5 + 5.001, times=tuple(3 * time for time in TIMES))]
    (run,), _ = read(*head, *lines)
    assert len(run.steps) == 6
    assert (run.steps[-1].forward_s, run.steps[-1].step_s, run.steps[-1].images) == (pytest.approx(2.1), 7.5, 192)


def test_accumulation_is_seen_where_the_log_does_not_tell_it(read):
    head = [line for line in HEAD if "accumulation" not in line]
    lines = [line for step in range(6) for line in [logged(step * 5, micro=True)] * 2 + [logged(step * 5)]]
    (run,), _ = read(*head, *lines)
    assert run.spec.grad_accum == 2
    assert len(run.steps) == 6
    assert "by the records" in run.notes["grad_accum"]


def test_a_torn_line_costs_its_step_and_its_neighbour_no_time(read):
    lines = [logged(step * 2.5) for step in range(10)]
    lines[5] = lines[5][:-9]
    (run,), tally = read(*HEAD, *lines)
    assert tally.damaged == 1
    assert len(run.steps) == 9
    # The clock's distance over the lost step is two steps' time: the sum of the parts stands instead.
    assert run.steps[5].step_s == pytest.approx(2.13)


@pytest.mark.parametrize("cut", range(1, 100))
def test_no_cut_of_a_line_gives_a_false_figure(read, cut):
    whole = logged(5.0)
    runs, tally = read(*HEAD, logged(0), whole[:-cut], logged(10.0))
    figures = {(step.forward_s, step.backward_s, step.comm_and_wait_s, step.optimizer_s) for step in runs[0].steps}
    assert figures == {(0.7, 1.3, 0.1, 0.03)}
    assert tally.read + tally.damaged + tally.other == tally.lines
    assert tally.read == len(HEAD) + 2


def test_lines_run_together_are_told_apart(read):
    joined = "model_engine.train_micro_batch_size_per_gpu(): 64" + logged(0, 0) + logged(0.1, 1)
    bar = "  0%|          | 0/1000 [00:00<?, ?it/s]" + logged(2.5, 0) + " 12%|███ | 3/100"
    (run,), tally = read(*HEAD, joined, bar, logged(2.6, 1))
    assert tally.damaged == 0
    assert sorted((step.rank, step.step) for step in run.steps) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_colours_and_other_timers_are_no_damage(read):
    other = "[Rank 0] rank=0 time (ms) | optimizer_allgather: 7.96 | optimizer_gradients: 0.02 | optimizer_step: 60.64"
    coloured = [f"\x1b[32m{line}\x1b[0m" for line in steps(6)]
    (run,), tally = read(*HEAD, *coloured, other, "epoch 3 accuracy 0.5")
    assert (tally.damaged, tally.other, len(run.steps)) == (0, 2, 6)


def test_files_of_further_ranks_are_one_run(read, tmp_path):
    other = tmp_path / "rank1.log"
    other.write_text("\n".join(steps(6, rank=1, times=(800.0, *TIMES[1:]))) + "\n")
    (run,), _ = read(*HEAD, *steps(6), name="rank0.log", more=[other])
    assert {step.rank for step in run.steps} == {0, 1}
    assert "rank1.log" in run.notes["further_files"]


def test_files_that_tell_the_same_ranks_are_runs_of_their_own(read, tmp_path):
    other = tmp_path / "b.log"
    other.write_text("\n".join([*HEAD, *steps(7)]) + "\n")
    runs, _ = read(*HEAD, *steps(6), name="a.log", more=[other])
    assert [len(run.steps) for run in runs] == [6, 7]
    assert len({run.spec.series for run in runs}) == 1


def test_runs_one_after_another_in_a_file_are_told_apart(read):
    second = [line.replace("world_size = 2", "world_size = 4") for line in HEAD if "batch_size ..." not in line]
    runs, _ = read(*HEAD, *steps(6), *second, *steps(7))
    assert [(run.spec.world_size, run.spec.global_batch, len(run.steps)) for run in runs] == [(2, 128, 6), (4, 256, 7)]
    assert runs[1].spec.line == 1 + len(HEAD) + 12


def test_a_run_whose_world_size_nothing_tells_is_left_out_by_name(read):
    runs, tally = read(*steps(6))
    assert runs == []
    assert "world size nothing tells" in tally.words()


def test_the_records_are_read_and_analysed_like_measured_ones(tmp_path, imported):
    for size, every_s in ((1, 2.0), (2, 2.5)):
        head = [line.replace("world_size = 2", f"world_size = {size}").replace("128", str(64 * size)) for line in HEAD]
        (tmp_path / f"w{size}.log").write_text("\n".join([*head, *steps(20, every_s)]) + "\n")
    result, _ = imported("deepspeed-log", tmp_path / "w1.log", tmp_path / "w2.log")
    one, two = result.analysis.runs
    assert one.valid
    assert two.valid
    assert two.speedup.median == pytest.approx(2 * 2.13 / 2.5, rel=0.1)
    assert two.shares.comm_and_wait == pytest.approx(0.1 / 2.5)
    assert two.shares.comm_exposed is None
    assert sum(share for share in two.shares.model_dump().values() if share is not None) == pytest.approx(1)
    assert result.launches[1].steps == 20 - WARMUP_STEPS
    assert read_results(tmp_path / "out").steps["comm_and_wait_s"].null_count() == 0
