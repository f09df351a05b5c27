"""The roofline's lines, from the launch folder to the report."""

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.records.layers import LayerRecord, write_layers
from vitscale.report.document import document
from vitscale.report.verdict_tables import layer_table

LINES = [
    LayerRecord(layer="norm", seconds_per_step=0.002, flop_per_step=None, bytes_per_step=4e6, peak_share=None),
    LayerRecord(layer="fc1", seconds_per_step=0.004, flop_per_step=2e8, bytes_per_step=4e6, peak_share=0.5),
]


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "study")


def test_each_class_has_its_work_its_rate_and_its_share_of_the_peak(make, root):
    folders = [make.write_launch(root, make.make_spec(size)) for size in (1, 2)]
    write_layers(folders[0], LINES)
    result = analyse(root)
    (run,) = result.layers
    assert "-w1-" in run
    assert "roofline" in {part.name for part in document(result, []).parts}
    norm, fc1 = layer_table(result).rows
    assert norm[1:] == ("norm", "n/a", "3.81 MiB", "n/a", "2.00 ms", "33 %", "n/a", "n/a", "2.00 GB/s")
    assert fc1[1:] == ("fc1", "200 MFLOP", "3.81 MiB", "50.0", "4.00 ms", "67 %", "50.0 GFLOP/s", "50 %", "1.00 GB/s")


def test_without_lines_there_is_no_table(make, root):
    make.write_launch(root, make.make_spec(1))
    result = analyse(root)
    assert layer_table(result).rows == ()
    assert "roofline" not in {part.name for part in document(result, []).parts}
