"""Figures of devices: sensors against time, energy and cost against world size with the knee."""

import json
from dataclasses import replace

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.analysis.devices import Reading
from vitscale.records.samples import GpuSample, Sample
from vitscale.report.document import document
from vitscale.report.figures import draw
from vitscale.report.rows.devices import MOST_READINGS, cost_data, sensor_data
from vitscale.report.tables import cost_table, device_table


def sampled(ranks, watts, seconds=400):
    """Each rank's GPU draws `watts` and gets warmer."""
    return [
        Sample(
            time_s=time,
            window="setup" if time == 0 else "warmup" if time < 3 else "steady",
            node=0,
            gpus=tuple(
                GpuSample(rank=rank, power_w=watts + time % 7, energy_j=watts * time, utilisation_share=0.9,
                          temperature_c=40 + time / 20, sm_clock_hz=1.98e9)
                for rank in range(ranks)
            ),
        )
        for time in range(seconds)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def powered(make, tmp_path_factory):
    """1, 2 and 4 GPUs, of which the last two add little."""
    root = make.write_study(tmp_path_factory.mktemp("powered"))
    resolved = json.loads((root / "resolved.json").read_text())
    (root / "resolved.json").write_text(json.dumps({**resolved, "hardware": {"price_per_hour": 3.6}}))
    for size, step_s in ((1, 0.1), (2, 0.055), (4, 0.05)):
        for launch in range(3):
            spec = make.make_spec(size)
            make.write_launch(root, spec, launch, step_s * (1 + launch / 100), samples=sampled(size, 300))
    return analyse(root)


def test_every_sensor_has_a_panel_and_every_device_a_line(powered):
    data = sensor_data(powered)
    assert data.panels == ("power, W", "GPU utilisation, %", "temperature, °C")
    assert data.keys == tuple(f"strong, {words}" for words in ("1 process", "2 processes", "4 processes"))
    power = [row for row in data.rows if row["panel"] == "power, W"]
    assert len({(row["key"], row["device"]) for row in power}) == 7
    first = [row for row in power if row["key"].endswith("1 process")]
    assert len(first) == MOST_READINGS
    assert (first[0]["x"], first[-1]["x"]) == (1, 399)
    assert {row["y"] for row in data.rows if row["panel"].startswith("GPU")} == {90}


def test_of_many_devices_those_with_the_lowest_and_the_highest_means_are_drawn(powered):
    first = powered.devices.series[0]
    many = [
        replace(first, device=f"GPU of rank {rank}", readings=(Reading(1.0, "steady", 300.0 + rank, None, None, None),))
        for rank in range(100)
    ]
    data = sensor_data(replace(powered, devices=replace(powered.devices, series=tuple(many))))
    assert [row["y"] for row in data.rows] == [*range(300, 308), *range(392, 400)]
    assert any("lowest and highest means" in note for note in data.notes)


def test_many_clocks_are_told_by_their_ends(powered):
    one = powered.devices.launches[0]
    use = replace(one.use, sm_clocks_hz={rank: 1.5e9 + 1e6 * rank for rank in range(64)})
    rows = device_table(replace(powered, devices=replace(powered.devices, launches=(replace(one, use=use),)))).rows
    assert rows[0][5] == "1,500 to 1,563"


def test_energy_and_cost_have_panels_and_the_knee_a_ring(powered):
    data = cost_data(powered)
    assert data.panels == ("images per joule", "energy of an epoch, kJ", "cost of an epoch")
    ringed = {row["x"] for row in data.rows if row["knee"]}
    assert ringed == {2}
    assert any("Ringed" in note for note in data.notes)
    rows = cost_table(powered).rows
    assert [row[-1] for row in rows] == ["", "knee", ""]
    joules = {row["x"]: row["y"] for row in data.rows if row["panel"] == data.panels[1]}
    assert joules[1] == pytest.approx(1437 / 64 * 0.101 * 300 / 1000, rel=1e-3)


def test_the_table_of_devices_has_every_launch(powered):
    rows = device_table(powered).rows
    assert len(rows) == 9
    assert rows[-1][2:6] == ("1,200", "90.0 %", "60.0", "1,980")


def test_a_study_without_sensors_shows_neither(result, powered):
    assert not {"costs", "sensors"} & {part.name for part in document(result, draw(result)).parts}
    assert {"costs", "sensors"} <= {part.name for part in document(powered, draw(powered)).parts}
