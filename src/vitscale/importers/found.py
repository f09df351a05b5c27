"""What an importer hands over: runs with their figures, and by count what it read of each file and what it did not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitscale.config.imported import ImportedSpec
from vitscale.importers.source import Source
from vitscale.records.schema import Aggregate, StepRecord


@dataclass(frozen=True)
class FoundRun:
    """One run of one source."""

    spec: ImportedSpec
    aggregate: Aggregate | None = None
    """Figures of the whole launch."""
    steps: tuple[StepRecord, ...] = ()
    """Step lines of all ranks."""
    evaluations: tuple[dict[str, Any], ...] = ()
    """Lines of `eval.jsonl`."""
    versions: dict[str, str] = field(default_factory=dict)
    parameters: int | None = None
    """Parameters of the model."""
    notes: dict[str, str] = field(default_factory=dict)
    """How a figure was derived, or why it is null, by its name."""


@dataclass
class Tally:
    """What was read of one file, in lines."""

    file: str
    sha256: str
    lines: int = 0
    read: int = 0
    """Lines of the format, whole."""
    damaged: int = 0
    """Lines of the format that are cut off or hold no sound figures."""
    remarks: list[str] = field(default_factory=list)
    """What else a reader should know, one sentence each."""

    @property
    def other(self) -> int:
        """Lines of something else."""
        return self.lines - self.read - self.damaged

    def words(self) -> str:
        """`a.log: 1,200 lines: 500 read, 3 damaged, 697 of something else`, and the remarks."""
        counts = f"{self.read:,} read, {self.damaged:,} damaged, {self.other:,} of something else"
        return "; ".join([f"{self.file}: {self.lines:,} lines: {counts}", *self.remarks])


@dataclass
class Reading:
    """Everything of one import."""

    runs: list[FoundRun] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)


Importer = Callable[[Sequence[Source]], Reading]


def series_of(form: str, *told: object) -> str:
    """Name of a log's series: the format and what the log tells of the run but its size and batch."""
    return " ".join([form, *(str(value) for value in told if value is not None)])
