"""Findings about the devices appear where their condition holds, and only there."""

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.records.samples import GpuSample, HostSample, Sample

KINDS = {"throttled", "memory_clock", "swapping", "mixed_clocks", "foreign_processes", "other_load"}


@pytest.fixture
def found(make, tmp_path):
    """kind -> finding of one run with given samples of its steady window."""

    def found(*lines, host=()):
        root = make.write_study(tmp_path / "study")
        hosts = host or [HostSample()] * (len(lines) + 1)
        windows = ["setup", *["steady"] * len(lines)]
        samples = [
            Sample(time_s=at, window=window, node=0, gpus=gpus, host=one)
            for at, (window, gpus, one) in enumerate(zip(windows, [(), *lines], hosts, strict=True))
        ]
        for launch in range(3):
            make.write_launch(root, make.make_spec(2), launch, samples=samples)
        return {one.kind: one for one in analyse(root).analysis.findings if one.kind in KINDS}

    return found


def gpus(*, throttle=(), clocks=(1.7e9, 1.7e9), foreign=0):
    return tuple(
        GpuSample(rank=rank, throttle=throttle, sm_clock_hz=clock, foreign_processes=foreign)
        for rank, clock in enumerate(clocks)
    )


def test_devices_in_order_are_no_finding(found):
    assert found(*[gpus()] * 10) == {}


def test_heat_that_throttles_is_a_warning_with_its_share(found):
    one = found(*[gpus()] * 6, *[gpus(throttle=("hw_thermal_slowdown", "sw_power_cap"))] * 4)["throttled"]
    assert one.severity == "warning"
    assert "heat in 40 %" in one.evidence
    assert "the power limit in 40 %" in one.evidence
    assert one.hint


def test_the_power_limit_alone_is_a_note(found):
    assert found(*[gpus(throttle=("sw_power_cap",))] * 4)["throttled"].severity == "note"


def test_one_sample_in_thirty_is_chance(found):
    assert found(*[gpus()] * 29, gpus(throttle=("hw_slowdown",))) == {}


def test_clocks_that_differ_name_the_slowest_and_the_fastest(found):
    one = found(*[gpus(clocks=(1.5e9, 1.7e9))] * 4)["mixed_clocks"]
    assert "rank 0 ran at 1.50 GHz and that of rank 1 at 1.70 GHz" in one.evidence
    assert "13.3 % apart" in one.evidence


def test_clocks_less_than_five_percent_apart_are_equal(found):
    assert found(*[gpus(clocks=(1.7e9, 1.78e9))] * 4) == {}


def test_strangers_on_a_gpu_are_found_with_their_share(found):
    one = found(*[gpus()] * 3, gpus(foreign=2))["foreign_processes"]
    assert one.severity == "warning"
    assert "25 % of the samples" in one.evidence


def test_what_sensors_do_not_tell_is_no_finding(found):
    assert found(*[(GpuSample(rank=0), GpuSample(rank=1))] * 4) == {}


@pytest.mark.parametrize(("cores", "told"), [(2.4, False), (2.6, True)])
def test_load_of_others_is_a_note(found, cores, told):
    host = [HostSample(cpu_s=cores * at, rank_cpu_s=2.0 * at) for at in range(5)]
    notes = found(*[()] * 4, host=host)
    assert set(notes) == ({"other_load"} if told else set())
    if told:
        assert notes["other_load"].severity == "note"
        assert "0.600 cores" in notes["other_load"].evidence


@pytest.mark.parametrize(("clock", "told"), [(2.619e9, False), (2.56e9, False), (1.6e9, True)])
def test_memory_below_its_highest_clock_is_named_with_its_rank(found, clock, told):
    both = tuple(
        GpuSample(rank=rank, memory_clock_hz=one, memory_clock_max_hz=2.619e9)
        for rank, one in ((0, 2.619e9), (1, clock))
    )
    seen = found(*[both] * 4)
    assert set(seen) == ({"memory_clock"} if told else set())
    if told:
        assert "rank 1's GPU ran at 61 %" in seen["memory_clock"].evidence


def test_a_clock_without_its_highest_is_no_finding(found):
    assert found(*[(GpuSample(rank=0, memory_clock_hz=1e9),)] * 4) == {}


@pytest.mark.parametrize(("bytes_per_s", "told"), [(0, False), (2**19, False), (3 * 2**20, True)])
def test_hosts_that_read_from_swap_are_named(found, bytes_per_s, told):
    seen = found(*[()] * 4, host=[HostSample(swapped_in_bytes=at * bytes_per_s) for at in range(5)])
    assert set(seen) == ({"swapping"} if told else set())
    if told:
        assert "3.00 MiB of memory a second" in seen["swapping"].evidence
