# ruff: noqa: N802, N815 (NVML's own names)
"""What becomes of NVML's answers, and of those it does not give: devices and drivers differ in what they tell."""

from types import SimpleNamespace

import pytest

from vitscale.hardware.gpu_sensors import GpuSensors

OURS, FOREIGN = 1001, 7


class FakeNvml:
    """The functions of `pynvml` that are used. What is in `refused` raises as NVML does."""

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.refused = {}
        self.energy_mj = {"GPU-a": 5_000_000, "GPU-b": 9_000_000}
        self.pids = {"GPU-a": [OURS], "GPU-b": [OURS + 1]}
        self.throttle = 0
        self.open = 0

    def __getattribute__(self, name):
        refused = object.__getattribute__(self, "__dict__").get("refused", {})
        if name in refused or (name.startswith("nvmlDevice") and "every" in refused):
            raise self.NVMLError(refused.get(name) or refused["every"])
        return object.__getattribute__(self, name)

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    nvmlDeviceGetHandleByUUID = staticmethod(str)
    nvmlDeviceGetUtilizationRates = staticmethod(lambda gpu: SimpleNamespace(gpu=87, memory=40))
    nvmlDeviceGetMemoryInfo = staticmethod(lambda gpu: SimpleNamespace(used=3_000_000_000, total=80_000_000_000))
    nvmlDeviceGetTemperature = staticmethod(lambda gpu, kind: 61)
    nvmlDeviceGetPowerUsage = staticmethod(lambda gpu: 412_345)
    nvmlDeviceGetClockInfo = staticmethod(lambda gpu, kind: {1: 1755, 2: 2619}[kind])
    nvmlDeviceGetMaxClockInfo = staticmethod(lambda gpu, kind: {1: 1980, 2: 2619}[kind])

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        return self.energy_mj[gpu]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):
        return self.throttle

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [SimpleNamespace(pid=pid) for pid in self.pids[gpu]]


@pytest.fixture
def nvml():
    return FakeNvml()


def sensors(nvml):
    return GpuSensors({0: "GPU-a"}, [OURS, OURS + 1], nvml)


def test_units_are_base_units(nvml):
    (gpu,) = sensors(nvml).read()
    assert gpu.utilisation_share == 0.87
    assert gpu.memory_used_bytes == 3_000_000_000
    assert gpu.temperature_c == 61
    assert gpu.power_w == pytest.approx(412.345)
    assert (gpu.sm_clock_hz, gpu.memory_clock_hz) == (1755e6, 2619e6)
    assert (gpu.throttle, gpu.foreign_processes) == ((), 0)


def test_energy_counts_from_the_first_sample_of_each_gpu(nvml):
    both = GpuSensors({0: "GPU-a", 1: "GPU-b"}, [OURS, OURS + 1], nvml)
    assert [gpu.energy_j for gpu in both.read()] == [0, 0]
    nvml.energy_mj = {"GPU-a": 5_000_500, "GPU-b": 9_002_000}
    assert [gpu.energy_j for gpu in both.read()] == pytest.approx([0.5, 2.0])


def test_a_counter_that_starts_anew_is_not_read_on(nvml):
    found = sensors(nvml)
    found.read()
    nvml.energy_mj["GPU-a"] = 10
    assert found.read()[0].energy_j is None
    assert found.reasons == {"energy_j": "the counter went back"}


FIELDS = {
    "nvmlDeviceGetUtilizationRates": {"utilisation_share"},
    "nvmlDeviceGetMemoryInfo": {"memory_used_bytes"},
    "nvmlDeviceGetTemperature": {"temperature_c"},
    "nvmlDeviceGetPowerUsage": {"power_w"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_j"},
    "nvmlDeviceGetClockInfo": {"sm_clock_hz", "memory_clock_hz"},
    "nvmlDeviceGetCurrentClocksThrottleReasons": {"throttle"},
    "nvmlDeviceGetComputeRunningProcesses": {"foreign_processes"},
}


@pytest.mark.parametrize(("function", "fields"), FIELDS.items(), ids=FIELDS)
def test_an_unsupported_field_is_null_with_a_reason_and_the_others_are_read(nvml, function, fields):
    nvml.refused = {function: "Not Supported"}
    found = sensors(nvml)
    gpu = found.read()[0].model_dump()
    assert {name for name, value in gpu.items() if value is None} == fields
    assert found.reasons == dict.fromkeys(fields, "NVML: Not Supported")


def test_a_function_this_nvidia_ml_py_lacks_is_a_null_too(nvml, monkeypatch):
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetTotalEnergyConsumption")
    found = sensors(nvml)
    assert found.read()[0].energy_j is None
    assert "nvmlDeviceGetTotalEnergyConsumption" in found.reasons["energy_j"]


def test_a_driver_that_goes_away_leaves_nulls_and_may_come_back(nvml):
    found = sensors(nvml)
    assert found.read()[0].power_w is not None
    nvml.refused = {"every": "GPU is lost"}
    assert found.read()[0].model_dump(exclude_none=True) == {"rank": 0}
    assert found.reasons == {"gpus": "NVML: GPU is lost"}
    nvml.refused = {}
    assert found.read()[0].power_w is not None


def test_no_driver_at_all_is_a_null_for_every_gpu(nvml):
    nvml.refused = {"nvmlInit": "Driver Not Loaded"}
    found = GpuSensors({0: "GPU-a", 1: "GPU-b"}, [OURS], nvml)
    assert [gpu.model_dump(exclude_none=True) for gpu in found.read()] == [{"rank": 0}, {"rank": 1}]
    assert found.reasons == {"gpus": "NVML: Driver Not Loaded"}
    found.close()


def test_without_gpus_nvml_is_left_alone(nvml):
    found = GpuSensors({}, [OURS], nvml)
    assert found.read() == ()
    found.close()
    assert nvml.open == 0


def test_every_opening_is_closed_once(nvml):
    found = sensors(nvml)
    assert nvml.open == 1
    found.close()
    found.close()
    assert nvml.open == 0


def test_throttle_reasons_have_names_and_idleness_is_none(nvml):
    nvml.throttle = 0x1 | 0x4 | 0x40
    assert sensors(nvml).read()[0].throttle == ("sw_power_cap", "hw_thermal_slowdown")
    nvml.throttle = 0x1
    assert sensors(nvml).read()[0].throttle == ()


def test_names_of_throttle_reasons_are_those_of_nvml():
    import pynvml

    from vitscale.hardware import gpu_sensors

    for bit, name in gpu_sensors._THROTTLE.items():
        words = "".join(part.capitalize() for part in name.split("_"))
        assert getattr(pynvml, f"nvmlClocksThrottleReason{words}") == bit


@pytest.mark.parametrize(
    ("pids", "foreign"),
    [
        ([OURS], 0),
        ([OURS, FOREIGN], 1),
        ([OURS, OURS + 1, FOREIGN, 8], 2),
        ([50001], 0),  # the host's number of our process
        ([50001, FOREIGN], 1),
        ([], None),
    ],
)
def test_processes_that_are_no_rank_are_foreign(nvml, pids, foreign):
    nvml.pids["GPU-a"] = pids
    found = sensors(nvml)
    assert found.read()[0].foreign_processes == foreign
    assert ("foreign_processes" in found.reasons) == (foreign is None)


def test_ranks_that_share_a_gpu_are_one_sample(nvml):
    nvml.pids["GPU-a"] = [50001, 50002, FOREIGN]
    (gpu,) = GpuSensors({0: "GPU-a", 1: "GPU-a"}, [OURS, OURS + 1], nvml).read()
    assert (gpu.rank, gpu.foreign_processes) == (0, 1)
