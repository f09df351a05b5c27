import csv
import io

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.importers.table import COLUMNS
from vitscale.importers.write import import_files

DEFAULTS = {
    "series": "s", "world_size": 1, "nodes": 1, "model": "vit_base_patch16_224", "dataset": "cifar10",
    "micro_batch": 16, "grad_accum": 1, "engine": "deepspeed", "zero_stage": 0,
}  # fmt: skip


@pytest.fixture
def table(tmp_path):
    """Write a table of the given rows; a row's cells are the defaults and what differs. Columns: the format's."""

    def write(*rows, name="table.csv", columns=COLUMNS):
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns)
        for row in rows:
            cells = {**DEFAULTS, **row}
            writer.writerow([cells.get(column, "") for column in columns])
        path = tmp_path / name
        path.write_text(text.getvalue())
        return path

    return write


@pytest.fixture
def imported(tmp_path):
    """Import files and analyse: the analysis, and what the import said."""

    def run(form, *paths, out="out"):
        outcome = import_files(form, paths, tmp_path / out)
        return analyse(tmp_path / out), outcome

    return run
