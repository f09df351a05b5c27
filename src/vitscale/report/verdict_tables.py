"""Tables of the waterfall and of the causes."""

from __future__ import annotations

from vitscale.analysis.remedies import REMEDIES
from vitscale.analysis.result import StudyResult
from vitscale.report.rows import label
from vitscale.report.rows.waterfall import BARS, waterfalls
from vitscale.report.tables import Table, interval_text
from vitscale.units import number, percent, seconds


def waterfall_table(result: StudyResult) -> Table:
    """Ideal and measured throughput of every valid run, and each part's seconds beyond its ideal."""
    rows = []
    for run, bars in waterfalls(result):
        rate = run.images_per_s.median if run.images_per_s else None
        beyond = [seconds(getattr(bars, name)) for name in BARS]
        ends = (number(bars.ideal_images_per_s), number(rate), percent(bars.ideal_step_s / bars.step_s))
        rows.append((label(result, run.run_id), *ends, seconds(bars.ideal_step_s), *beyond, seconds(bars.step_s)))
    parts = [f"{words[0].upper()}{words[1:]}" for words in BARS.values()]
    header = ("Run", "Ideal, images per s", "Measured", "Efficiency", "Ideal step", *parts, "Measured step")
    return Table("From the ideal step to the measured one: what each part takes beyond its ideal", header, tuple(rows))


def cause_table(result: StudyResult) -> Table:
    """Every cause of every run that has a verdict."""
    rows = []
    for verdict in result.analysis.verdicts:
        for cause in verdict.causes:
            name = REMEDIES[cause.kind].name + (f" ({cause.detail})" if cause.detail else "")
            whole = f"{name}, a part of {REMEDIES[cause.within].name.lower()}" if cause.within else name
            cost = (interval_text(cause.seconds, seconds), percent(cause.share))
            gain = interval_text(cause.gain, lambda value: f"{number(value)}x")
            change = f"{cause.hint}{f': {cause.override}' if cause.override else ''}"
            rows.append((label(result, verdict.run_id), whole, *cost, gain, cause.evidence, change))
    header = ("Run", "Cause", "Of a step [95 %]", "Share", "Gain [95 %]", "Evidence", "Change")
    return Table("Causes that are more than noise, by what they cost of a step", header, tuple(rows), words=7)
