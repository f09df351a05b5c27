"""What becomes of the kernel's answers: CPU time, memory, clock, and energy counters that wrap."""

import os
import subprocess
import sys
import time

import pytest

from vitscale.hardware.host_sensors import HostSensors


@pytest.fixture
def root(tmp_path):
    """A fake /sys: two packages, one with memory, and zones that lie inside others."""
    for zone, name in {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }.items():
        write(tmp_path, zone, 1_000_000)
        (tmp_path / "sys/class/powercap" / zone / "name").write_text(f"{name}\n")
        (tmp_path / "sys/class/powercap" / zone / "max_energy_range_uj").write_text("262143328850\n")
    for core, kilohertz in ((0, 3_000_000), (2, 2_000_000)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{kilohertz}\n")
    swap(tmp_path, 1000)
    return tmp_path


def swap(root, pages):
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/vmstat").write_text(f"nr_free_pages 7\npswpin {pages}\npswpout 3\n")


def write(root, zone, microjoules):
    folder = root / "sys/class/powercap" / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")


def sensors(root, cores=(0, 2)):
    return HostSensors([os.getpid()], cores, root)


def test_energy_is_that_of_packages_and_memory_since_the_first_reading(root):
    found = sensors(root)
    assert found.read().energy_j == 0
    for zone in (root / "sys/class/powercap").iterdir():
        write(root, zone.name, 3_500_000)
    assert found.read().energy_j == pytest.approx(3 * 2.5)
    assert found.reasons == {}


def test_a_counter_that_wraps_is_read_on(root):
    write(root, "intel-rapl:1", 262_143_000_000)
    found = sensors(root)
    found.read()
    write(root, "intel-rapl:1", 671_150)
    assert found.read().energy_j == pytest.approx(1.0)
    write(root, "intel-rapl:1", 1_671_150)
    assert found.read().energy_j == pytest.approx(2.0)


def test_counters_for_root_only_are_null_with_a_reason(root):
    (root / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    found = sensors(root)
    assert found.read().energy_j is None
    assert found.reasons == {"energy_j": "RAPL: No such file or directory"}


def test_a_machine_that_shows_nothing_says_so(tmp_path):
    found = sensors(tmp_path)
    read = found.read()
    assert (read.energy_j, read.core_clock_hz) == (None, None)
    assert set(found.reasons) == {"energy_j", "core_clock_hz", "swapped_in_bytes"}
    assert read.rank_rss_bytes > 0


def test_the_clock_is_a_mean_in_hertz(root):
    assert sensors(root).read().core_clock_hz == 2.5e9
    assert sensors(root, [0]).read().core_clock_hz == 3e9
    assert sensors(root, [0, 7]).read().core_clock_hz is None


def test_cpu_time_counts_from_the_first_reading(root):
    found = sensors(root)
    first = found.read()
    assert (first.cpu_s, first.rank_cpu_s) == (0, 0)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    second = found.read()
    assert second.rank_cpu_s >= 0.08
    assert second.cpu_s >= second.rank_cpu_s - 0.05


def test_a_rank_that_is_gone_leaves_nulls(root):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = HostSensors([os.getpid(), child.pid], [0], root)
    alone = HostSensors([os.getpid()], [0], root).read().rank_rss_bytes
    assert found.read().rank_rss_bytes > alone
    child.communicate()
    gone = found.read()
    assert (gone.rank_cpu_s, gone.rank_rss_bytes) == (None, None)
    assert gone.cpu_s is not None
    assert "NoSuchProcess" in found.reasons["rank_cpu_s"]


def test_what_is_read_back_from_swap_counts_since_the_first_reading(root):
    found = sensors(root)
    assert found.read().swapped_in_bytes == 0
    swap(root, 1300)
    assert found.read().swapped_in_bytes == 300 * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("text", [None, "", "pswpin many\n"])
def test_a_kernel_that_does_not_count_swapping_is_null_with_a_reason(root, text):
    if text is None:
        (root / "proc/vmstat").unlink()
    else:
        (root / "proc/vmstat").write_text(text)
    found = sensors(root)
    assert found.read().swapped_in_bytes is None
    assert "/proc/vmstat" in found.reasons["swapped_in_bytes"]
