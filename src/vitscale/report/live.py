"""A study while it runs: a table redrawn in place, or a line per launch where it is no terminal.

Both are observers of `study.execute`, which knows them by their methods only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vitscale import units
from vitscale.analysis import text
from vitscale.report.terminal import clean

_REDRAWS_PER_S = 4
_BEFORE_STEPS = {"queued": "queued", "import": "importing", "setup": "setting up"}


class PlainLines:
    """Observer for pipes and logs: a line when a launch ends."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._left = _TimeLeft()
        self._labels: dict[str, str] = {}

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def started(self, total_launches: int, done: int) -> None:
        """So many launches are planned, and so many are there already."""
        self._left = _TimeLeft(total_launches, done)
        there = f", {done} already there" if done else ""
        self.message(f"{text.count(total_launches, 'launch')}{there}")

    def launch_started(self, run_id: str, label: str, launch: int) -> None:  # noqa: ARG002
        """Remember its name."""
        self._labels[run_id] = label

    def progress(
        self, run_id: str, step: int, steps: int, phase: str, loss: float | None, images_per_s: float | None
    ) -> None:
        """Nothing: one line per launch is enough for a log."""

    def launch_finished(
        self, run_id: str, launch: int, status: str, images_per_s: float | None, reason: str | None
    ) -> None:
        """Say how it ended and what is left."""
        self._left.finished(status)
        told = f"{units.number(images_per_s)} images/s" if status == "ok" else f"{status}: {reason}"
        label = f"{self._labels.get(run_id, run_id)}, launch {launch}"
        self.message(f"[{self._left.done}/{self._left.total}] {label}: {told}{self._left}")

    def message(self, line: str) -> None:
        """Print a line."""
        self._out.print(clean(line))


class LiveTable(PlainLines):
    """Observer for terminals: a row per run, redrawn in place."""

    def __init__(self, out: Console, labels: Mapping[str, str]) -> None:
        super().__init__(out)
        self._rows = {run_id: _Row(label) for run_id, label in labels.items()}
        self._status = Text("starting")
        self._live = Live(console=out, refresh_per_second=_REDRAWS_PER_S, get_renderable=self._draw)

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._status = Text()
        self._live.__exit__(*exception)

    def launch_started(self, run_id: str, label: str, launch: int) -> None:
        """A launch is being set up."""
        super().launch_started(run_id, label, launch)
        self._row(run_id).now = "setting up"

    def progress(
        self, run_id: str, step: int, steps: int, phase: str, loss: float | None, images_per_s: float | None
    ) -> None:
        """Show where the launch is."""
        row = self._row(run_id)
        row.now = {"queued": "queued", "import": "importing", "setup": "setting up"}.get(
            phase, f"{phase} {step}/{steps or '?'}"
        )
        row.loss = loss if loss is not None else row.loss
        row.live_images_per_s = images_per_s

    def launch_finished(
        self, run_id: str, launch: int, status: str, images_per_s: float | None, reason: str | None
    ) -> None:
        """Count it; a failure stays readable above the table."""
        self._left.finished(status)
        row = self._row(run_id)
        row.now, row.live_images_per_s = "", None
        if status == "ok" and images_per_s is not None:
            row.images_per_s.append(images_per_s)
        else:
            self.message(f"{row.label}, launch {launch} {status}: {reason}")

    def _row(self, run_id: str) -> _Row:
        """A run's row; a scheduler may still have runs that the study has no more."""
        return self._rows.setdefault(run_id, _Row(self._labels.get(run_id, run_id)))

    def _draw(self) -> Group:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("run")
        for name in ("launches", "images/s", "loss"):
            table.add_column(name, justify="right")
        table.add_column("now")
        for row in self._rows.values():
            table.add_row(clean(row.label), *(Text(cell) for cell in row.cells()))
        left = f"{self._left.done} of {self._left.total} launches done, {self._left.total - self._left.done} to go"
        return Group(table, Text(f"{left}{self._left}") if self._left.total else self._status)


class _Row:
    """One run in the live table."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.images_per_s: list[float] = []
        self.live_images_per_s: float | None = None
        self.loss: float | None = None
        self.now = ""

    def cells(self) -> tuple[str, str, str, str]:
        done = self.images_per_s
        pace = self.live_images_per_s or (sorted(done)[len(done) // 2] if done else None)
        loss = "" if self.loss is None else units.number(self.loss)
        return str(len(done)), "" if pace is None else units.number(pace), loss, self.now


class _TimeLeft:
    """How long the launches that are left will take, at the pace of those that this process has seen."""

    def __init__(self, total: int = 0, done: int = 0) -> None:
        self.total, self.done, self._before, self._began = total, done, done, time.monotonic()

    def finished(self, status: str) -> None:
        self.done += status == "ok"
        self.total = max(self.total, self.done)

    def __str__(self) -> str:
        seen = self.done - self._before
        if not seen or self.done >= self.total:
            return ""
        left_s = (time.monotonic() - self._began) / seen * (self.total - self.done)
        return f", about {units.seconds(left_s)} left"
