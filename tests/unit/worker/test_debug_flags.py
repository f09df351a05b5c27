"""Debugging that costs time is told by name and value; nothing else of the environment is."""

import pytest
import torch

from vitscale.analysis.debug_flags import _DOES
from vitscale.worker import debug_flags

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_what_costs_time_is_told_with_its_value():
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "NCCL_DEBUG": "info", "TORCH_DISTRIBUTED_DEBUG": "DETAIL", "HF_TOKEN": "x"}
    assert debug_flags.found(environ, CUDA) == {
        "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
        "CUDA_LAUNCH_BLOCKING": "1",
        "NCCL_DEBUG": "INFO",
    }


def test_flags_of_cuda_cost_nothing_on_a_cpu():
    assert debug_flags.found({"CUDA_LAUNCH_BLOCKING": "1", "NCCL_DEBUG": "TRACE"}, CPU) == {}


@pytest.mark.parametrize(
    "environ",
    [{}, {"NCCL_DEBUG": "WARN"}, {"CUDA_LAUNCH_BLOCKING": "0"}, {"TORCH_DISTRIBUTED_DEBUG": "INFO"},
     {"TORCH_SHOW_CPP_STACKTRACES": "1"}, {"NCCL_DEBUG": "/home/me"}],
)  # fmt: skip
def test_what_costs_nothing_is_not_told(environ):
    assert debug_flags.found(environ, CUDA) == {}


def test_anomaly_mode_is_told():
    with torch.autograd.set_detect_anomaly(True):
        assert debug_flags.found({}, CPU) == {debug_flags.ANOMALY: "True"}
    assert debug_flags.found({}, CPU) == {}


def test_every_flag_has_words():
    assert {*debug_flags._EVERYWHERE, *debug_flags._ON_CUDA, debug_flags.ANOMALY} == set(_DOES)
