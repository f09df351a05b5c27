"""The sampler: a line at each window's ends and one each interval between, whatever the sensors do."""

import json
import threading
import time

import pytest

pytest.importorskip("torch")

from vitscale.records.samples import GpuSample, HostSample, SampleWriter
from vitscale.worker.sampling import NodeSampler


class Gpus:
    def __init__(self):
        self.count, self.closed = 0, False
        self.reasons = {"power_w": "NVML: Not Supported", "gpus": "NVML: GPU is lost"}

    def read(self):
        self.count += 1
        return (GpuSample(rank=4, energy_j=float(self.count)),)

    def close(self):
        self.closed = True


class Host:
    def __init__(self):
        self.reasons = {"energy_j": "RAPL: Permission denied"}

    def read(self):
        return HostSample(rank_rss_bytes=7)


@pytest.fixture
def gpus():
    return Gpus()


@pytest.fixture
def sampler(tmp_path, gpus):
    return lambda interval_s: NodeSampler(SampleWriter(tmp_path, 1), 1, interval_s, gpus, Host())


def lines(folder):
    return [json.loads(line) for line in (folder / "devices.node001.jsonl").read_text().splitlines()]


def test_a_line_says_what_happened_since_the_one_before(sampler, tmp_path):
    one = sampler(60)
    for window in ("warmup", "steady"):
        one.enter(window)
    one.close()
    assert [line["window"] for line in lines(tmp_path)] == ["setup", "warmup", "steady"]
    assert [line["gpus"][0]["energy_j"] for line in lines(tmp_path)] == [1, 2, 3]
    assert [line["node"] for line in lines(tmp_path)] == [1, 1, 1]
    assert lines(tmp_path)[0]["time_s"] < 0.05


def test_samples_come_at_the_interval_and_stop_at_the_end(sampler, tmp_path, gpus):
    before = threading.active_count()
    one = sampler(0.02)
    one.enter("steady")
    time.sleep(0.3)
    one.close()
    assert threading.active_count() == before
    found = lines(tmp_path)
    assert 5 <= len(found) <= 17
    times = [line["time_s"] for line in found]
    assert times == sorted(times)
    assert gpus.closed


def test_nothing_is_written_between_flushes(sampler, tmp_path):
    one = sampler(60)
    one.enter("warmup")
    assert (tmp_path / "devices.node001.jsonl").read_text() == ""
    one.flush()
    assert len(lines(tmp_path)) == 1
    one.flush()
    one.close()
    assert len(lines(tmp_path)) == 2


def test_reasons_name_their_fields(sampler):
    one = sampler(60)
    assert one.reasons() == {
        "gpus.power_w": "NVML: Not Supported",
        "gpus": "NVML: GPU is lost",
        "host.energy_j": "RAPL: Permission denied",
    }
    one.close()


def test_a_launch_that_ended_before_its_steps_leaves_an_empty_file(sampler, tmp_path):
    sampler(60).close()
    assert lines(tmp_path) == []
