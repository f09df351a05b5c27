"""Data sheets give way to what was measured, and say nothing where the work of a rank is not told."""

from dataclasses import replace

import numpy as np
import pytest

from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict.checks import checked
from vitscale.predict.model import calibrate, predict
from vitscale.predict.priors import BOARD_NOISE, GENERIC, NOISE, PARAMETERS, UNKNOWN_BOARD_SHARE, priors
from vitscale.predict.series import LinkRates, Observation, Series


def series(*times, micro=128, nodes=1, **facts):
    seen = tuple(Observation(Layout(size, nodes if size > 1 else 1, micro, 1), step_s) for size, step_s in times)
    known = {"model": "vit_base_patch16_224", "device": "h100", "engine": "ddp", "precision": "bf16"}
    return Series("s", seen, "weak", **{**known, **facts})


@pytest.mark.parametrize("times", [((1, 0.32), (2, 0.33)), ((1, 0.16),)])
def test_measured_steps_outweigh_the_data_sheet(times):
    """Input-bound: a data sheet says 48 ms."""
    found = predict(calibrate(series(*times)), [1, 2, 8])
    first = found.points[0].step_s
    assert first.median == pytest.approx(times[0][1], rel=0.03)
    assert first.low95 < times[0][1] < first.high95
    assert all(one.efficiency.high95 < 1.1 for one in found.points)


def test_a_step_of_launches_is_not_taken_for_an_update():
    found = predict(calibrate(series((1, 0.03), (2, 0.03), (4, 0.03), micro=8, model="vit_tiny_patch16_224")), [8])
    assert found.points[0].losses.limit == "compute"
    assert found.points[0].efficiency.high95 < 1.1


def test_noise_is_bounded_by_what_repeats_may_differ():
    prior = priors(series((1, 0.32)), 128)
    drawn = prior.parameters(np.full((1, len(PARAMETERS)), 8.0))[0]
    assert all(drawn[PARAMETERS.index(name)] <= 0.3 for name in NOISE)


def test_specs_only_keep_the_data_sheets_width():
    measured, bare = priors(series((1, 0.05)), 128), priors(series((1, None)), 128)
    assert bare.micro_step_log_sd == 0.3
    assert measured.micro_step_log_sd >= 1.5


@pytest.mark.parametrize("sizes", [(1, 2, 4), (2, 4, 8)])
def test_an_untold_micro_batch_takes_nothing_from_the_data_sheet_of_the_device(sizes):
    given = checked(series(*((size, 0.5) for size in sizes), micro=1.0, batch_told=False))
    found = predict(calibrate(given), [8])
    (point,) = found.points
    assert point.step_s.median == pytest.approx(0.5, rel=0.02)
    assert point.step_s.half_width < 0.1
    assert 0.9 < point.efficiency.low95 <= point.efficiency.high95 < 1.1
    assert point.memory is None


def test_an_untold_micro_batch_is_not_predicted_from_specs():
    with pytest.raises(UsageError, match="no times, and the micro-batch is not told"):
        calibrate(series((8, None), micro=1.0, batch_told=False))


def test_a_timed_link_takes_its_bytes_over_its_rate_whatever_the_data_sheet_says_of_compute():
    given = series((1, 0.09), links=LinkRates(None, 1.25e9), engine="deepspeed")
    said = predict(calibrate(given), [2], ranks_per_node=1).points[0].step_s
    # 86.6 M weights of 2 bytes twice over the link, half of it with two nodes.
    sent_s = 2 * 2 * 86.6e6 / 1.25e9 / 2
    assert said.median == pytest.approx(0.09 + sent_s, rel=0.1)
    bare = priors(replace(given, observations=(Observation(Layout(1, 1, 128, 1), None),)), 128)
    index = PARAMETERS.index("inter_node")
    seen = priors(given, 128).median[index] * 0.09
    assert seen == pytest.approx(bare.median[index] * bare.micro_step_s)


def test_a_device_is_known_however_it_is_written_and_what_was_taken_is_said():
    exact, written, vague = (priors(series((1, 0.32), device=name), 128) for name in ("h100", "H100-80GB", "A100"))
    assert written.micro_step_s == exact.micro_step_s
    assert written.board_share == 0
    assert any("`A100` is taken as NVIDIA A100 SXM4 40 GB" in line for line in vague.assumptions)
    assert not any("is taken as" in line for line in (*exact.assumptions, *written.assumptions))


@pytest.mark.parametrize("device", [None, "GH200"])
def test_noise_of_an_unknown_device_is_between_a_servers_and_that_of_boards(device):
    def upper(name):
        drawn = priors(series((1, 0.32), device=name), 128).parameters(np.full((1, len(PARAMETERS)), 1.5))[0]
        return drawn[PARAMETERS.index("noise")]

    assert upper("h100") < upper(device) < upper("t4")
    assert priors(series((1, 0.32), device="cpu"), 128).board_share == 0


def test_noise_of_an_unknown_device_follows_the_mixture():
    prior = priors(series((1, 0.32), device=None), 128)
    z = np.random.default_rng(0).standard_normal((20_000, len(PARAMETERS)))
    noisy = (prior.parameters(z)[:, PARAMETERS.index("noise")] > BOARD_NOISE[0]).mean()
    assert noisy == pytest.approx(UNKNOWN_BOARD_SHARE / 2, abs=0.02)


def test_a_model_that_is_no_timm_vit_takes_no_bytes_from_the_data_sheet():
    found = priors(series((1, 0.32), model="bert-large", device="a100-80gb"), 128)
    names = ("update", "intra_node", "inter_node")
    assert all(found.median[PARAMETERS.index(name)] == GENERIC[name][0] for name in names)


def test_boards_without_a_server_meet_over_a_network_that_may_be_slow():
    bare = priors(series((1, 0.23), (2, 0.57), micro=16, nodes=2, device="rtx3070", precision="fp32"), 16)
    index = PARAMETERS.index("inter_node")
    # 86.6 M weights of 4 bytes twice at 10 Gbit/s.
    assert bare.median[index] * 0.23 == pytest.approx(8 * 86.6e6 / 1.25e9, rel=0.01)
    assert bare.log_sd[index] == 1.2
    assert any("10 Gbit/s" in line for line in bare.assumptions)
