"""Device samples on disk: written, read back, cut off, damaged."""

import pytest

from vitscale.errors import ResultsError
from vitscale.records.reader import read_results
from vitscale.records.samples import GpuSample, HostSample, Sample, samples_name

SAMPLES = [
    Sample(time_s=0.0, window="setup", node=node, gpus=(GpuSample(rank=2 * node, throttle=()),)) for node in (0, 1)
] + [
    Sample(time_s=1.0, window="steady", node=node, gpus=(GpuSample(rank=2 * node, power_w=250.0, energy_j=200.0),))
    for node in (0, 1)
]


@pytest.fixture
def root(tmp_path, make):
    return make.write_study(tmp_path)


def launch(root):
    (found,) = read_results(root).launches
    return found


def test_what_is_written_is_read_by_node_and_time(root, make):
    make.write_launch(root, make.make_spec(1), samples=SAMPLES)
    found = launch(root)
    assert list(found.samples) == sorted(SAMPLES, key=lambda one: (one.node, one.time_s))
    assert (found.torn, found.altered) == ((), ())
    assert found.samples[0].gpus[0].power_w is None
    assert found.samples[0].host == HostSample()


def test_a_launch_without_samples_has_none(root, make):
    make.write_launch(root, make.make_spec(1))
    assert launch(root).samples == ()


def test_a_line_cut_off_is_not_counted_and_is_told(root, make):
    path = make.write_launch(root, make.make_spec(1), samples=SAMPLES, status=None) / samples_name(1)
    path.write_bytes(path.read_bytes()[:-5])
    found = launch(root)
    assert len(found.samples) == 3
    assert found.torn == ("devices.node001.jsonl",)


def test_samples_that_were_changed_are_told(root, make):
    path = make.write_launch(root, make.make_spec(1), samples=SAMPLES) / samples_name(0)
    path.write_text(path.read_text().replace("250.0", "150.0"))
    assert launch(root).altered == ("devices.node000.jsonl",)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"power_w":250.0', '"power_w":-1'), ('"window":"steady",', ""), ('"power_w":250.0', '"power_w":NaN'), ("{", "[")],
)
def test_a_damaged_line_is_an_error_that_names_it(root, make, old, new):
    path = make.write_launch(root, make.make_spec(1), samples=SAMPLES) / samples_name(0)
    first, second = path.read_text().splitlines()
    assert old in second
    path.write_text(f"{first}\n{second.replace(old, new)}\n")
    with pytest.raises(ResultsError, match=r"devices.node000.jsonl:2` is damaged"):
        read_results(root)


def test_fields_of_a_newer_writer_are_left_aside(root, make):
    path = make.write_launch(root, make.make_spec(1), samples=SAMPLES[:1]) / samples_name(0)
    path.write_text(path.read_text().replace('"node":0', '"node":0,"fan_share":0.5'))
    assert launch(root).samples == (SAMPLES[0],)
