"""The fastest matrix product: the search on made-up times, and real ones on this CPU."""

import pytest

pytest.importorskip("torch")

import torch

from vitscale.worker import gemm
from vitscale.worker.distributed import Ranks


def multiplier(rate_of, calls):
    """A device that multiplies at `rate_of(size)` FLOP/s; notes size and seconds of each product in `calls`."""

    def seconds_of(size):
        calls.append((size, 2 * size**3 / rate_of(size)))
        return calls[-1][1]

    return seconds_of


@pytest.mark.parametrize(("rate", "largest"), [(3e9, 512), (9e10, 1024), (2e11, 2048), (8e13, 8192), (2e15, 8192)])
def test_the_largest_product_fits_the_budget_and_the_device(rate, largest):
    calls = []
    assert gemm.fastest(multiplier(lambda size: rate, calls)) == pytest.approx(rate)
    assert max(size for size, _ in calls) == largest
    assert sum(seconds for _, seconds in calls) <= gemm.BUDGET_S


def test_it_is_the_best_of_all_sizes():
    """Whose caches hold 512 and not 1024."""
    assert gemm.fastest(multiplier(lambda size: 1e11 if size == 512 else 8e10, [])) == pytest.approx(1e11)


def test_a_size_whose_first_product_is_slow_is_multiplied_again():
    calls = []

    def rate_of(size):
        return 1e12 if any(size == one for one, _ in calls) else 5e9

    assert gemm.fastest(multiplier(rate_of, calls)) == pytest.approx(1e12)


def test_a_device_too_slow_for_one_product_has_a_figure_all_the_same():
    calls = []
    assert gemm.fastest(multiplier(lambda size: 1e7, calls)) == pytest.approx(1e7)
    assert len(calls) == 1


def test_on_this_cpu_each_precision_has_a_peak_and_no_draw_of_a_run_changes(monkeypatch):
    monkeypatch.setattr(gemm, "barrier", lambda: None)
    monkeypatch.setattr(gemm, "BUDGET_S", 0.02)
    before = torch.get_rng_state()
    found = gemm.peaks(["fp32", "bf16", "fp32"], Ranks(0, 0, 1, 1, torch.device("cpu")))
    assert set(found) == {"fp32", "bf16"}
    assert all(1e7 < peak < 1e14 for peak in found.values())
    assert torch.equal(torch.get_rng_state(), before)
