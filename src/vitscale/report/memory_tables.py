"""Tables of what a rank holds and of what it could."""

from __future__ import annotations

from vitscale.analysis import text
from vitscale.analysis.result import StudyResult
from vitscale.cost.fit import MOST_BLOCKS
from vitscale.report.rows import label
from vitscale.report.rows.memory import CLASSES, held
from vitscale.report.tables import Table, interval_text
from vitscale.units import NOT_AVAILABLE, decimal, seconds, size


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
    """What a step takes and the largest models that fit, by run; then what the plan skipped, once for each reason."""
    steps = {run.run_id: run.step_s for run in result.analysis.runs}
    rows = []
    for run_id, one in result.largest.items():
        blocks = f"{one.depth}{' or more' if one.depth == MOST_BLOCKS else ''}"
        deep = f"{blocks} ({decimal(one.depth_parameters, '')})"
        named = f"{one.name} ({decimal(one.name_parameters, '')})" if one.name else "none"
        rows.append((label(result, run_id), interval_text(steps[run_id], seconds), size(one.limit_bytes), deep, named))
    if rows:
        skipped = text.by_reason((one.label, one.reason) for one in result.skipped)
        rows += [(words, f"{NOT_AVAILABLE} ({reason})", "", "", "") for reason, words in skipped.items()]
    header = ("Run", "Step [95 %]", "Memory of a rank", "Blocks that fit (parameters)", "Largest timm ViT")
    return Table("The largest models that fit, by the closed forms", header, tuple(rows))
