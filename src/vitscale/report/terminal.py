"""What a person reads in the terminal: plan, summary, comparison, errors.

Text from studies and records is printed as text: markup is not interpreted and control characters are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitscale import units
from vitscale.analysis import text
from vitscale.analysis.compare import Comparison
from vitscale.analysis.result import RunResult, StudyResult
from vitscale.analysis.verdict import of_largest
from vitscale.report.reasons import changes

if TYPE_CHECKING:
    from vitscale.report.collection import Chapter

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIPED_WIDTH = 140
_MOST_VERDICTS = 4
_SEVERITIES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def clean(value: object) -> Text:
    """Any text without control characters and without markup."""
    return Text(_CONTROL.sub("", str(value)))


def console(*, data: bool = False) -> Console:
    """Data goes to standard output, everything else to standard error."""
    out = Console(stderr=not data, highlight=False, markup=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = max(out.width, _PIPED_WIDTH)
    return out


def print_error(message: str, hint: str | None) -> None:
    """One `error:` line, a blank line, a `hint:` line."""
    out = console()
    out.print(Text("error: ", style="bold red") + clean(_one_line(message)))
    if hint:
        out.print()
        out.print(Text("hint: ", style="bold cyan") + clean(_one_line(hint)))


def _one_line(message: str) -> str:
    return " ".join(message.split())


def print_plan(plan: Mapping[str, Any], out: Console) -> None:
    """`plan.json` as a table: what would run, what it needs, what is skipped and why."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("micro x accum x ranks", "memory/rank", "fits", "sent/step", "work/step", "step", "images/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in plan["runs"]:
        table.add_row(*(clean(cell) for cell in _plan_row(run)))
    out.print(table)
    print_choices(plan, out)
    assumed = dict.fromkeys(line for run in plan["runs"] for line in run["estimate"]["assumptions"])
    for line in assumed:
        out.print(Text("assumed  ", style="dim") + clean(line))
    count = len(plan["runs"])
    launches = text.count(count * plan["launches"], "launch")
    expected = f", about {units.seconds(plan['expected_s'])} expected" if plan["expected_s"] else ""
    out.print(clean(f"{text.count(count, 'run')}, {launches}{expected}"))


def print_choices(plan: Mapping[str, Any], out: Console) -> None:
    """The combinations of a plan that cannot exist by their rule, and what was chosen where the study left it open."""
    for reason, labels in text.by_reason((one["label"], one["reason"]) for one in plan["skipped"]).items():
        out.print(clean(f"skipped  {labels}: {reason}"))
    for note in plan["notes"]:
        out.print(clean(f"note     {note}"))


def _plan_row(run: Mapping[str, Any]) -> tuple[str, ...]:
    spec, estimate = run["spec"], run["estimate"]
    identity = f"{spec['micro_batch']} x {spec['grad_accum']} x {spec['data_parallel']} = {spec['global_batch']}"
    sent = sum(one["bytes"] for one in estimate["collectives"])
    too_much = "" if estimate["fits"] is not False else f" > {units.size(estimate['memory_limit_bytes'])}"
    return (
        run["label"],
        identity,
        f"{units.size(estimate['memory_needed_bytes']['median'])}{too_much}",
        units.probability(estimate["fit_probability"]),
        units.size(sent) if sent else "nothing",
        units.decimal(estimate["flop_per_step"], "FLOP"),
        units.seconds(estimate["step_s"]),
        units.number(estimate["images_per_s"]),
    )


