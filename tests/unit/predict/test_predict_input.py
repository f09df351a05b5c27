"""Steps that wait for images: the wait is told apart, named, and shortened by nothing that computes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitscale.cost import models
from vitscale.cost.calibrated import FittedSeries
from vitscale.cost.scaling import Layout
from vitscale.predict.candidates import Candidate, Pool, Way
from vitscale.predict.document import calibration_file
from vitscale.predict.from_source import Source, steps_of
from vitscale.predict.model import calibrate, predict, predict_layouts
from vitscale.predict.read import read
from vitscale.predict.series import Asked, Observation, Series

GOLDEN = Path(__file__).parents[2] / "golden" / "study"
BUSY = {1: 0.1, 2: 0.102, 4: 0.104}


def waiting(input_s, knobs, **facts):
    """32 images a rank, all ranks on one node; a step takes `BUSY` beside its wait for images."""
    seen = tuple(
        Observation(Layout(size, 1, 32, 1), busy_s + input_s, input_s=input_s) for size, busy_s in BUSY.items()
    )
    same = {"model": "vit_base_patch16_224", "device": "a100-40gb", "engine": "ddp", "precision": "bf16"}
    return Series("s", seen, "weak", knobs=knobs, **{**same, **facts})


ON_DEMAND = waiting(0.1, {"loader_threads": 0})
AHEAD = waiting(0.1, {})
UNTOLD = replace(ON_DEMAND, observations=tuple(replace(one, input_s=None) for one in ON_DEMAND.observations))


@pytest.mark.parametrize("series", [ON_DEMAND, AHEAD])
def test_what_was_measured_is_said_again_and_input_limits_it(series):
    found = predict(calibrate(series), [4, 8])
    assert found.points[0].step_s.median == pytest.approx(0.204, rel=0.03)
    assert found.points[1].step_s.median == pytest.approx(0.205, rel=0.05)
    for point in found.points:
        assert point.losses.limit == "input"
        assert point.losses.input == pytest.approx(0.5, abs=0.05)
    assert any("steps wait for images, up to 50.0 % of one" in line for line in found.assumptions)
    assert any("8 ranks of a node read images, 4 did" in line for line in found.points[1].assumptions)


def test_another_device_computes_faster_and_reads_as_long():
    asked = Asked(device="h100")
    before, after = (predict(calibrate(ON_DEMAND), [4], one).points[0].step_s.median for one in (Asked(), asked))
    untold = predict(calibrate(UNTOLD), [4], asked).points[0].step_s.median
    assert 0.1 < after < before
    assert untold < after
    # Read ahead: a step is no shorter than its images take to be read, which is all of the measured one.
    assert predict(calibrate(AHEAD), [4], asked).points[0].step_s.median == pytest.approx(0.2, rel=0.05)


def test_read_ahead_a_slower_network_is_hidden_beside_reading():
    def step_s(series):
        return predict_layouts(calibrate(series), [Layout(8, 2, 32, 1)], Asked(link="20gbit"))[0].median

    alone = step_s(replace(AHEAD, observations=tuple(Observation(Layout(n, 1, 32, 1), BUSY[n]) for n in BUSY)))
    assert 0.11 < alone < 0.2
    assert step_s(AHEAD) == pytest.approx(0.2, rel=0.05)
    assert step_s(ON_DEMAND) == pytest.approx(alone + 0.1, rel=0.05)


def test_speedup_under_a_change_has_the_wait_on_both_sides():
    asked = Asked(device="h100")
    told, untold = (predict(calibrate(one), [4], asked).points[0].efficiency for one in (AHEAD, UNTOLD))
    assert told.median == pytest.approx(1, abs=0.02)
    assert untold.median < 0.999


def test_the_uncertainty_of_reading_is_in_the_interval():
    told = predict(calibrate(ON_DEMAND), [64], ranks_per_node=64).points[0].step_s
    near = predict(calibrate(ON_DEMAND), [64], ranks_per_node=4).points[0].step_s
    assert told.half_width > 2 * near.half_width


def test_candidates_are_compared_with_their_wait_and_the_calibration_keeps_it():
    shape = models.shape("vit_base_patch16_224")
    source = Source(shape, 128, 1280, 1.0, "adamw", (ON_DEMAND,))
    pool, way = Pool("a100-40gb", 4, None, None), Way("ddp", None, "bf16")
    (drawn,) = steps_of(source)([Candidate(pool, way, Layout(4, 1, 32, 1))])
    assert np.median(drawn) == pytest.approx(0.204, rel=0.03)
    file = calibration_file([calibrate(ON_DEMAND)])
    text = file.series["s"].model_dump_json()
    assert FittedSeries.model_validate_json(text).readings == ON_DEMAND.input.readings
    assert file.series["s"].micro_step_s.median < 0.12


def test_records_tell_it_where_it_is_no_small_part(tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(GOLDEN, folder)
    before = {one.name: one for one in read(folder)}
    assert all(at.input_s is None for one in before.values() for at in one.observations)
    for path in folder.glob("runs/*/launch*/steps.rank*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["data_s"] += 0.05
            line["step_s"] += 0.05
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for one in read(folder):
        for seen, old in zip(one.observations, before[one.name].observations, strict=True):
            assert seen.step_s == pytest.approx(old.step_s + 0.05)
            assert seen.input_s == pytest.approx(0.05, rel=0.1)
            assert seen.busy_s == pytest.approx(old.step_s, rel=0.1)
        assert not one.input.ahead
