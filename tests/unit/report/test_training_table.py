"""The table of simulated trainings has what the manifests tell, and measured runs are not in it."""

from dataclasses import asdict, replace

from vitscale.cost.failures import training_time
from vitscale.report.training_table import training_table
from vitscale.units import seconds


def test_a_simulated_training_has_a_row_and_a_measured_run_none(result):
    first, *others = result.manifests
    told = training_time(86_400.0, 4096, 1e12, 512)
    noted = first.model_copy(update={"notes": {**first.notes, "training": asdict(told)}})
    (row,) = training_table(replace(result, manifests=(noted, *others))).rows
    assert row[1:4] == (str(first.layout.world_size), "24 h 00 min", seconds(told.wall_s))
    assert told.wall_s > told.steps_s
    assert training_table(result).rows == ()