def print_summary(result: StudyResult, page: Path, out: Console) -> None:
    """The answer, a line per run, why it is not faster, the findings that matter, and where the report is."""
    analysis = result.analysis
    out.print()
    out.print(Text.assemble(("answer  ", "bold"), clean(analysis.answer)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    evaluated = any(run.test_accuracy is not None for run in analysis.runs)
    timed = any(run.time_to_accuracy_s is not None for run in analysis.runs)
    more = (("accuracy",) if evaluated else ()) + (("to target",) if timed else ())
    for name in ("launches", "step", "images/s", "speed-up", "efficiency", *more):
        table.add_column(name, justify="right")
    for run in analysis.runs:
        row = (result.labels.get(run.run_id, run.run_id), *_summary_cells(run), *_learnt_cells(run)[: len(more)])
        table.add_row(*(clean(cell) for cell in row), style="" if run.valid else "dim")
    out.print(table)
    for run in analysis.runs:
        if not run.valid:
            label = result.labels.get(run.run_id, run.run_id)
            out.print(Text("not valid  ", style="yellow") + clean(f"{label}: {'; '.join(run.invalid_reasons)}"))
    _print_verdicts(result, out)
    for finding in analysis.findings:
        if finding.severity != "note":
            out.print(Text(f"{finding.severity}  ", style=_SEVERITIES[finding.severity]) + clean(finding.evidence))
    notes = sum(finding.severity == "note" for finding in analysis.findings)
    if notes:
        out.print(clean(f"{text.count(notes, 'note')} in the report"))
    out.print(Text.assemble(("report  ", "bold"), clean(page)))


def _print_verdicts(result: StudyResult, out: Console) -> None:
    """Why each series is not faster at its largest world size, and what to change, the dearest first."""
    for run, verdict in of_largest(result.analysis, _MOST_VERDICTS):
        label = result.labels.get(run.run_id, run.run_id)
        out.print(Text("why  ", style="bold") + clean(f"{label}: {verdict.text}"))
        for number, change in enumerate(changes(verdict.causes), 1):
            key = f": {change.override}" if change.override else ""
            out.print(Text(f"     {number}. ", style="dim") + clean(f"{change.hint}{key}"))
    more = len(of_largest(result.analysis)) - _MOST_VERDICTS
    if more > 0:
        out.print(clean(f"     and of {text.count(more, 'further series')} in the report"))


def print_collection(chapters: Sequence[Chapter], page: Path, out: Console) -> None:
    """A line per study, and where the page over all of them is."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("study", no_wrap=True)
    table.add_column("runs", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for one in chapters:
        table.add_row(clean(one.heading), clean(one.state), clean(one.problem or one.answer))
    out.print(table)
    out.print(Text.assemble(("report  ", "bold"), clean(page)))


def _summary_cells(run: RunResult) -> tuple[str, ...]:
    return (
        str(run.launches),
        text.duration(run.step_s) if run.step_s else units.NOT_AVAILABLE,
        text.rate(run.images_per_s).replace(" images/s", "") if run.images_per_s else units.NOT_AVAILABLE,
        text.ratio(run.speedup) if run.speedup else units.NOT_AVAILABLE,
        text.share(run.efficiency) if run.efficiency else units.NOT_AVAILABLE,
    )


def _learnt_cells(run: RunResult) -> tuple[str, str]:
    time = run.time_to_accuracy_s
    return units.percent(run.test_accuracy), text.duration(time) if time else units.NOT_AVAILABLE


def print_comparison(comparison: Comparison, out: Console) -> None:
    """What differs between two results folders, and which runs changed."""
    for title, differences in (
        ("configuration", comparison.configuration),
        ("versions", comparison.versions),
        ("devices", comparison.devices),
    ):
        for one in differences:
            out.print(clean(f"{title}  {one.key}: {_shown(one.a)} -> {_shown(one.b)}"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run")
    for name in ("step A", "step B", "B / A", "launches"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for run in comparison.runs:
        cells = (
            run.label,
            text.duration(run.step_s_a) if run.step_s_a else units.NOT_AVAILABLE,
            text.duration(run.step_s_b) if run.step_s_b else units.NOT_AVAILABLE,
            text.ratio(run.ratio) if run.ratio else units.NOT_AVAILABLE,
            f"{run.launches_a}, {run.launches_b}",
            run.verdict,
        )
        table.add_row(*(clean(cell) for cell in cells))
    out.print(table)
    changed = sum(run.changed for run in comparison.runs)
    out.print(clean(f"{changed} of {text.count(len(comparison.runs), 'run')} changed beyond their intervals"))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    return "nothing" if value is None else str(value)
