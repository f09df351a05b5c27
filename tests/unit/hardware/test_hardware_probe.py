"""What the probe believes: affinity, control groups, NVML."""

import os
import subprocess
import sys

import psutil
import pynvml
import pytest

from vitscale.hardware import probe as probing
from vitscale.hardware.probe import Gpu, allowed_cores, allowed_memory_bytes, probe, visible_indices

UUIDS = ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3"]


def files(root, contents):
    for path, text in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_cores_respect_the_affinity_mask():
    machine = probe({})
    assert set(machine.cores) <= os.sched_getaffinity(0)
    assert 1 <= len(machine.cores) <= machine.host_cores
    assert 0 < machine.memory_bytes <= psutil.virtual_memory().total


def test_no_quota_leaves_all_cores(tmp_path):
    files(tmp_path, {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"})
    assert allowed_cores([0, 1, 2], tmp_path) == (0, 1, 2)
    assert allowed_cores([0, 1, 2], tmp_path / "nothing") == (0, 1, 2)


@pytest.mark.parametrize(("quota", "expected"), [("250000 100000", (0, 2)), ("50000 100000", (0,))])
def test_quota_of_a_group_above_limits_the_cores(tmp_path, quota, expected):
    files(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": quota,
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
        },
    )
    assert allowed_cores([0, 2, 3, 5], tmp_path) == expected


def test_version_one_quota_and_memory_limit_are_read(tmp_path):
    files(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1000",
        },
    )
    assert allowed_cores([0, 1, 2], tmp_path) == (0, 1)
    assert allowed_memory_bytes(5000, tmp_path) == 1000


def test_memory_is_the_least_limit_above_this_process(tmp_path):
    files(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": "3000\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
        },
    )
    assert allowed_memory_bytes(5000, tmp_path) == 3000
    assert allowed_memory_bytes(2000, tmp_path) == 2000


def test_container_whose_group_path_is_not_mounted_reads_the_mount(tmp_path):
    files(tmp_path, {"proc/self/cgroup": "0::/../../host/job\n", "sys/fs/cgroup/memory.max": "7\n"})
    assert allowed_memory_bytes(5000, tmp_path) == 7


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("0,9,1", [0]),
        ("GPU-bbbb", [1]),
        ("GPU-", []),
        ("MIG-x,0", []),
        (" 1 , 2 ", [1, 2]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(visible, expected):
    assert visible_indices(visible, UUIDS) == expected


@pytest.fixture
def two_gpus(monkeypatch):
    class Memory:
        total = 85_520_809_984

    for name, value in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: UUIDS[handle],
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H100 80GB HBM3" if handle else "Tesla T4",
        "nvmlDeviceGetMemoryInfo": lambda handle: Memory,
        "nvmlSystemGetDriverVersion": lambda: "570.1",
    }.items():
        monkeypatch.setattr(pynvml, name, value)


def test_gpus_are_those_the_environment_shows(two_gpus):
    machine = probe({"CUDA_VISIBLE_DEVICES": "1"})
    assert machine.gpus == (Gpu("NVIDIA H100 80GB HBM3", 85_520_809_984),)
    assert (machine.driver, machine.gpus_reason) == ("570.1", None)
    assert [gpu.name for gpu in probe({}).gpus] == ["Tesla T4", "NVIDIA H100 80GB HBM3"]


def test_hidden_gpus_have_a_reason(two_gpus):
    machine = probe({"CUDA_VISIBLE_DEVICES": ""})
    assert machine.gpus == ()
    assert "CUDA_VISIBLE_DEVICES" in machine.gpus_reason


def test_nothing_that_identifies_the_machine_is_kept(two_gpus):
    assert not any(uuid in repr(probe({})) for uuid in UUIDS)


def test_machine_without_nvml_has_no_gpus_and_says_why(monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(probing.os, "environ", {})
    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    machine = probe()
    assert machine.gpus == ()
    assert machine.gpus_reason.startswith("NVML: ")
    assert machine.driver is None


def test_importing_the_room_looks_at_nothing():
    code = (
        "import sys, vitscale.hardware.probe, vitscale.hardware.catalog as c, vitscale.cost.models as m;"
        "assert 'pynvml' not in sys.modules and 'torch' not in sys.modules;"
        "assert not c._catalog.cache_info().currsize and not m._table.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
