"""What another precision or device does to seconds that it does not change."""

import numpy as np
import pytest

from vitscale.cost.scaling import MECHANISMS, Layout, Mechanisms, parts
from vitscale.predict.change import changed
from vitscale.predict.priors import PARAMETERS
from vitscale.predict.series import Asked, Observation, Series


def seconds(asked, layout, hop=0.0, micro_step_s=0.75):
    """Seconds of communication of DeepSpeed's ZeRO-0, which hides nothing."""
    seen = (Observation(Layout(1, 1, 32, 1), micro_step_s),)
    series = Series(
        "s", seen, "weak", model="vit_base_patch16_224", device="t4", engine="deepspeed", zero_stage=0,
        precision="fp32",
    )  # fmt: skip
    change = changed(series, asked, micro_step_s)
    theta = np.full((1, len(PARAMETERS)), 0.01)
    theta[0, PARAMETERS.index("inter_node")] = 2.0
    theta[0, PARAMETERS.index("intra_node")] = 0.5
    theta[0, PARAMETERS.index("hop")] = hop
    drawn = change.parameters(theta)
    one = Mechanisms(*(drawn[:, PARAMETERS.index(name)] for name in MECHANISMS))
    found = parts(one, layout, 32, change.plan)
    return float(found.exposed[0]) * micro_step_s * float(np.exp(change.log_scale)), change


@pytest.mark.parametrize("layout", [Layout(16, 2, 32, 1), Layout(8, 1, 32, 1)])
def test_another_precision_sends_fewer_bytes_over_links_as_fast_as_before(layout):
    """A T4 has no figure for its network: half the bytes are half the time, though compute is 10 times as fast."""
    before, _ = seconds(Asked(), layout)
    after, change = seconds(Asked(precision="fp16"), layout)
    assert change.log_scale < -2
    assert after == pytest.approx(before / 2)


def test_a_hop_takes_its_time_whatever_computes():
    alone = Layout(2, 2, 32, 1)
    before, _ = seconds(Asked(), alone, hop=0.01)
    after, _ = seconds(Asked(precision="fp16"), alone, hop=0.01)
    hops = 0.01 * 2 * 0.75
    assert after == pytest.approx((before - hops) / 2 + hops)


def test_a_link_without_figures_of_both_devices_is_taken_as_equally_fast_and_said():
    layout = Layout(16, 2, 32, 1)
    before, _ = seconds(Asked(), layout)
    after, change = seconds(Asked(device="h100"), layout)
    assert after == pytest.approx(before)
    assert any("inter node link: no figures of both devices" in line for line in change.assumptions)
