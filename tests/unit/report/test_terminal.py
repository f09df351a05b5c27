"""What the terminal shows: plain lines for a pipe, a table for a person, names as text."""

import io

import pytest
from rich.console import Console

from vitscale.analysis.analyse import analyse
from vitscale.report import live, terminal


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), width=140, highlight=False, markup=False, soft_wrap=True)


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), width=100, force_terminal=True, highlight=False, markup=False)


def said(console):
    return console.file.getvalue()


def test_a_pipe_hears_one_line_per_launch(pipe):
    with live.PlainLines(pipe) as lines:
        lines.started(3, 1)
        lines.launch_started("a", "strong, 1 process", 0)
        lines.progress("a", 5, 10, "steady", 2.3, 100.0)
        lines.launch_finished("a", 0, "ok", 1234.5, None)
        lines.launch_finished("a", 1, "failed", None, "rank 1 was ended by SIGKILL")
    text = said(pipe).splitlines()
    assert text[0] == "3 launches, 1 already there"
    assert text[1].startswith("[2/3] strong, 1 process, launch 0: 1,234 images/s, about")
    assert text[2].startswith("[2/3] strong, 1 process, launch 1: failed: rank 1 was ended by SIGKILL")
    assert len(text) == 3
    assert "\x1b" not in said(pipe)


def test_a_terminal_shows_runs_done_and_left_pace_and_loss(screen):
    with live.LiveTable(screen, {"a": "strong, 1 process", "b": "weak, 1 process"}) as table:
        table.started(4, 0)
        table.launch_started("a", "strong, 1 process", 0)
        table.progress("a", 5, 12, "steady", 2.345, 321.0)
        table._live.refresh()
        during = said(screen)
        table.launch_finished("a", 0, "ok", 333.0, None)
        table.launch_finished("b", 0, "oom", None, "rank 0: out of memory")
    assert "steady 5/12" in during
    assert "321" in during
    assert "2.35" in during or "2.34" in during
    assert "0 of 4 launches done, 4 to go" in during
    after = said(screen)
    assert "1 of 4 launches done" in after
    assert "weak, 1 process, launch 0 oom: rank 0: out of memory" in after


def test_names_are_text_and_control_characters_go(pipe, screen):
    for console in (pipe, screen):
        console.print(terminal.clean("[red]x[/red]\x1b[31m\x07 <b>\u009b2J"))
        assert "[red]x[/red][31m <b>2J" in said(console)


def test_an_error_is_a_line_a_blank_line_and_a_hint(capfd):
    terminal.print_error("`x` is\nwrong [bold]", "type `y`\x1b[0m")
    assert capfd.readouterr().err == "error: `x` is wrong [bold]\n\nhint: type `y`[0m\n"
    terminal.print_error("wrong", None)
    assert capfd.readouterr().err == "error: wrong\n"


def test_the_summary_has_the_answer_the_runs_the_warnings_and_the_path(pipe, make, tmp_path):
    make.golden_study(tmp_path)
    result = analyse(tmp_path)
    pipe.width = 200
    terminal.print_summary(result, tmp_path / "report" / "index.html", pipe)
    text = said(pipe)
    assert f"answer  {result.analysis.answer}\n" in text
    for run in result.analysis.runs:
        if run.step_s is not None:
            assert terminal._summary_cells(run)[1] in text
            assert result.labels[run.run_id] in text
    assert "not valid  strong, zero_stage 0, 4 processes: more ranks than cores\n" in text
    assert text.count("n/a") >= 4
    assert text.rstrip().endswith("index.html")
