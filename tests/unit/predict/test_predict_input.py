"""What a step takes for its images is told apart, named, and shortened by nothing that computes."""

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
from vitscale.predict.suggest import suggest
from vitscale.records.writer import file_digest

GOLDEN = Path(__file__).parents[2] / "golden" / "study"
BUSY = {1: 0.1, 2: 0.102, 4: 0.104}
H100 = Asked(device="h100")


def series(input_s, *, told):
    """32 images a rank, all ranks on one node; a step takes `BUSY` beside what it takes for its images."""
    seen = tuple(
        Observation(Layout(size, 1, 32, 1), busy_s + input_s, input_s=input_s if told else None)
        for size, busy_s in BUSY.items()
    )
    facts = {"model": "vit_base_patch16_224", "device": "a100-40gb", "engine": "ddp", "precision": "bf16"}
    return Series("s", seen, "weak", **facts)


TOLD, UNTOLD, NONE = series(0.1, told=True), series(0.1, told=False), series(0.0, told=False)


def test_what_was_measured_is_said_again_and_input_limits_it():
    found = predict(calibrate(TOLD), [4, 8])
    assert found.points[0].step_s.median == pytest.approx(0.204, rel=0.02)
    for point in found.points:
        assert point.losses.limit == "input"
        assert point.losses.input == pytest.approx(0.49, abs=0.03)
    assert any("images: to read, copy and prepare them is up to 50.0 % of a step" in one for one in found.assumptions)
    assert not any("ranks of a node read" in line for line in found.points[0].assumptions)
    assert any("8 ranks of a node read them, 4 did" in line for line in found.points[1].assumptions)


def test_shares_of_the_other_losses_are_of_the_whole_step():
    told, alone = (predict(calibrate(one), [4]).points[0].losses for one in (TOLD, NONE))
    assert alone.input == 0
    assert told.communication == pytest.approx(alone.communication * 0.104 / 0.204, rel=0.02)
    assert told.small_batch == pytest.approx(alone.small_batch * 0.104 / 0.204, rel=0.02)


def test_another_device_computes_faster_and_takes_as_long_for_its_images():
    (told, untold, alone) = (predict(calibrate(one), [4], H100).points[0].step_s.median for one in (TOLD, UNTOLD, NONE))
    assert told == pytest.approx(alone + 0.1, rel=0.04)
    assert untold < 0.9 * told


def test_a_slower_network_adds_as_much_with_images_as_without():
    def step_s(of):
        return predict_layouts(calibrate(of), [Layout(8, 2, 32, 1)], Asked(link="20gbit"))[0].median

    assert step_s(NONE) > 0.11
    assert step_s(TOLD) == pytest.approx(step_s(NONE) + 0.1, rel=0.02)


def test_efficiency_under_a_change_has_images_on_both_sides():
    told, alone = (predict(calibrate(one), [4], H100).points[0].efficiency.median for one in (TOLD, NONE))
    step_s = predict(calibrate(NONE), [4], H100).points[0].step_s.median
    assert told == pytest.approx((step_s * alone + 0.1) / (step_s + 0.1), abs=2e-3)


def test_fuller_nodes_widen_the_interval():
    fuller, same = (predict(calibrate(TOLD), [64], ranks_per_node=each).points[0].step_s for each in (64, 4))
    assert fuller.half_width > 2 * same.half_width


def test_candidates_and_simulations_have_it_too():
    shape = models.shape("vit_base_patch16_224")
    source = Source(shape, 128, 1280, 1.0, "adamw", (TOLD,))
    pool, way = Pool("a100-40gb", 4, None, None), Way("ddp", None, "bf16")
    (drawn,) = steps_of(source)([Candidate(pool, way, Layout(4, 1, 32, 1))])
    assert np.median(drawn) == pytest.approx(0.204, rel=0.02)
    fitted = calibration_file([calibrate(TOLD)]).series["s"]
    assert FittedSeries.model_validate_json(fitted.model_dump_json()).readings == TOLD.input.readings
    assert fitted.micro_step_s.median < 0.11


def golden(tmp_path, changed):
    """The golden study, its step lines as `changed` makes them of the run's name and the line; torn lines left out."""
    folder = tmp_path / "results"
    shutil.copytree(GOLDEN, folder)
    for path in folder.glob("runs/*/launch*/steps.rank*.jsonl"):
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        lines = [changed(path.parts[-3], json.loads(line)) for line in whole]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        manifest = path.with_name("manifest.json")
        if manifest.exists():
            told = json.loads(manifest.read_text())
            manifest.write_text(json.dumps({**told, "files": {**told["files"], path.name: file_digest(path)}}))
    return folder


def test_records_tell_it_where_it_is_no_small_part(tmp_path):
    def longer(_, line):
        return {**line, "data_s": line["data_s"] + 0.05, "step_s": line["step_s"] + 0.05}

    before = {one.name: one for one in read(GOLDEN)}
    assert all(at.input_s is None for one in before.values() for at in one.observations)
    for one in read(golden(tmp_path, longer)):
        for seen, old in zip(one.observations, before[one.name].observations, strict=True):
            assert seen.step_s == pytest.approx(old.step_s + 0.05)
            assert seen.input_s == pytest.approx(0.05, rel=0.1)
            assert seen.busy_s == pytest.approx(old.step_s, rel=0.1)


def test_where_one_run_does_not_tell_it_no_step_is_taken_apart(tmp_path):
    def told_alone(run, line):
        return {**line, "data_s": line["step_s"] / 2 if "-w1-" in run else None}

    found = [one for one in read(golden(tmp_path, told_alone)) if len(one.observations) > 1]
    assert found
    assert all(at.input_s is None for one in found for at in one.observations)


def test_series_of_a_folder_are_taken_apart_together(tmp_path):
    def shares(run, line):
        return {**line, "data_s": line["step_s"] * (0.03 if "-z1-" in run else 0.08)}

    for one in read(golden(tmp_path, shares)):
        share = 0.03 if one.zero_stage == 1 else 0.08
        for seen in one.observations:
            assert seen.input_s == pytest.approx(share * seen.step_s, rel=0.1)


def test_no_run_is_advised_for_what_only_fuller_nodes_tell():
    # At most 4 ranks of a node were measured, and nothing between 4 and 8 is a candidate.
    advice = suggest(calibrate(TOLD), 8, Asked(), ranks_per_node=8)
    assert advice.half_width > 0.7
    assert advice.suggestions == ()
    assert suggest(calibrate(NONE), 8, Asked(), ranks_per_node=8).suggestions


def test_a_run_on_fuller_nodes_narrows_about_as_much_as_was_said():
    advice = suggest(calibrate(TOLD), 16, Asked(), ranks_per_node=16)
    first = advice.suggestions[0]
    assert first.layout == Layout(8, 1, 32, 1)
    assert first.device_s == pytest.approx(8 * (30 + 30 * 0.206), rel=0.02)
    more = replace(TOLD, observations=(*TOLD.observations, Observation(first.layout, 0.206, input_s=0.1)))
    (after,) = predict_layouts(calibrate(more), [Layout(16, 1, 32, 1)])
    assert first.half_width == pytest.approx(after.half_width, rel=0.4)
