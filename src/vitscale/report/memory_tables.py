"""Tables of what a rank holds and of what it could."""

from __future__ import annotations

from vitscale.analysis.result import StudyResult
from vitscale.cost.fit import MOST_BLOCKS
from vitscale.report.rows import label
from vitscale.report.rows.memory import CLASSES, held
from vitscale.report.tables import Table, interval_text
from vitscale.units import NOT_AVAILABLE, decimal, seconds, size

_NOT_OFFERED = {
    "activation checkpointing": "no study key yet",
    "optimizer on the CPU": "DeepSpeed's offload keys are refused; its CPU Adam is compiled at first use",
    "weights and optimizer on NVMe": "DeepSpeed's offload keys are refused; its async_io is compiled against libaio",
}
"""What would make room besides, and why it was not measured."""


def memory_table(result: StudyResult) -> Table:
    """Every class of every run whose memory was counted, beside its closed form."""
    rows = []
    for run in held(result):
        for name, words in CLASSES.items():
            one = getattr(run.memory, name)
            ratio = f"{one.measured_bytes / one.derived_bytes:.2f}" if one.derived_bytes else NOT_AVAILABLE
            cells = (size(one.measured_bytes), size(one.derived_bytes), ratio)
            rows.append((label(result, run.run_id), words, *cells))
    header = ("Run", "Class", "Measured", "Closed form", "Ratio")
    return Table("Tensors of the rank that holds most, beside the plan's closed form", header, tuple(rows), words=2)


def largest_table(result: StudyResult) -> Table:
    """What a step takes and the largest models that fit, by run; then what was not measured, with the reason."""
    steps = {run.run_id: run.step_s for run in result.analysis.runs}
    rows = []
    for run_id, one in result.largest.items():
        blocks = f"{one.depth}{' or more' if one.depth == MOST_BLOCKS else ''}"
        deep = f"{blocks} ({decimal(one.depth_parameters, '')})"
        named = f"{one.name} ({decimal(one.name_parameters, '')})" if one.name else "none"
        rows.append((label(result, run_id), interval_text(steps[run_id], seconds), size(one.limit_bytes), deep, named))
    if rows:
        rows += [(words, f"{NOT_AVAILABLE} ({reason})", "", "", "") for words, reason in _NOT_OFFERED.items()]
    header = ("Run", "Step [95 %]", "Memory of a rank", "Blocks that fit (parameters)", "Largest timm ViT")
    return Table("The largest models that fit, by the closed forms", header, tuple(rows))
