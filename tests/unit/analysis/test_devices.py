"""Power, energy and clocks of a steady window, from samples whose answers are known."""

import pytest

from vitscale.analysis.devices import device_use, readings
from vitscale.records.samples import GpuSample, HostSample, Sample


def sample(time_s, window, *gpus, node=0, **host):
    return Sample(time_s=time_s, window=window, node=node, gpus=gpus, host=HostSample(**host))


def run(*watts, steady=4, **fields):
    """One node: a second of warm-up, then `steady` seconds in which each GPU draws its power by its counter."""
    return [
        sample(
            time_s,
            "setup" if time_s == 0 else "warmup" if time_s == 1 else "steady",
            *(GpuSample(rank=rank, energy_j=900 + power * (time_s - 1), **fields) for rank, power in enumerate(watts)),
        )
        for time_s in range(steady + 2)
    ]


def test_power_is_energy_over_time_summed_over_gpus():
    use = device_use(run(300, 250), 2, 1)
    assert use.power_w == pytest.approx(550)
    assert use.seconds == 4


def test_nodes_are_added_up_though_their_clocks_and_lengths_differ():
    second = [
        one.model_copy(
            update={
                "node": 1,
                "time_s": one.time_s + 7,
                "gpus": tuple(gpu.model_copy(update={"rank": gpu.rank + 1}) for gpu in one.gpus),
            }
        )
        for one in run(100, steady=6)
    ]
    assert device_use([*run(300), *second], 2, 2).power_w == pytest.approx(400)
    assert device_use(run(300), 2, 2).power_w is None, "a node's file is missing"


def test_other_windows_are_not_counted():
    samples = run(300)
    pause = sample(9, "evaluate", GpuSample(rank=0, energy_j=99_999, throttle=("hw_slowdown",), temperature_c=99))
    again = sample(10, "steady", GpuSample(rank=0, energy_j=99_999 + 300, throttle=(), temperature_c=50))
    use = device_use([*samples, pause, again], 1, 1)
    assert use.power_w == pytest.approx(300)
    assert use.seconds == 5
    assert use.throttled == {}
    assert use.temperature_peak_c == 50


def test_without_a_counter_power_is_integrated():
    watts = [0, 100, 200, 200]
    samples = [
        sample(time_s, "steady" if time_s else "setup", GpuSample(rank=0, power_w=power))
        for time_s, power in enumerate(watts)
    ]
    assert device_use(samples, 1, 1).power_w == pytest.approx((50 + 150 + 200) / 3)


def test_one_gpu_that_tells_nothing_leaves_no_sum():
    samples = run(300, 250)
    lost = [
        one.model_copy(update={"gpus": (one.gpus[0], GpuSample(rank=1))}) if one.time_s == 3 else one for one in samples
    ]
    assert device_use(lost, 2, 1).power_w is None
    assert device_use(samples, 3, 1).power_w is None


def test_cpus_have_the_energy_of_their_packages():
    samples = [sample(time_s, "steady", energy_j=60.0 * time_s, cpu_s=3.0 * time_s) for time_s in range(3)]
    use = device_use(samples, 4, 1)
    assert use.power_w == pytest.approx(60)
    assert (use.cpu_cores, use.rank_cores) == (pytest.approx(3), None)
    assert device_use([sample(time_s, "steady") for time_s in range(3)], 4, 1).power_w is None


def test_cores_are_means_over_time_not_over_lines():
    times = [0.0, 1.0, 1.001, 2.0]
    busy = [0.0, 2.0, 2.01, 4.0]
    samples = [sample(at, "steady", cpu_s=cpu, rank_cpu_s=cpu / 2) for at, cpu in zip(times, busy, strict=True)]
    use = device_use(samples, 1, 1)
    assert (use.cpu_cores, use.rank_cores) == (pytest.approx(2), pytest.approx(1))


def test_shares_and_medians_of_what_gpus_tell():
    def gpu(clock, throttle, foreign):
        return GpuSample(
            rank=0,
            sm_clock_hz=clock,
            throttle=throttle,
            foreign_processes=foreign,
            utilisation_share=0.5,
            temperature_c=clock / 1e9 + 50,
        )

    lines = [(1e9, (), 0), (2e9, ("sw_power_cap",), 1), (1.5e9, ("sw_power_cap", "sync_boost"), 0), (1.5e9, None, None)]
    samples = [sample(0, "setup"), *(sample(at, "steady", gpu(*line)) for at, line in enumerate(lines, 1))]
    use = device_use(samples, 1, 1)
    assert use.sm_clocks_hz == {0: 1.5e9}
    assert use.throttled == {"sw_power_cap": pytest.approx(2 / 3), "sync_boost": pytest.approx(1 / 3)}
    assert use.foreign_share == pytest.approx(1 / 3)
    assert use.utilisation_share == 0.5
    assert use.temperature_peak_c == 52


@pytest.mark.parametrize("samples", [[], run(300)[:1], run(300)[:2]])
def test_no_steady_line_is_no_figure(samples):
    assert device_use(samples, 1, 1) is None


def test_readings_are_per_device_against_time():
    samples = [
        sample(0, "setup", GpuSample(rank=3, energy_j=0.0), cpu_s=0.0, energy_j=0.0),
        sample(2, "steady", GpuSample(rank=3, energy_j=500.0, temperature_c=60), cpu_s=6.0, energy_j=100.0),
        sample(4, "steady", GpuSample(rank=3, energy_j=900.0, power_w=210), cpu_s=8.0, energy_j=None),
    ]
    found = readings(samples)
    assert list(found) == ["GPU of rank 3", "host 0"]
    assert [(one.time_s, one.power_w, one.temperature_c) for one in found["GPU of rank 3"]] == [
        (2, 250, 60),
        (4, 210, None),
    ]
    assert [(one.power_w, one.cpu_cores) for one in found["host 0"]] == [(50, 3), (None, 1)]


def test_the_first_line_of_a_node_has_no_time_before_it():
    samples = [sample(2 * node + time_s, "steady", node=node) for node in (0, 1) for time_s in range(2)]
    assert {device: len(read) for device, read in readings(samples).items()} == {"host 0": 1, "host 1": 1}
