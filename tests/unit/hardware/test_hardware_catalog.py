"""The device catalog: complete, consistent, and never a stand-in."""

import pytest

from vitscale.errors import UsageError
from vitscale.hardware import catalog


@pytest.mark.parametrize("name", catalog.names())
def test_every_device_has_figures_a_source_and_a_date(name):
    spec = catalog.device(name)
    assert spec.source
    assert spec.date.isdigit()
    assert set(spec.peak_flop_per_s) <= {"fp32", "tf32", "bf16", "fp16"}
    assert 1e12 < min(spec.peak_flop_per_s.values()) <= max(spec.peak_flop_per_s.values()) < 1e16
    assert 4e9 < spec.memory_bytes < 1e12
    assert 1e11 < spec.memory_bytes_per_s < 1e14
    assert 50 < spec.board_power_w <= 1000


@pytest.mark.parametrize("name", catalog.names())
def test_sixteen_bits_are_faster_than_32_on_every_device(name):
    peaks = catalog.device(name).peak_flop_per_s
    assert peaks["fp16"] > peaks["fp32"]
    assert peaks.get("bf16", peaks["fp16"]) == peaks["fp16"]


def test_peaks_are_dense():
    assert catalog.device("h100").peak("bf16") == 1979e12 / 2
    assert catalog.device("a100-80gb").peak("bf16") == 312e12


def test_a_network_is_marked_as_assumed():
    for name in catalog.names():
        network = catalog.device(name).inter_node
        assert network is None or network.source.startswith("assumed: ")


def test_no_two_devices_answer_to_one_name():
    every = [nvml for name in catalog.names() for nvml in catalog.device(name).nvml_names]
    assert len(every) == len(set(every))


def test_nvml_name_is_matched_exactly_or_not_at_all():
    assert catalog.match("NVIDIA H100 80GB HBM3") == catalog.device("h100")
    assert catalog.match("NVIDIA H100 80GB HBM2e") is None
    assert catalog.match("NVIDIA GeForce RTX 5090") is None
    assert catalog.match("") is None


def test_short_name_may_be_written_in_capitals():
    assert catalog.device("H100") == catalog.device("h100")


def test_unknown_device_is_refused_with_close_names():
    with pytest.raises(UsageError, match="h1000") as caught:
        catalog.device("h1000")
    assert "`h100`" in caught.value.hint


def test_name_like_nothing_gets_the_whole_list():
    with pytest.raises(UsageError) as caught:
        catalog.device("????")
    assert "mi300x" in caught.value.hint


def test_few_ranks_of_a_node_reach_the_network_through_their_own_cards():
    full, one = catalog.device("h100").links(8), catalog.device("h100").links(1)
    assert one.inter_node.bytes_per_s == full.inter_node.bytes_per_s / 8
    assert one.intra_node == full.intra_node
    assert catalog.device("t4").links(1).inter_node is None


def test_what_nothing_tells_and_what_has_a_switch_is_said_of_a_link():
    links = {name: catalog.device(name) for name in ("a100-80gb", "v100", "t4")}
    assert [one.intra_node.switched for one in links.values()] == [True, False, False]
    assert links["a100-80gb"].inter_node.assumed
    assert not links["a100-80gb"].intra_node.assumed


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA T4", "t4"),
        ("T4 16GB", "t4"),
        ("A100", "a100-40gb"),
        ("DGX A100", "a100-40gb"),
        ("A100-SXM4-80GB", "a100-80gb"),
        ("a100_80gb", "a100-80gb"),
        ("h100_80gb", "h100"),
        ("H100 PCIe", "h100-pcie"),
        ("v100-32gb", "v100"),
        ("V100 16G", "v100-16gb"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_board_is_found_however_it_is_written(name, meant):
    assert catalog.spelled(name)[0].name == meant


@pytest.mark.parametrize(
    "name",
    ["A10G", "L40", "RTX 3090 Ti", "RTX A6000", "H100 NVL", "H100 96GB HBM2e", "A100-PCIE-40GB", "GH200", "", "cpu"],
)
def test_another_board_is_not_taken_for_one_of_the_catalog(name):
    assert catalog.spelled(name) == ()
