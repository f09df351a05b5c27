"""Mechanisms are found again in steps made from them, and intervals widen where less is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from vitscale.cost.scaling import MECHANISMS, Layout, Mechanisms, Schedule, parts, schedule
from vitscale.cost.stragglers import expected_maximum
from vitscale.errors import UsageError
from vitscale.predict.change import changed
from vitscale.predict.model import calibrate, predict
from vitscale.predict.priors import PARAMETERS, priors
from vitscale.predict.series import Asked, LinkRates, Observation, Series
from vitscale.predict.suggest import Start, suggest

TRUE = {
    "fixed_share": 0.1, "update": 0.02, "intra_node": 0.05, "inter_node": 0.15, "hop": 1e-4, "contention": 0.05,
    "exposed_floor": 0.3, "jitter": 0.01,
}  # fmt: skip


def truth(layout):
    one = Mechanisms(*(np.array([TRUE[name]]) for name in MECHANISMS))
    return float(parts(one, layout, 64, Schedule()).step[0])


def made(sizes, per_node=8, micro=64, seconds=0.1, noise=0.002, **facts):
    rng = np.random.default_rng(1)
    seen = []
    for size in sizes:
        layout = Layout(size, max(1, size // per_node), micro, 1)
        seen.append(Observation(layout, seconds * truth(layout) * math.exp(noise * rng.standard_normal())))
    return Series("made", tuple(seen), protocol="weak", **facts)


def at(prediction, size):
    return next(one for one in prediction.points if one.layout.world_size == size)


def test_parts_are_the_written_forms():
    one = Mechanisms(*(np.array([TRUE[name]]) for name in MECHANISMS))
    found = parts(one, Layout(16, 2, 32, 4), 64, Schedule())
    compute = 4 * (0.9 * 0.5 + 0.1)
    assert found.compute[0] == pytest.approx(compute)
    assert found.update[0] == pytest.approx(0.02)
    assert found.wait[0] == pytest.approx(0.01 * expected_maximum(16, 1.0) * compute)
    assert found.exposed[0] == pytest.approx(0.15 * 15 / 16 * 1.05 + 1e-4 * 2 * (7 + 1))
    assert found.step[0] == pytest.approx(
        sum(getattr(found, name)[0] for name in ("compute", "update", "exposed", "wait"))
    )


def test_one_rank_sends_nothing_and_overlap_leaves_a_floor():
    one = Mechanisms(*(np.array([TRUE[name]]) for name in MECHANISMS))
    alone = parts(one, Layout(1, 1, 64, 1), 64, Schedule())
    assert alone.exposed[0] == alone.wait[0] == 0
    hidden = parts(one, Layout(16, 2, 64, 1), 64, schedule("ddp", None)).exposed[0]
    shown = parts(one, Layout(16, 2, 64, 1), 64, Schedule()).exposed[0]
    assert hidden == pytest.approx(0.3 * shown)


@pytest.mark.parametrize(
    ("engine", "stage", "overlaps", "volume"),
    [("deepspeed", 0, False, 1.0), ("deepspeed", 1, False, 1.0), ("deepspeed", 3, True, 1.5), ("fsdp", None, True, 1.5),
     ("ddp", None, True, 1.0), (None, None, False, 1.0)],
)  # fmt: skip
def test_engines_hide_what_they_hide(engine, stage, overlaps, volume):
    found = schedule(engine, stage)
    assert (found.overlap, found.volume) == (overlaps, volume)


@pytest.mark.parametrize(
    ("stage", "knobs"), [(0, {"overlap_reduce": True}), (1, {"overlap_comm": True}), (2, {"overlap_comm": True})]
)
def test_what_a_study_sends_beside_backward_is_predicted_so(stage, knobs):
    facts = {"model": "vit_base_patch16_224", "device": "h100", "engine": "deepspeed", "precision": "bf16"}
    alone = made((1,), zero_stage=stage, **facts)
    beside = replace(alone, knobs=knobs)
    shown, hidden = (predict(calibrate(one), [8]).points[0].losses.communication for one in (alone, beside))
    assert 0 < hidden < shown / 2
    on_cpu = replace(beside, device="cpu")
    assert calibrate(on_cpu).plan.overlap == (stage == 0)


def test_another_stage_has_the_knobs_of_the_series():
    series = made((1, 2), model="vit_base_patch16_224", engine="deepspeed", zero_stage=3, knobs={"overlap_comm": False})
    assert not calibrate(series).plan.overlap
    for asked in (False, True):
        own = replace(series, knobs={"overlap_comm": asked})
        assert changed(own, Asked(zero_stage=2), 0.1).plan == schedule("deepspeed", 2, {"overlap_comm": asked})


def test_larger_counts_are_found_from_smaller_ones():
    found = predict(calibrate(made((1, 2, 4, 8, 16))), [64, 256])
    for size in (64, 256):
        layout = Layout(size, size // 8, 64, 1)
        true_s = 0.1 * truth(layout)
        said = at(found, size).step_s
        assert said.low95 < true_s < said.high95
        assert abs(said.median / true_s - 1) < 0.05


def test_with_fewer_runs_the_interval_is_wider():
    widths = [
        at(predict(calibrate(made(sizes)), [64]), 64).step_s.half_width for sizes in ((1,), (1, 2, 4), (4, 8, 16, 32))
    ]
    assert widths[0] > widths[1] > widths[2]


def test_intervals_are_in_order_and_efficiency_is_of_the_baseline():
    found = predict(calibrate(made((1, 2, 4))), [1, 8, 32])
    for one in found.points:
        for said in (one.step_s, one.images_per_s, one.speedup, one.efficiency):
            assert said.low95 <= said.low80 <= said.median <= said.high80 <= said.high95
    assert at(found, 1).efficiency.median == 1
    eight = at(found, 8)
    assert eight.efficiency.median == pytest.approx(eight.speedup.median / 8)
    assert eight.images_per_s.median == pytest.approx(8 * 64 / eight.step_s.median, rel=0.01)


def test_the_same_series_gives_the_same_figures():
    first, second = (predict(calibrate(made((1, 2, 4))), [64]).points[0].step_s for _ in range(2))
    assert first == second


def test_many_precise_runs_do_not_starve_the_sampler():
    series = made((1, 2, 4, 8, 16, 32, 64, 128), noise=0.0005)
    calibration = calibrate(series)
    assert calibration.posterior.effective > 100
    low, high = calibration.parameters["inter_node"].low95, calibration.parameters["inter_node"].high95
    assert low < TRUE["inter_node"] < high


def test_specs_only_knows_the_device_or_says_that_it_cannot():
    bare = tuple(Observation(Layout(size, 1, 64, 1), None) for size in (1, 8))
    known = Series("specs", bare, "weak", model="vit_base_patch16_224", device="a100-80gb", precision="bf16")
    said = at(predict(calibrate(known), [8]), 8)
    assert said.step_s.half_width > 0.3
    with pytest.raises(UsageError, match="not in the catalog"):
        calibrate(replace(known, device="abacus"))
    with pytest.raises(UsageError, match="no device is told"):
        calibrate(replace(known, device=None))


def test_strong_scaling_keeps_the_global_batch():
    seen = tuple(
        Observation(Layout(size, 1, 64 / size, 1), 0.1 * truth(Layout(size, 1, 64 / size, 1))) for size in (1, 2, 4)
    )
    series = Series("strong", seen, "strong")
    found = predict(calibrate(series), [8, 16])
    assert {one.layout.global_batch for one in found.points} == {64}
    assert at(found, 16).losses.small_batch > at(found, 8).losses.small_batch
    with pytest.raises(UsageError, match="128 ranks without an image"):
        predict(calibrate(series), [128])


def test_accumulation_gives_way_where_the_series_varies_it():
    seen = tuple(Observation(Layout(size, 1, 16, 8 // size), 0.1 * (8 // size)) for size in (1, 2, 4))
    found = predict(calibrate(Series("accum", seen, "strong")), [8]).points[0].layout
    assert (found.micro_batch, found.grad_accum) == (16, 1)


def test_a_faster_link_is_faster_and_says_so():
    series = made(
        (1, 2), per_node=1, seconds=1.0, model="vit_tiny_patch16_224", device="cpu", precision="fp32", source="measured"
    )
    slow, fast = (predict(calibrate(series), [4], Asked(link=rate)) for rate in ("100mbit", "10gbit"))
    assert slow.points[0].step_s.median > fast.points[0].step_s.median
    assert any("100mbit" in line for line in slow.assumptions)
    # 5.7 M weights of 4 bytes twice over 12.5 MB/s, all but a quarter.
    gap = slow.points[0].step_s.median - fast.points[0].step_s.median
    assert gap == pytest.approx(2 * 5.72e6 * 4 * 0.75 / 12.5e6, rel=0.1)


def test_another_device_scales_by_its_peak_and_memory_and_widens():
    series = made((1, 2, 4), model="vit_base_patch16_224", device="a100-80gb", precision="bf16")
    calibration = calibrate(series)
    same, other = predict(calibration, [1]), predict(calibration, [1], Asked(device="h100"))
    # Products are 3.17 times as fast, memory is 1.64 times.
    ratio = same.points[0].step_s.median / other.points[0].step_s.median
    assert 989.5 / 312 > ratio > 3.35 / 2.039
    assert other.points[0].step_s.half_width > same.points[0].step_s.half_width
    with pytest.raises(UsageError, match="without figures"):
        predict(calibrate(made((1, 2))), [4], Asked(device="h100"))


@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_world_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(UsageError, match="world size"):
        predict(calibrate(made((1, 2))), [size])


def test_far_and_below_are_predicted_and_said_and_beyond_all_sense_is_refused():
    calibration = calibrate(made((2, 4)))
    found = predict(calibration, [1, 64, 65, 16_384])
    assert any("below the smallest" in line for line in at(found, 1).assumptions)
    assert not any("times the largest" in line for line in at(found, 64).assumptions)
    for size, times in ((65, "16"), (16_384, "4,096")):
        told = f"{times} times the largest measured world size: published tables check errors up to 64 times"
        assert told in at(found, size).assumptions
    assert at(found, 16_384).step_s.half_width > at(found, 64).step_s.half_width > at(found, 1).step_s.half_width
    with pytest.raises(UsageError, match="16,385 is not predicted from 4") as caught:
        predict(calibration, [16_385])
    assert "1 to 16,384" in caught.value.hint


@pytest.mark.parametrize(
    ("micro", "images", "told"),
    [(64, None, None), (64, 1000, None), (64, 500, "more than the 500 images of an epoch"), (8192, None, "65,536")],
)
def test_a_global_batch_beyond_experience_is_said(micro, images, told):
    series = replace(made((1, 2), micro=micro), protocol="strong_fixed_micro", images_per_epoch=images)
    (point,) = predict(calibrate(series), [9]).points
    found = [line for line in point.assumptions if line.startswith("a global batch of")]
    assert len(found) == (told is not None)
    assert all(told in line for line in found)


def test_a_batch_that_grows_by_the_asked_protocol_has_an_epoch_that_does():
    calibration = calibrate(replace(made((1, 2)), protocol="strong_fixed_micro", images_per_epoch=500))
    own, weak = (predict(calibration, [9], asked).points[0].assumptions for asked in (None, Asked(protocol="weak")))
    assert any("images of an epoch" in line for line in own)
    assert not any("images of an epoch" in line for line in weak)


def noticed(*times, nodes=None, micro=64, **facts):
    """What is said of steps at 1, 2, 4, … ranks that the mechanisms do not explain."""
    sizes = [2**power for power in range(len(times))]
    seen = tuple(
        Observation(Layout(size, size if nodes else 1, micro, 1), time) for size, time in zip(sizes, times, strict=True)
    )
    told = calibrate(Series("s", seen, "weak", **facts)).assumptions
    return [line for line in told if "do not fit the mechanisms" in line]


@pytest.mark.parametrize(
    ("times", "where"),
    [
        ((0.16, 0.161, 0.3, 0.163), "4 ranks on 1 node"),
        ((0.3, 0.105, 0.11, 0.115), "1 rank on 1 node"),
        ((0.16, 0.162, 0.02, 0.164), "4 ranks on 1 node"),
        ((0.16, 0.30, 0.14, 0.33), "4 ranks on 1 node"),
    ],
    ids=["peak", "first", "valley", "noise"],
)
def test_a_run_that_no_mechanism_brings_together_with_the_others_is_to_be_repeated(times, where):
    (told,) = noticed(*times)
    assert f"no mechanism makes {where} so unlike the others: repeat it" in told


def test_steps_that_fit_are_not_remarked_nor_are_two_layouts():
    assert not noticed(0.16, 0.162, 0.165, 0.167)
    assert not noticed(0.1, 1.0)
    assert not noticed(1.0, 0.1)


@pytest.mark.parametrize(("device", "engine"), [("cpu", "ddp"), (None, "deepspeed")])
def test_a_slow_network_is_no_reason_to_repeat_a_run(device, engine):
    # A ring over 1 Gbit/s: 344 MB of gradients, 2 (n - 1) / n of them over 117 MB/s, beside 0.5 s of compute.
    ring = [0.5 + 2 * 344 / 117 * (size - 1) / size for size in (1, 2, 4, 8)]
    facts = {"model": "vit_base_patch16_224", "device": device, "engine": engine, "precision": "fp32"}
    (told,) = noticed(*ring, nodes="each", micro=32, **facts)
    assert "above all of the network" in told
    assert "repeat" not in told


def test_without_a_micro_batch_it_is_the_work_that_is_doubted():
    (told,) = noticed(1.6, 0.3, 0.9, 0.2, batch_told=False)
    assert "the work of a rank, which is not told" in told


def test_suggested_runs_narrow_the_interval_and_the_first_helps_most():
    advice = suggest(calibrate(made((1, 2))), 64, Asked())
    assert advice.suggestions
    widths = [advice.half_width, *(one.half_width for one in advice.suggestions)]
    assert widths == sorted(widths, reverse=True)
    assert all(one.layout.world_size < 64 and one.device_s > 0 for one in advice.suggestions)


def test_a_suggested_run_does_narrow_it_when_it_is_done():
    series = made((1, 2))
    advice = suggest(calibrate(series), 64, Asked(), ranks_per_node=8)
    layout = advice.suggestions[0].layout
    more = replace(series, observations=(*series.observations, Observation(layout, 0.1 * truth(layout))))
    after = at(predict(calibrate(more), [64], ranks_per_node=8), 64).step_s.half_width
    assert after < 0.8 * at(predict(calibrate(series), [64], ranks_per_node=8), 64).step_s.half_width


def test_a_link_that_was_timed_is_a_narrow_prior():
    seen = (Observation(Layout(1, 1, 32, 1), 0.5),)
    series = Series("cpu", seen, "weak", model="vit_tiny_patch16_224", device="cpu", precision="fp32")
    told = priors(replace(series, links=LinkRates(None, 12.5e6)), 32)
    index = PARAMETERS.index("inter_node")
    assert told.median[index] == pytest.approx(2 * 4 * 5.72e6 / 12.5e6 / 0.5, rel=0.01)
    assert told.log_sd[index] < 0.5 * priors(series, 32).log_sd[index]
    assert any("as it was timed or shaped" in line for line in told.assumptions)
    shaped = replace(series, links=LinkRates(None, 12.5e6))
    said = predict(calibrate(shaped), [2], ranks_per_node=1).points[0].step_s
    assert said.median == pytest.approx(0.5 + 4 * 5.72e6 / 12.5e6, rel=0.1)
    assert said.half_width < 0.4


def test_runs_that_cannot_be_started_here_come_last():
    calibration = calibrate(made((1, 2)))
    free = suggest(calibration, 64, Asked()).suggestions
    reason = "not on this machine"
    first = free[0].layout
    told = suggest(calibration, 64, Asked(), start=lambda at: Start(reason=reason if at == first else None)).suggestions
    assert told[0].layout != first
    assert [one.start.reason for one in told] == sorted(
        (one.start.reason for one in told), key=lambda why: why == reason
    )
    nowhere = suggest(calibration, 64, Asked(), start=lambda at: Start(reason=reason)).suggestions
    assert [one.layout for one in nowhere] == [one.layout for one in free]
