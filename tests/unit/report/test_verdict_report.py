"""What is said first: why a run is not faster, in the page, in Markdown and in the terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from vitscale.analysis.analyse import analyse
from vitscale.analysis.result import Bytes, MemoryResult, RankStep
from vitscale.analysis.verdict import of_largest
from vitscale.report import terminal
from vitscale.report.document import document
from vitscale.report.figures import draw
from vitscale.report.markdown import render as markdown
from vitscale.report.page import render
from vitscale.report.reasons import MOST_REASONS
from vitscale.report.rows.accumulation_map import map_data
from vitscale.report.sheets import sheets
from vitscale.report.verdict_tables import MOST_RANKS, cause_table, map_table, rank_table

SLOW = {"data_s": 0.3, "forward_s": 0.2, "backward_s": 0.3, "optimizer_s": 0.1}


def test_the_verdict_stands_before_every_figure_and_the_waterfall_is_the_first(result):
    drawings = draw(result)
    told = document(result, drawings)
    page = render(told, drawings)
    assert drawings[0].name == "waterfall"
    assert told.reasons[0].changes[0].override == "engine=ddp"
    assert page.index(">Why it is not faster<") < page.index('id="waterfall"') < page.index('id="throughput"')
    assert "<code>engine=ddp</code>" in page
    assert "## Why it is not faster" in markdown(told)


def test_the_largest_world_size_of_each_series_has_the_word(result):
    told = of_largest(result.analysis)
    assert [run.world_size for run, _ in told] == [2, 2, 2]
    assert len({run.series for run, _ in told}) == 3


def test_of_many_series_those_that_lose_most_are_told_and_the_rest_counted(make, tmp_path):
    root = make.write_study(tmp_path)
    for knob in range(MOST_REASONS + 2):
        spec = make.make_spec(1, deepspeed={"knob": knob})
        make.write_launch(root, spec, 0, parts={**SLOW, "data_s": 0.15 + 0.02 * knob})
    result = analyse(root)
    told = document(result, [])
    assert [one.run[:6] for one in told.reasons] == [f"knob {knob}" for knob in range(2, MOST_REASONS + 2)]
    assert told.more_reasons == "These lose most; 2 further series are in the table of causes."
    assert len(cause_table(result).rows) == MOST_REASONS + 2


def test_the_terminal_says_why_and_what_to_try(make, result, tmp_path):
    out = Console(file=io.StringIO(), width=300, highlight=False, markup=False, soft_wrap=True)
    terminal.print_summary(result, tmp_path / "index.html", out)
    lines = out.file.getvalue().splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("why  strong, zero_stage 0, 2 processes: "))
    assert "Communication (link): 3.29 ms of a step of 54.9 ms (6.0 %)" in lines[at]
    assert lines[at + 1] == "     1. an engine that sends gradients while the backward pass goes on: engine=ddp"


def test_each_rank_has_its_row_where_a_run_has_several(result):
    rows = rank_table(result).rows
    assert [row[:3] for row in rows[:2]] == [
        ("strong, zero_stage 0, 2 processes", "0", "0"),
        ("strong, zero_stage 0, 2 processes", "1", "0"),
    ]
    wait, late = rows[0][8], rows[1][-1]
    assert (wait, late) == ("2.45 ms", "2.45 ms")
    assert rows[-1][7:9] == ("n/a", "n/a")


def test_of_many_ranks_the_latest_are_shown_and_what_all_have_in_common(result):
    (run, _), *_ = of_largest(result.analysis)
    many = tuple(
        RankStep(rank, rank // 8, {"wait": 1.0 - rank / 4096, "late": rank % 100 / 10}) for rank in range(4096)
    )
    rows = rank_table(replace(result, ranks={run.run_id: many})).rows
    assert len(rows) == MOST_RANKS // 2 + 3
    assert [row[1] for row in rows[:2]] == ["3999", "3899"]
    assert [(row[1], row[-1]) for row in rows[-3:]] == [
        ("least of 4,096", "0 s"),
        ("median of 4,096", "4.90 s"),
        ("most of 4,096", "9.90 s"),
    ]
    lines = sheets(replace(result, ranks={run.run_id: many}))["ranks.csv"].splitlines()
    assert len(lines) == 1 + 4096
    assert lines[2].startswith(f"{run.run_id},1,0,")


@pytest.fixture(scope="module")
def accumulated(make, tmp_path_factory):
    root = make.write_study(tmp_path_factory.mktemp("map"))
    for size in (1, 2):
        for stage in (0, 2):
            for accum in (1, 4):
                spec = make.make_spec(size, "weak", zero_stage=stage, micro_batch=32 // accum, grad_accum=accum)
                make.write_launch(root, spec, 0, 0.1 * (1 + stage * accum))
    return analyse(root)


def test_the_map_has_every_corner_of_the_largest_world_size(accumulated):
    data = map_data(accumulated)
    assert data.panels == ("time of a step", "time saved by accumulation: measured", "memory of a rank: peak")
    assert data.notes == ("weak, 2 ranks.",)
    cells = {(row["stage"], row["grad_accum"]): row for row in data.rows if row["panel"] == "time of a step"}
    assert {key: row["figure"] for key, row in cells.items()} == {
        ("ZeRO 0", 1): "100 ms",
        ("ZeRO 0", 4): "100 ms",
        ("ZeRO 2", 1): "300 ms",
        ("ZeRO 2", 4): "900 ms",
    }
    assert cells["ZeRO 2", 4]["level"] == 1
    assert cells["ZeRO 2", 1]["level"] == pytest.approx(0.25)
    assert len(map_table(accumulated).rows) == 4


def figures(data, panel):
    return {(row["stage"], row["grad_accum"]): row["figure"] for row in data.rows if row["panel"] == panel}


def test_what_accumulation_saves_is_told_against_the_fewest_micro_steps(accumulated):
    """The same images take 100 ms at stage 0, 300 and 900 ms at stage 2; by the form 0.2 and 0.1 s at both."""
    runs = accumulated.analysis.runs
    told = replace(accumulated, derived_step_s={run.run_id: 0.2 if run.grad_accum == 1 else 0.1 for run in runs})
    measured = {("ZeRO 0", 1): "0.0 %", ("ZeRO 0", 4): "0.0 %", ("ZeRO 2", 1): "0.0 %", ("ZeRO 2", 4): "-200.0 %"}
    assert figures(map_data(told), "time saved by accumulation: measured") == measured
    derived = figures(map_data(told), "time saved by accumulation: closed form")
    assert derived["ZeRO 2", 4] == derived["ZeRO 0", 4] == "50.0 %"


def test_a_smaller_micro_batch_is_not_taken_for_more_accumulation(make, tmp_path):
    """Images take 1 ms each at a micro-batch of 32, 2 ms at one of 8, however they are accumulated."""
    root = make.write_study(tmp_path)
    for stage in (0, 2):
        for micro in (8, 32):
            for accum in (1, 4):
                batch = 2 * micro * accum
                spec = make.make_spec(
                    2, "weak", zero_stage=stage, micro_batch=micro, grad_accum=accum, global_batch=batch
                )
                make.write_launch(root, spec, 0, batch * (0.001 if micro == 32 else 0.002))
    saved = [row["figure"] for row in map_data(analyse(root)).rows if "measured" in row["panel"]]
    assert sorted(saved) == ["-100.0 %"] * 2 + ["0.0 %"] * 6


def test_what_accumulation_costs_in_memory_is_told_by_class_and_form(accumulated):
    def held(run):
        sizes = Bytes(measured_bytes=run.grad_accum << 20, derived_bytes=(5 - run.grad_accum) << 20)
        return run.model_copy(update={"memory": MemoryResult(**dict.fromkeys(MemoryResult.model_fields, sizes))})

    runs = tuple(held(run) for run in accumulated.analysis.runs)
    data = map_data(replace(accumulated, analysis=accumulated.analysis.model_copy(update={"runs": runs})))
    assert figures(data, "memory paid for accumulation: by class")["ZeRO 2", 4] == "15.0 MiB"
    assert figures(data, "memory paid for accumulation: closed form")["ZeRO 0", 4] == "-15.0 MiB"
    assert figures(data, "memory paid for accumulation: closed form")["ZeRO 0", 1] == "0 B"


def test_what_is_sent_is_shown_measured_and_by_the_closed_form(accumulated):
    runs = accumulated.analysis.runs
    told = replace(accumulated, sent_bytes={run.run_id: 2**20 for run in runs})
    assert "sent per step: closed form" in map_data(told).panels
    assert "accumulation_map" in {one.name for one in draw(told)}


def test_one_stage_or_one_accumulation_is_no_map(make, tmp_path):
    root = make.write_study(tmp_path)
    for accum in (1, 4):
        spec = make.make_spec(2, "weak", micro_batch=32 // accum, grad_accum=accum)
        make.write_launch(root, spec, 0, 0.1)
    assert map_data(analyse(root)).rows == ()
