"""A run to add to a table: the row that is filled in after it was measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from vitscale.cost.scaling import Layout
from vitscale.importers.table import COLUMNS, FIGURES
from vitscale.importers.write import TABLE
from vitscale.predict.document import file_stem
from vitscale.predict.series import Asked, Series


def table_of(path: Path) -> Path | None:
    """The table that series are read from: itself, or that of a folder of imports; None where a study was run."""
    if not path.is_dir():
        return path
    return path / TABLE if (path / TABLE).is_file() else None


def _images(last: Mapping[str, object], series: Series, asked: Asked, layout: Layout) -> object:
    """Images of an epoch: in weak scaling as many for each rank as the last row has; blank where that is not told."""
    told = str(last.get("images_per_epoch") or "").strip()
    if (asked.protocol or series.protocol) != "weak" or not told:
        return told
    ranks = str(last.get("world_size") or "").strip()
    if series.protocol != "weak" or not ranks:
        return ""
    return round(float(told) / float(ranks) * layout.world_size)


def row(table: Path, series: Series, asked: Asked, layout: Layout) -> str:
    """Header and row, as lines of CSV: the series' last row, laid out as asked, with its figures blank.

    What differs from the series makes one of its own.
    """
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        header = [name.strip() for name in reader.fieldnames or COLUMNS]
        rows = [dict(zip(header, one.values(), strict=False)) for one in reader]
    last: dict[str, object] = next(
        (dict(one) for one in reversed(rows) if str(one.get("series")).strip() == series.name), {}
    )
    placed = {
        "series": file_stem(series.name, asked.told) if asked.any else series.name,
        "world_size": layout.world_size,
        "nodes": layout.nodes,
        "ranks_per_node": "",
        "micro_batch": f"{layout.micro_batch:.0f}" if series.batch_told and layout.micro_batch % 1 == 0 else "",
        "grad_accum": layout.grad_accum if series.batch_told else "",
        "global_batch": f"{layout.global_batch:.0f}" if series.batch_told and "global_batch" in header else "",
        "images_per_epoch": _images(last, series, asked, layout),
    }
    told = {key: getattr(asked, key) for key in ("engine", "zero_stage", "precision", "device", "protocol")}
    cells = {**last, **placed, **{key: value for key, value in told.items() if value is not None}}
    cells |= dict.fromkeys(FIGURES, "")
    columns = [*header, *(name for name, value in cells.items() if name not in header and value not in ("", None))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerow([cells.get(name, "") for name in columns])
    return text.getvalue()
